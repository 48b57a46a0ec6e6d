"""Time functions in interleaved runs.

The speed of one machine drifts by 10 % and more from one minute to the next. So the functions to compare take turns in
one process, and a comparison is the ratio of two medians over the same turns.
"""

import os
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from statistics import median
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)
TURN = 0.02  # seconds; faster steps are repeated in their turn, so that they run on caches that they filled themselves


def interleaved(steps: Mapping[Name, Callable[[], object]], seconds: float, least: int = 5) -> dict[Name, float]:
    """Run `steps` interleaved, one after the other in each turn, and return the median seconds of each step.

    All steps together run for `seconds` or longer, and each takes `least` turns or more. A first turn is not timed.
    Warn if other programs were busy meanwhile.
    """
    times: dict[Name, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    start, others = time.perf_counter(), others_seconds()
    end = start + seconds
    turns = 0
    while turns < least or time.perf_counter() < end:
        for name, step in steps.items():
            spent = 0.0
            while spent < TURN:
                began = time.perf_counter()
                step()
                times[name].append(time.perf_counter() - began)
                spent += times[name][-1]
        turns += 1
    share = (others_seconds() - others) / (time.perf_counter() - start) / (os.cpu_count() or 1)
    if share > 0.1:
        print(f"Other programs took {share:.0%} of the processor meanwhile: measure again.", file=sys.stderr)
    return {name: median(spent) for name, spent in times.items()}


def others_seconds() -> float:
    """Return the processor seconds that other processes used since the machine started; 0 if it does not run Linux."""
    path = Path("/proc/stat")
    if not path.exists():
        return 0.0
    user, nice, system, _idle, _iowait, *others = map(int, path.read_text().splitlines()[0].split()[1:9])
    return (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK") - time.process_time()
