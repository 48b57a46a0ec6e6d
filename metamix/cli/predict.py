"""`metamix predict`: label images or pixels, find objects or restore images, with the model of a run or a file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from metamix.models.image_models import image_model_names
from metamix.tasks.registry import LESS_MEMORY, take_task, task_module
from metamix.utils.system import exit_if_out_of_memory
from metamix.utils.text import exit_with_message
from metamix.weights.files import ARTIFACT
from metamix.weights.find import find_weights

DESCRIPTION = """usage: metamix predict IMAGE_OR_FOLDER... --checkpoint RUN_OR_FILE [options]
       metamix predict IMAGE_OR_FOLDER... --model EXPORTED_FOLDER [options]

The checkpoint decides what is predicted: labels with probabilities (classification), boxes (detection), a label of each
pixel (segmentation) or restored images (restoration). A folder that metamix export wrote runs in the engine of its
format. For all options: metamix predict --task NAME --help, with the name of one of these tasks.
--import MODULE imports your own mixers and models first."""


def main(argv: Sequence[str]) -> None:
    """Pass the command line to the task that trained the checkpoint. Exits with 1 if an image cannot be read."""
    with exit_with_message(ValueError, OSError):
        task, words = take_task(argv)
        checkpoint, model = _weights(words)
        if checkpoint is not None and model is not None and (Path(model) / ARTIFACT).is_file():
            raise ValueError(
                f"--checkpoint is {checkpoint} and --model is {model}, an exported model: give one of the two"
            )
        if task is None and checkpoint is None and model is not None and model.partition(".")[0] in image_model_names():
            task = "restoration"
        if checkpoint is None and model is not None and Path(model).exists():
            from metamix.tasks.predict import main as predict_exported

            raise SystemExit(predict_exported(words, task))
        if task is None:
            if checkpoint is None and model is not None:
                raise ValueError(
                    f"there is no folder {model}: --model is a folder that metamix export wrote. For weights give "
                    f"--checkpoint, a run folder, a file or the name of shipped weights"
                )
            if checkpoint is None:
                if hidden := {"--checkpoint", "--model"} & set(words[words.index("--") :] if "--" in words else []):
                    raise ValueError(
                        f"{hidden.pop()} comes after --, so it would be read as an image: put it before --"
                    )
                print(DESCRIPTION)
                if {"-h", "--help"} & set(words):
                    raise SystemExit(0)
                print(
                    "\nerror: give the weights to predict with, --checkpoint RUN_OR_FILE or --model EXPORTED_FOLDER",
                    file=sys.stderr,
                )
                raise SystemExit(2)
            from metamix.tasks.exportable import task_of_weights

            task = task_of_weights(find_weights(checkpoint), model)
        module = task_module(task, "predict")
    with exit_if_out_of_memory(LESS_MEMORY[task]):
        raise SystemExit(module.main(words))


def _weights(words: Sequence[str]) -> tuple[str | None, str | None]:
    """Return what the command line gives as --checkpoint and --model."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--checkpoint")
    parser.add_argument("--model")
    known = parser.parse_known_args(words)[0]
    return known.checkpoint, known.model
