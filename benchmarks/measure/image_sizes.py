"""Score the shipped weights on images of other sizes than they were trained on: results/image_sizes.json.

Each is scored as it is (`top1`), made for the size by `img_size=` (`made`), and on the images resized to the size of
training (`resized`). Runs that fine-tuned weights at such a size are added as `tuned`.

    python -m benchmarks.measure.image_sizes --tag digits
    python -m benchmarks.measure.image_sizes --tag cifar10 --data-dir cifar10 --tuned runs/raft-24

Only weights that changed since the last measurement are scored.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.paths import RESULTS
from benchmarks.runs import read_run
from benchmarks.scoring import check_reproduced, load, score, tag_parser, task_of
from benchmarks.weight_cards import load_family, weights_digest
from metamix.utils.files import write_text
from metamix.utils.text import exit_with_message

FILE = RESULTS / "image_sizes.json"
SIZES = (24, 32, 40)  # sides in pixels, for models that were trained at 32


class Resized(nn.Module):
    """A model that resizes images to squares of `side` pixels first, by bicubic interpolation."""

    def __init__(self, model: nn.Module, side: int):
        super().__init__()
        self.model, self.side = model, side

    def forward(self, images: Tensor) -> Tensor:
        return self.model(F.interpolate(images, size=(self.side, self.side), mode="bicubic", antialias=True))


def score_sizes(known: dict[str, dict], cards: Sequence[dict], data_dir: str | None) -> dict[str, dict]:
    """Return `known` with the scores of the weights that it lacks: {name: {"weights", "top1", "made", "resized"}}.

    The last three are {size: accuracy}, with sizes as text.

    Raises:
        ValueError: the accuracy on the card is not reproduced, so the data or the weights are not those of the card.
    """
    known = dict(known)
    for card in cards:
        name, trained_at = card["name"], card["pretrained_cfg"]["input_size"][1]
        digest = weights_digest(card)
        scores = known.get(name, {})
        if (scores.get("weights") == digest and "resized" in scores) or trained_at not in SIZES:
            continue
        model, tasks = load(card), {size: task_of(card, data_dir, size) for size in SIZES}
        top1 = {str(size): round(score(task, model)[0], 2) for size, task in tasks.items()}
        check_reproduced(card, top1[str(trained_at)])
        made = {str(size): round(score(task, load(card, img_size=size))[0], 2) for size, task in tasks.items()}
        others = {size: task for size, task in tasks.items() if size != trained_at}
        resized = {str(size): round(score(task, Resized(model, trained_at))[0], 2) for size, task in others.items()}
        tuned = {"tuned": scores["tuned"]} if scores.get("weights") == digest and "tuned" in scores else {}
        known[name] = {"weights": digest, "top1": top1, "made": made, "resized": resized} | tuned
        print(f"{name}: {top1}, made for the size: {made}, resized: {resized}", flush=True)
    return known


def read_tuned(runs: Sequence[Path], names: Sequence[str]) -> list[tuple[str, str, dict]]:
    """Read finished runs that fine-tuned shipped weights at another size.

    Args:
        runs: their folders.
        names: of the shipped weights.

    Returns:
        For each run the name of the weights, the size as text, and its scores.

    Raises:
        ValueError: a run is not finished, or it did not start from such weights.
    """
    found = []
    for run in runs:
        summary, recipe = read_run(run)
        if not recipe["pretrained"] or recipe["model"] not in names:
            raise ValueError(
                f"{run} trained {recipe['model']}: give runs of `metamix train --pretrained --model NAME` with a NAME "
                f"of {', '.join(names)}"
            )
        scores = {key: summary[key] for key in ("top1", "epochs", "seed", "seconds", "commit")} | {"lr": recipe["lr"]}
        found.append((recipe["model"], str(summary["img_size"]), scores))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = tag_parser(__doc__)
    parser.add_argument("--tuned", nargs="+", type=Path, default=[], metavar="RUN", help="folders of fine-tuning runs")
    args = parser.parse_args(argv)
    with exit_with_message(ValueError, OSError):
        cards = list(load_family(args.tag).values())
        results = json.loads(FILE.read_text()) if FILE.exists() else {}
        tuned = read_tuned(args.tuned, [card["name"] for card in cards])
        known = score_sizes(results.get(args.tag, {}).get("sizes", {}), cards, args.data_dir)
        for name, size, scores in tuned:
            known[name].setdefault("tuned", {})[size] = scores
        results[args.tag] = {"sizes": known}
        write_text(FILE, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
