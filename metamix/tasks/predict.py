"""Predict images with a model of any task, and write the results to files safely: `metamix predict`.

A folder stands for all images in it, at any depth. The output folder gets the same subfolders as the input folder.
Images that cannot be read, or that the model does not take, are named and left out; the exit code is then 1.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tqdm import tqdm

from metamix.data.files import CorruptImage
from metamix.data.find import paths_inside
from metamix.data.options import ImageOptions
from metamix.deploy.artifact import load_artifact
from metamix.utils.checks import DoesNotFit
from metamix.utils.files import make_output_folder, write_text
from metamix.utils.options import option, positional, take_flags
from metamix.utils.rules import Count
from metamix.utils.system import exit_if_out_of_memory, prepare_device
from metamix.utils.text import did_you_mean, exit_with_message, printable
from metamix.weights.find import find_weights

from .find import check_trust, is_exported, task_of, task_of_model, task_of_weights
from .load import load, refuse_name
from .registry import DEFAULT, find_task, list_tasks, parse_task_command
from .spec import TaskSpec, Trained

USAGE = """usage: metamix predict IMAGE_OR_FOLDER... --checkpoint RUN_OR_FILE [options]
       metamix predict IMAGE_OR_FOLDER... --model EXPORTED_FOLDER [options]

The task that trained the weights decides what is predicted:

{tasks}

An exported model runs in the engine of its format. To list all options of a task:
metamix predict --task NAME --help. --import MODULE imports your own mixers, models and tasks first."""

# Options without an effect on an exported model: its weights, tiles and pooling are fixed, and it runs on the CPU.
FIXED_BY_EXPORT = {"device", "pretrained", "tile", "overlap", "local_pooling"}


@dataclass
class PredictOptions(ImageOptions):
    """Options of `metamix predict` that every task has.

    A task derives a class from it that adds its own options. The `__post_init__` of that class names the outputs and
    checks the options, before a model is loaded.
    """

    images: tuple[Path, ...] = positional("image files, and folders, which are searched at any depth", metavar="IMAGE")
    checkpoint: str | None = option(None, "run folder, weight file, or name of shipped weights")
    model: str | None = option(None, "exported folder, or name of the model if the weights do not name it")
    pretrained: bool = option(False, "use the published weights of --model")
    device: str = option("auto", "auto, cpu, cuda, cuda:1 or mps")
    threads: Count | None = option(None, "number of threads for an exported model; by default its engine decides")
    trust: bool = option(False, "load a model that was exported with --format torch; its files can run code")

    def run(self, trained: Any) -> int:
        """Predict the images with a `Trained` of the task and write the results; return how many were left out."""
        raise NotImplementedError


@dataclass
class PredictToFolder(PredictOptions):
    """Options of a task that writes a file for each image. A derived class may change the default of `output`."""

    folders: ClassVar[tuple[str, ...]] = ("",)  # folders inside `output` that get a file for each image
    # Name of the JSON file in `output` with a record for each image; see `predict_images`. `records` is its path.
    records_name: ClassVar[str] = "predictions.json"

    output: Path = option(Path("predictions"), "folder to write to", metavar="FOLDER")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.records = self.output / self.records_name
        folders = [self.output / folder for folder in self.folders]
        # For each image, the path of its file inside each of the folders.
        self.names = name_outputs(self.images, folders, self.extension, marker=self.records)

    def extension(self, path: Path) -> str:
        """Return the extension of the file that is written for an image."""
        return ".png"


def main(argv: Sequence[str]) -> None:
    """Predict images; exit with 1 if an image was left out, and with a message if the input is invalid."""
    with exit_with_message(ValueError, OSError, ImportError):
        named, words = take_flags(argv, "task")
        spec = choose_task(named.get("task"), words)
        options, flags = parse_task_command(spec, "predict", words, f"{spec.about[0].upper()}{spec.about[1:]}.")
        advice = spec.less_memory
        if is_exported(options.model) and "batch" not in advice:
            advice = "give a model that is exported for smaller images"
        with exit_if_out_of_memory(advice):
            left_out = options.run(open_trained(options, flags, spec))
    raise SystemExit(1 if left_out else 0)


def choose_task(task: str | None, words: Sequence[str]) -> TaskSpec:
    """Return the task that a command line or its weights name; without --task and weights, print the usage and exit."""
    weights, _ = take_flags(words, "checkpoint", "model")
    checkpoint, model = weights.get("checkpoint"), weights.get("model")
    if checkpoint and is_exported(model):
        raise ValueError(f"--checkpoint is {checkpoint} and --model is {model}, an exported model: give one of the two")
    if model and not checkpoint and Path(model).exists():
        exported = load_artifact(model).model.task or DEFAULT  # raises an error if export.json is missing
        if task not in (None, exported):
            raise ValueError(f"task is {task}, but {model} is a model for {exported}: leave --task out")
        return find_task(exported)
    if task is not None:
        return find_task(task)
    if checkpoint:
        return find_task(task_of_weights(find_weights(checkpoint), model))
    if model and not task_of_model(model) and "--pretrained" not in words:
        raise ValueError(
            f"there is no folder {model}: --model is a folder that metamix export wrote. To use weights, "
            f"give --checkpoint with a run folder, a file or the name of shipped weights"
        )
    if model:
        return find_task(task_of(model)[0])
    if hidden := {"--checkpoint", "--model"} & set(words[words.index("--") :] if "--" in words else []):
        raise ValueError(f"{hidden.pop()} comes after --, so it would be read as an image: put it before --")
    print(USAGE.format(tasks=list_tasks()))
    if {"-h", "--help"} & set(words):
        raise SystemExit(0)
    advice = "give the weights to predict with, --checkpoint RUN_OR_FILE or --model EXPORTED_FOLDER"
    for flag in (word.partition("=")[0] for word in words if word.startswith("--")):
        hint = did_you_mean(flag, names := ("--checkpoint", "--model"))
        if hint != "." and flag not in names:
            advice = f"there is no option {flag}{hint}"
    print(f"\nerror: {advice}", file=sys.stderr)
    raise SystemExit(2)


def open_trained(options: Any, flags: set[str], spec: TaskSpec) -> Trained:
    """Load weights or an exported model; raise ValueError if there are none, or if one of `flags` has no effect."""
    if is_exported(options.model):
        if fixed := sorted(flags & FIXED_BY_EXPORT):
            raise ValueError(
                f"--{fixed[0].replace('_', '-')} has no effect on {options.model}, an exported model: leave it out, or "
                f"export the model again"
            )
        return load(options.model, threads=options.threads, trust=options.trust)
    if options.threads:
        raise ValueError("--threads is for exported models: set the environment variable OMP_NUM_THREADS instead")
    check_trust(options.trust, ())
    if options.checkpoint is None and not (options.pretrained and options.model):
        raise ValueError(
            f"--task {spec.name} needs weights: give --checkpoint RUN_OR_FILE"
            + (", or --model NAME --pretrained" if spec.takes_names else "")
        )
    device = prepare_device(options.device)
    if spec.takes_names:
        trained = spec.part("load")(options.checkpoint, model=options.model, pretrained=options.pretrained)
        if options.pretrained:
            # The model in the metadata is NAME.TAG, even if --model has no tag.
            print(printable(f"weights: {trained.metadata.model}"), file=sys.stderr)
    else:
        refuse_name(options.model, options.checkpoint)
        trained = spec.part("load")(options.checkpoint)
    trained.model.to(device)
    return trained


def name_outputs(
    places: Sequence[Path], folders: Sequence[Path], extension: Callable[[Path], str], marker: Path
) -> dict[Path, Path]:
    """Return, for each image, the path of its file inside each of the folders that a command writes to.

    It is the path of the image inside the input folder, with the extension that `extension(path)` returns. If two files
    would have the same path, the extension is appended instead: a.jpg.png and a.png.png. Each run writes the file
    `marker` first: if it is missing, existing files belong to the user.

    Raises:
        ValueError: two images have the same output, or an output would overwrite an image, a user's file or a link.
    """
    inside = paths_inside(places, without=folders)
    names = {path: name.with_suffix(extension(path)) for path, name in inside.items()}
    times = Counter(names.values())
    names |= {path: Path(f"{inside[path]}{extension(path)}") for path, name in names.items() if times[name] > 1}
    read = {path.resolve() for path in names}
    written: dict[Path, Path] = {}
    for file, path in ((folder / name, path) for folder in folders for path, name in names.items()):
        if file in written:
            raise ValueError(f"{path} and {written[file]} would both become {file}: rename one, or leave it out")
        written[file] = path
        if file.resolve() in read:
            raise ValueError(f"{file} is an image and would be overwritten: give another --output")
        if file.exists() and not marker.exists():
            raise ValueError(f"{file} exists, and no earlier run wrote it: there is no {marker}. Give another --output")
        if link := next((path for path in (marker, file) if path.is_symlink()), None):
            raise ValueError(f"{link} is a link to a file that would be replaced: give another --output")
    return names


def predict_images(
    images: Mapping[Path, Path], predict: Callable[[Path, Path], Mapping[str, Any]], records: Path
) -> int:
    """Predict images one after the other; return how many were predicted.

    Images that cannot be read or do not fit the model are named and left out.

    Args:
        images: for each image, the file that its prediction is written to.
        predict: reads an image, writes its file, and returns the entries of its record.
        records: JSON file with a record for each image. It is made at the start, since it marks the outputs beside it
            as ours: see `name_outputs`. The records are written at the end, even after an error or Ctrl-C.
    """
    make_output_folder(records.parent)
    if not records.exists():
        write_text(records, "[]\n")
    done: list[dict[str, Any]] = []
    try:
        for path, file in tqdm(images.items(), unit="img", leave=False, disable=None):
            try:
                done.append({"image": str(path)} | dict(predict(path, file)))
            except (CorruptImage, DoesNotFit) as error:
                name = "" if str(path) in str(error) else f"{path}: "
                print(printable(f"left out: {name}{error}"), file=sys.stderr)
    finally:
        write_text(records, json.dumps(done, indent=2) + "\n")
    return len(done)
