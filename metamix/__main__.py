"""Run the command `metamix` as `python -m metamix`."""

from metamix_cli import main

main()
