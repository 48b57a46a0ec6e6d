"""Write a trained model and a model card as a repository for the Hugging Face Hub, and upload it: `metamix publish`.

    model.safetensors   the weights, with the metadata of the run
    README.md           the model card: how to use and train the model, and its scores
    recipe.yaml         the options of the run
    config.json         the description that timm reads, if timm has this kind of model

metamix reads such a folder like a run folder.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import Any

import timm
from huggingface_hub import EvalResult, HfApi, ModelCardData  # installed with timm
from huggingface_hub.utils import HFValidationError, validate_repo_id

from metamix.training.reports import ENTRIES, NUMBER, read_summary
from metamix.utils.files import atomic_write, check_output_folder, make_output_folder, write_text
from metamix.utils.options import Options, dump_yaml, option, parse_command, positional, read_yaml
from metamix.utils.rules import Natural, check_entries, rule
from metamix.utils.text import exit_with_message, list_names, plural, printable, printable_lines, short_count
from metamix.version import __version__
from metamix.weights.files import RECIPE, SUMMARY, WEIGHTS, load_weights, newest_weights, save_weights
from metamix.weights.find import find_weights

from .find import task_of_weights
from .registry import find_task
from .spec import TaskSpec, Trained

CARD, CONFIG = "README.md", "config.json"
FILES = {CARD, CONFIG, RECIPE, WEIGHTS}
LIBRARIES = {"metamix", "timm", "torch", "torchvision"}  # the card does not tell users to import them
ONE_MACHINE = ("output", "resume", "data_dir")  # options that mean nothing on another machine
MAX_LISTED_CLASSES = 100  # on the card
EXAMPLES = """examples:
  metamix publish runs/digits-metaformer_pooling_nano-seed0 USER/digits --dry-run folder
  metamix publish runs/digits-metaformer_pooling_nano-seed0 USER/digits --license apache-2.0

Uploading needs a login: hf auth login."""


@dataclass
class PublishOptions(Options):
    """Upload a trained model to the Hugging Face Hub; if timm has this kind of model, timm can load it from there."""

    source: str = positional("run folder, or a weight file that metamix wrote", metavar="RUN")
    repo: str = positional("repository on the Hugging Face Hub, USER/NAME; created if it is missing", metavar="REPO")
    dry_run: Path | None = option(None, "write the repository to this folder and upload nothing", metavar="FOLDER")
    private: bool = option(False, "make a new repository private")
    license: str | None = option(None, "license of the weights, as the hub names it, such as apache-2.0; default: none")

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            validate_repo_id(self.repo)
            if self.repo.count("/") != 1:
                raise HFValidationError
        except HFValidationError:
            raise ValueError(
                f"the repository is {self.repo!r}, but it must be USER/NAME, with letters, digits and -, _ or . in NAME"
            ) from None
        if self.license and not re.fullmatch("[a-z0-9.+-]+", self.license):
            raise ValueError(f"license is {self.license!r}: give a name that the hub knows, such as mit, or give other")
        if self.dry_run:
            is_repository = (self.dry_run / CARD).exists() and (self.dry_run / WEIGHTS).exists()
            check_output_folder(self.dry_run, FILES if is_repository else ())


def main(argv: Sequence[str]) -> None:
    """Publish a model; exit with a message if the input is invalid or the upload fails."""
    with exit_with_message(ValueError, OSError, ImportError):
        options, flags = parse_command(argv, PublishOptions, "metamix publish", epilog=EXAMPLES)
        if "dry_run" in flags and options.dry_run is None:  # --dry-run "$UNSET" must not upload
            raise ValueError("--dry-run is empty: give a folder to write to")
        with TemporaryDirectory() as temporary:
            folder = Path(temporary)
            for note in write(options, folder):
                print(printable(f"note: {note}"))
            names = ", ".join(sorted(path.name for path in folder.iterdir()))
            if options.dry_run:
                make_output_folder(options.dry_run)
                for name in FILES:  # files of an earlier call
                    (options.dry_run / name).unlink(missing_ok=True)
                for path in folder.iterdir():
                    with atomic_write(options.dry_run / path.name) as file:
                        file.write(path.read_bytes())
                print(printable(f"written: {options.dry_run}, {names}; nothing was uploaded"))
            else:
                print(printable(f"uploaded: {upload(folder, options)}, {names}"))


def write(options: PublishOptions, folder: Path) -> list[str]:
    """Write the files of a repository to an empty folder, and return notes for the user."""
    path = find_weights(options.source)
    file = newest_weights(path)[0] if path.is_dir() else path
    spec = find_task(task_of_weights(file))
    tensors, metadata = load_weights(file)
    if not metadata.get("model"):
        raise ValueError(f"{options.source} does not name its model: write it with metamix.save_classifier")
    trained: Trained = spec.part("load")(file)
    run = file.parent if file.name == WEIGHTS and (file.parent / SUMMARY).is_file() else None
    summary = read_summary(run) if run else {"scores": []}
    recipe = read_yaml(run / RECIPE) if run and (run / RECIPE).is_file() else None
    save_weights(folder / WEIGHTS, tensors, metadata | {"format": "pt"})  # transformers 4 needs this entry
    if recipe:
        write_text(folder / RECIPE, dump_yaml(shareable(recipe)))
    in_timm = spec.part("publish")(trained, folder, options) if spec.publish else ""
    modules = modules_to_import(spec, trained, metadata["model"])
    about = summary | metadata
    rules = ENTRIES | {"samples": rule(dict[str, Natural]), "versions": rule(dict[str, str]), "seed": rule(int)}
    check_entries(about, {name: rules[name] for name in rules if name in about}, file)
    check_entries(about, dict.fromkeys(about["scores"], NUMBER), file)
    card = make_card(options, spec, about, recipe, in_timm, modules)
    write_text(folder / CARD, card)
    notes = [] if run else [f"the card has no scores and no recipe: {options.source} is not a finished run"]
    if modules:
        notes.append(f"users of the model must import {', '.join(modules)} first; that code is not in the repository")
    return notes if options.license else [*notes, "the card names no license: give --license, such as apache-2.0"]


def upload(folder: Path, options: PublishOptions) -> str:
    """Upload a folder to the hub, and return the address of the repository; raise OSError if that fails."""
    hub = HfApi(library_name="metamix", library_version=__version__)
    try:
        repo = hub.create_repo(options.repo, private=options.private, exist_ok=True)
        hub.upload_folder(repo_id=repo.repo_id, folder_path=folder, commit_message="Publish with metamix")
    except Exception as error:  # the type of the error depends on huggingface_hub's version
        text = " ".join(str(error).split())
        raise OSError(
            f"{options.repo} could not be uploaded ({text}): log in with `hf auth login` as a user who may write to "
            f"it, or write a folder with --dry-run FOLDER and upload that"
        ) from None
    return str(repo)


def shareable(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe without the options in `ONE_MACHINE`, and with absolute paths cut to their last part."""
    return {
        name: PurePath(value).name if isinstance(value, str) and PurePath(value).is_absolute() else value
        for name, value in recipe.items()
        if name not in ONE_MACHINE
    }


def modules_to_import(spec: TaskSpec, trained: Trained, model: str) -> list[str]:
    """Return the names of the user's modules that define the task, the model or its layers."""
    names = {type(layer).__module__ for layer in trained.model.modules()} | {spec.load.partition(":")[0]}
    if timm.is_model(model):
        names.add(getattr(timm.model_entrypoint(model), "registered_in", "timm"))
    return sorted(name for name in names if name.partition(".")[0] not in LIBRARIES)


def make_card(
    options: PublishOptions,
    spec: TaskSpec,
    about: Mapping[str, Any],
    recipe: Mapping[str, Any] | None,
    in_timm: str,
    modules: Sequence[str],
) -> str:
    """Make the model card.

    Args:
        about: metadata of the weights, and the entries of the run's summary.
        recipe: options of the run; None if they are unknown.
        in_timm: code that loads the model with timm; "" if timm has no models of this kind.
        modules: names of the modules that users must import first.
    """
    address = f"hf-hub:{options.repo}"
    imports = "".join(f" --import {name}" for name in modules)
    import_lines = "".join(f"import {name}\n" for name in modules)
    on = f" on {as_text(about['data'])}" if about.get("data") else ""
    load = f'```python\n{import_lines}import metamix\n\ntrained = metamix.load("{address}")\n'
    parts = [
        f"---\n{header(options, spec, about, 'timm' if in_timm else 'metamix')}\n---",
        f"# {options.repo.partition('/')[2]}",
        f"A `{about['model']}` that metamix trained{on} to {spec.about}.",
        f"## Use\n\n    metamix predict photo.jpg --checkpoint {address}{imports}",
        f'{load}print(trained.predict(["photo.jpg"]))\n```',
    ]
    if in_timm:
        parts += [f"With timm:\n\n```python\n{import_lines}{in_timm}```"]
    if rows := "\n".join(f"| {name} | {value} |" for name, value in figures(about)):
        parts += [f"## Results\n\n| | |\n|---|---|\n{rows}"]
    if recipe:
        folder = " --data-dir FOLDER" if recipe.get("data_dir") else ""
        command = f"metamix train --config {RECIPE}{folder} --output run{imports}"
        start = shareable(recipe).get("checkpoint")
        needs = f" It starts from the weights `{start}`, which are not in this repository." if start else ""
        parts += [f"## Train it again\n\n`{RECIPE}` has all options of the run.{needs}\n\n    {command}"]
    if classes := about.get("classes"):
        parts += [f"## Classes\n\n{list_names(map(as_text, classes), MAX_LISTED_CLASSES)}"]
    return printable_lines("\n\n".join(parts)) + "\n"


def as_text(name: object) -> str:
    """Escape a name, such as __background__, so that Markdown shows its characters unchanged."""
    return re.sub(r"[\\`*_{}\[\]()<>#|~&!+-]", r"\\\g<0>", printable(name))


def header(options: PublishOptions, spec: TaskSpec, about: Mapping[str, Any], library: str) -> str:
    """Make the YAML block that the hub reads, without its fences."""
    results = [
        EvalResult(
            task_type=spec.pipeline,
            dataset_type=str(about["data"]),
            dataset_name=str(about["data"]),
            dataset_split=str(about.get("test_split", "test")),
            metric_type=name,
            metric_value=about[name],
        )
        for name in about.get("scores", ())
        if spec.pipeline and about.get("data")
    ]
    return ModelCardData(
        license=options.license,
        library_name=library,
        pipeline_tag=spec.pipeline or None,
        tags=["metamix", "timm"] if library == "timm" else ["metamix"],
        model_name=options.repo.partition("/")[2],
        eval_results=results or None,
    ).to_yaml()


def figures(about: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (name, value) for each row of the results table whose value is known."""
    for name in about.get("scores", ()):
        yield f"{as_text(name)} on {as_text(about.get('test_split', 'test'))}", f"{about[name]:.4g}"
    if "samples" in about:
        yield "images", ", ".join(f"{count:,} {as_text(split)}" for split, count in about["samples"].items())
    if "parameters" in about:
        yield "parameters", f"{about['parameters']:,}"
    if "macs" in about:
        yield "multiply-adds", short_count(about["macs"])
    if {"seconds", "epochs", "seed"} <= about.keys():
        yield "training", f"{plural(about['epochs'], 'epoch')} in {about['seconds']:,.0f} s, seed {about['seed']}"
    if "versions" in about:
        yield "versions", ", ".join(as_text(f"{name} {version}") for name, version in about["versions"].items())
