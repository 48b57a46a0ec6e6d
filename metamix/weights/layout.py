"""Describe how the authors of a paper name and arrange the tensors of a model in their files.

Each family's file in `models/` defines the layouts of its authors' files. `PUBLISHED` holds the layouts that
registered models load directly.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Layout:
    """Names and arrangement of the tensors in a file."""

    # (pattern, replacement) pairs of `re.sub`. Applied in turn to our name of a tensor, they give its name in the file.
    names: Sequence[tuple[str, str | Callable]] = ()
    # (our name, the file's tensor, model) -> the tensor as our model has it
    arrange: Callable[[str, Tensor, nn.Module], Tensor] = lambda name, tensor, model: tensor

    def name(self, ours: str) -> str:
        """Return the name of a tensor in the file, given our name."""
        for pattern, replacement in self.names:
            ours = re.sub(pattern, replacement, ours)
        return ours

    def translate(self, state: Mapping[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], set[str]]:
        """Return the file's tensors that `model` has, named and arranged as in `model`, and the names of all others."""
        of_model = model.state_dict()
        names = {ours: self.name(ours) for ours in of_model}
        tensors = {
            ours: self._convert(ours, state[name], model, of_model[ours])
            for ours, name in names.items()
            if name in state
        }
        return tensors, state.keys() - set(names.values())

    def _convert(self, ours: str, tensor: Tensor, model: nn.Module, like: Tensor) -> Tensor:
        """Convert one tensor to our arrangement. If that fails, return it unchanged; `check_fit` reports it."""
        try:
            tensor = self.arrange(ours, tensor, model)
        except RuntimeError:
            return tensor
        # Linear layers of the authors may be convolutions here, with kernels of 1x1 or of the size of the feature map.
        return tensor.reshape(like.shape) if like.ndim == 4 and tensor.shape == like.flatten(1).shape else tensor


OURS = Layout()
PUBLISHED: dict[str, Layout] = {}  # by the name of a tensor that only files in this layout have
