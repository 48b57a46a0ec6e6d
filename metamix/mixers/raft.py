"""Mix tokens with RaftMLP's vertical and then horizontal raft MLP.

"RaftMLP: How Much Can Be Done Without Attention and with Less Spatial Locality?" (arXiv 2108.04384):

    v = V(norm(x))                V: Linear(rH -> e rH), GELU, Linear(e rH -> rH)
    y = v + H(norm(x + v))        H: these layers along W

The channels form r groups. A vertical raft takes one channel of each group, along one column of the map: r * H values,
which the MLP V mixes. All C / r channels of a group and all W columns share V. H does the same along rows.

In the paper's notation y = z - x with u = x + V(norm(x)) and z = u + H(norm(u)); the skeleton's residual adds x.

Spatial weights are made for a `grid` of tokens, by default the size of the map in training. `resample` says what the
mixer does on a map of a different size:

    "branch"   y is computed on x resized to the grid, then resized back; the residual stream keeps its resolution
    "stream"   y = resize(z) - x, with z computed on x resized to the grid, as the authors do; this blurs the residual
               stream in every block
    "weights"  the matrices are resized, and the map keeps its resolution
    "windows"  the map is cut into windows of the grid's size; the last windows are filled up by reflection

Only "windows" does not interpolate. Trained MLPs can tell odd tokens from even ones, and interpolation mixes the two.
With a grid of a few tokens a side, as in `metaformer_raft_tiny`, the same weights serve images of many sizes.

Cost: 2 e r (H + W) multiply-adds per value, so the total grows as H * W * (H + W). With "branch" and "stream", every
map costs as much as a map of the grid's size. With "windows", the cost is linear in the number of tokens.

Departure from the authors' code: their norm reads the channels in the order (c r), ours in the stream's order (r c).
When a checkpoint of the authors is loaded, the norm's weights are permuted.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from metamix.layers import GELU, ConvWeights, crop_to, fx_leaf, may_vary, rearrange, reflect_to, resize_to, round_up
from metamix.utils.checks import check_choice, check_counts, check_not_negative, parse_size

from .registry import register_mixer

RESAMPLE = ("branch", "stream", "weights", "windows")


@register_mixer("raft")
class Raft(nn.Module):
    """Vertical and horizontal raft MLP: (B, C, H, W) -> (B, C, H, W).

    Args:
        raft_size: r, number of channel groups; must divide `dim`.
        expansion: e, hidden width of the raft MLPs as a multiple of their input width.
        resample: "branch", "stream", "weights" or "windows": what to do on maps of a different size; see above.
        grid: side or (h, w) of the grid that the weights are made for, limited to `size`; None for `size`.
    """

    def __init__(
        self,
        dim: int,
        *,
        size: tuple[int, int],
        raft_size: int = 2,
        expansion: float = 2.0,
        resample: str = "branch",
        grid: int | tuple[int, int] | None = None,
    ):
        super().__init__()
        check_counts(1, raft_size=raft_size)
        check_not_negative("expansion", expansion)
        h, w = parse_size("grid", size if grid is None else grid)
        self.grid = min(h, size[0]), min(w, size[1])
        if int(expansion * raft_size * min(self.grid)) < 1:
            raise ValueError(f"expansion {expansion} leaves the MLPs no hidden units: give a larger number.")
        if dim % raft_size:
            raise ValueError(f"raft_size {raft_size} does not divide the {dim} channels: choose a divisor of {dim}.")
        check_choice("resample", resample, RESAMPLE)
        self.resample = resample
        self.vertical = RaftMlp(dim, self.grid[0], raft_size, expansion, "b (r c) h w -> b (r h) w c")
        self.horizontal = RaftMlp(dim, self.grid[1], raft_size, expansion, "b (r c) h w -> b (r w) h c")

    def forward(self, x: Tensor) -> Tensor:
        if self.resample == "weights":
            return self.branch(x)
        if self.resample == "windows":
            return from_windows(self.branch(to_windows(x, self.grid)), x.shape[-2:])
        resized = resize_to(x, self.grid)  # (B, C, *grid)
        y = resize_to(self.branch(resized), x.shape[-2:])  # (B, C, H, W)
        if self.resample == "stream" and resized is not x:
            y = y + (resize_to(resized, x.shape[-2:]) - x)
        return y

    def branch(self, x: Tensor) -> Tensor:
        """Compute y without resizing the map: (B, C, H, W) -> (B, C, H, W)."""
        v = self.vertical(x)
        return v + self.horizontal(x + v)

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Resample both MLPs of a state saved for another grid."""
        for name, mlp in (("vertical", self.vertical), ("horizontal", self.horizontal)):
            weights = {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}
            state = state | {f"{name}.{k}": v for k, v in mlp.adapt_state(weights).items()}
        return state


class RaftMlp(nn.Module):
    """Norm, then Linear, GELU, Linear over each raft: (B, C, H, W) -> (B, C, H, W).

    Args:
        length: number of tokens along the mixed side of the map.
        rafts: einops pattern that cuts the map into rafts, (B, C, H, W) -> (B, r * length, other side, C / r). The
            linear maps then run as 1x1 convolutions, which are fastest on a CPU.
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
        # The kernel is as large as the raft, so that a checkpoint shows the raft's shape.
        self.fc1 = ConvWeights(1, hidden, (raft_size, length))
        self.act = GELU()
        self.fc2 = ConvWeights(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = rearrange(self.norm(x), self.rafts, r=self.raft_size)  # (B, r * length, other side, C / r)
        length = x.shape[1] // self.raft_size
        w1, b1 = resize_inputs(self.fc1.weight, length), self.fc1.bias
        w2 = resize_outputs(self.fc2.weight, self.raft_size, length)
        b2 = resize_outputs(self.fc2.bias, self.raft_size, length)  # type: ignore[arg-type]
        # The output takes the memory format of the weights, so the weights get the strides of channels_last.
        w1 = w1.flatten(1)[:, None, None].movedim(3, 1)
        x = F.conv2d(self.act(F.conv2d(x, w1, b1)), w2, b2)  # (B, r * length, other side, C / r)
        return rearrange(x, self.back, r=self.raft_size)

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Resample parameters saved for a different length; return them unchanged if raft size or expansion differ.

        Hidden units have no place on the map, so they are repeated or thinned out. The copies of a unit share the
        unit's output weight, so repeating changes nothing. After thinning, the output weights are scaled up.
        """
        hidden, (old, _, raft_size, length) = len(self.fc1.weight), state["fc1.weight"].shape
        if raft_size != self.raft_size or old != int(self.expansion * raft_size * length):
            return state
        # Hidden unit i is a copy of the saved unit with the index unit[i].
        unit = torch.arange(hidden, device=state["fc1.weight"].device) * old // hidden
        copies = (unit[:, None] == unit).sum(1) * min(1, hidden / old)
        w2, b2 = (resize_outputs(state[f"fc2.{p}"], self.raft_size, self.length) for p in ("weight", "bias"))
        return {
            **state,
            "fc1.weight": resize_inputs(state["fc1.weight"], self.length)[unit],
            "fc1.bias": state["fc1.bias"][unit],
            "fc2.weight": w2[:, unit] / copies[:, None, None],
            "fc2.bias": b2,
        }


@fx_leaf
def to_windows(x: Tensor, window: tuple[int, int]) -> Tensor:
    """Cut a map into windows, filled up by reflection: (B, C, H, W) -> (B * number of windows, C, *window)."""
    if not may_vary(*x.shape[-2:]) and tuple(x.shape[-2:]) == window:
        return x
    (h, w), (m, n) = window, window_counts(x.shape[-2:], window)
    x = reflect_to(x, (m * h, n * w)).movedim(1, -1)  # channels are last in memory, so runs of C values are copied
    return rearrange(x, "b (m h) (n w) c -> (b m n) h w c", m=m, n=n).movedim(3, 1)


@fx_leaf
def from_windows(x: Tensor, size: Sequence[int]) -> Tensor:
    """Invert `to_windows` for a map of `size` = (H, W): (B * number of windows, C, *window) -> (B, C, H, W)."""
    if not may_vary(*size) and tuple(size) == tuple(x.shape[-2:]):
        return x
    m, n = window_counts(size, x.shape[-2:])
    x = rearrange(x.movedim(1, -1), "(b m n) h w c -> b (m h) (n w) c", m=m, n=n).movedim(3, 1)
    return crop_to(x, size)


def window_counts(size: Sequence[int], window: Sequence[int]) -> tuple[int, int]:
    """Return how many windows cover a map of `size` = (H, W), down and across."""
    (height, width), (h, w) = round_up(size, window), window
    # torch.export would fix whether a side has one window or several. With an extra window, each side always has
    # several.
    more = int(may_vary(height, width))
    return height // h + more, width // w + more


@fx_leaf
def resize_inputs(weight: Tensor, length: int) -> Tensor:
    """Resize the input weights of a raft MLP: (o, 1, r, old) -> (o, 1, r, length).

    They are scaled to keep the response to a constant raft. The response is the same up to rounding if `length` is a
    multiple of `old`, and nearly the same for other larger lengths.
    """
    old = weight.shape[3]
    if not may_vary(length) and length == old:
        return weight
    return F.interpolate(weight[:, 0], size=length, mode="linear")[:, None] * (old / length)


@fx_leaf
def resize_outputs(weight: Tensor, raft_size: int, length: int) -> Tensor:
    """Resize the output weights or biases of a raft MLP linearly: (r * old, ...) -> (r * length, ...)."""
    if not may_vary(length) and weight.shape[0] == raft_size * length:
        return weight
    columns = rearrange(weight.reshape(weight.shape[0], -1), "(r l) i -> i r l", r=raft_size)
    columns = F.interpolate(columns, size=length, mode="linear")
    return rearrange(columns, "i r l -> (r l) i").reshape(-1, *weight.shape[1:])
