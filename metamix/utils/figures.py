"""Write figures as PNG."""

from pathlib import Path

from matplotlib.figure import Figure

from .files import atomic_write
from .text import readable


def plain(name: str) -> str:
    """Escape a name for a figure: a $ would start a formula."""
    return readable(name).replace("$", r"\$")


def save_figure(path: Path, figure: Figure) -> None:
    """Write a figure atomically."""
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110)
