"""Check and change the memory format of maps."""

from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Return whether x is a map (B, C, H, W) in channels_last format: the channels of a pixel are adjacent in memory.

    Why not `x.is_contiguous(memory_format=torch.channels_last)`: torch 2.13 raises in `torch.func.vmap`.
    Reproducer: tests/layers/test_workarounds.py::test_memory_format_inside_vmap
    Remove when: that test skips on the oldest supported torch.
    """
    return x.ndim == 4 and x.movedim(1, -1).is_contiguous()


def to_channels_last(x: Tensor) -> Tensor:
    """Return the map (B, C, H, W) in channels_last format; copy it if it has another format.

    Why not `x.contiguous(memory_format=torch.channels_last)`: for the same reason as in `is_channels_last`.
    """
    return x.movedim(1, -1).contiguous().movedim(-1, 1)
