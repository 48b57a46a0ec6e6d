"""What each mixer looks at: the pictures of `benchmarks/compare.py` that need a model and images.

All take models in eval mode that are the comparison family's, and images (N, C, H, W) normalised for them. Quantities
are shares of, or relative to, something that is said beside the colour bar, as none of them has a unit.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from einops import rearrange
from matplotlib.colors import CenteredNorm, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from metamix.layers import resize_to
from metamix.mixers import MinAttn, Nin, WaveMix, list_mixers
from metamix.mixers.wavemix import dwt2
from metamix.utils.files import atomic_write

# Okabe and Ito's colours, grey for the floor.
COLORS = dict(zip(list_mixers(), ("#777777", "#e69f00", "#56b4e9", "#009e73", "#d55e00", "#0072b2", "#cc79a7")))
WIDTH = 8.8  # inches: what the README shows, 880 pixels, at 100 an inch, so that a font of 9 is read at 12 pixels


def save(path: Path, figure: Figure) -> None:
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=200)


def receptive_field(model: nn.Module, images: Tensor) -> Tensor:
    """The effective receptive field (Luo et al., arXiv 1701.04128): (H, W), the largest value 1.

    The gradient of the last stage's map at its centre, summed over channels, with respect to the input: absolute
    values, summed over colours, averaged over images.
    """
    images = images.clone().requires_grad_()
    (last,) = model.forward_intermediates(images, indices=1, intermediates_only=True)
    middle = last[:, :, last.shape[-2] // 2, last.shape[-1] // 2]
    (gradient,) = torch.autograd.grad(middle.sum(), images)
    field = gradient.abs().sum(1).mean(0)
    return field / field.max()


def half_side(field: Tensor, centre: tuple[int, int]) -> int:
    """Side of the smallest square around `centre` that holds half of the field, cut where it leaves the image."""
    y, x = centre
    for r in range(max(field.shape)):
        if field[max(0, y - r) : y + r + 1, max(0, x - r) : x + r + 1].sum() >= field.sum() / 2:
            return 2 * r + 1
    raise ValueError("the field holds nothing")


def draw_receptive_fields(path: Path, models: dict[str, nn.Module], images: dict[str, Tensor]) -> None:
    """One field for each mixer, `images` being those that its model takes."""
    columns = 4
    rows = -(-len(models) // columns)
    figure = Figure(figsize=(WIDTH, 2.2 * rows), layout="compressed")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (mixer, model) in zip(grid, models.items()):
        field = receptive_field(model, images[mixer])
        stride = model.feature_info[-1]["reduction"]
        centre = tuple(n // stride // 2 * stride for n in field.shape)  # the pixel that the middle token is centred on
        h, w = field.shape
        shown = axes.imshow(field.numpy(), norm=LogNorm(1e-2, 1), cmap="magma", extent=(0, w, h, 0))
        side = half_side(field, centre)
        corner = centre[1] + 0.5 - side / 2, centre[0] + 0.5 - side / 2
        axes.add_patch(Rectangle(corner, side, side, fill=False, ec="white", lw=1.2))
        axes.set_title(f"{mixer}: half in {side}x{side}", fontsize=10)
        axes.set(xticks=(0, w // 2, w), yticks=(0, h // 2, h))
        axes.tick_params(labelsize=9)
        axes.set_xlabel("pixels", fontsize=9)
    for axes in grid[len(models) :]:
        axes.set_axis_off()
    bar = figure.colorbar(shown, ax=grid, label="gradient, share of the largest", shrink=0.8, extend="min")
    bar.set_ticks((0.01, 0.1, 1), labels=("0.01", "0.1", "1"))
    save(path, figure)


def captured(model: nn.Module, images: Tensor) -> list[Tensor]:
    """What the mixer of each block is given, (N, C, h, w) each."""
    inputs: list[Tensor] = []
    hooks = [
        block.mixer.register_forward_pre_hook(lambda mixer, args: inputs.append(args[0]))
        for stage in model.stages
        for block in stage.blocks
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return inputs


def blocks_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """("stage.block", mixer) of every block, counted from 1."""
    return [(f"{i}.{j}", b.mixer) for i, stage in enumerate(model.stages, 1) for j, b in enumerate(stage.blocks, 1)]


def gate(mixer: Nin, x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, h, w): root mean square over channels of NiN's gate, on the grid where it is made."""
    return mixer.gate(resize_to(x, mixer.grid, "area")).square().mean(1).sqrt()


def attention(mixer: MinAttn, x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, heads, H * W, h * w): how much each token takes from each place of the context."""
    context = x if mixer.context is None else resize_to(x, mixer.context, "area")
    keys = mixer.query(context) if mixer.symmetric else mixer.key(context)
    q, k = (rearrange(t, "b (n d) h w -> b n (h w) d", n=mixer.heads) for t in (mixer.query(x), keys))
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)


def middle_attention(mixer: MinAttn, x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, h, w): what the middle token attends to, mean over heads."""
    h, w = mixer.context or x.shape[-2:]
    middle = x.shape[-2] // 2 * x.shape[-1] + x.shape[-1] // 2
    return rearrange(attention(mixer, x)[:, :, middle].mean(1), "b (h w) -> b h w", h=h, w=w)


def bands(mixer: WaveMix, x: Tensor) -> dict[str, Tensor]:
    """(N, C, H, W) -> LL, LH, HL, HH of the first level, (N, h, w) each: root mean square over channels."""
    four = dwt2(mixer.reduce(x), mixer.filters).chunk(4, dim=1)
    return {name: band.square().mean(1).sqrt() for name, band in zip(("LL", "LH", "HL", "HH"), four)}


def draw_maps(
    path: Path, model: nn.Module, images: Tensor, shown: Tensor, *, what: Callable, label: str, most: int
) -> None:
    """A row for each image: the image, and `what(mixer, its input)` for every block, relative to the mean of that map.

    The colours end at `most` times the mean, and at its inverse.
    """
    with torch.no_grad():
        maps = [what(mixer, x) for (_, mixer), x in zip(blocks_of(model), captured(model, images))]
    columns = [(f"block {name}", m / m.mean((1, 2), keepdim=True)) for (name, _), m in zip(blocks_of(model), maps)]
    figure, grid, bar = draw_rows(
        shown, columns, f"{label}, relative to the map's mean", LogNorm(1 / most, most), "PuOr_r"
    )
    root = math.isqrt(most)
    bar.set_ticks((1 / most, 1 / root, 1, root, most), labels=(f"1/{most}", f"1/{root}", "1", f"{root}", f"{most}"))
    bar.minorticks_off()
    if what is middle_attention:
        for axes, (_, m) in zip(grid[:, 1:].T, columns):
            for one in axes:
                y, x = m.shape[1] // 2, m.shape[2] // 2
                one.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, ec="black", lw=1.5))
    save(path, figure)


def draw_bands(path: Path, model: nn.Module, images: Tensor, shown: Tensor) -> None:
    """A row for each image: the image, and the four bands in the first block of the first two stages."""
    inputs, columns = captured(model, images), []
    with torch.no_grad():
        for i, (name, mixer) in enumerate(blocks_of(model)):
            if name in ("1.1", "2.1"):
                found = bands(mixer, inputs[i])
                largest = torch.stack(list(found.values())).amax((0, 2, 3)).view(-1, 1, 1)
                columns += [(f"{name} {band}", values / largest) for band, values in found.items()]
    save(
        path,
        draw_rows(shown, columns, "RMS over channels, share of the image's largest", Normalize(0, 1), "viridis")[0],
    )


def draw_rows(shown: Tensor, columns: Sequence[tuple[str, Tensor]], label: str, norm, cmap: str):
    """Images (N, C, H, W) of values 0 to 1 in the first column, maps (N, h, w) with their titles in the others.

    Returns figure, axes and colour bar.
    """
    rows, count = len(shown), 1 + len(columns)
    figure = Figure(figsize=(WIDTH, 0.93 * rows + 0.9), layout="compressed")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03, wspace=0.02, hspace=0.02)
    grid = figure.subplots(rows, count, squeeze=False)
    for i in range(rows):
        grid[i, 0].imshow(shown[i].permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
        for axes, (title, maps) in zip(grid[i, 1:], columns):
            last = axes.imshow(maps[i].numpy(), norm=norm, cmap=cmap)
            if i == 0:
                axes.set_title(title, fontsize=9)
    grid[0, 0].set_title("image", fontsize=9)
    for axes in grid.flat:
        axes.set(xticks=(), yticks=())
    bar = figure.colorbar(last, ax=grid, location="bottom", aspect=50, shrink=0.8, pad=0.03)
    bar.set_label(label, fontsize=9)
    return figure, grid, bar


def raft_matrices(mixer: nn.Module) -> dict[str, Tensor]:
    """Of the vertical and the horizontal MLP: its two matrices multiplied, so without the GELU between, (r l, r l)."""
    return {
        name: (mlp.fc2.weight.flatten(1) @ mlp.fc1.weight.flatten(1)).detach()
        for name, mlp in (("vertical", mixer.vertical), ("horizontal", mixer.horizontal))
    }


def gating_matrices(mixer: nn.Module) -> dict[str, Tensor]:
    """Of the grid and the block branch: the map S over the tokens of a set, (tokens, tokens)."""
    return {name: getattr(mixer, name).spatial.weight.flatten(1).detach() for name in ("grid", "block")}


def draw_matrices(
    path: Path, model: nn.Module, *, matrices: Callable[[nn.Module], dict[str, Tensor]], axis: str
) -> None:
    """A column for each block, a row for each of its `matrices(mixer)`; `axis` says what their rows and columns are."""
    found = [(name, matrices(mixer)) for name, mixer in blocks_of(model)]
    rows = list(found[0][1])
    figure = Figure(figsize=(WIDTH, 1.06 * len(rows) + 1.0), layout="compressed")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03, wspace=0.02, hspace=0.02)
    grid = figure.subplots(len(rows), len(found), squeeze=False)
    for column, (name, of_block) in enumerate(found):
        for i, row in enumerate(rows):
            matrix = of_block[row]
            axes = grid[i, column]
            last = axes.imshow((matrix / matrix.abs().max()).numpy(), norm=CenteredNorm(0, 1), cmap="RdBu_r")
            axes.set(xticks=(), yticks=())
            if i == 0:
                axes.set_title(f"block {name}\n{len(matrix)}x{len(matrix)}", fontsize=9)
            if column == 0:
                axes.set_ylabel(row, fontsize=9)
    bar = figure.colorbar(last, ax=grid, location="bottom", aspect=50, shrink=0.8, pad=0.03)
    bar.set_label(f"share of the matrix's largest entry (outputs down, inputs across: {axis})", fontsize=9)
    save(path, figure)
