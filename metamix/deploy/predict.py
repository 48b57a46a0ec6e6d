"""Run an exported model on images.

    metamix predict IMAGE_OR_FOLDER... --model EXPORTED_FOLDER

Images are prepared as in training, and results are written as those of the model that was exported.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from metamix.utils.text import exit_with_message

from .artifact import load_artifact
from .runtime import ExportedModel, load_exported


class EngineModule(nn.Module):
    """An exported model as a module without parameters, for code that calls modules."""

    def __init__(self, model: ExportedModel):
        super().__init__()
        self.exported = model

    def forward(self, images: Tensor) -> Any:
        return self.exported(images)


def main(argv: Sequence[str]) -> int:
    """Run `metamix predict` for an exported model.

    Returns:
        1 if an image cannot be read, else 0.
    """
    model = make_parser().parse_known_args([word for word in argv if word not in ("-h", "--help")])[0].model
    with exit_with_message(ValueError, OSError, ImportError):
        task = load_artifact(model).task
        if task != "classification":
            raise ValueError(f"{model} is a model of the task {task}, which metamix predict does not run exported")
        return label_images(argv)


def make_parser() -> argparse.ArgumentParser:
    """Make a parser with the options of every task."""
    parser = argparse.ArgumentParser(
        prog="metamix predict", description="Run an exported model on images.", allow_abbrev=False
    )
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="what metamix export wrote")
    parser.add_argument("--threads", type=int, help="that the engine computes with (default: all cores)")
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
    return label(Classifier(EngineModule(model), EvalTransform(metadata), classes, metadata), images, options)
