"""Write the tables of README.md and docs/ from results/ and the cards in weights/.

    python -m benchmarks.report.tables            write the pages
    python -m benchmarks.report.tables --check    write nothing; exit 1 if a page is stale

A table goes between the markers `<!-- name -->` and `<!-- /name -->` of a page, where `name` is one of `SECTIONS`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.paths import DOCS, ROOT
from benchmarks.report import (
    ablations,
    comparison,
    deploy,
    detection,
    minattn,
    models,
    restoration,
    segmentation,
    speed,
)
from benchmarks.report.sections import fill
from metamix.utils.files import write_text
from metamix.utils.text import exit_with_message

SECTIONS = {
    "family": models.family,
    "papers": models.papers,
    "image-models": models.image_models,
    "weights": models.weights,
    "cifar10": lambda: comparison.family_table("cifar10"),
    "cifar10-pairs": lambda: comparison.pairs_table("cifar10"),
    "cifar10-e24": lambda: comparison.pairs_table("cifar10_e24"),
    "cifar10-sizes": lambda: comparison.sizes_table("cifar10_e24"),
    "published": comparison.published_table,
    "minattn": minattn.variants_table,
    "deploy-batch-1": lambda: deploy.speed_table(1),
    "deploy-batch-8": lambda: deploy.speed_table(8),
    "deploy-nanos": deploy.nanos_table,
    "deploy-picture": deploy.picture,
    "deploy-accuracy": deploy.accuracy_table,
    "detection": detection.scores_table,
    "detection-memory": detection.memory_table,
    "restoration-scores": restoration.scores_table,
    "restoration-cost": restoration.cost_table,
    "restoration-memory": restoration.memory_table,
    "segmentation": segmentation.scores_table,
    "speed-mixers": speed.mixers_table,
    "speed-authors": speed.authors_table,
    "roofline": speed.roofline_table,
    "scaling": speed.scaling_table,
    "memory": speed.memory_table,
    "train-loop": speed.train_loop_table,
    "ablations": ablations.choices_table,
    "ablations-mixers": ablations.mixers_table,
    "ablations-shares": ablations.shares_table,
    "ceiling": ablations.ceiling_table,
}


def pages() -> dict[Path, str]:
    """Return every page that has markers, with its sections made anew.

    Raises:
        ValueError: a page has wrong markers.
    """
    fresh = {}
    for path in (ROOT / "README.md", *sorted(DOCS.glob("*.md"))):
        try:
            fresh[path] = fill(path.read_text(), SECTIONS)
        except ValueError as error:
            raise ValueError(f"{path.relative_to(ROOT)}: {error}") from error
    return fresh


def stale() -> dict[Path, str]:
    """Return the pages whose tables are not what results/ and the cards say, with the text that they should have."""
    return {path: text for path, text in pages().items() if path.read_text() != text}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is stale")
    args = parser.parse_args(argv)
    with exit_with_message(ValueError, OSError):
        found = stale()
        if args.check and found:
            names = ", ".join(str(path.relative_to(ROOT)) for path in found)
            raise ValueError(f"stale, run `python -m benchmarks.report.tables`: {names}")
        for path, text in found.items():
            write_text(path, text)
            print(f"written: {path}")


if __name__ == "__main__":
    main()
