"""Restore images that have no ground truth.

    metamix predict IMAGE_OR_FOLDER... --checkpoint RUN --output restored
    metamix predict photos --model maxim_s3.sidd --pretrained

A folder stands for all images in it, at any depth. Each image is written to OUTPUT under its path inside the folder
that was given, in its own format: PNG, JPEG, WebP or TIFF, else PNG. OUTPUT/restored.json lists the files of the last
run. Alpha channels, colour profiles and 16 bits a channel are kept if the format has them; 16 bits need the extra
`restoration`. Values are rounded, not truncated. A model for the luminance restores a grey image as it is and Y of a
colour image, whose Cb and Cr are enlarged. Images that cannot be read or do not fit the model are named and left out;
the exit code is then 1.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from metamix.data.find import paths_inside
from metamix.data.outputs import change_extensions, check_outputs, predict_images
from metamix.layers.image_inference import check_tiles
from metamix.tasks.predict import PredictOptions
from metamix.utils.options import option
from metamix.utils.rules import Natural
from metamix.utils.text import plural, printable

from .files import FORMATS, read_picture, write_picture
from .inference import restore_picture
from .load import TrainedRestorer

RECORDS = "restored.json"  # in the output folder


@dataclass
class RestoreImages(PredictOptions):
    """Restore images, and write each of them to a file.

    Raises:
        ValueError: tiles do not reach beyond their overlap, or a file would be overwritten.
        FileNotFoundError: an image is missing, or a folder holds none.
    """

    output: Path = option(Path("restored"), "folder of the restored images")
    ensemble: bool = option(False, "average over eight orientations; takes eight times as long")
    format: Literal["keep", "png", "jpg", "webp", "tif"] = option(
        "keep", "format of the restored files; keep: that of the image if it can be written, else png"
    )
    tile: int = option(512, "side of the tiles in pixels; 0: whole images at once")
    overlap: int = option(32, "least overlap of tiles in pixels")
    local_pooling: Natural = option(
        0, "side of the windows that MAXIM's channel attention averages over; 0: the whole tile"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_tiles(self.tile, self.overlap)
        names = change_extensions(paths_inside(self.images, without=[self.output]), self.extension)
        self.files = {path: self.output / name for path, name in names.items()}
        check_outputs(self.files, marker=self.output / RECORDS)

    def extension(self, path: Path) -> str:
        """Return the extension of the file that is written for an image."""
        if self.format != "keep":
            return f".{self.format}"
        return path.suffix if path.suffix.lower() in FORMATS else ".png"

    def run(self, trained: TrainedRestorer) -> int:
        restorer = trained.restorer(self.tile, self.overlap, self.ensemble, self.local_pooling)

        def restore(path: Path, written: Path) -> dict[str, str]:
            picture = restore_picture(trained.model, read_picture(path), trained.spec.channels, restorer)
            write_picture(picture, written)
            for lost in picture.lost:
                print(printable(f"note: {path}: {lost}"), file=sys.stderr)
            return {"file": written.relative_to(self.output).as_posix()}

        restored = predict_images(self.files, restore, self.output / RECORDS)
        print(printable(f"written: {plural(restored, 'image')} to {self.output}"))
        return len(self.files) - restored
