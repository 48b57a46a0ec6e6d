"""Limit how long a test may take."""

import signal
from contextlib import contextmanager


@contextmanager
def seconds(limit):
    """Fail instead of waiting for ever."""

    def fail(number, frame):
        raise AssertionError(f"still waiting after {limit} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(limit)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
