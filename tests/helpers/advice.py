"""Follow the advice in error messages."""

import shlex

import pytest

import metamix.cli.verify


def follow_verify(message):
    """Run the `metamix verify` that a message ends with, and return its exit code."""
    with pytest.raises(SystemExit) as ended:
        metamix.cli.verify.main(shlex.split(str(message).partition("metamix verify ")[2]))
    return ended.value.code
