"""Score a trained model: the same as `metamix eval`."""

import sys

from metamix_cli import main

if __name__ == "__main__":
    main(["eval", *sys.argv[1:]])
