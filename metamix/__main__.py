"""`python -m metamix`: the same as the command `metamix`."""

from metamix.cli.main import main

main()
