"""Restore images that have no ground truth, and write each of them to a file."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from metamix.tasks.predict import PredictToFolder, predict_images
from metamix.utils.options import option
from metamix.utils.rules import Natural
from metamix.utils.text import plural, printable

from .files import FORMATS, read_picture, write_picture
from .inference import restore_picture
from .load import TrainedRestorer


@dataclass
class RestoreImages(PredictToFolder):
    """Restore images, and write each of them to a file."""

    records_name = "restored.json"

    output: Path = option(Path("restored"), "folder of the restored images")
    ensemble: bool = option(False, "average over eight orientations; takes eight times as long")
    format: Literal["keep", "png", "jpg", "webp", "tif"] = option(
        "keep", "format of the restored files; keep: the format of the image if it can be written, else png"
    )
    tile: int = option(512, "side of the tiles, in pixels of the model's input; 0: whole images at once")
    overlap: int = option(32, "smallest overlap of tiles, in the same pixels", needs="tile")
    local_pooling: Natural = option(
        0, "side in pixels of the windows that MAXIM's channel attention averages over; 0: the whole image or tile"
    )

    def extension(self, path: Path) -> str:
        if self.format != "keep":
            return f".{self.format}"
        return path.suffix if path.suffix.lower() in FORMATS else ".png"

    def run(self, trained: TrainedRestorer) -> int:
        restorer = trained.restorer(self.tile, self.overlap, self.ensemble, self.local_pooling)

        def restore(path: Path, name: Path) -> dict[str, str]:
            picture = restore_picture(trained.model, read_picture(path), trained.spec.channels, restorer)
            write_picture(picture, self.output / name)
            for lost in picture.lost:
                print(printable(f"note: {path}: {lost}"), file=sys.stderr)
            return {"file": name.as_posix()}

        restored = predict_images(self.names, restore, self.records)
        print(printable(f"written: {plural(restored, 'image')} to {self.output}"))
        return len(self.names) - restored
