"""Where the benchmarks read and write."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "results"
DOCS = ROOT / "docs"
IMAGES = DOCS / "images"
