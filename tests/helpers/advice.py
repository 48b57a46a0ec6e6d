"""Follow the advice in error messages."""

import shlex

import pytest

import metamix.tasks.verify


def follow_verify(message):
    """Run the `metamix verify` that a message ends with, and return its exit code."""
    with pytest.raises(SystemExit) as ended:
        metamix.tasks.verify.main(shlex.split(str(message).partition("metamix verify ")[2]))
    return ended.value.code
