"""Add a trained restoration model to weights/: its tensors, and a card that says how they were made.

    python -m benchmarks.ship_restoration RUN --tag noise25 --data-name "400 photographs of BSD500" --test-name BSD68

RUN is the folder of a finished run of `metamix train --task restoration`, whose data must lie where they were. Tensors
are stored in float16 if that changes the PSNR of the test images by at most 0.005 dB, else in float32. The scores on
the card are those of the stored tensors, computed in float32; the card also says how much the PSNR changed.
`benchmarks.measure.restoration` scores shipped weights on more images, and `benchmarks.report.cards` makes the pages.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from benchmarks.report.restoration import JOBS
from benchmarks.runs import free_options, read_run
from benchmarks.scoring import score_restoration as score
from benchmarks.weight_cards import half, write_weights
from metamix.restoration.options import RestorationEvalOptions
from metamix.restoration.task import Restoration
from metamix.training.reports import read_metrics
from metamix.utils.text import exit_with_message
from metamix.weights.files import load_weights

ALLOWED = 0.005  # dB
COPIED = (
    "in_chans", "channels", "enlarge", "degradation", "scale", "samples", "measured", "weights", "parameters", "macs",
    "seconds", "versions", "commit",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--tag", required=True, help="short name of the job, such as noise25")
    parser.add_argument("--data-name", required=True, help="name of the training images on the card")
    parser.add_argument("--test-name", required=True, help="name of the scored images on the card, such as BSD68")
    parser.add_argument("--limit", help="sentence on what the weights cannot do, for the card")
    args = parser.parse_args(argv)
    with exit_with_message(ValueError, OSError):
        print(ship(args.run, args.tag, args.data_name, args.test_name, args.limit))


def ship(run: Path, tag: str, data_name: str, test_name: str, limit: str | None = None) -> str:
    """Write the weights and the card of a run.

    Returns:
        What was written, in one line.

    Raises:
        ValueError: the run is not finished, or of another task.
    """
    summary, recipe = read_run(run)
    if recipe["task"] != "restoration":
        raise ValueError(f"{run} is a run of --task {recipe['task']}: give one of --task restoration")
    if (kind := summary["degradation"].partition(":")[0]) not in JOBS:
        raise ValueError(f"{run} has the degradation {kind}: add its words to JOBS in benchmarks/report/restoration.py")
    options = {name: recipe[name] for name in RestorationEvalOptions.__dataclass_fields__ if name in recipe}
    task, model, _ = Restoration.trained(RestorationEvalOptions(**options | {"checkpoint": str(run)}))
    tensors, about = load_weights(run)
    scores, stored = (score(task, with_tensors(model, state)) for state in (tensors, half(tensors)))
    change = stored["psnr"] - scores["psnr"]
    if is_half := abs(change) <= ALLOWED:
        tensors, scores = half(tensors), stored
    card = {
        "name": f"{about['model']}.{tag}",
        "task": "restoration",
        "data": data_name,
        "test_data": test_name,
        **{name: round(scores[name], 4) for name in ("psnr", "ssim", "input_psnr", "input_ssim")},
        "stored_as": "float16" if is_half else "float32",
        "float16_changes_psnr": round(change, 5),
        **{name: summary[name] for name in COPIED},
        "crop": recipe["crop"],
        "curve": read_curve(run),
        "recipe": {key: value for key, value in recipe.items() if key not in free_options("restoration")},
        "license": "apache-2.0",
        "limits": [limit] if limit else [],
        "pretrained_cfg": {},  # timm has no use for image models
    }
    return f"{write_weights(card, tensors, about)}, {card['psnr']:.2f} dB"


def with_tensors(model: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """Load tensors into a model and return it."""
    model.load_state_dict(tensors)
    return model


def read_curve(run: Path) -> dict[str, list[float]]:
    """Read the training loss of each epoch."""
    return {"train_loss": [float(row["train_loss"]) for row in read_metrics(run / "metrics.csv")]}


if __name__ == "__main__":
    main()
