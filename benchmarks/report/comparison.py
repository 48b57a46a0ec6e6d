"""Compares the trained models of one data set, from their cards: docs/results.md and its pictures.

    python benchmarks/compare.py --tag digits                         score, draw and write
    python benchmarks/compare.py --tag cifar10 --data-dir cifar10
    python benchmarks/compare.py --tag digits --measure               speed and memory, on a quiet machine
    python benchmarks/compare.py --text                               write docs/results.md and README.md alone
    python benchmarks/compare.py --check                              exit 1 where one of them is stale

What was measured lies in the cards, and accuracy at other image sizes in docs/results.json, scored again where a weight
has changed. In docs/results.md, and in README.md where it has the markers of a tag, only what stands between them is
written; all else there is a person's.
"""

import argparse
import hashlib
import json
import sys
import textwrap
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

import timm
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

import metamix
from benchmarks.measure.timing import table
from benchmarks.measure.weights_cost import measure
from benchmarks.paths import DOCS, ROOT
from benchmarks.paths import IMAGES as PICTURES
from benchmarks.paths import RESULTS as RESULTS_FOLDER
from benchmarks.report import markers as marked
from benchmarks.report.cards import load_cards, standard_error
from benchmarks.report.models import short
from benchmarks.report.views import (
    COLORS,
    WIDTH,
    draw_bands,
    draw_maps,
    draw_matrices,
    draw_receptive_fields,
    gate,
    gating_matrices,
    middle_attention,
    raft_matrices,
    save,
)
from benchmarks.ship_weights import differences
from metamix.classification.options import ModelOptions
from metamix.classification.pictures import draw_confusion
from metamix.classification.task import Classification
from metamix.models.weights import weights_dir
from metamix.training.evaluation import evaluate
from metamix.training.processes import ProcessGroup
from metamix.utils.files import write_text
from metamix.utils.text import exit_with_message

RESULTS, PAGE = RESULTS_FOLDER / "image_sizes.json", DOCS / "results.md"

MIXERS = metamix.list_mixers()
SIZES = (24, 32, 40, 48)  # pixels that models trained at 32 are fed
COLUMNS = [
    "test accuracy, %",
    "epochs",
    "over seeds, %",
    "parameters",
    "MACs",
    "training, img/s",
    "inference, img/s",
    "memory, MiB",
]
# What the papers say that their models reach, on the data of the weights that ship, in %.
CLAIMS = {"wavemixlite_8_10": 99, "wavemixlite_32_7": 80}
FIELD_IMAGES = 256  # that a receptive field is averaged over


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tag", help="the tag of the weights to compare, such as digits or cifar10")
    parser.add_argument("--data-dir", help="where the data lie, as for train.py; the digits need none")
    parser.add_argument("--measure", action="store_true", help="measure speed and memory, and score nothing")
    parser.add_argument("--text", action="store_true", help="write the text of all tags anew, and nothing else")
    parser.add_argument("--check", action="store_true", help="exit 1 where docs/results.md or README.md is stale")
    args = parser.parse_args(argv)
    if args.check:
        sys.exit(f"stale, run `python benchmarks/compare.py --text`: {', '.join(stale())}" if stale() else 0)
    if args.text:
        write_pages()
        return
    with exit_with_message(ValueError, OSError):
        cards = load_cards(args.tag or "")
        if not cards:
            known = ", ".join(tags()) or "none"
            raise ValueError(f"--tag is {args.tag!r}, and weights/ has cards of {known}: give one of them")
        family = by_mixer(cards)
        PICTURES.mkdir(exist_ok=True)
        if args.measure:
            measure_costs(cards)
        else:
            score_sizes(args.tag, family, args.data_dir)
            draw_views(args.tag, family, args.data_dir)
            draw_curves(PICTURES / f"{args.tag}-curves.png", family)
        draw_front(PICTURES / f"{args.tag}-front.png", by_mixer(load_cards(args.tag)))
        write_pages(args.tag)


def write_pages(tag: str | None = None) -> None:
    for path, text in fresh(tag).items():
        if path.read_text() != text:
            write_text(path, text)
            print(f"written: {path}")


def tags() -> list[str]:
    return sorted({card["name"].partition(".")[2] for card in load_cards()})


def by_mixer(cards: Sequence[dict]) -> dict[str, dict]:
    """The cards of the comparison family, in its order: mixer -> card."""
    models = {card["name"].partition(".")[0]: card for card in cards}
    return {mixer: models[f"metaformer_{mixer}_nano"] for mixer in MIXERS if f"metaformer_{mixer}_nano" in models}


# What is measured


def read_results() -> dict:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def write_sizes(tag: str, sizes: dict) -> None:
    write_text(RESULTS, json.dumps(read_results() | {tag: {"sizes": sizes}}, indent=1) + "\n")


def measure_costs(cards: Sequence[dict]) -> None:
    """Speed and memory of all models of a tag at one go, into the cards."""
    found = measure(cards)
    where = {"cpu": found["machine"]["cpu"], "threads": found["machine"]["threads"]}
    where |= {key: found[key] for key in ("precision", "batch_size", "commit")}
    for card in cards:
        card["cost"] = found["models"][card["name"]] | where
        write_text(weights_dir() / f"{card['name']}.json", json.dumps(card, indent=1) + "\n")


@cache
def open_test(
    data: str, data_dir: str | None, size: int, mean: tuple, std: tuple, interpolation: str
) -> Classification:
    return Classification(
        ModelOptions(data=data, data_dir=data_dir, img_size=size, mean=mean, std=std, interpolation=interpolation)
    )


def task_of(card: dict, data_dir: str | None, size: int | None = None) -> Classification:
    """The data that the card's model was trained on, normalised for it; `size` in pixels where not its own."""
    cfg = card["pretrained_cfg"]
    size = size or cfg["input_size"][1]
    return open_test(
        card["recipe"]["data"], data_dir, size, tuple(cfg["mean"]), tuple(cfg["std"]), cfg["interpolation"]
    )


def load(card: dict) -> nn.Module:
    return timm.create_model(card["name"], pretrained=True).eval().to(memory_format=torch.channels_last)


def score(card: dict, data_dir: str | None, size: int | None = None) -> tuple[float, Tensor]:
    """Top-1 on the test split in percent, in float32, and the confusion matrix."""
    task = task_of(card, data_dir, size)
    loader = task.data.eval_loaders(256, 0, 1)["test"]
    scores, states = evaluate(task.metric, load(card), loader, ProcessGroup.start("cpu"), None, torch.channels_last)
    return scores["top1"], states[0]["confusion"]


def score_sizes(tag: str, family: dict[str, dict], data_dir: str | None) -> None:
    """Accuracy of each model at `SIZES`, where it is not known of these very weights.

    ValueError where a card's accuracy is not found again: the data are others, or the card is of other weights.
    """
    known = read_results().get(tag, {}).get("sizes", {})
    for mixer, card in family.items():
        digest = hashlib.sha256((weights_dir() / f"{card['name']}.safetensors").read_bytes()).hexdigest()[:16]
        if known.get(card["name"], {}).get("weights") == digest or card["pretrained_cfg"]["input_size"][1] not in SIZES:
            continue
        top1 = {str(size): round(score(card, data_dir, size)[0], 2) for size in SIZES}
        again = top1[str(card["pretrained_cfg"]["input_size"][1])]
        if again != card["top1"]:
            raise ValueError(
                f"{card['name']} scores {again} % on these data and its card says {card['top1']}: give --data-dir with "
                f"the data that it was trained on, or ship it again"
            )
        known[card["name"]] = {"weights": digest, "top1": top1}
        write_sizes(tag, known)
        print(f"{mixer}: {top1}")


# Pictures


def draw_views(tag: str, family: dict[str, dict], data_dir: str | None) -> None:
    """The confusion matrix of the best, the receptive fields of all, and each mixer's own picture."""
    if not family:
        return
    card = family[best(family)]
    draw_confusion(
        PICTURES / f"{tag}-confusion.png", score(card, data_dir)[1], tuple(card["pretrained_cfg"]["label_names"])
    )

    models, many, few = {}, {}, {}
    for mixer, card in family.items():
        task = task_of(card, data_dir)
        models[mixer] = load(card)
        batches = list(task.data.eval_loaders(256, 0, 1)["test"])
        pixels, labels = (torch.cat([batch[key] for batch in batches]) for key in ("image", "label"))
        spread = torch.linspace(0, len(labels) - 1, FIELD_IMAGES).long()
        many[mixer] = task.metric.normalize({"image": pixels[spread], "label": labels[spread]})["image"]
        classes = [i * len(task.data.classes) // 3 for i in range(3)]
        first = [int((labels == label).nonzero()[0]) for label in classes]
        few[mixer] = (
            task.metric.normalize({"image": pixels[first], "label": labels[first]})["image"],
            pixels[first] / 255,
        )
    draw_receptive_fields(PICTURES / f"{tag}-fields.png", models, many)
    for mixer, draw in (
        (
            "raft",
            partial(draw_matrices, matrices=raft_matrices, axis="rows or columns of the map, for each channel group"),
        ),
        ("maxim", partial(draw_matrices, matrices=gating_matrices, axis="tokens of a set")),
        ("wavemix", draw_bands),
        ("nin", partial(draw_maps, what=gate, label="RMS of the gate over channels", most=4)),
        (
            "minattn",
            partial(draw_maps, what=middle_attention, label="attention of the middle token, mean over heads", most=16),
        ),
    ):
        if mixer in models:
            # The matrices are there without an image; the other pictures depend on what the mixer is shown.
            images = () if mixer in ("raft", "maxim") else few[mixer]
            draw(PICTURES / f"{tag}-{mixer}.png", models[mixer], *images)


def best(family: dict[str, dict]) -> str:
    """The mixer of the highest accuracy, the first of several."""
    return max(family, key=lambda mixer: family[mixer]["top1"])


def draw_curves(path: Path, family: dict[str, dict]) -> None:
    """Training loss and held-out accuracy over the epochs of the runs that ship; no picture where no card has them."""
    family = {mixer: card for mixer, card in family.items() if "curve" in card}
    if not family:
        path.unlink(missing_ok=True)
        return
    figure = Figure(figsize=(WIDTH, 3.7), layout="constrained")
    left, right = figure.subplots(1, 2)
    seen = []
    for mixer, card in family.items():
        style = {"color": COLORS[mixer], "lw": 1.5, "ls": "--" if mixer == "identity" else "-"}
        losses, scores = card["curve"]["train_loss"], card["curve"]["holdout_top1"]
        left.plot(range(1, len(losses) + 1), losses, **style, label=mixer)
        if points := [(epoch, score) for epoch, score in enumerate(scores, 1) if score is not None]:
            right.plot(*zip(*points), **style)
            seen.append([score for _, score in points])
    if seen:
        # What comes before would hide the differences at the end.
        floor = min(scores[len(scores) // 4] for scores in seen)
        right.set_ylim(floor, max(map(max, seen)) + 0.05 * (max(map(max, seen)) - floor))
    left.set(xlabel="epoch", ylabel="training loss")
    right.set(xlabel="epoch", ylabel="accuracy on the held-out slice, %")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper center", ncols=len(family), frameon=False, handlelength=1.2, columnspacing=1.2)
    save(path, figure)


def draw_front(path: Path, family: dict[str, dict]) -> None:
    """Accuracy against parameters and against inference speed, with the models that none beats in both."""
    if not family:
        return
    kinds = [("parameters, millions", lambda card: card["parameters"] / 1e6, 1)]
    if all("cost" in card for card in family.values()):
        kinds.append(("inference, images per second", lambda card: card["cost"]["infer_img_per_s"], -1))
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axes, (title, value, sign) in zip(panels, kinds):
        points = {mixer: (value(card), card["top1"]) for mixer, card in family.items()}
        for mixer, (x, y) in points.items():
            error = family[mixer]["spread"].get("std")
            axes.errorbar(x, y, error, fmt="o", ms=7, color=COLORS[mixer], capsize=3, lw=1.2)
        axes.set_xlabel(title)
        axes.margins(0.16)
        axes.grid(alpha=0.3)
        corners = front(list(points.values()), sign)
        worst = axes.get_xlim()[1 if sign > 0 else 0]
        axes.set_xlim(axes.get_xlim())
        axes.plot(*zip(*corners, (worst, corners[-1][1])), color="0.5", lw=1, ls="--", zorder=1)
    panels[0].set_ylabel("test accuracy, %")
    figure.draw_without_rendering()  # so that the axes have their places, and names can be set beside points
    for axes, (_, value, _) in zip(panels, kinds):
        name_points(axes, {mixer: (value(card), card["top1"]) for mixer, card in family.items()})
    save(path, figure)


def front(points: Sequence[tuple[float, float]], sign: int) -> list[tuple[float, float]]:
    """The corners of the steps under the points (x, y) that none beats in both; `sign` 1 where a smaller x is better.

    From one such point to the next: along x first, as every x between them has the accuracy of the one before.
    """
    kept, steps = [], []
    for x, y in sorted(points, key=lambda point: (sign * point[0], -point[1])):
        if not kept or y > kept[-1][1]:
            if kept:
                steps.append((x, kept[-1][1]))
            kept.append((x, y))
            steps.append((x, y))
    return steps


def name_points(axes, points: dict[str, tuple[float, float]]) -> None:
    """Names beside points, each on the first side where it covers no name and no point; equal points share one."""
    together: dict[tuple[float, float], list[str]] = {}
    for name, point in points.items():
        together.setdefault(point, []).append(name)
    spots = [axes.transData.transform(point) for point in together]
    taken, frame = [], axes.get_window_extent()
    offsets = [(dx, dy) for dy in (4, -4, 16, -16, 28, -28) for dx in (5, -5)]  # points
    sides = [(dx, dy, "left" if dx > 0 else "right", "bottom" if dy > 0 else "top") for dx, dy in offsets]
    for spot, (point, names) in zip(spots, together.items()):
        for dx, dy, ha, va in sides:
            color = COLORS[names[0]] if len(names) == 1 else "black"
            line = {"arrowstyle": "-", "color": color, "lw": 0.8, "shrinkA": 0, "shrinkB": 3}
            placed = {"xytext": (dx, dy), "textcoords": "offset points", "ha": ha, "va": va, "color": color}
            text = axes.annotate(", ".join(names), point, **placed, arrowprops=line)
            text.set_path_effects([withStroke(linewidth=3, foreground="white")])
            text.get_window_extent()  # which puts the text in its place; this extent has the line in it
            box = Text.get_window_extent(text)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            near = box.padded(7)  # pixels, a little more than half the width of a point
            others = [s for s in spots if s is not spot]
            if inside and not any(map(box.overlaps, taken)) and not any(near.contains(*s) for s in others):
                break
            if (dx, dy, ha, va) != sides[-1]:
                text.remove()
        taken.append(box)


# Text


def fresh(tag: str | None = None) -> dict[Path, str]:
    """The files as they should be: the text of every tag that they have markers of, and of `tag` in docs/results.md."""
    page, readme, results = PAGE.read_text(), marked.README.read_text(), read_results()
    for known in tags():
        cards, found = load_cards(known), results.get(known, {})
        if known == tag or marker(known) in page:
            page = fill(page, known, section(known, cards, found.get("sizes", {})))
        if marker(known) in readme:
            readme = fill(readme, known, summary(cards, ""))
    return {PAGE: page, marked.README: readme}


def stale() -> list[str]:
    return [str(path.relative_to(ROOT)) for path, text in fresh().items() if path.read_text() != text]


def marker(tag: str) -> str:
    return marked.marker(tag, f"compare.py --tag {tag}")


def fill(text: str, tag: str, body: str) -> str:
    """`text` with `body` between the markers of `tag`, which are put at its end where it has none."""
    if marker(tag) not in text:
        text = f"{text.rstrip()}\n\n{marker(tag)}\n<!-- /{tag} -->\n"
    return marked.fill(text, tag, f"compare.py --tag {tag}", body)


def section(tag: str, cards: Sequence[dict], top1: dict[str, dict]) -> str:
    """All that docs/results.md says of one tag; `top1`: what `score_sizes` found."""
    family = by_mixer(cards)
    parts = [f"## {cards[0]['data']}"]
    if family:
        parts += [summary(cards, "../"), *pictures(tag, family), sizes(family, top1)]
    if others := [card for card in cards if card not in family.values()]:
        parts += ["### The papers' own models", other_models(others, "../")]
    return "\n\n".join(parts)


def summary(cards: Sequence[dict], root: str) -> str:
    """The table of the comparison family, and what its numbers are, for a file from which the clone is at `root`."""
    family = by_mixer(cards)
    floor = family.get("identity", {}).get("cost")
    rows = [
        row(mixer, family[mixer], root, floor)
        if mixer in family
        else [mixer, "not trained yet", *[""] * (len(COLUMNS) - 1)]
        for mixer in MIXERS
    ]
    return f"{table(['mixer', *COLUMNS], rows)}\n\n{notes(list(family.values()), floor is not None)}"


def row(name: str, card: dict, root: str, floor: dict | None) -> list[str]:
    """One model's cells: `name`, then `COLUMNS`; speeds also as a share of those of `floor`, the identity's costs."""
    cells = [f"[{name}]({root}weights/{card['name']}.md)", f"{card['top1']:.2f}", card["recipe"]["epochs"]]
    cells += [over_seeds(card), short(card["parameters"]), short(card["macs"])]
    if "cost" not in card:
        return [*cells, "not measured yet", "", ""]
    cost = card["cost"]
    for key in ("train_img_per_s", "infer_img_per_s"):
        cells.append(f"{cost[key]:,.0f}" + (f" ({cost[key] / floor[key]:.2f})" if floor else ""))
    return [*cells, f"{cost['train_mib']:,} / {cost['infer_mib']:,}"]


def over_seeds(card: dict) -> str:
    spread = card["spread"]
    if "mean" not in spread:
        return "one seed"
    after = f", {spread['epochs']} epochs" if "epochs" in spread["changed"] else ""
    return f"{spread['mean']:.2f} ± {spread['std']:.2f} ({len(spread['seeds'])}{after})"


def notes(cards: Sequence[dict], shares: bool) -> str:
    """What the numbers of a table are; `shares`: speeds stand with their share of identity's."""
    card, samples = cards[0], cards[0]["samples"]
    errors = [standard_error(card["top1"], card["samples"]["test"]) for card in cards]
    said = [
        f"{samples['train']:,} images to train on, and {samples['test']:,} that each model was tested on once, of "
        f"{size_of(card)} pixels, {card['pretrained_cfg']['num_classes']} classes. One test image is "
        f"{100 / samples['test']:.2g} points, and two standard errors of an accuracy here are {2 * max(errors):.2f}."
    ]
    if differing := varying([c["recipe"] for c in cards]):
        said.append(f"Not one recipe: {', '.join(f'`{key}`' for key in differing)} differ, see the pages.")
    elif len(cards) > 1:
        said.append(f"One recipe for all, {card['recipe']['epochs']} epochs; a mixer's page has its command.")
    if spreads := [c for c in cards if "mean" in c["spread"]]:
        changed = spreads[0]["spread"]["changed"]
        if any(c["spread"]["changed"] != changed for c in spreads):
            other = varying([c["recipe"] | c["spread"]["changed"] for c in spreads])
            runs = "of recipes that differ too" if other else f"of one recipe, {spreads[0]['spread']['epochs']} epochs"
        elif changed:
            runs = f"of the same recipe but for {', '.join(f'`{key}` {value}' for key, value in changed.items())}"
        else:
            runs = "of the same recipe"
        said.append(f"Over seeds: mean, standard deviation and number of runs, {runs}.")
    if cost := card.get("cost"):
        said.append(
            f"Speed: medians over rounds in which the models of these data take turns"
            f"{', in brackets the share of that of identity' if shares else ''}, on {cost['cpu']}, {cost['threads']} "
            f"threads, {cost['precision']}, batches of {cost['batch_size']} random images. A training step is forward, "
            f"backward and SGD's update. Memory: what training / inference adds to the peak of a process "
            f"that holds torch and the model."
        )
    return wrap(" ".join(said))


def varying(recipes: Sequence[dict]) -> list[str]:
    """The options in which recipes differ from the first; not the model, which has its own row."""
    return sorted({key for recipe in recipes for key in differences(recipes[0], recipe)} - {"model"})


def wrap(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def size_of(card: dict) -> str:
    return "x".join(map(str, card["pretrained_cfg"]["input_size"][1:]))


def pictures(tag: str, family: dict[str, dict]) -> list[str]:
    """The pictures that there are, with what they show."""
    lost = ", ".join(mixer for mixer, card in family.items() if "curve" not in card)
    spread = (
        "bars are the deviation over seeds, of as many epochs as the table says; "
        if any("std" in card["spread"] for card in family.values())
        else ""
    )
    said = {
        "front": f"Accuracy against parameters and against inference speed; {spread}the dashed line is the front: no "
        "model has both more accuracy and fewer parameters, or more speed, than one on it.",
        "curves": "Learning curves of the runs that ship: loss in training, and accuracy on a slice of train that was "
        f"held out{f'; not kept of {lost}' if lost else ''}.",
        "confusion": f"Confusion matrix of {best(family)}, than which no mixer is more accurate.",
        "fields": "Effective receptive field: the gradient of the last map's middle token with respect to the input, "
        f"averaged over {FIELD_IMAGES} test images. The square is the smallest around the token that holds half of it.",
        "raft": "raft: the product of the two matrices of each vertical and horizontal MLP, without the GELU between.",
        "maxim": "maxim: the spatial gating matrices.",
        "wavemix": "wavemix: the wavelet bands in the first block of stages 1 and 2. LH is low along the width and "
        "high along the height.",
        "nin": "nin: the gate, on the grid where it is made. Block 2.3 is the third of stage 2.",
        "minattn": "minattn: how much the token in the middle of the map takes from each place of the context. Its own "
        "place is outlined.",
    }
    shown = [
        f"![{text.split(':')[0].split(';')[0]}](images/{tag}-{name}.png)\n\n{wrap(text)}"
        for name, text in said.items()
        if (PICTURES / f"{tag}-{name}.png").exists()
    ]
    return [
        *shown,
        "identity and pooling need no picture of their own: one does nothing, the other is a fixed mean of 3x3.",
    ]


def sizes(family: dict[str, dict], found: dict[str, dict]) -> str:
    """Accuracy at sizes that the models were not trained at."""
    rows = []
    for mixer, card in family.items():
        top1 = found.get(card["name"], {}).get("top1", {})
        rows.append([mixer, *(f"{top1[str(size)]:.2f}" if top1 else "not scored yet" for size in SIZES)])
    return "\n\n".join(
        [
            "### Other image sizes",
            "Test accuracy in %, the images resized, the weights as they were trained at 32 pixels:",
            table(["mixer", *(f"{size} px" for size in SIZES)], rows),
        ]
    )


def other_models(cards: Sequence[dict], root: str) -> str:
    """The table of the papers' own models, and what its numbers are."""
    rows = []
    for card in cards:
        name = card["name"].partition(".")[0]
        rows.append([*row(f"`{name}`", card, root, None), CLAIMS.get(name, "")])
    return f"{table(['model', *COLUMNS, 'published, %'], rows)}\n\n{notes(cards, False)}"


if __name__ == "__main__":
    main()
