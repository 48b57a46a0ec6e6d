"""Test that timed functions take turns, and that a busy machine is reported."""

import pytest

from metamix.utils import timing


def test_timed_functions_take_turns():
    calls = []
    steps = {name: lambda name=name: calls.append(name) or timing.time.sleep(timing.TURN) for name in "ab"}
    medians = timing.interleaved(steps, seconds=0, least=3)
    assert calls == ["a", "b"] * 4  # the first turn is not timed
    assert all(seconds >= timing.TURN for seconds in medians.values())


@pytest.mark.parametrize(
    "share, said", [(0.05, ""), (0.5, "Other programs took 50% of the processor meanwhile: measure again.\n")]
)
def test_a_busy_machine_is_reported(share, said, monkeypatch, capsys):
    clock, count = timing.time.perf_counter, timing.os.cpu_count()
    monkeypatch.setattr(timing, "others_seconds", lambda: share * count * clock())
    timing.interleaved({"a": lambda: timing.time.sleep(timing.TURN)}, seconds=0, least=2)
    assert capsys.readouterr().err == said
