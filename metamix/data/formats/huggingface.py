"""Open data sets of the Hugging Face hub, or local copies."""

from io import BytesIO

import torch
from PIL import Image

from metamix.utils.extras import need

from ..files import CorruptImage, check_size, hash_bytes, open_image, read_file
from .base import TEST_SPLITS, ImageSplit, choose_test_split


def open_huggingface(name: str, root: str | None, test_on: str) -> tuple[ImageSplit, ImageSplit]:
    """Open a data set on the hub or in a local folder; `root` is the cache folder. This needs the extra `datasets`."""
    datasets = need("datasets", "datasets")
    try:
        splits = datasets.get_dataset_split_names(name)
    except Exception as error:  # the library raises errors of many types, from a missing network to a misspelt name
        raise FileNotFoundError(f"the Hugging Face data set {name!r} could not be opened: {error}") from error
    others = [split for split in splits if split != "train"]
    if "train" not in splits or not others:
        raise ValueError(
            f"{name} has the splits {', '.join(splits)}; expected train and one of {', '.join(TEST_SPLITS)}"
        )
    test = choose_test_split(others, test_on, name)  # before the training split is downloaded
    return HuggingFace(name, root, "train"), HuggingFace(name, root, test)


class HuggingFace(ImageSplit):
    """Read one split, with one column of images and one of class labels."""

    def __init__(self, name: str, root: str | None, split: str):
        import datasets

        table = datasets.load_dataset(name, split=split, cache_dir=root)
        columns = [
            [key for key, feature in table.features.items() if isinstance(feature, kind)]
            for kind in (datasets.Image, datasets.ClassLabel)
        ]
        if [len(keys) for keys in columns] != [1, 1]:
            raise ValueError(
                f"{name} has the columns {table.features}; expected one column of images and one of class labels"
            )
        (image,), (label,) = columns
        self.images = table.select_columns(image).cast_column(image, datasets.Image(decode=False))
        self.name, self.split, self.column = f"{name} {split}", split, image
        self.labels, self.classes = torch.tensor(table[label][:]), tuple(table.features[label].names)
        if self.labels.min() < 0:
            raise ValueError(f"the split {split} of {name} has images without a label")

    def open(self, i: int) -> Image.Image:
        return open_image(BytesIO(self._read(i)))

    def path(self, i: int) -> str:
        return f"{self.name} {i}"

    def fingerprint(self, i: int) -> str:
        return str(i)

    def content(self, i: int) -> str:
        try:
            return hash_bytes(self._read(i))
        except OSError:  # reading the image reports the error
            return ""

    def _read(self, i: int) -> bytes:
        """Read the bytes of an image from the table, or from the file that the table names."""
        image = self.images[i][self.column] or {}
        if content := image.get("bytes"):
            check_size(len(content))
            return content
        if not image.get("path"):
            raise CorruptImage("the table has no image in this row")
        return read_file(image["path"])
