"""Compare shipped weights on the same test images, pair by pair: results/paired.json.

    python -m benchmarks.measure.paired --tag cifar10 --data-dir cifar10
    python -m benchmarks.measure.paired --tag cifar10 --data-dir cifar10 --size nano_next

For each pair of mixers the file has the numbers of images that only the first and only the second classifies correctly,
and the p-value of McNemar's exact test. Accuracy is given for single images and for six views of each.
"""

import json
from collections.abc import Sequence
from itertools import combinations

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from benchmarks.paths import RESULTS
from benchmarks.scoring import check_reproduced, load, six_views, tag_parser, task_of
from benchmarks.weight_cards import by_mixer, load_tag
from metamix.classification.task import Classification
from metamix.utils.files import write_text
from metamix.utils.text import exit_with_message

FILE = RESULTS / "paired.json"


@torch.no_grad()
def is_right(task: Classification, model: nn.Module) -> tuple[Tensor, Tensor]:
    """Return which test images a model classifies correctly, (n,) bool: from one view, and from six."""
    one, six = [], []
    for batch in task.data.eval_loaders(256, 0, 1)["test"]:
        images = task.metric.normalize(batch)["image"].contiguous(memory_format=torch.channels_last)
        logits = [(weight, model(view)) for weight, view in six_views(images)]
        one.append(logits[0][1].argmax(1) == batch["label"])
        six.append(sum(weight * scores for weight, scores in logits).argmax(1) == batch["label"])
    return torch.cat(one), torch.cat(six)


def compare(right: dict[str, Tensor]) -> list[dict]:
    """Compare all pairs of models, from which images each classifies correctly, {name: (n,) bool}."""
    pairs = []
    for a, b in combinations(right, 2):
        only_a, only_b = int((right[a] & ~right[b]).sum()), int((right[b] & ~right[a]).sum())
        p = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
        pairs.append({"first": a, "second": b, "only_first": only_a, "only_second": only_b, "p": float(f"{p:.2g}")})
    return pairs


def measure(cards: dict[str, dict], data_dir: str | None) -> dict:
    """Score the models of the cards, {mixer: card}.

    Raises:
        ValueError: the accuracy on a card is not reproduced, so the data or the weights are not those of the card.
    """
    found, right = {}, {}
    for mixer, card in cards.items():
        one, six = is_right(task_of(card, data_dir), load(card))
        top1 = {"one_view": 100 * one.float().mean().item(), "six_views": 100 * six.float().mean().item()}
        found[mixer] = {name: round(value, 2) for name, value in top1.items()}
        check_reproduced(card, found[mixer]["one_view"])
        right[mixer] = one
        print(mixer, found[mixer], flush=True)
    return {"images": len(one), "top1": found, "pairs": compare(right)}


def main(argv: Sequence[str] | None = None) -> None:
    parser = tag_parser(__doc__)
    parser.add_argument("--size", choices=["nano", "nano_next"], default="nano", help="of the models (default: nano)")
    args = parser.parse_args(argv)
    with exit_with_message(ValueError, OSError):
        result = measure(by_mixer(load_tag(args.tag), args.size), args.data_dir)
        known = json.loads(FILE.read_text()) if FILE.exists() else {}
        write_text(FILE, json.dumps(known | {f"{args.size}.{args.tag}": result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
