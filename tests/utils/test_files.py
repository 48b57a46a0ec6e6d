"""Test the limit on nesting in JSON files, and that two commands cannot fill the same folder."""

import json

import pytest

from metamix.utils.files import check_nesting, filled_at_once


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a\\"b":'])
def test_text_that_is_nested_too_deeply_is_refused(opening):
    with pytest.raises(ValueError, match="^a.json is nested deeper than 64 levels; give another"):
        check_nesting(opening * 100_000, "a.json")


def test_text_that_is_nested_as_deep_as_allowed_is_accepted():
    value = 0
    for _ in range(32):
        value = {"key": [value]}
    check_nesting(json.dumps([value, value, "[" * 100, '"]' * 100, "\\"])[1:-1], "a.json")
    with pytest.raises(ValueError, match="nested deeper than 64 levels"):
        check_nesting(json.dumps([value]), "a.json")


def test_long_text_that_is_not_json_is_checked_in_linear_time():
    check_nesting('"' + '\\"' * 1_000_000, "a.json")
    check_nesting('"\\' * 1_000_000, "a.json")


def test_the_second_of_two_commands_that_fill_a_folder_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".DS_Store").touch()  # Finder of macOS adds it to each folder that it shows
    refused = pytest.raises(ValueError, match=r"out holds other files \(a\): give a new folder")
    with refused, filled_at_once(tmp_path / "out") as later, filled_at_once(tmp_path / "out") as earlier:
        (earlier / "a").write_text("earlier")
        (later / "a").write_text("later")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".DS_Store", "a"}
    assert (tmp_path / "out" / "a").read_text() == "earlier"
