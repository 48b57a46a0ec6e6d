"""Find the images of a data set that cannot be read.

    metamix verify folder --data-dir images
    metamix verify cifar10

Every image is decoded. Each broken one is printed with the reason, then the count. The exit code is 1 if any is broken.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from torch.utils.data import DataLoader
from tqdm import tqdm

from metamix.data import CorruptImage, Source, open_data
from metamix.utils.system import usable_workers
from metamix.utils.text import exit_with_message, printable


class ImageProblems:
    """What is wrong with each image of a source, by index; None for an image that can be read."""

    def __init__(self, images: Source):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> str | None:
        try:
            self.images.read(i)
        except CorruptImage as error:
            return str(error)
        return None


def broken_images(images: Source, workers: int = 0, title: str = "") -> Iterator[str]:
    """Describe what is wrong with each broken image of a source, in order.

    Args:
        workers: processes that decode; 0 for this process.
        title: shown with the progress bar.
    """
    problems: DataLoader = DataLoader(
        ImageProblems(images),  # type: ignore[arg-type]  # torch asks for a subclass of its Dataset
        batch_size=64,
        num_workers=usable_workers(workers),
        collate_fn=list,
    )
    for batch in tqdm(problems, desc=title, unit="batch", disable=None):
        yield from filter(None, batch)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `metamix verify` for labelled images.

    Returns:
        1 if an image cannot be read, else 0.
    """
    parser = argparse.ArgumentParser(
        prog="metamix verify --task classification",
        description="Find the images of a data set that cannot be read.",
        allow_abbrev=False,
    )
    parser.add_argument("data", help="digits, cifar10 or another data set of torchvision, folder, hfds/NAME, wds/NAME")
    parser.add_argument("--data-dir", help="folder of the data set")
    parser.add_argument("--test-on", default="", help="split to verify beside train (default: the one that is scored)")
    parser.add_argument(
        "--workers",
        type=int,
        default=2,
        help="processes that decode, at most one for each core; 0: this process (default: 2)",
    )
    options = parser.parse_args(argv)
    with exit_with_message(ValueError, OSError, ImportError):
        if options.workers < 0:
            raise ValueError(f"--workers is {options.workers}: give 0 (this process decodes) or more")
        try:
            splits = open_data(
                options.data,
                root=options.data_dir,
                memory="no",
                test_on=options.test_on,
                test_share=1,
                train_required=False,
            )
        except ValueError as error:  # its advice is for commands with --data
            raise ValueError(str(error).replace("--data folder", "metamix verify folder")) from None
    count = total = 0
    for title, source in splits.sources().items():
        total += len(source)
        for problem in broken_images(source, options.workers, title):
            print(printable(problem))
            count += 1
    if count:
        print(f"{count} of {total:,} images of {options.data_dir or options.data} cannot be read")
    else:
        print(f"all {total:,} images can be read")
    return 1 if count else 0
