"""Train a model, like the command `metamix train`."""

import sys

from metamix_cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
