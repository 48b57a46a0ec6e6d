"""Figures written as PNG."""

from pathlib import Path

from matplotlib.figure import Figure

from .files import atomic_write
from .text import readable


def plain(name: str) -> str:
    """A name as text of a picture, where a $ begins no formula."""
    return readable(name).replace("$", r"\$")


def save_figure(path: Path, figure: Figure) -> None:
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110)
