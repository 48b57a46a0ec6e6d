"""Define fixtures that make data sets of small images, and one that damages an image."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image


def write_tar(path, members, **headers):
    """Write a tar file of (name, content) pairs; each member gets the PAX headers `headers`."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(content), headers
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def image():
    """Return a function that makes random smooth images, which JPEG compression changes little."""
    random = np.random.default_rng(0)

    def make(size=(32, 32), mode="RGB"):
        channels = (len(mode),) if len(mode) > 1 else ()
        small = random.integers(0, 256, (4, 4, *channels), dtype=np.uint8)
        return Image.fromarray(small).resize(size, Image.Resampling.BILINEAR)

    return make


@pytest.fixture
def folder(tmp_path, image):
    """Return a function that makes a folder of 3 classes, with `train` and `val` images of each class."""

    def make(train=4, val=2, size=(32, 32), kind="png", name="set"):
        for split, count in ("train", train), ("val", val):
            for label in "cat", "dog", "eel":
                place = tmp_path / name / split / label
                place.mkdir(parents=True)
                for i in range(count):
                    image(size).save(place / f"{i}.{kind}")
        return tmp_path / name

    return make


@pytest.fixture
def break_image():
    def damage(path):
        """Truncate an image so that its header can still be read, but its pixels cannot."""
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * 0.9)])
        if path.suffix == ".jpg":
            with Image.open(path) as opened:
                assert opened.size

    return damage


@pytest.fixture
def shard():
    def write(path, samples):
        """Write a WebDataset shard of (key, extension, content) samples."""
        write_tar(path, [(f"{key}.{extension}", content) for key, extension, content in samples])

    return write
