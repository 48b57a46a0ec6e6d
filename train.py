"""Train a model: the same as `metamix train`."""

from metamix.cli.train import main

if __name__ == "__main__":
    main()
