"""The raft MLPs of RaftMLP: "RaftMLP: How Much Can Be Done Without Attention and with Less Spatial Locality?"
(arXiv 2108.04384), vertical, then horizontal.

A raft is r groups of channels and one column of the map: r * H values, which one MLP mixes, the same for all C / r
positions in the groups and for all W columns. The horizontal one does the same along rows.

    u = x + V(norm(x))        V: Linear(rH -> e rH), GELU, Linear(e rH -> rH)
    z = u + H(norm(u))        H: the same along W
    y = z - x                 the skeleton's residual adds x back

Spatial weights belong to `size`. On any other map, `resample` says what happens:

    "branch"   y = resize(z - x) where u, z are made on x resized to `size`; the residual stream stays untouched
    "stream"   y = resize(z) - x: as the authors, who resize the stream itself and so low-pass it in every block
    "weights"  the matrices are resized instead; the map keeps its resolution

Cost: 2 e r (H + W) multiply-adds per value, so H * W * (H + W) in all; "branch" and "stream" do not grow beyond `size`.

Departure from the authors' code: their norm sees the channels in the order (c r), ours in the stream's (r c); a
checkpoint of theirs has its norm weights permuted on loading.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from metamix.layers import GELU, resize_to
from metamix.utils.text import nearest

from .registry import register_mixer

RESAMPLE = ("branch", "stream", "weights")


@register_mixer("raft")
class Raft(nn.Module):
    """(B, C, H, W) -> (B, C, H, W).

    Args:
        raft_size: r, the groups of channels in a raft; divides `dim`.
        expansion: e, hidden over outer width.
        resample: "branch", "stream" or "weights", see above.
    """

    def __init__(
        self,
        dim: int,
        *,
        size: tuple[int, int],
        raft_size: int = 2,
        expansion: float = 2.0,
        resample: str = "branch",
    ):
        super().__init__()
        if raft_size < 1 or dim % raft_size:
            raise ValueError(f"raft_size {raft_size} does not divide the {dim} channels: choose a divisor of {dim}.")
        if resample not in RESAMPLE:
            raise ValueError(f"resample is {resample!r}{nearest(resample, RESAMPLE)} Accepted: {', '.join(RESAMPLE)}.")
        self.size = tuple(size)
        self.resample = resample
        self.vertical = RaftMlp(dim, size[0], raft_size, expansion, "b (r c) h w -> b (r h) w c")
        self.horizontal = RaftMlp(dim, size[1], raft_size, expansion, "b (r c) h w -> b (r w) h c")

    def forward(self, x: Tensor) -> Tensor:
        if self.resample == "weights":
            return self.branch(x)
        z = resize_to(x, self.size)
        y = resize_to(self.branch(z), x.shape[-2:])
        if self.resample == "stream" and z is not x:
            y = y + (resize_to(z, x.shape[-2:]) - x)
        return y

    def branch(self, x: Tensor) -> Tensor:
        v = self.vertical(x)
        return v + self.horizontal(x + v)

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        for name, mlp in (("vertical", self.vertical), ("horizontal", self.horizontal)):
            own = {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}
            state = {**state, **{f"{name}.{k}": v for k, v in mlp.adapt_state(own).items()}}
        return state


class RaftMlp(nn.Module):
    """norm -> rafts of r * length values -> Linear, GELU, Linear -> map, for (B, C, H, W); without the residual.

    `rafts` is the einops pattern that lays the map out as rafts. The linears run as 1x1 convolutions over them, which
    is where a CPU is fastest.
    """

    def __init__(self, dim: int, length: int, raft_size: int, expansion: float, rafts: str):
        super().__init__()
        width, hidden = raft_size * length, int(expansion * raft_size * length)
        self.raft_size = raft_size
        self.length = length
        self.expansion = expansion
        self.rafts = rafts
        self.back = " -> ".join(reversed(rafts.split(" -> ")))
        self.norm = LayerNorm2d(dim, eps=1e-5)
        # A kernel as large as the raft, so that a checkpoint tells its shape.
        self.fc1 = nn.Conv2d(1, hidden, (raft_size, length))
        self.act = GELU()
        self.fc2 = nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = rearrange(self.norm(x), self.rafts, r=self.raft_size)  # one raft = r channel groups x one column
        length = x.shape[1] // self.raft_size
        # Its strides are those of channels_last, which the convolution then keeps to.
        weight = resize_inputs(self.fc1.weight, length).flatten(1)[:, None, None].movedim(-1, 1)
        x = F.conv2d(x, weight, self.fc1.bias)
        x = self.act(x)
        weight, bias = (resize_outputs(p, self.raft_size, length) for p in (self.fc2.weight, self.fc2.bias))
        x = F.conv2d(x, weight, bias)
        return rearrange(x, self.back, r=self.raft_size)

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Parameters saved for another length; of another raft or expansion they stay as they are, and do not fit.

        Hidden units have no place on the map: they are repeated or thinned out. Copies share what one of them gave, so
        that repeating changes nothing, and those left by thinning stand in for the others.
        """
        hidden, (old, _, raft_size, length) = self.fc1.out_channels, state["fc1.weight"].shape
        if raft_size != self.raft_size or old != int(self.expansion * raft_size * length):
            return state
        unit = torch.arange(hidden, device=state["fc1.weight"].device) * old // hidden
        copies = (unit[:, None] == unit).sum(1) * min(1, hidden / old)
        return {
            **state,
            "fc1.weight": resize_inputs(state["fc1.weight"], self.length)[unit],
            "fc1.bias": state["fc1.bias"][unit],
            "fc2.weight": resize_outputs(state["fc2.weight"], self.raft_size, self.length)[:, unit]
            / copies[:, None, None],
            "fc2.bias": resize_outputs(state["fc2.bias"], self.raft_size, self.length),
        }


def resize_inputs(weight: Tensor, length: int) -> Tensor:
    """(o, 1, r, old) -> (o, 1, r, length); scaled, so that the response to a constant raft stays: exactly at a multiple
    of the old length, closely at any other above it."""
    old = weight.shape[3]
    if type(length) is int and old == length:  # a symbolic length must not be asked
        return weight
    return F.interpolate(weight[:, 0], size=length, mode="linear")[:, None] * (old / length)


def resize_outputs(weight: Tensor, raft_size: int, length: int) -> Tensor:
    """(r * old, ...) -> (r * length, ...): each new place between its neighbours' values."""
    if type(length) is int and weight.shape[0] == raft_size * length:
        return weight
    columns = rearrange(weight.reshape(weight.shape[0], -1), "(r l) i -> i r l", r=raft_size)
    columns = F.interpolate(columns, size=length, mode="linear")
    return rearrange(columns, "i r l -> (r l) i").reshape(-1, *weight.shape[1:])
