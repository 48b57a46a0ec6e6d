"""Define where the benchmarks read and write."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
DOCS = ROOT / "docs"
IMAGES = DOCS / "images"
