"""Draw a contact sheet of input, output, target and error, and write the scores of each image to a CSV."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from metamix.layers import crop_to
from metamix.training.task import Pictures, State
from metamix.utils.figures import figure_text, image_grid, save_figure
from metamix.utils.files import write_text
from metamix.utils.text import csv_text

from .metric import SHOWN, RestorationMetric, all_rows

COLUMNS = ("image", "psnr", "ssim", "input_psnr", "input_ssim")
TITLE = "{image}: {input_psnr:.2f} to {psnr:.2f} dB"
ZOOM = 64  # side of the zoomed crops in pixels


class RestorationPictures(Pictures):
    """Draw the images and report the scores in the states of a metric."""

    def __init__(self, metric: RestorationMetric):
        self.metric = metric

    def draw(self, states: list[State], folder: Path) -> list[Path]:
        """Draw the contact sheet and write a CSV with a row for each image; return the files."""
        sheet, table = (folder / f"test_{name}" for name in ("images.png", "scores.csv"))
        rows = all_rows(states)
        scores = {row["index"]: row for row in rows}
        shown = sorted((item for state in states for item in state["shown"]), key=lambda item: item[0])[:SHOWN]
        draw_sheet(sheet, [(TITLE.format_map(scores[index]), pictures) for index, pictures in shown])
        lines = [[row["image"], *(f"{row[name]:.4f}" for name in COLUMNS[1:])] for row in rows]
        write_text(table, csv_text([COLUMNS, *lines]))
        return [sheet, table]

    def details(self, states: list[State]) -> list[str]:
        return ["input_psnr and input_ssim are the scores of the images before restoration"]

    def advice(self, states: list[State]) -> str:
        """Return advice if the images score lower after restoration than before, else an empty string."""
        scores = self.metric.result(states)
        if scores["psnr"] >= scores["input_psnr"]:
            return ""
        return (
            f"note: the images score lower after restoration than before ({scores['psnr']:.2f} and "
            f"{scores['input_psnr']:.2f} dB): train longer (--epochs, --crops), or on images like these"
        )


def draw_sheet(path: Path, rows: Sequence[tuple[str, Sequence[Tensor]]]) -> None:
    """Draw the input, output, target, error and two zoomed crops of each image in a row.

    The error is the mean over channels of |output - target|; the colour scale ends at 32 of 255. The zoomed
    crops are the centres of the input and of the output. Each entry of `rows` is a title and three images, (C, H, W)
    uint8: input, output and target.
    """
    titles = ("input", "output", "target", "error, 0 to 32", "input, zoomed", "output, zoomed")
    figure, grid = image_grid(max(1, len(rows)), len(titles), figsize=(15, 2.9 * max(1, len(rows))))
    for (title, (before, restored, target)), line in zip(rows, grid):
        error = (restored.float() - target.float()).abs().mean(0)
        for axes, picture in zip(line[[0, 1, 2, 4, 5]], (before, restored, target, zoom(before), zoom(restored))):
            axes.imshow(picture.permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=255)
        line[3].imshow(error.numpy(), cmap="magma", vmin=0, vmax=32)
        line[0].set_title(figure_text(title), fontsize="small", loc="left")
        for axes, name in zip(line[1:], titles[1:]):
            axes.set_title(name, fontsize="small")
    save_figure(path, figure)


def zoom(image: Tensor) -> Tensor:
    """Crop the centre of an image (C, H, W), `ZOOM` x `ZOOM` pixels or fewer."""
    return crop_to(image, [min(side, ZOOM) for side in image.shape[-2:]], centre=True)
