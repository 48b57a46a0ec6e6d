"""Test the command `metamix`, which hands over to its subcommands."""

import sys

import pytest

from metamix.cli.main import main


@pytest.mark.parametrize("command", ["train", "eval"])
def test_help_names_the_subcommand(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/metamix"])
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: metamix {command} [--config FILE]")
