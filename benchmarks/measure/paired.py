"""Compare shipped weights on the same test images, pair by pair: results/paired.json.

    python -m benchmarks.measure.paired --tag cifar10 --data-dir cifar10

For each pair of mixers the file has the numbers of images that only the first and only the second classifies correctly,
and the p-value of McNemar's exact test. Accuracy is given for one view of an image and for six. Weights that have
not changed are not scored again.
"""

import json
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.paths import RESULTS
from benchmarks.scoring import check_reproduced, load, six_views, tag_parser, task_of
from benchmarks.weight_cards import load_family, weights_digest
from metamix.classification.task import Classification
from metamix.utils.files import write_text
from metamix.utils.text import exit_with_message

FILE = RESULTS / "paired.json"


@torch.no_grad()
def is_right(task: Classification, model: nn.Module) -> tuple[Tensor, Tensor]:
    """Return which test images a model classifies correctly, (n,) bool: from one view, and from six."""
    one, six = [], []
    for batch in task.data.eval_loaders(256, 0, 1)["test"]:
        images = task.metric.normalize(batch["image"]).contiguous(memory_format=torch.channels_last)
        logits = [(weight, model(view)) for weight, view in six_views(images)]
        one.append(logits[0][1].argmax(1) == batch["label"])
        six.append(sum(weight * scores for weight, scores in logits).argmax(1) == batch["label"])
    return torch.cat(one), torch.cat(six)


def compare(right: dict[str, Tensor]) -> list[dict]:
    """Compare all pairs of models, from which images each classifies correctly, {name: (n,) bool}."""
    from scipy.stats import binomtest  # takes a second to import

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


def measure(cards: dict[str, dict], data_dir: str | None, known: dict) -> dict:
    """Score the models of the cards, {mixer: card}; `known` is the last result, with weights that need no new score.

    Raises:
        ValueError: the accuracy on a card is not reproduced, so the data or the weights are not those of the card.
    """
    scored = {}
    for mixer, card in cards.items():
        digest = weights_digest(card)
        scored[mixer] = known.get("top1", {}).get(mixer, {})
        if scored[mixer].get("weights") == digest:
            continue
        one, six = is_right(task_of(card, data_dir), load(card))
        top1 = {"one_view": 100 * one.float().mean().item(), "six_views": 100 * six.float().mean().item()}
        scored[mixer] = {name: round(value, 2) for name, value in top1.items()}
        check_reproduced(card, scored[mixer]["one_view"])
        print(mixer, scored[mixer], flush=True)
        scored[mixer] |= {"weights": digest, "right": to_hex(one)}
    images = next(iter(cards.values()))["samples"]["test"]
    pairs = compare({mixer: from_hex(entry["right"], images) for mixer, entry in scored.items()})
    return {"images": images, "top1": scored, "pairs": pairs}


def main(argv: Sequence[str] | None = None) -> None:
    args = tag_parser(__doc__).parse_args(argv)
    with exit_with_message(ValueError, OSError):
        results = json.loads(FILE.read_text()) if FILE.exists() else {}
        results[args.tag] = measure(load_family(args.tag), args.data_dir, results.get(args.tag, {}))
        write_text(FILE, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
