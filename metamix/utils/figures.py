"""Figures written as PNG."""

from pathlib import Path

from matplotlib.figure import Figure

from .files import written_whole
from .text import readable


def plain(name: str) -> str:
    """A name as text of a picture, where a $ begins no formula."""
    return readable(name).replace("$", r"\$")


def save_figure(path: Path, figure: Figure) -> None:
    with written_whole(path) as file:
        figure.savefig(file, format="png", dpi=110)
