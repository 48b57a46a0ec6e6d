"""Count copies and layout changes in one block of each mixer, so that no later edit adds one.

Maps are in channels_last, where convolutions, norms and pooling are fast. A copy is a `clone`, `_to_copy` or `copy_` of
a map. A layout change is an op whose input and output maps differ in the innermost dimension, so that it reads or
writes one of them in strides. Views cost nothing and are not counted. Unlike times, counts do not depend on the
machine.
"""

from collections import Counter

import pytest
import timm
import torch
from timm.layers import SelectAdaptivePool2d
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from metamix.mixers import list_mixers

# `maps` recognises a map by its first dimension, BATCH, which no parameter has. SIZE is larger than the grids and
# windows of s12's mixers, which are 7 or 14 tokens wide, so that the mixers resize maps or cut them into windows.
BATCH, DIM, SIZE = 3, 64, 28
COPIES = ("clone", "_to_copy", "copy_")

# (op, largest count in the forward pass, largest count in the backward pass, reason). The count of other ops must be
# 0. When an edit lowers a count, lower it here too.
ALLOWED = {
    "identity": [],
    "pooling": [],
    "raft": [
        ("clone", 4, 4, "each of two token MLPs copies the map to rafts and back"),
        ("convolution", 2, 0, "the innermost dimension of the rafts is the groups' channels"),
        ("convolution_backward", 0, 4, "the gradients of an MLP's convolutions have this innermost dimension too"),
        ("add", 2, 0, "the map is contiguous after the mixer, and is added to the channels_last stream"),
        ("mul", 0, 1, "the gradient of the layer scale reads the contiguous map"),
        ("native_layer_norm_backward", 0, 2, "the gradient of the rafts is contiguous"),
    ],
    "maxim": [
        ("clone", 4, 4, "each of two gated MLPs copies the map to sets of tokens and back"),
        ("convolution", 2, 0, "the innermost dimension of the sets is their channels"),
        ("convolution_backward", 0, 2, "the gradients of these convolutions have this innermost dimension too"),
        ("native_layer_norm_backward", 0, 2, "the gradient of the sets is contiguous"),
    ],
    "wavemix": [],
    "nin": [
        ("clone", 2, 0, "the token MLP copies the map to rows of tokens and back"),
        ("convolution_backward", 0, 1, "the gradient of the map is not copied to channels_last for this op"),
        ("native_layer_norm_backward", 0, 1, "the gradient of the tokens is contiguous"),
    ],
    "minattn": [],
}


class LayoutCounter(TorchDispatchMode):
    """Count, by name, the ops that copy a map or change its layout."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        name = op.overloadpacket.__name__
        inputs, outputs = maps((args, kwargs)), maps(out)
        computes = inputs and outputs and not op.is_view and name != "_unsafe_view"
        layouts = {innermost(t) for t in inputs + outputs}
        if (inputs and name in COPIES) or (computes and len(layouts) > 1):
            self.counts[name] += 1
        return out


def maps(values) -> list[torch.Tensor]:
    """Return the tensors that are maps or bands of maps, but not parameters, statistics or expanded scalars."""
    tensors = [t for t in tree_leaves(values) if isinstance(t, torch.Tensor) and t.ndim >= 4]
    smallest = BATCH * DIM * SIZE**2 / 32  # includes a band of a wavelet transform, but not the means of a norm
    return [t for t in tensors if t.shape[0] == BATCH and t.numel() >= smallest and 0 not in t.stride()]


def innermost(t: torch.Tensor) -> int:
    """Return the dimension with the smallest stride: -3 in channels_last, -1 in a contiguous map.

    The dimension is counted from the end, so that a map can be compared with a map that is cut into rows or cells.
    """
    return min((d for d in range(-t.ndim, 0) if t.shape[d] > 1), key=t.stride)


def block_of(mixer: str) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(f"metaformer_{mixer}_s12", img_size=4 * SIZE, depths=(1,) * 4, dims=(DIM,) * 4)
    return model.to(memory_format=torch.channels_last).stages[0].blocks[0].train()


def count(block: nn.Module) -> tuple[Counter, Counter]:
    """Count the copies and layout changes of a forward and of a backward pass."""
    x = torch.randn(BATCH, DIM, SIZE, SIZE).contiguous(memory_format=torch.channels_last).requires_grad_()
    with LayoutCounter() as forward:
        y = block(x)
    gradient = torch.randn(y.shape).contiguous(memory_format=torch.channels_last)
    with LayoutCounter() as backward:
        y.backward(gradient)
    return forward.counts, backward.counts


def problems(block: nn.Module, mixer: str) -> list[str]:
    """Return a sentence for each count that exceeds ALLOWED."""
    allowed = {op: times for op, *times, _ in ALLOWED[mixer]}
    counts_by_pass = dict(zip(("forward", "backward"), count(block)))
    lines = []
    for i, (which, counts) in enumerate(counts_by_pass.items()):
        for op, times in sorted(counts.items()):
            limit = allowed.get(op, (0, 0))[i]
            if times > limit:
                lines.append(
                    f"{mixer}, {which}: {op} copies a map or changes its layout; count {times}, allowed {limit}"
                )
    return lines


@pytest.mark.parametrize("mixer", list_mixers())
def test_block_copies_no_more_than_allowed(mixer):
    assert not problems(block_of(mixer), mixer)


class Contiguous(nn.Module):
    """Make the map contiguous before the mixer, as a careless edit would."""

    def __init__(self, mixer: nn.Module):
        super().__init__()
        self.mixer = mixer

    def forward(self, x):
        return self.mixer(x.contiguous())


@pytest.mark.parametrize("mixer", list_mixers())
def test_an_added_copy_is_detected(mixer):
    block = block_of(mixer)
    block.mixer = Contiguous(block.mixer)
    assert any("forward: clone copies a map or changes its layout" in line for line in problems(block, mixer))


@pytest.mark.parametrize(
    "name", ("metaformer_pooling_nano", "raftmlp_s", "wavemixlite_32_7", "ninformer_cifar", "minattn_full_mlp_h1_cifar")
)
def test_gradients_reach_every_block_in_channels_last(name):
    """If the gradient at the last block were contiguous, the residuals would pass it on to all other blocks."""
    assert gradient_layouts(timm.create_model(name, img_size=32)) == {-3}


def test_a_contiguous_gradient_is_detected():
    model = timm.create_model("wavemixlite_32_7", img_size=32)
    model.global_pool = SelectAdaptivePool2d(pool_type="avg", flatten=True)
    assert gradient_layouts(model) == {-1}


def gradient_layouts(model: nn.Module) -> set[int]:
    """Return the innermost dimensions of the gradients at the outputs of the blocks."""
    seen = set()
    for stage in model.to(memory_format=torch.channels_last).train().stages:
        for block in stage.blocks:
            block.register_forward_hook(lambda _, __, y: y.register_hook(lambda g: seen.add(innermost(g))) and None)
    images = torch.randn(BATCH, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    model(images).square().sum().backward()
    return seen


class Ones(nn.Module):
    """Copy nothing and return a contiguous map."""

    def forward(self, x):
        return torch.ones(x.shape)


def test_a_sum_of_two_layouts_is_detected():
    block = block_of("identity")
    block.mixer = Ones()
    message = "identity, forward: add copies a map or changes its layout; count 1, allowed 0"
    assert message in problems(block, "identity")
