"""What `metamix export` needs to know about a model of a task: `Exportable`."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Protocol

from pydantic import Field
from torch import Tensor, nn

from metamix.data.options import ImageOptions
from metamix.deploy.formats import FORMATS, PRECISIONS
from metamix.training.task import Batch
from metamix.utils.options import option, positional
from metamix.utils.rules import Count, NotNegative, one_of, rule
from metamix.weights.metadata import MAX_SIDE, ModelMetadata
from metamix.weights.metadata import Side as ImgSide

from .load import task_of

Model = Callable[[Tensor], Any]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
EXTRA = {  # entries of `Artifact.extra` for `PadAndCrop` and `CalibratedExport`
    "scale": rule(Side),
    "multiple": rule(Annotated[tuple[Side, Side], Field(description="two whole numbers from 1 to 65,536")]),
}


@dataclass
class ExportOptions(ImageOptions):
    """Write a trained model for an inference engine, and check that it computes the same.

    A side in `img_size` gives squares; in Python it may be one number or (height, width).
    """

    source: str = positional("NAME.TAG of metamix or timm, a run folder or a weight file", metavar="MODEL")
    output: Path = option(MISSING, "folder to write: a new one, or one that was exported to before")
    model: str | None = option(None, "name of the model, for a file that does not name it")
    format: Annotated[str, one_of(FORMATS)] = option("onnx", "format to write: onnx, openvino or torch")
    precision: Annotated[str, one_of(PRECISIONS)] = option("fp32", "fp32, bf16 or int8")
    img_size: tuple[ImgSide, ...] | None = option(None, "size of images in pixels, N or H,W; default: as in training")
    dynamic: bool = option(False, "accept any height and width; any batch size is always accepted")
    compile: bool = option(False, "torch: also compile the graph for this CPU, which takes minutes")
    data: str | None = option(
        None, "data set to compare on (test split) and to calibrate int8 on (training split); default: random images"
    )
    data_dir: str | None = option(None, "folder of the data set")
    images: Count | None = option(None, "compare on at most this many images; default: all")
    max_drop: NotNegative | None = option(
        None,
        "what int8 may lose on training images that calibration did not see; default: 0.3 points of accuracy, 0.5 of "
        "AP or mean IoU, 0.1 dB of PSNR",
    )
    search_minutes: NotNegative = option(10.0, "minutes to search for layers to keep in fp32 if int8 loses too much")
    calibration_images: Count = option(500, "training images that int8 is calibrated on")
    threads: Count | None = option(None, "threads of the speed measurement; default: torch's number")
    seconds: NotNegative = option(4.0, "seconds of the speed measurement; 0: do not measure")

    def __post_init__(self) -> None:
        if isinstance(self.img_size, int):
            self.img_size = (self.img_size,)
        self.output = Path(self.output)
        super().__post_init__()
        if self.img_size is not None:
            if len(self.img_size) > 2:
                raise ValueError(f"img_size is {self.img_size}: give one side for a square, or height and width")
            self.img_size = self.img_size if len(self.img_size) == 2 else self.img_size * 2

    @property
    def file(self) -> str | None:
        """Return the source if it has a file; None if it names weights that are published elsewhere."""
        return self.source if task_of(self.source, self.model)[1] else None


@dataclass
class Comparison:
    """The differences between an exported model and the eager one."""

    parity: dict[str, Any]  # differences of the outputs
    # Scores of "eager" and "exported" on the data; empty without data.
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)  # a sentence about each limit of the precision that is exceeded


class Exportable(Protocol):
    """A trained model of a task."""

    model: nn.Module  # the fp32 model in evaluation mode, which takes prepared images (n, C, H, W)
    metadata: ModelMetadata  # metadata of the weights, with the image size of the export
    outputs: tuple[str, ...]  # names of the outputs
    extra: dict[str, Any]  # see `Artifact.extra`
    notes: list[str]  # what the user should know

    def examples(self, count: int) -> Tensor:
        """Return prepared images (count, C, H, W): of the data, or random images."""

    def compare(self, exported: Model, precision: str) -> Comparison:
        """Run both models on the same images."""


def readable_images(loader: Iterable[Batch], count: int | None) -> Iterator[Batch]:
    """Yield the batches of one image, at most `count`, leaving out images that cannot be read."""
    return islice((batch for batch in loader if int(batch["index"][0]) >= 0), count)
