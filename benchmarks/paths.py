"""Define the folders of the benchmarks, and read and write JSON files."""

import json
from pathlib import Path
from typing import Any

from metamix.utils.files import write_text

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
DOCS = ROOT / "docs"
IMAGES = DOCS / "images"


def read_json(path: Path, otherwise: Any = None) -> Any:
    """Read a JSON file. If it does not exist, return `otherwise`, or raise FileNotFoundError if that is None."""
    return otherwise if otherwise is not None and not path.exists() else json.loads(path.read_text())


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file; create its folder if that does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=1) + "\n")
