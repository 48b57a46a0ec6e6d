"""Score a trained model: the same as `metamix eval`."""

from metamix.cli.evaluate import main

if __name__ == "__main__":
    main()
