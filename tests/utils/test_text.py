"""Test counts, speeds, lists of names and suggestions in messages, and which errors are printed as messages."""

from pathlib import Path

import pytest

from metamix.utils.text import did_you_mean, exit_with_message, list_names, plural, short_count, speed_text


@pytest.mark.parametrize("count, noun, text", [
    (0, "image", "0 images"),
    (1, "image", "1 image"),
    (1797, "image", "1,797 images"),
    (2, "class", "2 classes"),
    (2, "batch", "2 batches"),
    (10, "epoch", "10 epochs"),
    (3, "batch norm", "3 batch norms"),
])  # fmt: skip
def test_nouns_agree_with_their_count(count, noun, text):
    assert plural(count, noun) == text


@pytest.mark.parametrize("count, text", [
    (999, "999"), (1_070_000, "1.07 M"), (999_499, "999 k"), (999_600, "1 M"), (2.5e9, "2.5 G"),
])  # fmt: skip
def test_large_counts_are_shortened(count, text):
    assert short_count(count) == text


@pytest.mark.parametrize("speed, text", [(1234.4, "1234 img/s"), (1.4, "1 img/s"), (0.42, "0.4 img/s")])
def test_the_speed_of_a_slow_model_is_not_rounded_to_zero(speed, text):
    assert speed_text(speed) == text


def test_lists_of_names_say_how_many_they_leave_out():
    assert list_names(["a", Path("b")]) == "a, b" and list_names([]) == ""
    assert list_names("abcdef") == "a, b, c, d, e and 1 more" and list_names({1: 0, 2: 0, 3: 0}, 1) == "1 and 2 more"


def test_leading_dashes_do_not_make_flags_similar():
    assert did_you_mean("--wandb", ["--mean", "--std"]) == "."
    assert did_you_mean("--worker", ["--mean", "--workers"]) == "; did you mean '--workers'?"


def test_of_equally_similar_names_the_one_with_the_longest_common_part_is_suggested():
    sizes = ["pooling_s12", "pooling_s24", "pooling_s36", "pooling_m36"]
    assert did_you_mean("pooling_s13", sizes) == did_you_mean("pooling_s14", sizes) == "; did you mean 'pooling_s12'?"


def test_a_closed_pipe_is_not_reported():
    with pytest.raises(BrokenPipeError), exit_with_message(OSError):
        raise BrokenPipeError
    with pytest.raises(SystemExit, match="error: full"), exit_with_message(OSError):
        raise OSError("full")
