"""Train a mixer of your own on scikit-learn's digits and load the result, in less than two minutes.

python examples/own_mixer.py [OUTPUT_FOLDER]
"""

import argparse

from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

import metamix


@metamix.register_mixer("depthwise")
class Depthwise(nn.Module):
    """Depthwise convolution minus its input, (B, C, H, W) -> (B, C, H, W).

    Args:
        kernel_size: side of the kernel, odd.
    """

    def __init__(self, dim: int, *, size: tuple[int, int], kernel_size: int = 5):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) - x


def main(folder: str, epochs: int = 15) -> None:
    """Train the mixer in a nano MetaFormer, load the result and label ten digits."""
    metamix.train("digits/demo", model_args={"mixer": "depthwise"}, output=folder, epochs=epochs)
    digits = load_digits()
    pictures = [Image.fromarray((pixels * 255 / 16).round().astype("uint8")) for pixels in digits.images[:10]]
    predictions = metamix.load(folder).predict(pictures, top=1)
    print("predicted:", *(labels[0][0] for labels in predictions))
    print("true:     ", *digits.target[:10])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", nargs="?", default="runs/own-mixer", help="run folder; default: %(default)s")
    main(parser.parse_args().folder)
