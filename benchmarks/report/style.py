"""Define what all pictures share: colours, width and resolution."""

from pathlib import Path

from matplotlib.figure import Figure

from metamix.mixers import list_mixers
from metamix.utils.figures import save_figure

# The palette of Okabe and Ito, and grey for identity.
COLORS = dict(zip(list_mixers(), ("#777777", "#e69f00", "#56b4e9", "#009e73", "#d55e00", "#0072b2", "#cc79a7")))
WIDTH = 8.8  # inches


def save(path: Path, figure: Figure) -> None:
    """Write a figure as PNG with 200 pixels an inch."""
    save_figure(path, figure, dpi=200)
