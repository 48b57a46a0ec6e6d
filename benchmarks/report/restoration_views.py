"""Draw photographs that the shipped weights restored: docs/images/restoration-views.jpg.

    python -m benchmarks.report.restoration_views

The photographs come with scikit-image: the cameraman (CC0, by Lav Varshney) and the astronaut Eileen Collins (NASA,
public domain). The titles give the PSNR of the whole photograph, as the tables measure it.
"""

import argparse

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from skimage import data
from torch import Tensor

from benchmarks.paths import IMAGES
from benchmarks.report.figures import WIDTH
from metamix.restoration.degradations import parse_degradations
from metamix.restoration.inference import Restorer, enlarge, restore_colours
from metamix.restoration.load import load_restorer
from metamix.restoration.metric import Measure
from metamix.utils.figures import image_grid
from metamix.utils.files import atomic_write

FILE = IMAGES / "restoration-views.jpg"
SIDE = 96  # side of the zoomed crops in pixels
# Photograph, top and left of the crop, degradation, title of the degraded image, tag of the weights, measure of PSNR.
ROWS = (
    (data.camera, (90, 210), "noise:25", "noise of sigma 25", "noise25", Measure()),
    (data.astronaut, (70, 190), "downscale:2", "bicubic x2", "x2", Measure("y", border=2)),
)
MODELS = {"noise25": ("wavemix_restore_nano", "maxim_nano"), "x2": ("wavemixsr_nano", "maxim_nano")}


def restore(photograph: Tensor, degradation: str, tag: str) -> dict[str, Tensor]:
    """Degrade a photograph (C, H, W), and restore it with each model in `MODELS[tag]`.

    Returns:
        The degraded image, enlarged to the size of the photograph, as "input", and the restored images by model.
    """
    degraded = parse_degradations(degradation)(photograph, torch.Generator().manual_seed(0))
    images = {"input": enlarge(degraded, photograph.shape[-1] // degraded.shape[-1])}
    for model in MODELS[tag]:
        trained = load_restorer(None, model=f"{model}.{tag}", pretrained=True)
        restorer = Restorer(enlarge=trained.spec.enlarge)
        images[model] = restore_colours(trained.model, degraded, trained.spec.channels, restorer)
    return images


def draw() -> Figure:
    """Draw a row for each photograph: the whole photograph, and crops of the degraded, restored and clean images."""
    figure, grid = image_grid(len(ROWS), 3 + len(MODELS["x2"]), figsize=(1.4 * WIDTH, 5.4))
    for line, (photograph, (top, left), degradation, name, tag, measure) in zip(grid, ROWS):
        pixels = photograph()
        target = torch.from_numpy(pixels).view(*pixels.shape[:2], -1).permute(2, 0, 1).float() / 255
        images = restore(target, degradation, tag)
        show(line[0], target, photograph.__name__)
        line[0].add_patch(Rectangle((left, top), SIDE, SIDE, fill=False, color="#d55e00", linewidth=1.5))
        titles = {"input": name} | {model: f"{model}.{tag}" for model in images if model != "input"}
        for axes, (model, image) in zip(line[1:], images.items()):
            psnr = measure.score(image, target)[0]
            show(axes, image[:, top : top + SIDE, left : left + SIDE], f"{titles[model]}\n{psnr:.2f} dB")
        show(line[-1], target[:, top : top + SIDE, left : left + SIDE], "target")
    return figure


def show(axes, image: Tensor, title: str) -> None:
    """Show an image (C, H, W) with values from 0 to 1."""
    values = image.clamp(0, 1).permute(1, 2, 0).numpy()
    axes.imshow(values, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize="small")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    figure = draw()
    with atomic_write(FILE) as file:
        figure.savefig(file, format="jpg", dpi=130, pil_kwargs={"quality": 85})
    print(f"written: {FILE}")


if __name__ == "__main__":
    main()
