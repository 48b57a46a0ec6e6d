"""Open the handwritten digits that come with scikit-learn."""

import numpy as np
import torch
from PIL import Image

from ..counter_rng import stratified_choice
from ..files import hash_bytes
from .base import ImageSplit, choose_test_split

TEST_IMAGES = 360  # of 1,797


def open_digits(test_on: str) -> tuple[ImageSplit, ImageSplit]:
    """Open the training and the test split."""
    choose_test_split(["test"], test_on, "digits")
    return Digits(train=True), Digits(train=False)


class Digits(ImageSplit):
    """Read one split: 8x8 images of one channel, enlarged to 32x32."""

    mode = "L"
    classes = tuple("0123456789")

    def __init__(self, train: bool):
        from sklearn.datasets import load_digits  # takes half a second to import

        self.split = "train" if train else "test"
        digits = load_digits()
        labels = torch.from_numpy(digits.target).long()
        chosen = stratified_choice(labels, TEST_IMAGES) != train
        self.labels = labels[chosen]
        self.numbers = chosen.nonzero()[:, 0].tolist()
        self.pixels = (digits.images[chosen.numpy()] * (255 / 16)).round().astype(np.uint8)  # values are 0 to 16

    def open(self, i: int) -> Image.Image:
        return Image.fromarray(self.pixels[i]).resize((32, 32), Image.Resampling.BICUBIC)

    def path(self, i: int) -> str:
        return f"digits {self.numbers[i]}"

    def content(self, i: int) -> str:
        return hash_bytes(self.pixels[i].tobytes())
