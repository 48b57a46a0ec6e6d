"""Find images and pairs of images for restoration, in the layouts that docs/restoration.md shows.

The images of a pair are matched by their names without extensions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from metamix.data.files import Header, read_header
from metamix.data.find import list_images, match_partners
from metamix.utils.text import did_you_mean
from metamix.weights.checksums import digest

from .options import RestorationDataOptions


@dataclass(frozen=True)
class ImagePair:
    """A clean image, and its degraded version if there is one."""

    name: str  # path of the clean image inside its folder; in a pair, without its extension
    target: Path
    input: Path | None

    @cached_property
    def header(self) -> Header:
        """Read the size and colour of the clean image."""
        return read_header(self.target)

    @property
    def files(self) -> list[Path]:
        """Return the files: the clean image, and the degraded one if there is one."""
        return [path for path in (self.target, self.input) if path]

    @cached_property
    def grey(self) -> bool:
        """Return whether neither image has colours."""
        return self.header.grey and (self.input is None or read_header(self.input).grey)


def test_folders(options: RestorationDataOptions) -> list[Path]:
    """List the folders test and val of the data set; leave out a missing folder."""
    folders = [Path(options.data_dir, name) for name in ("test", "val") if options.data_dir]
    return [folder for folder in folders if folder.is_dir()]


def find_roots(options: RestorationDataOptions) -> dict[str, Path]:
    """Return the folders of the splits.

    "test" is missing if a share of "train" is scored. The folder val is "holdout", unless it does not exist or is
    already "test".
    """
    root, folders = Path(options.data_dir), test_folders(options)
    has_train = options.data_dir and (root / "train").is_dir()
    roots = {"train": root / "train" if has_train else root}
    if options.test_dir or folders:
        roots["test"] = Path(options.test_dir) if options.test_dir else folders[0]
        for folder in folders:
            if folder.name == "val" and folder.resolve() != roots["test"].resolve():
                roots["holdout"] = folder
    return roots


def find_samples(root: Path, options: RestorationDataOptions, paired: bool) -> list[ImagePair]:
    """Find the clean images of a folder and, if `paired`, their partners; raise `Unmatched` if a partner is missing."""
    inputs, targets = root / options.input_folder, root / options.target_folder
    if not paired:
        images = list_images(targets if targets.is_dir() else root)
        return [ImagePair(name, path, None) for name, path in images.items()]
    if missing := next((place for place in (inputs, targets) if not place.is_dir()), None):
        folders = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
        raise FileNotFoundError(
            f"there is no folder {missing}{did_you_mean(missing.name, folders)} Pairs need {inputs} and {targets}. To "
            f"degrade clean images, give --degradation, such as noise:25 (with metamix verify, give --clean). To "
            f"restore images without targets, run metamix predict"
        )
    pairs = match_partners(targets, inputs, "--input-name", options.input_name)
    return [ImagePair(name, *files) for name, files in pairs.items()]


def leave_out(samples: Sequence[ImagePair], root: Path, folders: Iterable[Path]) -> list[ImagePair]:
    """Return the samples of `root` without the samples in those `folders` that are inside `root`."""
    inside = {folder for folder in map(Path.resolve, folders) if root.resolve() in folder.parents}
    return [sample for sample in samples if not inside or inside.isdisjoint(sample.target.resolve().parents)]


def digest_of(samples: Sequence[ImagePair]) -> str:
    """Hash the names and the file sizes of samples."""
    return digest((sample.name, *(path.stat().st_size for path in sample.files)) for sample in samples)


def scale_of_pair(sample: ImagePair, expected: int | None) -> int:
    """Return how many times larger the target is than the input.

    The target may have up to `scale` - 1 more rows and columns at the bottom and right, which are cut off. Raise
    ValueError if no scale fits, or if it differs from the scale `expected` of the other pairs, which may be None.
    """
    assert sample.input is not None
    (h, w), (th, tw) = read_header(sample.input).size, sample.header.size
    scale = max(th // h, 1)
    if (h * scale, w * scale) != (th - th % scale, tw - tw % scale):
        raise ValueError(
            f"{sample.input} has {h} x {w} pixels and {sample.target} has {th} x {tw}; the target of a pair must be as "
            f"large as the input, or larger by a whole factor"
        )
    if expected not in (None, scale):
        raise ValueError(f"{sample.target} has scale {scale}, but other pairs have {expected}: keep pairs of one scale")
    return scale
