"""Check the images and masks of a segmentation data set.

Problems are images without a mask, masks without an image, pairs of different sizes, files that cannot be read,
values in masks that are not labels, and classes without pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from metamix.data.files import CorruptImage, read_pixels
from metamix.data.find import Unmatched
from metamix.tasks.verify import VerifyOptions
from metamix.utils.options import option
from metamix.utils.text import aligned

from .labels import IGNORED, BadMask, Labels, ignored_hint, read_mask
from .options import MASK_OPTIONS, MaskValue, SegmentationOptions
from .sources import OPENERS, MaskedImage, open_set, samples_of, sizes_differ


@dataclass
class VerifyMasks(VerifyOptions):
    """Check images and masks, and print each class's share of the pixels."""

    ignore_index: MaskValue | None = option(255, "value of ignored pixels in the mask files; none if all pixels count")
    reduce_zero_label: bool = option(False, "the masks number the classes from 1, and their value 0 is ignored")
    mask_name: str = option("{name}", "name of the mask of the image {name}, such as '{name}_mask'")

    def problems(self) -> Iterator[str]:
        name, folder = self.place
        if folder is None and name not in OPENERS:
            raise FileNotFoundError(
                f"there is no folder {name}: give one with SPLIT/images and SPLIT/masks, or the name of another layout "
                f"({', '.join(OPENERS)}) and --data-dir FOLDER"
            )
        values: Any = {field: getattr(self, field) for field in MASK_OPTIONS}
        values |= {"data": name, "data_dir": folder or ""}
        masked = open_set(SegmentationOptions(**values))
        self.labels = labels = masked.labels
        self.counts: dict[str, Tensor] = {}
        for split in masked.splits:
            try:
                samples = masked.find(split)
            except Unmatched as error:
                yield from error.problems
                samples = samples_of(error.pairs)
            except (ValueError, OSError) as error:
                yield f"{split}: {error}"
                continue
            pixels = torch.zeros(256, dtype=torch.int64)
            yield from check_samples(samples, labels, pixels)
            if not pixels.any():  # no pair could be read, so nothing is known about the classes
                continue
            self.counts[split] = pixels
            if empty := [name for name, count in zip(labels.classes, pixels) if not count]:
                listed = ", ".join(empty) + ignored_hint(pixels, labels)
                yield f"{split}: these classes have no pixels ({len(empty)} of {len(labels.classes)}): {listed}"

    def summary(self, count: int) -> str:
        shares = [table_of_shares(self.counts, self.labels)] if self.counts else []
        return "\n".join([super().summary(count), *shares])


def check_samples(samples: Sequence[MaskedImage], labels: Labels, counts: Tensor) -> Iterator[str]:
    """Yield a description of each problem, and add the pixels of each label to `counts`, (256,) int64."""
    for sample in tqdm(samples, unit="img", leave=False, disable=None):
        try:
            image, mask = read_pixels(sample.image), read_mask(sample.mask, labels)
        except (CorruptImage, BadMask) as error:
            yield str(error)
            continue
        counts += torch.bincount(mask.flatten(), minlength=256)
        if image.shape[1:] != mask.shape:
            yield sizes_differ(sample, image.shape[1:], mask.shape)


def table_of_shares(counts: dict[str, Tensor], labels: Labels) -> str:
    """Format a table: each class's share of the labelled pixels, and the share of ignored pixels among all pixels."""
    of_classes = [pixels[: len(labels.classes)] for pixels in counts.values()]
    rows = [("% of the pixels", *counts)]
    for k, name in [*enumerate(labels.classes), (IGNORED, "(ignored)")]:
        parts = counts.values() if k == IGNORED else of_classes
        shares = (100 * int(pixels[k]) / max(1, int(pixels.sum())) for pixels in parts)
        rows.append((name, *(f"{share:.2f}" for share in shares)))
    return "\n".join(aligned(rows, right=range(1, 1 + len(counts))))
