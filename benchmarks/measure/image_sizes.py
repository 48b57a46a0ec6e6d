"""Score the shipped weights on images of other sizes than they were trained on: results/image_sizes.json.

Each is scored as it is (`top1`) and made for the size by `img_size=` (`made`).

    python -m benchmarks.measure.image_sizes --tag digits
    python -m benchmarks.measure.image_sizes --tag cifar10 --data-dir cifar10

Only weights that changed since the last measurement are scored.
"""

import hashlib
import json
from collections.abc import Sequence

from benchmarks.paths import RESULTS
from benchmarks.scoring import check_reproduced, load, score, tag_parser, task_of
from benchmarks.weight_cards import by_mixer, load_tag
from metamix.models.weights import weights_dir
from metamix.utils.files import write_text
from metamix.utils.text import exit_with_message

FILE = RESULTS / "image_sizes.json"
SIZES = (24, 32, 40, 48)  # sides in pixels, for models that were trained at 32


def score_sizes(known: dict[str, dict], cards: Sequence[dict], data_dir: str | None) -> dict[str, dict]:
    """Return `known` with the scores of the weights that it lacks: {name: {"weights", "top1", "made"}}.

    Both "top1" and "made" are {size: accuracy}, with sizes as text.

    Raises:
        ValueError: the accuracy on the card is not reproduced, so the data or the weights are not those of the card.
    """
    known = dict(known)
    for card in cards:
        name, trained_at = card["name"], card["pretrained_cfg"]["input_size"][1]
        digest = hashlib.sha256((weights_dir() / f"{name}.safetensors").read_bytes()).hexdigest()[:16]
        scores = known.get(name, {})
        if (scores.get("weights") == digest and "made" in scores) or trained_at not in SIZES:
            continue
        model, tasks = load(card), {size: task_of(card, data_dir, size) for size in SIZES}
        top1 = {str(size): round(score(task, model)[0], 2) for size, task in tasks.items()}
        check_reproduced(card, top1[str(trained_at)])
        made = {str(size): round(score(task, load(card, img_size=size))[0], 2) for size, task in tasks.items()}
        known[name] = {"weights": digest, "top1": top1, "made": made}
        print(f"{name}: {top1}, made for the size: {made}")
    return known


def main(argv: Sequence[str] | None = None) -> None:
    args = tag_parser(__doc__).parse_args(argv)
    with exit_with_message(ValueError, OSError):
        cards = by_mixer(load_tag(args.tag)).values()
        results = json.loads(FILE.read_text()) if FILE.exists() else {}
        results[args.tag] = {"sizes": score_sizes(results.get(args.tag, {}).get("sizes", {}), cards, args.data_dir)}
        write_text(FILE, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
