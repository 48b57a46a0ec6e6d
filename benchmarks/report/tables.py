"""Write the tables of README.md and docs/ from results/ and the cards in weights/.

    python -m benchmarks.report.tables            write the pages
    python -m benchmarks.report.tables --check    write nothing; exit with 1 if a page is stale

A table goes between the markers `<!-- name -->` and `<!-- /name -->` of a page, where `name` is one of `SECTIONS`.
"""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.measure import collect
from benchmarks.paths import DOCS, ROOT, read_json
from benchmarks.report import ablations, comparison, deploy, models, speed, tasks
from metamix.utils.files import write_text
from metamix.utils.text import did_you_mean, exit_with_message

SECTION = re.compile(r"<!-- ([\w-]+) -->\n(.*?)<!-- /\1 -->", re.DOTALL)
SECTIONS = {
    "family": models.family,
    "papers": models.papers,
    "image-models": models.image_models,
    "weights": models.weights,
    "cifar10": lambda: comparison.family_table("cifar10"),
    "cifar10-pairs": lambda: comparison.pairs_table("cifar10"),
    "cifar10-e24": lambda: comparison.pairs_table("cifar10_e24"),
    "cifar10-sizes": lambda: comparison.sizes_table("cifar10_e24"),
    "tiny-sizes": lambda: comparison.made_for_sizes_table("tiny_in200"),
    "tiny-pairs": lambda: comparison.pairs_table("tiny_in200"),
    "published": comparison.published_table,
    "minattn": lambda: tasks.minattn_table(read_json(collect.MINATTN)),
    "deploy-batch-1": lambda: deploy.speed_table("s12", 1),
    "deploy-batch-8": lambda: deploy.speed_table("s12", 8),
    "deploy-tiny": lambda: deploy.speed_table("tiny", 1),
    "deploy-amx": deploy.amx_table,
    "deploy-nanos": lambda: deploy.speed_table("nano", 1),
    "deploy-accuracy": deploy.accuracy_table,
    "detection": lambda: tasks.detection_table(read_json(collect.DETECTION)),
    "detection-memory": tasks.detection_memory_table,
    "restoration-scores": tasks.restoration_table,
    "restoration-cost": tasks.restoration_cost_table,
    "restoration-memory": tasks.restoration_memory_table,
    "segmentation": lambda: tasks.segmentation_table(read_json(collect.SEGMENTATION)["rows"]),
    "transfer": lambda: tasks.transfer_table(read_json(collect.TRANSFER)["rows"]),
    "speed-mixers": speed.mixers_table,
    "speed-authors": speed.authors_table,
    "roofline": speed.roofline_table,
    "scaling": speed.scaling_table,
    "memory": speed.memory_table,
    "train-loop": speed.train_loop_table,
    "ablations": ablations.choices_table,
    "ablations-mixers": ablations.mixers_table,
    "ablations-shares": lambda: ablations.shares_table("nano"),
    "tiny-shares": lambda: ablations.shares_table("tiny"),
    "tiny-layouts": ablations.tiny_table,
    "ceiling": ablations.ceiling_table,
}


def fill(page: str, sections: Mapping[str, Callable[[], str]]) -> str:
    """Return the page, Markdown text, with the text of every marked section replaced.

    `sections` holds functions that make the text of a section, by name. Raise ValueError if a marker names no section,
    appears twice or is not closed.
    """
    for name in re.findall(r"<!-- ([\w-]+) -->", page):
        if name not in sections:
            raise ValueError(f"<!-- {name} --> names no section{did_you_mean(name, sections)}")
        if page.count(f"<!-- {name} -->") != 1 or page.count(f"<!-- /{name} -->") != 1:
            raise ValueError(f"<!-- {name} --> must appear once, and <!-- /{name} --> once after it")
    return SECTION.sub(lambda match: f"<!-- {match[1]} -->\n\n{sections[match[1]]()}\n\n<!-- /{match[1]} -->", page)


def pages() -> dict[Path, str]:
    """Return README.md and the pages of docs/ with new text in their sections; raise ValueError for wrong markers."""
    fresh = {}
    for path in (ROOT / "README.md", *sorted(DOCS.glob("*.md"))):
        try:
            fresh[path] = fill(path.read_text(), SECTIONS)
        except ValueError as error:
            raise ValueError(f"{path.relative_to(ROOT)}: {error}") from error
    return fresh


def stale() -> dict[Path, str]:
    """Return the pages whose tables differ from results/ and the cards, with the text that they should have."""
    return {path: text for path, text in pages().items() if path.read_text() != text}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is stale")
    args = parser.parse_args(argv)
    with exit_with_message(ValueError, OSError):
        changed = stale()
        if args.check and changed:
            names = ", ".join(str(path.relative_to(ROOT)) for path in changed)
            raise ValueError(f"run `python -m benchmarks.report.tables`, since these pages are stale: {names}")
        for path, text in changed.items():
            write_text(path, text)
            print(f"written: {path}")


if __name__ == "__main__":
    main()
