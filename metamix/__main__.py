"""`python -m metamix`: the same as the command `metamix`."""

from metamix_cli import main

main()
