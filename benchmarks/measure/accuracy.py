"""Compare the shipped weights of one tag on the test images, in pairs and at other image sizes.

    python -m benchmarks.measure.accuracy pairs --tag cifar10 --data-dir cifar10
    python -m benchmarks.measure.accuracy sizes --tag digits
    python -m benchmarks.measure.accuracy sizes --tag cifar10 --data-dir cifar10 --tuned runs/raft-24

pairs, results/paired.json: counts the images that only one mixer of each pair classifies correctly, and computes the
p-value of McNemar's exact test. Models trained at up to 64 pixels are also scored on six views.

sizes, results/image_sizes.json: builds each model for each size with `img_size=` and scores it (`made`). Models trained
at up to 64 pixels are also scored unchanged (`top1`), and on images resized to the training size (`resized`). `tuned`
has the scores of runs that fine-tuned the weights at another size.

Only weights that are new or have changed since the last measurement are scored.
"""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor, nn
from torchvision.transforms import v2

from benchmarks.paths import RESULTS, read_json, write_json
from benchmarks.runs import read_run
from benchmarks.scoring import check_reproduced, load, score, six_views, tag_parser, task_of
from benchmarks.weight_cards import load_family, weights_digest
from metamix.classification.task import Classification
from metamix.utils.text import exit_with_message

PAIRS, IMAGE_SIZES = RESULTS / "paired.json", RESULTS / "image_sizes.json"
SIZES = {32: (24, 32, 40), 128: (64, 96, 128, 160, 224)}  # sides of scored images in pixels, by the side in training
SMALL = 64  # side in pixels; models trained at larger sides are too slow to be scored in every way


@torch.no_grad()
def is_right(task: Classification, model: nn.Module, six: bool) -> dict[str, Tensor]:
    """Return which test images a model classifies correctly, {"one_view": (n,) bool}; `six` adds "six_views"."""
    right: dict[str, list[Tensor]] = {}
    for batch in task.data.eval_loaders(256, 0, 1)["test"]:
        images = task.metric.normalize(batch["image"]).contiguous(memory_format=torch.channels_last)
        logits = [(weight, model(view)) for weight, view in (six_views(images) if six else [(1.0, images)])]
        right.setdefault("one_view", []).append(logits[0][1].argmax(1) == batch["label"])
        if six:
            mean = sum(weight * scores for weight, scores in logits)
            right.setdefault("six_views", []).append(mean.argmax(1) == batch["label"])
    return {views: torch.cat(parts) for views, parts in right.items()}


def compare(right: dict[str, Tensor]) -> list[dict]:
    """Compare all pairs of models; `right`, {name: (n,) bool}, says which images each model classifies correctly."""
    pairs = []
    for a, b in combinations(right, 2):
        only_a, only_b = int((right[a] & ~right[b]).sum()), int((right[b] & ~right[a]).sum())
        p = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
        pairs.append({"first": a, "second": b, "only_first": only_a, "only_second": only_b, "p": float(f"{p:.2g}")})
    return pairs


def to_hex(right: Tensor) -> str:
    """Pack (n,) bool into hexadecimal digits, eight values in two digits."""
    return np.packbits(right.numpy()).tobytes().hex()


def from_hex(text: str, count: int) -> Tensor:
    """Unpack `count` values that `to_hex` packed."""
    return torch.from_numpy(np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=count).astype(bool))


def score_pairs(cards: dict[str, dict], data_dir: str | None, known: dict) -> dict:
    """Score and compare the models of the cards, {mixer: card}. Scores of unchanged weights come from `known`."""
    scored = {}
    for mixer, card in cards.items():
        digest = weights_digest(card)
        scored[mixer] = known.get("top1", {}).get(mixer, {})
        if scored[mixer].get("weights") == digest:
            continue
        small = card["pretrained_cfg"]["input_size"][1] <= SMALL
        right = is_right(task_of(card, data_dir), load(card), six=small)
        scored[mixer] = {views: round(100 * values.float().mean().item(), 2) for views, values in right.items()}
        check_reproduced(card, scored[mixer]["one_view"])
        print(mixer, scored[mixer], flush=True)
        scored[mixer] |= {"weights": digest, "right": to_hex(right["one_view"])}
    images = next(iter(cards.values()))["samples"]["test"]
    pairs = compare({mixer: from_hex(entry["right"], images) for mixer, entry in scored.items()})
    return {"images": images, "top1": scored, "pairs": pairs}


def score_sizes(measured: dict[str, dict], cards: Sequence[dict], data_dir: str | None) -> dict[str, dict]:
    """Add the scores of new weights to a copy of `measured`, and return the copy.

    `measured` is {name: {"weights", "made", "top1", "resized"}}. "made", "top1" and "resized" are {size as text:
    accuracy}. Models trained at a side above `SMALL` have only "made"; models trained at a side that `SIZES` lacks are
    left out. An entry may also have "tuned", which is kept if the weights are unchanged.
    """
    measured = dict(measured)
    for card in cards:
        name, trained_at = card["name"], card["pretrained_cfg"]["input_size"][1]
        digest = weights_digest(card)
        scores = measured.get(name, {})
        if (scores.get("weights") == digest and "made" in scores) or trained_at not in SIZES:
            continue
        model, tasks = load(card), {size: task_of(card, data_dir, size) for size in SIZES[trained_at]}
        forms = {"made": {size: score(task, load(card, img_size=size))[0] for size, task in tasks.items()}}
        check_reproduced(card, round(forms["made"][trained_at], 2))
        if trained_at <= SMALL:
            forms["top1"] = {size: score(task, model)[0] for size, task in tasks.items()}
            resized = nn.Sequential(v2.Resize((trained_at, trained_at), v2.InterpolationMode.BICUBIC), model)
            forms["resized"] = {size: score(task, resized)[0] for size, task in tasks.items() if size != trained_at}
        rounded = {form: {str(size): round(top1, 2) for size, top1 in forms[form].items()} for form in forms}
        tuned = {"tuned": scores["tuned"]} if scores.get("weights") == digest and "tuned" in scores else {}
        measured[name] = {"weights": digest} | rounded | tuned
        print(f"{name}: {rounded}", flush=True)
    return measured


def read_tuned(runs: Sequence[Path], names: Sequence[str]) -> list[tuple[str, str, dict]]:
    """Read finished runs that fine-tuned shipped weights at a different image size; `names` lists the shipped weights.

    Return, for each run, the name of the weights, the image size as text, and the scores of the run. Raise ValueError
    if a run is not finished, or did not start from one of these weights.
    """
    tuned = []
    for run in runs:
        summary, recipe = read_run(run)
        if not recipe["pretrained"] or recipe["model"] not in names:
            raise ValueError(
                f"{run} trained {recipe['model']}: give runs of `metamix train --pretrained --model NAME`, where "
                f"NAME is one of {', '.join(names)}"
            )
        scores = {key: summary[key] for key in ("top1", "epochs", "seed", "seconds", "commit")} | {"lr": recipe["lr"]}
        tuned.append((recipe["model"], str(summary["img_size"]), scores))
    return tuned


def main(argv: Sequence[str] | None = None) -> None:
    parser = tag_parser(__doc__)
    parser.add_argument("part", choices=("pairs", "sizes"), help="comparison to make")
    parser.add_argument("--tuned", nargs="+", type=Path, default=[], metavar="RUN", help="sizes: fine-tuning runs")
    args = parser.parse_args(argv)
    if args.part == "pairs" and args.tuned:
        parser.error("pairs does not take --tuned, which is for sizes")
    file = PAIRS if args.part == "pairs" else IMAGE_SIZES
    with exit_with_message(ValueError, OSError):
        family, results = load_family(args.tag), read_json(file, {})
        if args.part == "pairs":
            results[args.tag] = score_pairs(family, args.data_dir, results.get(args.tag, {}))
        else:
            cards = list(family.values())
            names = [card["name"] for card in cards if card["pretrained_cfg"]["input_size"][1] in SIZES]
            tuned = read_tuned(args.tuned, names)
            measured = score_sizes(results.get(args.tag, {}).get("sizes", {}), cards, args.data_dir)
            for name, size, scores in tuned:
                measured[name].setdefault("tuned", {})[size] = scores
            results[args.tag] = {"sizes": measured}
        write_json(file, results)


if __name__ == "__main__":
    main()
