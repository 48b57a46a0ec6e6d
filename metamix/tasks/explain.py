"""Show which parts of an image a prediction is based on, and what the mixers compute there: `metamix explain`.

The class activation map is HiResCAM (Draelos and Carin, arXiv 2011.08891), computed by the package grad-cam: the
activations of the last feature maps times the gradient of the score. For a model that ends in a mean and a linear head,
it equals Grad-CAM.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm
from matplotlib.patches import Rectangle
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from metamix.data.options import ImageOptions
from metamix.mixers.views import Point, View, view
from metamix.models.metaformer import Block
from metamix.utils.extras import need
from metamix.utils.figures import figure_text, image_grid, save_figure
from metamix.utils.files import make_output_folder
from metamix.utils.options import option, parse_command, positional
from metamix.utils.system import exit_if_out_of_memory, prepare_device
from metamix.utils.text import exit_with_message, plural, printable

from .find import is_exported, task_of
from .load import load
from .predict import name_outputs, predict_images
from .registry import TASKS, find_task

GRAD_CAM = "pytorch_grad_cam", "explain", "grad-cam"  # module, extra and package
SHOWN_SCORES = 6
SHOWN_BLOCKS = 4  # maximum number of blocks whose mixers are drawn, for a model with one stage
EXAMPLES = """examples:
  metamix explain photo.jpg --checkpoint metaformer_minattn_nano.cifar10
  metamix explain photos --checkpoint runs/cells --label RBC --output explained"""


@dataclass
class ExplainOptions(ImageOptions):
    """Show which parts of images a prediction is based on, and what the mixers of the model compute there."""

    images: tuple[Path, ...] = positional("image files, and folders, which are searched at any depth", metavar="IMAGE")
    checkpoint: str = option(MISSING, "run folder, weight file, or NAME.TAG of shipped or published weights")
    label: str | None = option(None, "class to explain; default: the class with the highest score")
    output: Path = option(Path("explanations"), "folder to write to", metavar="FOLDER")
    device: str = option("auto", "auto, cpu, cuda, cuda:1 or mps")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.checkpoint:
            raise ValueError("checkpoint is empty: give --checkpoint RUN_OR_FILE")
        self.records = self.output / "explanations.json"
        self.names = name_outputs(self.images, [self.output], lambda path: ".png", marker=self.records)


@dataclass(frozen=True)
class Explanation:
    """The data for a figure that explains the prediction of one image."""

    image: Tensor  # the image as the model sees it, (C, H, W) uint8
    activation: Tensor  # class activation map, (H, W), from 0 to 1
    scores: Sequence[tuple[str, float]]  # labels with their scores, the highest first
    explained: int  # index in `scores` of the label that is explained
    # Name, mixer and the mixer's input (1, C, h, w) of each block to draw.
    blocks: Sequence[tuple[str, nn.Module, Tensor]]
    # Height and width of the image, as shares of the padded image that the views of the mixers cover.
    covers: tuple[float, ...] = (1.0, 1.0)
    # For a detector, the box (x1, y1, x2, y2), in pixels, of the object that each score belongs to.
    boxes: Sequence[Sequence[float]] = ()

    @property
    def point(self) -> Point:
        """Return (row, column) of the highest activation, as shares of the image's height and width."""
        row, column = divmod(int(self.activation.argmax()), self.activation.shape[1])
        return (row + 0.5) / self.activation.shape[0], (column + 0.5) / self.activation.shape[1]

    @torch.no_grad()
    def views(self) -> list[tuple[str, list[View]]]:
        """Return the name of each block and the pictures of its mixer; blocks without pictures are left out."""
        point = self.point[0] * self.covers[0], self.point[1] * self.covers[1]
        return [(name, views) for name, mixer, x in self.blocks if (views := view(mixer, x, point))]


def main(argv: Sequence[str]) -> None:
    """Explain images; exit with 1 if an image was left out, and with a message if the input is invalid."""
    with exit_with_message(ValueError, OSError, ImportError):
        options, _ = parse_command(argv, ExplainOptions, "metamix explain", epilog=EXAMPLES)
        explain = find_explainer(options.checkpoint)
        device = prepare_device(options.device)
        trained = load(options.checkpoint)
        trained.model.to(device)

        def draw(path: Path, name: Path) -> dict[str, Any]:
            explanation = explain(trained, path, options.label)
            label, score = explanation.scores[explanation.explained]
            picture = options.output / name
            make_output_folder(picture.parent)
            draw_explanation(picture, explanation)
            return {"label": label, "score": round(score, 4)}

        with exit_if_out_of_memory("give --device cpu, or smaller images"):
            drawn = predict_images(options.names, draw, options.records)
    print(printable(f"written: {options.records} and {plural(drawn, 'picture')}"))
    raise SystemExit(0 if drawn == len(options.names) else 1)


def find_explainer(checkpoint: str) -> Callable[[Any, Path, str | None], Explanation]:
    """Return the function that explains a model.

    Raises:
        ValueError: models of this task, or exported models, cannot be explained.
        ImportError: grad-cam is not installed.
    """
    spec = find_task(task_of(checkpoint)[0])
    if not spec.explain:
        others = " and ".join(name for name in TASKS if find_task(name).explain)
        raise ValueError(f"{checkpoint} is a model for {spec.name}, and only models for {others} can be explained")
    if is_exported(checkpoint):
        raise ValueError(f"{checkpoint} is an exported model, which has no gradients: give the original run or weights")
    need(*GRAD_CAM)
    return spec.part("explain")


def activation_map(model: nn.Module, layers: list[nn.Module], image: Tensor, score: Callable[[Any], Tensor]) -> Tensor:
    """Compute HiResCAM of a score, averaged over layers with maps (1, C, h, w): (H, W), from 0 to 1.

    `image` is prepared, (C, H, W). `score` takes the model's output for the image and returns the score to explain.
    """
    with torch.enable_grad():
        cam = need(*GRAD_CAM).HiResCAM(model=model, target_layers=layers)
        images = image[None].requires_grad_()  # the maps get a gradient, even if all parameters are frozen
        return torch.from_numpy(cam(input_tensor=images, targets=[score])[0])


@contextmanager
def watched_mixers(model: nn.Module) -> Iterator[list[tuple[str, nn.Module, Tensor]]]:
    """Record the name, the mixer and the mixer's input of some blocks, in each forward pass inside the context.

    The last block of each stage is recorded. In a model with one stage, evenly spaced blocks are recorded instead.
    """
    blocks = [(name, block) for name, block in model.named_modules() if isinstance(block, Block)]
    last = {name.rpartition(".blocks.")[0]: (name, block) for name, block in blocks}  # last block of each stage
    count = min(SHOWN_BLOCKS, len(blocks))
    spaced = [blocks[(i + 1) * len(blocks) // count - 1] for i in range(count)]
    inputs: list[tuple[str, nn.Module, Tensor]] = []

    def watch(name: str, mixer: nn.Module) -> RemovableHandle:
        stage, block = name.rpartition("stages.")[2].split(".blocks.")
        title = f"block {int(stage) + 1}.{int(block) + 1}"
        return mixer.register_forward_pre_hook(lambda mixer, args: inputs.append((title, mixer, args[0].detach())))

    hooks = [watch(name, block.mixer) for name, block in (spaced if len(last) == 1 else last.values())]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()


def draw_explanation(path: Path, explanation: Explanation) -> None:
    """Save a figure: the image, its activation map and the scores, and below them a column of views for each block."""
    shown = explanation.views()
    rows, columns = 1 + max((len(views) for _, views in shown), default=0), max(3, len(shown))
    height, width = explanation.activation.shape
    side = 2.6 * min(2.2, max(0.35, height / width))
    figure, grid = image_grid(rows, columns, "compressed", figsize=(2.6 * columns, (side + 0.4) * rows))
    label, _ = explanation.scores[explanation.explained]
    for axes, title in zip(grid[0], ("image", f"activation for {figure_text(label)}", "scores")):
        axes.set_title(title, fontsize=9)
    show_image(grid[0, 0], explanation)
    show_map(grid[0, 1], explanation, explanation.activation, "inferno")
    show_scores(grid[0, 2], explanation)
    for column, (name, views) in zip(grid[1:].T, shown):
        for axes, one in zip(column, views):
            axes.set_title(f"{name}\n{one.title}", fontsize=8)
            if one.is_map:
                show_map(axes, explanation, one.values, "viridis", explanation.covers)
            else:
                axes.imshow(one.values.float().cpu().numpy(), norm=CenteredNorm(), cmap="RdBu_r")
    save_figure(path, figure, dpi=150)


def show_image(axes: Axes, explanation: Explanation, grey: bool = False) -> None:
    """Draw the image with its boxes, or in grey with only the explained box."""
    _, height, width = explanation.image.shape
    pixels = explanation.image.float().mean(0) if grey else explanation.image.permute(1, 2, 0).squeeze(-1)
    axes.imshow(pixels.numpy(), cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
    for i, (x0, y0, x1, y1) in enumerate(explanation.boxes):
        colour = "tab:orange" if i == explanation.explained else "white"
        if not grey or i == explanation.explained:
            axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=colour, lw=1.2))


def show_map(
    axes: Axes, explanation: Explanation, values: Tensor, cmap: str, covers: Sequence[float] = (1.0, 1.0)
) -> None:
    """Draw a map over the grey image, and mark the highest activation; for `covers` see `Explanation`."""
    show_image(axes, explanation, grey=True)
    _, height, width = explanation.image.shape
    extent = (0, width / covers[1], height / covers[0], 0)
    axes.imshow(values.float().cpu().numpy(), vmin=0, cmap=cmap, alpha=0.65, extent=extent)
    row, column = explanation.point
    axes.plot(column * width, row * height, "o", ms=7, mfc="none", mec="white", mew=1.5)
    axes.set(xlim=(0, width), ylim=(height, 0))


def show_scores(axes: Axes, explanation: Explanation) -> None:
    """Draw the highest scores and the explained score as bars, and write the labels on the bars."""
    shown = list(range(len(explanation.scores)))[:SHOWN_SCORES]
    if explanation.explained not in shown:
        shown[-1] = explanation.explained
    for row, i in enumerate(shown):
        label, score = explanation.scores[i]
        axes.barh(row, score, color="tab:orange" if i == explanation.explained else "tab:blue", alpha=0.6)
        axes.text(0.02, row, f"{figure_text(label)}  {score:.3f}", va="center", fontsize=8)
    axes.set(xlim=(0, 1), ylim=(SHOWN_SCORES - 0.5, -0.5))
