"""Find the images of a data set that cannot be read, and name the classes with few images.

If images may have several labels, the images of each label are counted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from metamix.data import open_data, scarce_classes
from metamix.data.formats.tiny_imagenet import CLASS_LIST
from metamix.tasks.simple import broken_samples
from metamix.tasks.verify import VerifyOptions
from metamix.utils.options import option
from metamix.utils.rules import Natural
from metamix.utils.text import aligned, plural, printable


@dataclass
class VerifyImages(VerifyOptions):
    """Decode every image of a data set, and name the images that cannot be read."""

    test_on: str = option("", "split to verify in addition to train; default: the split that is scored")
    workers: Natural = option(2, "processes that decode images, at most one per core; 0: decode in the main process")

    def problems(self) -> Iterator[str]:
        name, root = self.place
        if name == "folder" and root and (Path(root) / CLASS_LIST).is_file():
            name = "tiny_imagenet"
        splits = open_data(name, root=root, test_on=self.test_on, test_share=1, train_required=False)
        self.total = sum(map(len, splits.sources().values()))
        self.notes = []
        if splits.multi_label:
            columns: list[list[object]] = [["label", *splits.classes, "(no label)"]]
            for source in splits.sources().values():
                without = int((source.labels.sum(1) == 0).sum())
                split = source.images.split  # "test" also stands for images without splits
                title = split if splits.train or split != "test" else "images"
                columns.append([title, *source.labels.sum(0).int().tolist(), without])
            self.notes += aligned(zip(*columns), right=range(1, len(columns)))
        self.notes += [f"note: {note}" for note in scarce_classes(splits)]
        for title, source in splits.sources().items():
            yield from broken_samples(source, self.workers, title)

    def summary(self, count: int) -> str:
        line = f"{'all ' if self.total > 1 else ''}{plural(self.total, 'image')} can be read"
        if count:
            line = printable(f"{count} of {self.total:,} images of {self.data_dir or self.data} cannot be read")
        return "\n".join([line, *self.notes])
