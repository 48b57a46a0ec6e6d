"""Provide the command line: `metamix train`, `metamix eval` and the other subcommands."""
