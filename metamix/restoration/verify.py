"""Check a restoration data set: decode each image, and compare names, sizes and the scale of pairs."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from metamix.data import CorruptImage
from metamix.data.find import Unmatched
from metamix.tasks.verify import VerifyOptions
from metamix.utils.options import changed_flags, option
from metamix.utils.text import plural

from .data import read_tensor
from .options import PAIR_OPTIONS, RestorationDataOptions, RestorationOptions
from .sources import ImagePair, find_roots, find_samples, leave_out, scale_of_pair

CROP = RestorationOptions.crop  # the default; a training crop must fit into each clean image


@dataclass
class VerifyPairs(VerifyOptions):
    """Check pairs of images, or clean images."""

    clean: bool = option(False, "check clean images without partners instead of pairs")
    input_folder: str = option(RestorationDataOptions.input_folder, "folder of the degraded images of pairs")
    target_folder: str = option(RestorationDataOptions.target_folder, "folder of the clean images of pairs")
    input_name: str = option(RestorationDataOptions.input_name, "name of the degraded copy of the clean image {name}")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data_dir is not None:
            raise ValueError(f"data_dir is {self.data_dir}: give only the folder: metamix verify {self.data_dir}")
        if self.clean and (flags := changed_flags(self, *PAIR_OPTIONS)):
            raise ValueError(f"{flags[0]} {flags[1]} is for pairs, but --clean checks images alone: omit one")
        names = {name: getattr(self, name) for name in PAIR_OPTIONS}
        self.options = RestorationDataOptions(data_dir=self.data, **names)

    def problems(self) -> Iterator[str]:
        self.samples: list[ImagePair] = []
        self.small: list[tuple[int, Path]] = []  # shorter side and path of each training image below `CROP`
        trained_on: set[Path] = set()
        roots = find_roots(self.options)
        for split, root in roots.items():
            try:
                inside = find_samples(root, self.options, not self.clean)
            except Unmatched as error:
                yield from error.problems
                inside = [ImagePair(name, *files) for name, files in error.pairs.items()]
            except (ValueError, OSError) as error:
                yield str(error)
                continue
            inside = leave_out(inside, root, roots.values())  # the other folders in `roots` are checked separately
            self.samples += inside
            trained_on |= {sample.target for sample in inside if split == "train"}
        scale = None
        for sample in tqdm(self.samples, unit="img", leave=False, disable=None):
            broken = False
            for path in sample.files:
                try:
                    read_tensor(path, "rgb")
                except CorruptImage as error:
                    broken = True
                    yield str(error)
            if broken:
                continue
            if sample.input:
                try:
                    scale = scale_of_pair(sample, scale)
                except ValueError as error:
                    yield str(error)
            shorter = min(side - side % (scale or 1) for side in sample.header.size)
            if shorter < CROP and sample.target in trained_on:
                self.small.append((shorter, sample.target))

    def summary(self, count: int) -> str:
        checked = plural(len(self.samples), "image" if self.clean else "pair")
        every = "all " if len(self.samples) > 1 else ""
        line = f"{plural(count, 'problem')}; {checked} checked" if count else f"{every}{checked} can be read"
        if self.small:
            (shorter, path), count = min(self.small), len(self.small)
            line += (
                f"\nnote: {plural(count, 'clean image')} {'is' if count == 1 else 'are'} smaller than the default crop "
                f"of {CROP} pixels: to train on all images, give a --crop of at most {shorter}; {path} is the smallest"
            )
        return line
