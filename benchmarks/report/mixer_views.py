"""Draw receptive fields, weights and activations of the mixers into docs/images/. The data set is needed.

    python -m benchmarks.report.mixer_views --tag cifar10 --data-dir cifar10

The pictures are the confusion matrix of the best mixer, the effective receptive field of every mixer, and the weights
or activations of each learned mixer. The functions take models of the comparison family in evaluation mode, and
normalised images (N, C, H, W). Colours show relative values; the colour bar says what they are relative to.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from matplotlib.colors import CenteredNorm, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from benchmarks.paths import IMAGES
from benchmarks.report.figures import DPI, WIDTH
from benchmarks.scoring import load, score, tag_parser, task_of
from benchmarks.weight_cards import load_family
from metamix.classification.pictures import draw_confusion
from metamix.mixers.views import bands, gate, matrices, token_attention
from metamix.utils.figures import save_figure
from metamix.utils.text import exit_with_message

FIELD_IMAGES = 256  # number of images over which a receptive field is averaged

middle_attention = partial(token_attention, point=(0.5, 0.5))


def receptive_field(model: nn.Module, images: Tensor) -> Tensor:
    """Compute the effective receptive field (Luo et al., arXiv 1701.04128), (H, W), scaled to a maximum of 1.

    The middle token of the last stage is summed over channels. The field is the absolute gradient of this sum with
    respect to the input, summed over colours and averaged over images.
    """
    images = images.clone().requires_grad_()
    (last,) = model.forward_intermediates(images, indices=1, intermediates_only=True)
    middle = last[:, :, last.shape[-2] // 2, last.shape[-1] // 2]
    (gradient,) = torch.autograd.grad(middle.sum(), images)
    field = gradient.abs().sum(1).mean(0)
    return field / field.max()


def half_side(field: Tensor, centre: tuple[int, int]) -> int:
    """Return the side of the smallest square around `centre` that holds half of the field."""
    y, x = centre
    for r in range(max(field.shape)):
        if field[max(0, y - r) : y + r + 1, max(0, x - r) : x + r + 1].sum() >= field.sum() / 2:
            return 2 * r + 1
    raise ValueError("the field has no finite sum")


def draw_receptive_fields(path: Path, models: dict[str, nn.Module], images: dict[str, Tensor]) -> None:
    """Draw the receptive field of each mixer, averaged over the mixer's images."""
    columns = 4
    rows = -(-len(models) // columns)
    figure = Figure(figsize=(WIDTH, 2.2 * rows), layout="compressed")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (mixer, model) in zip(grid, models.items()):
        field = receptive_field(model, images[mixer])
        stride = model.feature_info[-1]["reduction"]
        centre = tuple(n // stride // 2 * stride for n in field.shape)  # pixel under the middle token
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
    bar = figure.colorbar(shown, ax=grid, label="gradient, relative to the largest", shrink=0.8, extend="min")
    bar.set_ticks((0.01, 0.1, 1), labels=("0.01", "0.1", "1"))
    save_figure(path, figure, DPI)


def blocks_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return ("stage.block", mixer) of every block; stages and blocks count from 1."""
    return [(f"{i}.{j}", b.mixer) for i, stage in enumerate(model.stages, 1) for j, b in enumerate(stage.blocks, 1)]


def captured(model: nn.Module, images: Tensor) -> list[tuple[str, nn.Module, Tensor]]:
    """Return ("stage.block", mixer, the mixer's input (N, C, h, w)) of every block."""
    inputs: list[Tensor] = []
    blocks = blocks_of(model)
    hooks = [mixer.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for _, mixer in blocks]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return [(name, mixer, x) for (name, mixer), x in zip(blocks, inputs)]


def draw_maps(
    path: Path, model: nn.Module, images: Tensor, shown: Tensor, *, what: Callable, label: str, most: int
) -> None:
    """Draw a row for each image: the image, and a map of every block, divided by the map's mean.

    `images` are normalised, and `shown` are the same images with values from 0 to 1. `what` is a function (mixer, its
    input) -> maps (N, h, w). Colours range from 1 / `most` to `most` times the mean.
    """
    with torch.no_grad():
        maps = [(name, what(mixer, x)) for name, mixer, x in captured(model, images)]
    columns = [(f"block {name}", m / m.mean((1, 2), keepdim=True)) for name, m in maps]
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
    save_figure(path, figure, DPI)


def draw_bands(path: Path, model: nn.Module, images: Tensor, shown: Tensor) -> None:
    """Draw a row for each image: the image, and the four wavelet bands in the first block of stages 1 and 2."""
    columns = []
    with torch.no_grad():
        for name, mixer, x in captured(model, images):
            if name in ("1.1", "2.1"):
                maps = bands(mixer, x)
                largest = torch.stack(list(maps.values())).amax((0, 2, 3)).view(-1, 1, 1)
                columns += [(f"{name} {band}", values / largest) for band, values in maps.items()]
    label = "RMS over channels, relative to the largest of the image"
    figure, *_ = draw_rows(shown, columns, label, Normalize(0, 1), "viridis")
    save_figure(path, figure, DPI)


def draw_rows(shown: Tensor, columns: Sequence[tuple[str, Tensor]], label: str, norm, cmap: str):
    """Draw images (N, C, H, W) with values from 0 to 1 in the first column and maps (N, h, w) in the others.

    Returns:
        Figure, axes and colour bar.
    """
    figure, grid = new_grid(len(shown), 1 + len(columns), 0.93 * len(shown) + 0.9)
    for image, line, *maps in zip(shown, grid, *(maps for _, maps in columns)):
        line[0].imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
        for axes, values in zip(line[1:], maps):
            last = axes.imshow(values.numpy(), norm=norm, cmap=cmap)
    for axes, title in zip(grid[0], ("image", *(title for title, _ in columns))):
        axes.set_title(title, fontsize=9)
    return figure, grid, add_bar(figure, grid, last, label)


def new_grid(rows: int, columns: int, height: float):
    """Make a figure of `height` inches with a grid of axes without ticks."""
    figure = Figure(figsize=(WIDTH, height), layout="compressed")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03, wspace=0.02, hspace=0.02)
    return figure, figure.subplots(rows, columns, squeeze=False, subplot_kw=dict(xticks=(), yticks=()))


def add_bar(figure: Figure, grid, image, label: str):
    """Add one colour bar below all axes."""
    bar = figure.colorbar(image, ax=grid, location="bottom", aspect=50, shrink=0.8, pad=0.03)
    bar.set_label(label, fontsize=9)
    return bar


def draw_matrices(path: Path, model: nn.Module, *, axis: str) -> None:
    """Draw a column for each block and a row for each of its matrices; `axis` names a matrix's rows and columns."""
    blocks = [(name, matrices(mixer)) for name, mixer in blocks_of(model)]
    rows = list(blocks[0][1])
    figure, grid = new_grid(len(rows), len(blocks), 1.06 * len(rows) + 1.0)
    for (name, by_row), column in zip(blocks, grid.T):
        for axes, matrix in zip(column, by_row.values()):
            last = axes.imshow((matrix / matrix.abs().max()).numpy(), norm=CenteredNorm(0, 1), cmap="RdBu_r")
        first = by_row[rows[0]]
        column[0].set_title(f"block {name}\n{len(first)}x{len(first)}", fontsize=9)
    for axes, row in zip(grid[:, 0], rows):
        axes.set_ylabel(row, fontsize=9)
    add_bar(figure, grid, last, f"relative to the largest entry of the matrix (outputs down, inputs across: {axis})")
    save_figure(path, figure, DPI)


def draw_all(tag: str, family: dict[str, dict], data_dir: str | None) -> None:
    """Draw all pictures of one tag; `family` has the card of each mixer."""
    best = max(family.values(), key=lambda card: card["top1"])
    _, confusion = score(task_of(best, data_dir), load(best))
    classes, title = tuple(best["pretrained_cfg"]["label_names"]), f"{best['name']}, top-1 {best['top1']:.2f} %"
    draw_confusion(IMAGES / f"{tag}-confusion.png", confusion, classes, title)

    models = {mixer: load(card) for mixer, card in family.items()}
    spread, samples = {}, {}
    for mixer, card in family.items():
        task = task_of(card, data_dir)
        batches = list(task.data.eval_loaders(256, 0, 1)["test"])
        pixels, labels = (torch.cat([batch[key] for batch in batches]) for key in ("image", "label"))

        def normalized(chosen, task=task, pixels=pixels):
            return task.data.normalize(pixels[chosen])

        spread[mixer] = normalized(torch.linspace(0, len(labels) - 1, FIELD_IMAGES).long())
        classes = [i * len(task.data.classes) // 3 for i in range(3)]
        first = [int((labels == label).nonzero()[0]) for label in classes]
        samples[mixer] = normalized(first), pixels[first] / 255
    draw_receptive_fields(IMAGES / f"{tag}-fields.png", models, spread)
    raft_axis = "rows or columns of the map, for each channel group"
    attention_label = "attention of the middle token, mean over heads"
    draw = {
        "raft": partial(draw_matrices, axis=raft_axis),
        "maxim": partial(draw_matrices, axis="tokens of a block or grid"),
        "wavemix": draw_bands,
        "nin": partial(draw_maps, what=gate, label="RMS of the gate over channels", most=4),
        "minattn": partial(draw_maps, what=middle_attention, label=attention_label, most=16),
    }
    for mixer in draw.keys() & models.keys():
        images = () if mixer in ("raft", "maxim") else samples[mixer]  # their matrices do not depend on an image
        draw[mixer](IMAGES / f"{tag}-{mixer}.png", models[mixer], *images)


def main(argv: Sequence[str] | None = None) -> None:
    args = tag_parser(__doc__).parse_args(argv)
    with exit_with_message(ValueError, OSError):
        IMAGES.mkdir(exist_ok=True)
        draw_all(args.tag, load_family(args.tag), args.data_dir)


if __name__ == "__main__":
    main()
