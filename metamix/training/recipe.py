"""Read and compare recipes: the engine's options, the task's options, and what may change on resume."""

import dataclasses
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from metamix.utils.checks import check_choice
from metamix.utils.files import shipped_folder
from metamix.utils.options import (
    Options,
    Parser,
    check_needs,
    convert,
    dump_yaml,
    import_modules,
    no_option,
    option,
    options_of,
    parse_flags,
    read_yaml,
    take_flags,
)
from metamix.utils.rules import Count, Natural, NotNegative, Positive, PositiveShare, ShareBelowOne, shown
from metamix.utils.text import did_you_mean, exit_with_message
from metamix.weights.files import RECIPE

_run = partial(option, group="the run", on_resume="ignore")
_schedule = partial(option, group="schedule", on_resume="report")
_optimizer = partial(option, group="optimizer", on_resume="report")
_average = partial(option, group="weight averaging", on_resume="report")
_speed = partial(option, group="precision and speed", on_resume="report")

# Options that the engine chooses if neither the config nor a flag gives them.
CHOSEN = frozenset({"batch_size", "micro_batch"})
# A flag, and the option of a config that it replaces.
INSTEAD = (("epochs", "iterations"), ("checkpoint", "pretrained"), ("pretrained", "checkpoint"))

Seed = Annotated[int, Field(ge=0, le=2**63 - 1, description="a whole number of at least 0 and below 2^63")]
Rate = Annotated[float, Field(ge=0, le=1e6)]  # larger values overflow in float32
Epochs = Annotated[int, Field(ge=1, le=10**6)]
Iterations = Annotated[int, Field(ge=0, le=10**9)]
BatchSize = Annotated[int, Field(ge=1, le=10**6)]
Minutes = Annotated[float, Field(ge=0, allow_inf_nan=True, description="a number of at least 0")]
OptionFields = Mapping[str, tuple[dataclasses.Field, Any]]  # the field and the type of each option, by name


@dataclass
class EngineOptions(Options):
    """Options of the training engine, which apply to every task."""

    output: str = _run("", "run folder; default: a folder in runs/ named after data, model and seed")
    resume: str = _run("", "checkpoint or run folder to continue from if the output folder has no checkpoint")
    seed: Seed = _run(0, "seed of weights, sample order, augmentation and dropout", on_resume="refuse")
    device: str = _run("auto", "auto, cpu, cuda, cuda:1 or mps; auto uses a GPU if there is one")
    dry_run: bool = _run(False, "print data, model, parameters, MACs, steps, memory and the time of a step, then stop")
    tensorboard: bool = _run(False, "also write TensorBoard event files into the run folder")
    wandb: bool = _run(False, "also log to Weights & Biases; a resumed run continues its record there")
    log_every: Count = _run(
        20, "maximum number of steps between progress reports, checks for non-finite losses, and checks for signals"
    )
    checkpoint_minutes: Minutes = _run(10.0, "minutes between checkpoints within an epoch; inf: none before its end")
    eval_every: Count = _run(1, "epochs between evaluations on the held-out split", on_resume="report")

    epochs: Epochs = _schedule(10, "passes over the training split, including warm-up")
    iterations: Iterations = _schedule(0, "training steps, rounded to whole epochs; 0: train for --epochs")
    batch_size: BatchSize = _schedule(
        128,
        "samples per step, over all processes together; by default fewer if the training split is small",
        on_resume="refuse",
    )
    micro_batch: Natural = _schedule(
        0,
        "samples per forward pass of a process, which accumulates gradients; 0: its whole share of the batch; "
        "unset: as many as fit in memory",
    )
    lr: Rate = _schedule(1e-3, "peak learning rate; not scaled by the batch size")
    min_lr: Rate = _schedule(
        1e-5, "learning rate at the end of the schedule", needs="schedule cosine or schedule linear or schedule poly"
    )
    schedule: Literal["cosine", "linear", "poly", "constant"] = _schedule("cosine", "learning rate after warm-up")
    power: NotNegative = _schedule(0.9, "exponent of the schedule poly; 1 is linear", needs="schedule poly")
    warmup_epochs: NotNegative = _schedule(1.0, "epochs of linear warm-up")
    warmup_lr: Rate = _schedule(1e-6, "learning rate of the first warm-up step", needs="warmup_epochs")
    early_stopping: Natural = _schedule(
        0, "stop after N epochs without a better held-out score; the best epoch's weights are the result; 0: never"
    )

    optimizer: str = _optimizer("adamw", "adamw, sgd, lion, muon, lamb or any other in timm", on_resume="refuse")
    weight_decay: Rate = _optimizer(0.05, "weight decay; not used for vectors, such as biases, norms and scales")
    momentum: NotNegative = _optimizer(0.9, "momentum, for optimizers that have one")
    layer_decay: PositiveShare | None = _optimizer(
        None, "factor on the learning rate for each layer below the head, such as 0.75", on_resume="refuse"
    )
    lr_factors: dict[str, Rate] = _optimizer(
        {},
        "factors on the learning rate of parts of the model, such as '{backbone: 0.1}'; names as for --freeze",
        on_resume="refuse",
    )
    clip_grad: Positive | None = _optimizer(None, "scale the gradient down to at most this norm; none: do not clip")
    opt_args: dict[str, Any] = _optimizer(
        {}, "other arguments of the optimizer, such as '{betas: [0.9, 0.99]}'", on_resume="refuse"
    )
    freeze: tuple[str, ...] = _optimizer((), "parts that are not trained, such as stem,stages.0", on_resume="refuse")

    ema: bool = _average(False, "also keep and score an exponential moving average of the weights", on_resume="refuse")
    ema_decay: ShareBelowOne = _average(0.9999, "decay of the average; at most 1 - n^(-2/3) at step n", needs="ema")
    score: Literal["auto", "last", "ema"] = _average(
        "auto", "weights to evaluate on the test split and to save; auto: the average if there is one"
    )

    amp: Literal["auto", "none", "bf16", "fp16"] = _speed(
        "auto",
        "precision of autocast; auto: bf16 on CUDA GPUs and CPUs that support it, fp16 on older CUDA GPUs, else none",
    )
    channels_last: bool = _speed(True, "store images and weights in the channels_last memory format")
    compile: bool = _speed(False, "compile the model with torch.compile")
    grad_checkpointing: bool = _speed(False, "recompute activations in the backward pass to save memory")
    deterministic: bool = _speed(
        False,
        "use deterministic algorithms on a GPU, so that a resumed run gives exactly the same result there too; torch "
        "then raises an error for the cross-entropy of pixels, and for raft, nin and minattn on images of a size that "
        "they are not built for",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dry_run and self.resume:
            raise ValueError(f"a dry run reads no checkpoint: leave out --dry-run, or --resume {self.resume}")
        if not self.iterations:
            self.check_warmup()
        if self.schedule != "constant" and self.min_lr > self.lr:
            raise ValueError(f"min_lr is {self.min_lr}, above lr, which is {self.lr}; lower min_lr")
        if self.warmup_epochs and self.warmup_lr > self.lr:
            raise ValueError(f"warmup_lr is {self.warmup_lr}, above lr, which is {self.lr}; lower warmup_lr")
        if self.score == "ema" and not self.ema:
            raise ValueError("score is 'ema', but no average is kept; add --ema, or use --score last")
        if self.score == "auto":
            self.score = "ema" if self.ema else "last"

    def check_warmup(self) -> None:
        """Raise ValueError if the warm-up is longer than the run."""
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs is {self.warmup_epochs}, above epochs, which is {self.epochs}; lower it")


@dataclass(frozen=True)
class Recipe:
    """Everything that defines a run: the task's name, the options of engine and task, and modules to import.

    `unset` names the options in `CHOSEN` that are not given, so that a run may choose their values.
    """

    task: str
    engine: Any
    options: Any
    imports: tuple[str, ...] = ()
    unset: frozenset[str] = dataclasses.field(default=frozenset(), compare=False)

    def flat(self) -> dict[str, Any]:
        """Return every option by name, as plain values. Epochs are left out if they follow from iterations."""
        modules = {"import": self.imports} if self.imports else {}
        parts = {"task": self.task} | modules | vars(self.engine) | vars(self.options)
        if parts.get("iterations"):
            del parts["epochs"]
        return {key: list(value) if isinstance(value, tuple) else value for key, value in parts.items()}

    def to_yaml(self) -> str:
        """Return the recipe as the text of a YAML file that `--config` reads."""
        return dump_yaml(self.flat())


@dataclass(frozen=True)
class RecipeReader:
    """Read a recipe from a config, and from the options on a command line or in a Python call, which override it.

    Args:
        tasks: names of all tasks, read after the imported modules have registered their tasks.
        task_options: returns the dataclass of a task's options. The dataclass may have an attribute `engine_defaults`,
            the task's own defaults of engine options.
        default_task: returns the name of the task if nothing names one. It gets the config, in which the `checkpoint`
            and the `model` of the command line or of the call replace the config's.
        engine: dataclass of the options that every task has.
    """

    tasks: Collection[str]
    task_options: Callable[[str], type]
    default_task: Callable[[Mapping[str, Any]], str]
    engine: type = EngineOptions

    def parse(self, argv: Sequence[str], description: str = "") -> Recipe:
        """Read a command line; exit with a message if it has a mistake. `description` begins the text of --help."""
        with exit_with_message(ValueError, OSError):
            parser = Parser(
                usage="%(prog)s [--config FILE] [--option value ...]",
                epilog="Each task has its own options: add --task NAME to --help.\n"
                "A config has the same options, with underscores. Flags override the config.",
            )
            config_help = "YAML file of options, or the name of a shipped recipe such as digits/demo"
            parser.add_argument("--config", action="append", default=[], metavar="FILE", help=config_help)
            parser.add_argument("--task", metavar="NAME", help="default: the task of --checkpoint or --model")
            first = parser.parse_known_args(argv)[0]
            if len(names := first.config) > 1:
                raise ValueError(f"several configs are given, {' and '.join(names)}; give one and the rest as flags")

            def read_flags(task: str, options: OptionFields, unknown: Callable) -> dict[str, Any]:
                parser.description = f"{description}\n\nTasks: {', '.join(self.tasks)}. This help is for {task}."
                return parse_flags(parser, argv, options, unknown, ["--config", "--task"])

            def read_start() -> dict[str, str]:
                return take_flags(argv, "checkpoint", "model")[0]

            return self._read(names[0] if names else None, first.task, read_start, read_flags, first.imports)

    def read(self, config: str | Path | None, task: str | None, options: Mapping[str, Any]) -> Recipe:
        """Read the arguments of a Python call; raise ValueError if an option is unknown, or its value is wrong."""
        values = {name: _plain(value, name) for name, value in options.items()}
        start: dict[str, Any] = {name: values[name] for name in ("checkpoint", "model") if name in values}
        return self._read(config, task, lambda: start, lambda task, *fields: _convert_all(values, *fields))

    def _read(
        self,
        config_name: str | Path | None,
        chosen: str | None,
        read_start: Callable[[], dict[str, Any]],
        read_flags: Callable[[str, OptionFields, Callable], dict[str, Any]],
        modules: Sequence[str] = (),
    ) -> Recipe:
        """Read the config, choose the task, and read the options that override the config.

        Args:
            chosen: name of the task, if it is given outside the config.
            read_start: returns the `checkpoint` and the `model` that are given outside the config.
            read_flags: returns the options given outside the config. It gets the name of the task, the fields and
                types of all options by name, and a function that returns the message about an unknown option.
            modules: modules to import, besides the modules that the config names.
        """
        path = find_config(str(config_name)) if config_name else Path()
        config = read_yaml(path) if config_name else {}
        imports = convert(config.pop("import", []), tuple[str, ...], f"{path}: import")
        imports = tuple(dict.fromkeys([*imports, *modules]))
        import_modules(imports)
        configured_task = convert(config.pop("task"), str, f"{path}: task") if "task" in config else None
        chosen = chosen or configured_task
        task = chosen or self.default_task(config | read_start())
        check_choice("task", task, self.tasks, "For a task of your own, give --import MODULE; in Python, import it.")

        classes = self.engine, self.task_options(task)
        defaults = getattr(classes[1], "engine_defaults", {})
        options = options_of(*classes, defaults=defaults)
        unknown = partial(no_option, task=task, tasks=self.tasks, task_options=self.task_options, advise=not chosen)
        configured = _convert_all(config, options, unknown, f"{path}: ")
        flags = read_flags(task, options, unknown)
        values = _override(configured, flags, path)
        complete = {**defaults, **values}
        engine_options, task_options = (
            cls(**{field.name: complete[field.name] for field in dataclasses.fields(cls) if field.name in complete})
            for cls in classes
        )
        check_needs(flags, vars(engine_options) | vars(task_options), options)
        return Recipe(task, engine_options, task_options, imports, CHOSEN - values.keys())


def _plain(value: Any, name: str) -> Any:
    """Turn paths, tuples and NumPy's numbers, also within dicts and lists, into the values that a config has.

    Raises:
        ValueError: no config can hold the value, such as a class.
    """
    if isinstance(value, Mapping):
        return {key: _plain(item, name) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, name) for item in value]
    if isinstance(value, Path):
        return os.fspath(value)
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, (str, int, float, list, type(None))):
        raise ValueError(f"{name} holds {value!r}, but a recipe holds only text, numbers, lists and dicts")
    return value


def _convert_all(
    values: Mapping[str, Any], options: OptionFields, unknown: Callable[..., str], where: str = ""
) -> dict[str, Any]:
    """Convert values to the types of their options; raise ValueError for an unknown option or a wrong value."""
    for name in values:
        if name not in options:
            raise ValueError(f"{where}{unknown(name, options)}")
    return {name: convert(value, options[name][1], f"{where}{name}") for name, value in values.items()}


def _override(configured: Mapping[str, Any], flags: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Override the config at `path` by the flags; raise ValueError if either gives both epochs and iterations."""
    for values, source in ((configured, f"{path}: epochs and iterations"), (flags, "--epochs and --iterations")):
        if "epochs" in values and values.get("iterations"):
            raise ValueError(f"{source} both say how long the run is; give one")
    replaced = {other for flag, other in INSTEAD if flags.get(flag)}
    # A saved recipe has score ema or last, never auto. If a flag changes ema, score must be chosen again.
    if flags.get("ema", configured.get("ema")) != configured.get("ema"):
        replaced.add("score")
    return {name: value for name, value in configured.items() if name not in replaced} | dict(flags)


def find_config(name: str) -> Path:
    """Return the path of a config: a file, or a shipped config by its name such as `digits/demo`."""
    name = os.path.expanduser(name)  # shells do not expand --config=~/recipe.yaml
    if Path(name).is_file():
        return Path(name)
    folder = shipped_folder("configs")
    shipped = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}
    if name.removesuffix(".yaml") in shipped:
        return shipped[name.removesuffix(".yaml")]
    if (Path(name) / RECIPE).is_file():
        raise ValueError(f"{name} is a run folder: give its recipe, --config {Path(name) / RECIPE}")
    if Path(name).is_dir():
        raise ValueError(f"{name} is a folder: give --config a YAML file")
    files = [str(path) for path in Path(name).parent.glob("*.yaml") if path.is_file()]
    raise ValueError(
        f"there is no config {name}{did_you_mean(name, [*files, *shipped])} Give a YAML file, or one of the shipped "
        f"configs: {', '.join(shipped)}."
    )


def resume_changes(saved: Mapping[str, Any], recipe: Recipe) -> dict[str, str]:
    """Compare a recipe with the saved options of the run that it continues, and return what to report, by option.

    Raise ValueError if an option has changed that must not change on resume. Options that are newer than the run were
    not saved with it, and may have any value. Unset options are not compared: a resumed run takes the saved values.
    """
    options = options_of(type(recipe.engine), type(recipe.options))
    rules = {name: f.metadata.get("on_resume", "refuse") for name, (f, _) in options.items()} | {"import": "report"}
    changes = {
        key: f"{key} was {shown(saved[key])} and is now {shown(value)}"
        for key, value in recipe.flat().items()
        if key in saved and key not in recipe.unset and saved[key] != value
    }
    if refused := [change for key, change in changes.items() if rules.get(key, "refuse") == "refuse"]:
        raise ValueError(
            f"this run cannot be continued with another recipe: {'; '.join(refused)}. Use the old values, or start a "
            f"new run with --output (and --checkpoint to start from these weights); metamix eval scores these weights "
            f"with other options"
        )
    return {key: change for key, change in changes.items() if rules[key] == "report"}
