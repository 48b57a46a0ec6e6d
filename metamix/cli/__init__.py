"""Provide the command line: `metamix train`, `metamix eval` and the others."""
