"""Quantize model files to int8 after training, with NNCF for OpenVINO and with ONNX Runtime for ONNX.

    result = quantize_file(
        FORMATS["openvino"], Path("model.xml"), calibration_batches, score, max_drop=0.3, minutes=10, unit="points"
    )

Weights get a scale for each output channel. Activations get one scale for each tensor, found with the calibration
images. If the score drops by more than the limit, the layers are ranked: in a graph that has each layer in both
precisions, one layer at a time runs in int8, and the error of the outputs is measured. Then the layers with the
largest errors stay in fp32: first 1 layer, then 2, 4, ..., up to half of all layers, until the limit is met or the time
is up. A drop counts only if it is significant: p <= 0.05 in a permutation test that flips the signs of the images'
score changes at random. If each image is either right or wrong, this is McNemar's test.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from metamix.utils.text import package_logger, plural

from .formats import Format, Run
from .formats.base import Batches, Quantizer, writing

log = package_logger(__name__)

Score = Callable[[Run], np.ndarray]  # the score of each image, (n,); higher is better
CHANCE = 0.05  # drops with a larger p-value count as chance
FLIPS = 10_000  # number of random draws of the signs
RANKED_IMAGES = 8  # maximum number of images to rank layers on


@dataclass(frozen=True)
class Quantized:
    """The result of quantizing a file."""

    fp32: float  # mean score in fp32
    int8: float  # mean score in int8
    images: int  # number of images that were scored
    layers: int  # number of convolutions and matrix products
    kept: tuple[str, ...]  # names of the layers that stay in fp32

    @property
    def drop(self) -> float:
        """Return the drop of the mean score, in the unit of the scores."""
        return self.fp32 - self.int8


def quantize_file(
    format: Format, file: Path, batches: Batches, score: Score, *, max_drop: float, minutes: float, unit: str
) -> Quantized:
    """Quantize a file of an exported model in place.

    Args:
        format: format of the file, which has a quantizer.
        file: the model in fp32.
        batches: images for calibration.
        score: returns the score of a model on each held-out image; no held-out image may be in `batches`.
        max_drop: largest accepted drop of the mean score; a larger drop is accepted if it may be chance.
        minutes: time after which the search for layers to keep in fp32 makes one more attempt at most.
        unit: unit of the scores, for messages.

    Raises:
        ValueError: there is nothing to quantize, the score drops by more than accepted, or there are no calibration
            images. The file is then unchanged.
        OSError: the disk is full.
        ImportError: a package for quantization is missing.
    """
    if not batches:
        raise ValueError("there are no calibration images: give images of the training split")
    with TemporaryDirectory() as folder:
        quantizer = format.quantizer(file, Path(folder))
        if not quantizer.layers:
            raise ValueError(f"{file} has no convolution and no matrix product: int8 would change nothing")
        output = Path(folder) / f"int8{file.suffix}"
        layers = len(quantizer.layers)
        log.info(f"calibrating int8 for {plural(layers, 'layer')} on {plural(sum(map(len, batches)), 'image')}")
        before = score(format.open(file))
        ranked: list[str] = []
        count, end = 0, 0.0
        while True:
            quantizer.quantize(output, batches, ranked[:count])
            after = score(format.open(output, precision="int8"))
            result = Quantized(float(before.mean()), float(after.mean()), len(before), layers, tuple(ranked[:count]))
            held_out = plural(len(before), "held-out image")
            loss = f"int8 with {count} of {layers} layers in fp32 loses {result.drop:.2f} {unit} on {held_out}"
            log.info(loss)
            if result.drop <= max_drop or is_chance(before, after):
                break
            end = end or time.monotonic() + 60 * minutes
            count, late = max(1, 2 * count), time.monotonic() >= end
            if late or count > layers // 2:
                advice = f"raise --search-minutes above {minutes:g}" if late else "accept a larger --max-drop"
                raise ValueError(f"{loss}; the limit is {max_drop:g}: {advice}, or use fp32")
            ranked = ranked or rank(quantizer, output, batches, end)
        for part in output.parent.glob("int8.*"):  # an .xml also has a .bin
            file.with_suffix(part.suffix).unlink()  # a reader may have mapped it into memory
            with writing(file.with_suffix(part.suffix)):
                shutil.move(part, file.with_suffix(part.suffix))
    return result


def is_chance(before: np.ndarray, after: np.ndarray) -> bool:
    """Return whether a drop of scores (n,) may be chance: its p-value in the permutation test is above `CHANCE`.

    With fewer than five images, p cannot fall below 0.05. The test is then skipped, and every drop counts.
    """
    change, random = (after - before)[after != before], np.random.default_rng(0)
    signs = (2.0 * random.integers(0, 2, (100, len(change)), np.int8) - 1 for _ in range(FLIPS // 100))
    as_low = sum(int((flips @ change <= change.sum() + 1e-9).sum()) for flips in signs)
    return len(before) >= 5 and as_low > CHANCE * FLIPS


def rank(quantizer: Quantizer, file: Path, batches: Batches, end: float) -> list[str]:
    """Sort the layers by the error that each one causes if it alone runs in int8, the largest error first.

    `file` has all layers in int8. After `end`, a time of `time.monotonic`, no further batch is run.
    """
    run, count = quantizer.open_mixed(file), len(quantizer.layers)
    none, *alone = np.eye(count + 1, count, -1, bool)
    few = [images[:RANKED_IMAGES] for images in batches[: max(1, RANKED_IMAGES // len(batches[0]))]]
    errors = np.zeros(count)
    for number, images in enumerate(few, start=1):
        log.info(f"ranking the layers, batch {number} of {len(few)}")
        expected = run(images, none)
        errors += [difference(run(images, switches), expected) for switches in alone]
        if time.monotonic() > end:
            break
    return [quantizer.layers[i] for i in np.argsort(-errors)]


def difference(outputs: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Return the mean squared error of each output relative to its variance, summed over the outputs.

    Several outputs describe candidates, (n, K, ...). Since int8 can change their order, sorted values are compared.
    """
    if len(expected) > 1:
        outputs, expected = ([np.sort(values, axis=1) for values in each] for each in (outputs, expected))
    return sum(float(np.square(a - b).mean() / (b.var() + 1e-12)) for a, b in zip(outputs, expected))
