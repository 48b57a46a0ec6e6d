"""Show what mixers compute: attention, gates, wavelet bands and spatial weights.

`view(mixer, x, point)` returns the pictures of a mixer. The list is empty for identity, pooling and any class for
which no function is registered. Register a function for your own mixer with `@view.register`.
"""

from dataclasses import dataclass
from functools import singledispatch
from typing import Any

from torch import Tensor, nn

from metamix.layers import average_to, rearrange

from .maxim import Maxim
from .minattn import MinAttn
from .nin import Nin
from .raft import Raft
from .wavemix import WaveMix, dwt2

Point = tuple[float, float]  # row and column as fractions of the map's height and width, at least 0 and below 1


@dataclass(frozen=True)
class View:
    """A picture of a mixer: a map (h, w) to overlay on the image, or a matrix (outputs, inputs) of weights."""

    title: str
    values: Tensor
    is_map: bool = True


@singledispatch
def view(mixer: nn.Module, x: Tensor, point: Point) -> list[View]:
    """Return pictures of a mixer for its input x, (1, C, H, W); `point` marks the token whose attention is shown."""
    return []


@view.register
def _(mixer: MinAttn, x: Tensor, point: Point) -> list[View]:
    return [View("attention of the marked token", token_attention(mixer, x, point)[0])]


@view.register
def _(mixer: Nin, x: Tensor, point: Point) -> list[View]:
    return [View("gate, RMS over channels", gate(mixer, x)[0])]


@view.register
def _(mixer: WaveMix, x: Tensor, point: Point) -> list[View]:
    return [View(f"band {name}", values[0]) for name, values in bands(mixer, x).items()]


@view.register(Raft)
@view.register(Maxim)
def _(mixer: Any, x: Tensor, point: Point) -> list[View]:
    return [View(f"{name} weights", values, is_map=False) for name, values in matrices(mixer).items()]


def attention(mixer: MinAttn, x: Tensor, token: int | None = None) -> Tensor:
    """Return the attention of one token or all tokens to the context: (N, C, H, W) -> (N, heads, tokens, h * w)."""
    context = x if mixer.context is None else average_to(x, mixer.context)
    keys = mixer.query(context) if mixer.symmetric else mixer.key(context)
    q, k = mixer.split_heads(mixer.query(x)), mixer.split_heads(keys)
    tokens = slice(None) if token is None else slice(token, token + 1)
    bias = 0.0 if mixer.bias is None else mixer.bias(x, context)[:, tokens]
    return (q[:, :, tokens] @ k.mT * q.shape[-1] ** -0.5 + bias).softmax(-1)


def token_attention(mixer: MinAttn, x: Tensor, point: Point) -> Tensor:
    """Return the attention of the token at `point`, averaged over heads: (N, C, H, W) -> (N, h, w)."""
    height, width = x.shape[-2:]
    h, w = mixer.context or (height, width)
    token = int(point[0] * height) * width + int(point[1] * width)
    return rearrange(attention(mixer, x, token)[:, :, 0].mean(1), "b (h w) -> b h w", h=h, w=w)


def gate(mixer: Nin, x: Tensor) -> Tensor:
    """Return the RMS over channels of the gate of a NiN mixer on its grid: (N, C, H, W) -> (N, h, w)."""
    return mixer.gate(average_to(x, mixer.grid)).square().mean(1).sqrt()


def bands(mixer: WaveMix, x: Tensor) -> dict[str, Tensor]:
    """Return the RMS over channels of the bands LL, LH, HL, HH of the first level: (N, C, H, W) -> (N, h, w)."""
    four = dwt2(mixer.reduce(x), mixer.filters).chunk(4, dim=1)
    return {name: band.square().mean(1).sqrt() for name, band in zip(("LL", "LH", "HL", "HH"), four)}


def matrices(mixer: Raft | Maxim) -> dict[str, Tensor]:
    """Return each branch's spatial weights: maxim's gating matrices, or the product of raft's two linear maps."""
    if isinstance(mixer, Maxim):
        return {name: getattr(mixer, name).spatial.weight.flatten(1).detach() for name in ("grid", "block")}
    mlps = {"vertical": mixer.vertical, "horizontal": mixer.horizontal}
    return {name: (mlp.fc2.weight.flatten(1) @ mlp.fc1.weight.flatten(1)).detach() for name, mlp in mlps.items()}
