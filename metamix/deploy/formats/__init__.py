"""List the formats of exported models. A module for each format writes and opens models, and may quantize them.

To add a format, write a module like onnx.py and add its `FORMAT` below.
"""

from pathlib import Path

from metamix.utils.checks import check_choice

from . import onnx, openvino, torch_export
from .base import Format, Graph, Run

FORMATS: dict[str, Format] = {
    "onnx": onnx.FORMAT,
    "openvino": openvino.FORMAT,
    "torch": torch_export.FORMAT,
}
PRECISIONS = ("fp32", "bf16", "int8")

__all__ = ["FORMATS", "PRECISIONS", "Format", "Graph", "Run", "check_format", "open_file"]


def check_format(name: str, precision: str) -> Format:
    """Return the format `name`; raise ValueError if there is none, or if it does not support the precision."""
    check_choice("format", name, FORMATS)
    check_choice("precision", precision, PRECISIONS)
    if precision in FORMATS[name].refused:
        raise ValueError(FORMATS[name].refused[precision])
    return FORMATS[name]


def open_file(file: Path, threads: int | None = None, precision: str = "fp32", compiled: bool = False) -> Run:
    """Open a file (.onnx, .xml or .pt2) with the engine of its format. Opening a .pt2 file can run code in it.

    Args:
        threads: number of threads; None for all cores or, for a .pt2 file, torch's current number.
        precision: precision of the export.
        compiled: whether to use the compiled program beside the file, if this machine can load it.
    """
    format = next(format for format in FORMATS.values() if Path(format.file).suffix == file.suffix)
    return format.open(file, threads, precision, **({"compiled": True} if compiled else {}))
