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
from .options import RestorationDataOptions, RestorationOptions
from .sources import ImagePair, find_roots, find_samples, leave_out, scale_of_pair

CROP = RestorationOptions.crop  # the default; a training crop must fit into each clean image


@dataclass
class VerifyPairs(VerifyOptions):
    """Check pairs of images, or clean images."""

    clean: bool = option(False, "check clean images without partners instead of pairs")
    input_folder: str = option(RestorationDataOptions.input_folder, "folder of the degraded images of pairs")
    target_folder: str = option(RestorationDataOptions.target_folder, "folder of the clean images of pairs")
    input_name: str = option(RestorationDataOptions.input_name, "name of the degraded image of the clean image {name}")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data_dir is not None:
            raise ValueError(f"data_dir is {self.data_dir}: give only the folder: metamix verify {self.data_dir}")
        if self.clean and (flags := changed_flags(self, "input_folder", "target_folder", "input_name")):
            raise ValueError(f"{flags[0]} {flags[1]} is for pairs, but --clean checks images alone: omit one")
        self.options = RestorationDataOptions(
            data_dir=self.data,
            input_folder=self.input_folder,
            target_folder=self.target_folder,
            input_name=self.input_name,
        )

    def problems(self) -> Iterator[str]:
        self.samples: list[ImagePair] = []
        self.small: list[tuple[int, Path]] = []  # shorter side and path of each image smaller than a crop
        roots = find_roots(self.options).values()
        for root in roots:
            try:
                inside = find_samples(root, self.options, not self.clean)
            except Unmatched as error:
                yield from error.problems
                inside = [ImagePair(name, *files) for name, files in error.pairs.items()]
            except (ValueError, OSError) as error:
                yield str(error)
                continue
            self.samples += leave_out(inside, root, roots)  # the other folders in `roots` are checked separately
        scale = None
        for sample in tqdm(self.samples, unit="img", leave=False, disable=None):
            broken = False
            for path in sample.files:
                try:
                    read_tensor(path, "rgb")
                except CorruptImage as error:
                    broken = True
                    yield str(error)
            if not broken and (shorter := min(sample.header.size)) < CROP:
                self.small.append((shorter, sample.target))
            if sample.input and not broken:
                try:
                    scale = scale_of_pair(sample, scale)
                except ValueError as error:
                    yield str(error)

    def summary(self, count: int) -> str:
        checked = plural(len(self.samples), "image" if self.clean else "pair")
        line = f"{plural(count, 'problem')}; {checked} checked" if count else f"all {checked} can be read"
        if self.small:
            (shorter, path), count = min(self.small), len(self.small)
            line += (
                f"\nnote: {plural(count, 'clean image')} {'is' if count == 1 else 'are'} smaller than the default crop "
                f"of {CROP} pixels: to train on all images, give --crop {shorter}, the shorter side of {path}"
            )
        return line
