"""Run an exported model on images.

    metamix predict IMAGE_OR_FOLDER... --model EXPORTED_FOLDER

Images are prepared as in training, and results are written as those of the model that was exported.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from metamix.deploy.artifact import load_artifact
from metamix.deploy.runtime import load_exported
from metamix.utils.arguments import positive
from metamix.utils.system import exit_if_out_of_memory
from metamix.utils.text import exit_with_message


def main(argv: Sequence[str], task: str | None = None) -> int:
    """Run `metamix predict` for an exported model.

    Args:
        argv: the command line.
        task: the task that the user names, which must be the model's; None if no task is named.

    Returns:
        1 if an image cannot be read, else 0.
    """
    model = make_parser().parse_known_args([word for word in argv if word not in ("-h", "--help")])[0].model
    with exit_with_message(ValueError, OSError, ImportError):
        own = load_artifact(model).task
        if task not in (None, own):
            raise ValueError(f"task is {task}, but {model} is a model of {own}: leave --task out")
        smaller = "a smaller --batch-size" if own == "classification" else "a model exported for smaller images"
        with exit_if_out_of_memory(f"give {smaller}"):
            return RUNNERS[own](argv)


def make_parser() -> argparse.ArgumentParser:
    """Make a parser with the options of every task."""
    parser = argparse.ArgumentParser(
        prog="metamix predict", description="Run an exported model on images.", allow_abbrev=False
    )
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="what metamix export wrote")
    parser.add_argument("--threads", type=positive, help="threads of the engine (default: all cores)")
    return parser


def label_images(argv: Sequence[str]) -> int:
    """Label images with an exported classifier."""
    from metamix.classification.load import Classifier, EvalTransform
    from metamix.classification.predict import add_options, label
    from metamix.data.find import find_images

    parser = make_parser()
    add_options(parser)
    options = parser.parse_args(argv)
    images = find_images(options.images)
    model = load_exported(options.model, threads=options.threads)
    metadata = model.artifact.model
    classes = metadata.classes or tuple(map(str, range(metadata.num_classes or 0)))
    return label(Classifier(model, EvalTransform(metadata), classes, metadata), images, options)


def restore_images(argv: Sequence[str]) -> int:
    """Restore images with an exported image model, in tiles if its graph is of a fixed size."""
    from metamix.layers.padding import pad_for_graph, tiles
    from metamix.restoration.inference import Restorer
    from metamix.restoration.predict import add_options, name_outputs, restore_all

    parser = make_parser()
    add_options(parser)
    options = parser.parse_args(argv)
    files = name_outputs(options.places, options.output, options.format)
    exported = load_exported(options.model, threads=options.threads)
    extra, size = exported.artifact.extra, exported.artifact.size
    restorer = Restorer(extra["enlarge"], *tiles(size), options.ensemble, whole=size)
    return restore_all(pad_for_graph(exported, extra, size), extra["channels"], restorer, files, options.output)


def label_pixels(argv: Sequence[str]) -> int:
    """Label the pixels of images with an exported segmenter, in tiles if its graph is of a fixed size."""
    from metamix.layers.padding import pad_for_graph, tiles
    from metamix.segmentation.inference import Predictor, make_views
    from metamix.segmentation.load import SegmenterSpec
    from metamix.segmentation.predict import add_options, name_outputs, predict_all

    parser = make_parser()
    add_options(parser)
    options = parser.parse_args(argv)
    names = name_outputs(options.places, options.output)
    exported = load_exported(options.model, threads=options.threads)
    extra, size = exported.artifact.extra, exported.artifact.size
    spec = SegmenterSpec.from_dict(exported.artifact.model.to_dict(), options.model)
    predictor = Predictor(*tiles(size), make_views((1.0,), options.flip), whole=size)
    return predict_all(pad_for_graph(exported, extra, size), spec, names, options.output, predictor)


def find_objects(argv: Sequence[str]) -> int:
    """Find objects with an exported detector."""
    from metamix.detection.exported import ExportedDetector
    from metamix.detection.predict import add_options, draw_all, name_pictures

    parser = make_parser()
    add_options(parser)
    options = parser.parse_args(argv)
    pictures = name_pictures(options.places, options.output)
    model = ExportedDetector.of(load_exported(options.model, threads=options.threads))
    return draw_all(model, model.classes, pictures, options.output, options.threshold)


RUNNERS = {
    "classification": label_images,
    "detection": find_objects,
    "restoration": restore_images,
    "segmentation": label_pixels,
}
