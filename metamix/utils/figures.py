"""Write figures as PNG, and draw confusion matrices."""

import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import Tensor

from .files import atomic_write
from .text import package_logger, printable

# Fonts with Chinese, Japanese and Korean characters, which matplotlib's own font lacks.
CJK_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Noto Sans JP", "Noto Sans KR", "Source Han Sans SC",
    "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "PingFang SC", "Hiragino Sans",
    "Apple SD Gothic Neo", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "SimHei", "Arial Unicode MS",
)  # fmt: skip

log = package_logger(__name__)


@cache
def fonts() -> list[str]:
    """Return the font families for figures: the user's sans-serif fonts, then the installed fonts of `CJK_FONTS`."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ["sans-serif", *(name for name in CJK_FONTS if name in installed)]


def figure_text(text: str) -> str:
    """Escape a text for a figure, in which a $ would start a formula."""
    return printable(text).replace("$", r"\$")


def image_grid(rows: int, columns: int, layout: Any = "constrained", **options: Any) -> tuple[Figure, Any]:
    """Make a figure and its (rows, columns) axes for images, without ticks or frames."""
    figure = Figure(layout=layout, **options)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    return figure, grid


def save_figure(path: Path, figure: Figure, dpi: int = 110) -> None:
    """Write a figure atomically, as PNG with `dpi` pixels per inch. Warn about letters that no installed font has."""
    for text in figure.findobj(Text):
        text.set_fontfamily(fonts())
    with atomic_write(path) as file, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(file, format="png", dpi=dpi)
    others = [each for each in caught if not str(each.message).startswith("Glyph ")]
    if len(others) < len(caught):
        log.warning("%s shows boxes for letters that no installed font has: install Noto Sans CJK", path)
    for each in others:
        warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)


def draw_confusion(
    path: Path, confusion: Tensor, classes: Sequence[str], title: str, *, of: str = "samples", percent: bool = False
) -> None:
    """Draw a confusion matrix as PNG. Colours show the percentage of each label's samples that got each prediction.

    With up to 40 classes, the axes show their names. With up to 20 classes, the cells show numbers too.

    Args:
        confusion: (classes, classes) int64; rows are labels.
        of: what is counted, in the plural.
        percent: whether cells show percentages instead of counts; cells below 1 % are then empty.
    """
    shares = 100 * confusion.double() / confusion.sum(1, keepdim=True).clamp(min=1)
    count = len(classes)
    side = min(12.0, 3.0 + 0.4 * count)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    names = [figure_text(name) for name in classes]
    image = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(image, label=f"% of the label's {of}", shrink=0.8)
    axes.set(xlabel="prediction", ylabel="label", title=title)
    if count <= 40:
        turned: dict[str, Any] = {"rotation": 45, "ha": "right"} if max(map(len, names)) > 3 else {}
        axes.set_xticks(range(count), names, **turned)
        axes.set_yticks(range(count), names)
    if count <= 20:
        for label, prediction in (shares >= 1 if percent else confusion).nonzero().tolist():
            color = "white" if shares[label, prediction] > 50 else "black"
            share, number = float(shares[label, prediction]), int(confusion[label, prediction])
            text = f"{share:.0f}" if percent else str(number)
            axes.text(prediction, label, text, ha="center", va="center", fontsize="small", color=color)
    save_figure(path, figure)
