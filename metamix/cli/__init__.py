"""The command line: `metamix train`, `metamix eval` and the others."""
