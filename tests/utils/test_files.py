"""Test the limit on nesting in JSON files."""

import json

import pytest

from metamix.utils.files import check_nesting


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a\\"b":'])
def test_text_that_is_nested_too_deeply_is_refused(opening):
    with pytest.raises(ValueError, match="^a.json is nested deeper than 64 levels; give another"):
        check_nesting(opening * 100_000, "a.json")


def test_what_is_nested_as_deep_as_allowed_is_accepted():
    value = 0
    for _ in range(32):
        value = {"key": [value]}
    check_nesting(json.dumps([value, value, "[" * 100, '"]' * 100, "\\"])[1:-1], "a.json")
    with pytest.raises(ValueError, match="nested deeper than 64 levels"):
        check_nesting(json.dumps([value]), "a.json")


def test_text_that_is_not_json_takes_no_longer():
    check_nesting('"' + '\\"' * 1_000_000, "a.json")
    check_nesting('"\\' * 1_000_000, "a.json")
