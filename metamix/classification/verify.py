"""Read every image of a set and list those that are broken.

    python -m metamix.data.verify DATA [--data-dir DIR] [--workers N]

One line for each broken image, with its path and what is wrong, and one with the count; the exit code is 1 if any is
broken.
"""

import argparse
import sys

from torch.utils.data import DataLoader
from tqdm import tqdm

from .sources import CorruptImage, open_data, read_image


class Check:
    """A data set of what is wrong with each image of a split: a sentence, or None."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images.labels)

    def __getitem__(self, i):
        try:
            read_image(self.images, i)
        except CorruptImage as error:
            return str(error)


def broken_images(images, workers=0, title=""):
    """Yield what is wrong with each broken image of a split, in order."""
    reports = DataLoader(Check(images), batch_size=64, num_workers=workers, collate_fn=list)
    for batch in tqdm(reports, desc=title, unit="batch", disable=None):
        yield from filter(None, batch)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m metamix.data.verify", description=__doc__.splitlines()[0])
    parser.add_argument("data", help="digits, cifar10 or another set of torchvision, folder, hfds/NAME, wds/NAME")
    parser.add_argument("--data-dir", help="where the set lies")
    parser.add_argument("--workers", type=int, default=2, help="processes that read; 0: this one alone")
    options = parser.parse_args(argv)
    if options.workers < 0:
        parser.error(f"--workers is {options.workers}: give 0 (this process reads alone) or more")
    try:
        splits = open_data(options.data, root=options.data_dir, memory="no")
    except (ValueError, FileNotFoundError, ImportError) as error:
        parser.error(str(error))
    count = total = 0
    for title, source in ("train", splits.train), ("test", splits.test):
        total += len(source)
        for reason in broken_images(source.images, options.workers, title):
            print(reason.encode(errors="backslashreplace").decode())  # a name may be no text
            count += 1
    print(
        f"{count} of {total:,} images of {options.data} cannot be read"
        if count
        else f"all {total:,} images can be read"
    )
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
