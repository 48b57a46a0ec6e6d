"""Run commands that always exit, and follow the advice in error messages."""

import shlex

import pytest

import metamix.tasks.verify


def exit_code(main, *words):
    """Run the `main` of a command, and return its exit code."""
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return ended.value.code


def follow_verify(message):
    """Run the command `metamix verify ...` at the end of a message, and return its exit code."""
    return exit_code(metamix.tasks.verify.main, *shlex.split(str(message).partition("metamix verify ")[2]))
