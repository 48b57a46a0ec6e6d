"""Score a trained model, like the command `metamix eval`."""

import sys

from metamix_cli import main

if __name__ == "__main__":
    main(["eval", *sys.argv[1:]])
