"""Limit how long a test may take."""

import signal
from contextlib import contextmanager

import pytest


@contextmanager
def seconds(limit):
    """Fail the test if the block takes longer than `limit` seconds."""

    def fail(number, frame):
        pytest.fail(f"still waiting after {limit} s")  # no `except Exception` of the package catches it

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(limit)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
