"""List the formats of exported models. A module for each format writes and opens models, and may quantize them.

To add a format, write a module like onnx.py and add its `FORMAT` below.
"""

from metamix.utils.checks import check_choice

from . import onnx, openvino, torch_export
from .base import Format, Graph, Run

FORMATS: dict[str, Format] = {"onnx": onnx.FORMAT, "openvino": openvino.FORMAT, "torch": torch_export.FORMAT}
PRECISIONS = ("fp32", "bf16", "int8")

__all__ = ["FORMATS", "PRECISIONS", "Format", "Graph", "Run", "check_format"]


def check_format(name: str, precision: str) -> Format:
    """Return the format `name`; raise ValueError if there is none, or if it does not support the precision."""
    check_choice("format", name, FORMATS)
    check_choice("precision", precision, PRECISIONS)
    if precision in FORMATS[name].refused:
        raise ValueError(FORMATS[name].refused[precision])
    return FORMATS[name]
