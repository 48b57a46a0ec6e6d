"""Test that generated sections of pages are up to date, and that their markers are checked."""

import re

import pytest

from benchmarks.paths import DOCS, IMAGES, ROOT
from benchmarks.report import tables
from benchmarks.report.tables import fill

PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]


def test_pages_are_fresh():
    assert not tables.stale(), "run: python -m benchmarks.report.tables"


def test_a_stale_page_fails_the_check_and_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "DOCS", tmp_path / "docs")
    monkeypatch.setattr(tables, "SECTIONS", {"a": lambda: "new"})
    page = tmp_path / "README.md"
    page.write_text("<!-- a -->\n\nold\n\n<!-- /a -->\n")
    with pytest.raises(SystemExit, match=r"^error: run `python -m benchmarks.report.tables`, .* stale: README.md$"):
        tables.main(["--check"])
    assert "old" in page.read_text()
    tables.main([])
    assert page.read_text() == "<!-- a -->\n\nnew\n\n<!-- /a -->\n"
    tables.main(["--check"])


def test_only_the_text_between_markers_changes():
    page = "# Title\n\nabove <!-- a comment -->\n\n<!-- a -->\nold\n<!-- /a -->\n\nbelow\n"
    once = fill(page, {"a": lambda: "new"})
    assert once == page.replace("\nold\n", "\n\nnew\n\n") and fill(once, {"a": lambda: "new"}) == once


@pytest.mark.parametrize(
    "page, said",
    [
        ("<!-- mixer -->\n<!-- /mixer -->", "<!-- mixer --> names no section; did you mean 'mixers'"),
        ("<!-- mixers -->\n", "<!-- mixers --> must appear once, and <!-- /mixers --> once after it"),
        ("<!-- mixers -->\n<!-- /mixers -->" * 2, "<!-- mixers --> must appear once"),
    ],
)
def test_wrong_markers_are_refused(page, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        fill(page, {"mixers": lambda: ""})


def test_every_section_is_used():
    used = {name for page in PAGES for name in re.findall(r"<!-- ([\w-]+) -->", page.read_text())}
    assert used == set(tables.SECTIONS)


def test_docs_images_holds_exactly_the_pictures_that_pages_show():
    shown = {
        (page.parent / name).resolve()
        for page in PAGES
        for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text())
    }
    assert shown == {path.resolve() for path in IMAGES.iterdir()}
