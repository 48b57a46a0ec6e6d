"""The recipe: options in dataclasses, read from YAML and then from the command line.

Every field of an options dataclass is one option. Its name is the key in a YAML file and, with dashes or underscores,
the flag on the command line; its annotation is the type that is checked; its metadata say the rest:

    help        one sentence for --help
    group       heading in --help; the first line of the class's docstring where there is none
    on_resume   what a changed value does to a run that is continued: "refuse" (the default: it would be another run),
                "say" (allowed, and reported), or "free" (it changes no number)

Annotations may be bool, int, float, str, dict, tuple[X, ...], Literal[...], and any of them with `| None`.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml


def option(default: Any, help: str, *, group: str | None = None, on_resume: str = "refuse") -> Any:
    """A field of an options dataclass."""
    metadata = {"help": help, "on_resume": on_resume} | ({"group": group} if group else {})
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def _in(group: str, on_resume: str = "say") -> Callable[..., Any]:
    return lambda default, help, **changes: option(default, help, **{"group": group, "on_resume": on_resume} | changes)


_run, _schedule, _optimizer = _in("the run", "free"), _in("schedule"), _in("optimizer")
_average, _speed = _in("weight averaging"), _in("precision and speed")


@dataclass
class EngineOptions:
    """Engine"""

    output: str = _run("", "run folder; empty: runs/<data>-<model>-seed<seed>")
    resume: str = _run("", "checkpoint to continue from, while the run folder has none of its own")
    seed: int = _run(0, "seed of weights, sample order, augmentation and dropout", on_resume="refuse")
    device: str = _run("auto", "auto, cpu, cuda, cuda:1, mps; auto takes a GPU where there is one")
    dry_run: bool = _run(False, "print data, model, parameters, MACs, steps, memory and one timed step; train nothing")
    tensorboard: bool = _run(False, "also write TensorBoard event files into the run folder")
    log_every: int = _run(20, "most steps between two looks at the losses: progress, non-finite check, signals, saving")
    checkpoint_minutes: float = _run(
        10.0, "minutes between checkpoints within an epoch; each epoch's end writes one too"
    )
    eval_every: int = _run(1, "epochs between two scorings of the held-out slice", on_resume="say")

    epochs: int = _schedule(10, "passes over the training split, warm-up included")
    batch_size: int = _schedule(128, "samples per step over all processes together", on_resume="refuse")
    micro_batch: int = _schedule(
        0, "samples per forward pass on one process (gradients accumulate); 0: its whole share"
    )
    lr: float = _schedule(1e-3, "peak learning rate, as it is: never scaled by the batch size")
    min_lr: float = _schedule(1e-5, "learning rate at the end of the schedule")
    schedule: Literal["cosine", "linear", "constant"] = _schedule("cosine", "what the rate does after the warm-up")
    warmup_epochs: float = _schedule(1.0, "epochs of linear warm-up")
    warmup_lr: float = _schedule(1e-6, "learning rate of the first warm-up step")

    optimizer: str = _optimizer("adamw", "adamw, sgd, lion, muon, lamb or another name of timm's", on_resume="refuse")
    weight_decay: float = _optimizer(0.05, "weight decay; not applied to biases, norms and scales")
    momentum: float = _optimizer(0.9, "momentum, where the optimizer has one")
    layer_decay: float | None = _optimizer(
        None, "factor on the learning rate per layer below the head", on_resume="refuse"
    )
    clip_grad: float | None = _optimizer(None, "largest norm of the gradient of all weights together")
    opt_args: dict = _optimizer(
        {}, "further arguments of the optimizer, as YAML: '{betas: [0.9, 0.99]}'", on_resume="refuse"
    )
    freeze: tuple[str, ...] = _optimizer(
        (), "parts of the model not to train, by name: stem,stages.0", on_resume="refuse"
    )

    ema: bool = _average(
        False, "keep an exponential moving average of the weights, and score it too", on_resume="refuse"
    )
    ema_decay: float = _average(0.9999, "decay of the average; a warm-up makes it shorter at first")
    score: Literal["auto", "last", "ema"] = _average(
        "auto", "weights that the test split scores and model.safetensors holds; auto: the average where there is one"
    )

    amp: Literal["auto", "none", "bf16", "fp16"] = _speed(
        "auto", "autocast; auto: bf16 where the device computes in it, fp16 on older GPUs, none elsewhere"
    )
    channels_last: bool = _speed(True, "memory format of images and weights")
    compile: bool = _speed(False, "torch.compile the model")
    grad_checkpointing: bool = _speed(False, "recompute activations in the backward pass: less memory, more time")
    deterministic: bool = _speed(
        False,
        "deterministic algorithms on a GPU, so that a resumed run is exact there too; torch has none for the mixers "
        "nin and minattn, nor for raft at another size than its own, and stops",
    )

    def __post_init__(self) -> None:
        for name, least in [
            ("seed", 0),
            ("epochs", 1),
            ("batch_size", 1),
            ("log_every", 1),
            ("eval_every", 1),
            ("micro_batch", 0),
            ("warmup_epochs", 0),
            ("lr", 0),
            ("min_lr", 0),
            ("warmup_lr", 0),
            ("weight_decay", 0),
            ("momentum", 0),
            ("checkpoint_minutes", 0),
        ]:
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} is {getattr(self, name)}, but it must be at least {least}")
        for name in ("lr", "min_lr", "warmup_lr", "weight_decay", "momentum"):
            if math.isinf(getattr(self, name)):
                raise ValueError(f"{name} is inf, but it must be finite")
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs}, longer than the {self.epochs} epochs of training; "
                f"lower warmup_epochs or raise epochs"
            )
        if self.schedule != "constant" and self.min_lr > self.lr:
            raise ValueError(f"min_lr is {self.min_lr}, above lr, which is {self.lr}: lower min_lr")
        if self.clip_grad is not None and not self.clip_grad > 0:
            raise ValueError(f"clip_grad is {self.clip_grad}, but it must be above 0; leave it out to clip nothing")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay is {self.layer_decay}, but it must be above 0 and at most 1, such as 0.75")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}, but it must be at least 0 and below 1")
        if self.score == "ema" and not self.ema:
            raise ValueError("score is 'ema', but no average is kept: add --ema, or use --score last")
        self.score = ("ema" if self.ema else "last") if self.score == "auto" else self.score


@dataclass(frozen=True)
class Recipe:
    """A whole recipe: the task's name, the engine's options and the task's own."""

    task: str
    engine: EngineOptions
    options: Any

    def flat(self) -> dict[str, Any]:
        """Every option by name, as plain values, in the order of the dataclasses."""
        parts = {"task": self.task} | vars(self.engine) | vars(self.options)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in parts.items()}

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.flat(), sort_keys=False, allow_unicode=True, width=120)

    def replace(self, **changes: Any) -> Recipe:
        """The same recipe with other values for some options, whichever class they belong to."""
        parts = [
            dataclasses.replace(
                part, **{f.name: changes[f.name] for f in dataclasses.fields(part) if f.name in changes}
            )
            for part in (self.engine, self.options)
        ]
        return Recipe(self.task, *parts)


def parse(
    argv: Sequence[str],
    tasks: Mapping[str, Callable[[], type]],
    *,
    default_task: str,
    description: str,
    engine: type = EngineOptions,
) -> Recipe:
    """Reads `--config FILE` and then the command line.

    `tasks` maps a task's name to a function that returns its options dataclass. Unknown keys, wrong types and values
    out of range end the program with one sentence that says where, what was given and what is accepted.
    """
    argv = [_dashes(word) for word in argv]
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    first.add_argument("--task")
    known, _ = first.parse_known_args(argv)
    try:
        config = read_yaml(known.config) if known.config else {}
        task = convert(config.pop("task", default_task), str, f"{known.config}: task")
        task = known.task or task
        if task not in tasks:
            raise ValueError(f"there is no task {task!r}{nearest(task, tasks)}; the tasks are {', '.join(tasks)}")
        classes = [engine, tasks[task]()]
        hints = _hints(classes)
        given, unknown = _parser(classes, tasks, default_task, description).parse_known_args(argv)
        if unknown:
            raise ValueError(_unknown(unknown[0], hints))
        values = {key: check(value, hints, key, f"{known.config}: ") for key, value in config.items()}
        values |= {
            key: read_text(text, hints[key], f"--{key.replace('_', '-')}")
            for key, text in vars(given).items()
            if key in hints
        }
        return Recipe(
            task,
            *(cls(**{f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values}) for cls in classes),
        )
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


class Yaml(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML's own would take the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: list[Any] = []
        for key, _ in node.value:
            if key.value in seen:
                line = key.start_mark.line + 1
                raise yaml.YAMLError(f"the key {key.value!r} stands twice, again in line {line}; keep one of them")
            seen.append(key.value)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 1e-3, without a point, as text.
Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(path: str | Path) -> dict[str, Any]:
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Yaml)
    except FileNotFoundError:
        near = [str(p) for p in Path(path).parent.glob("*.yaml")]
        raise ValueError(f"there is no config file {path}{nearest(str(path), near)}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold 'option: value' lines, but it holds {_said(content)}")
    return content


def check(value: Any, hints: Mapping[str, Any], key: str, where: str = "") -> Any:
    """The value of one option, given as a YAML or Python value, checked against its annotation."""
    if key not in hints:
        raise ValueError(f"{where}there is no option {key!r}{nearest(str(key), hints)}")
    return convert(value, hints[key], f"{where}{key}")


def read_text(text: Any, wanted: Any, where: str) -> Any:
    """The value of one option, given as a word of the command line."""
    kinds = _kinds(wanted)
    if isinstance(text, bool):
        return text
    if _is_none(text, kinds):
        return None
    if str in kinds:
        return text
    if any(get_origin(kind) is tuple for kind in kinds):
        (kind,) = (get_args(kind)[0] for kind in kinds if get_origin(kind) is tuple)
        words = [word.strip() for word in text.strip("[]() ").split(",")]
        return tuple(read_text(word, kind, where) for word in words if word)
    if dict in kinds:
        try:
            return convert(yaml.load(text, Yaml), wanted, where)
        except yaml.YAMLError as error:
            raise ValueError(
                f"{where} is {text!r}, which is not valid YAML; write '{{key: value}}': {' '.join(str(error).split())}"
            ) from None
    if int in kinds:
        try:
            return int(text)
        except ValueError:
            pass
    return convert(text, wanted, where)


def convert(value: Any, wanted: Any, where: str) -> Any:
    """`value` as the annotation `wanted` has it; a ValueError that says where, what was given and what is needed."""
    if _is_none(value, _kinds(wanted)):
        return None
    for kind in _kinds(wanted):
        if isinstance(value, bool) and {"yes", "no"} <= set(get_args(kind)):  # words that YAML 1.1 reads as a switch
            return "yes" if value else "no"
        if get_origin(kind) is Literal and value in get_args(kind) and not isinstance(value, bool):
            return value
        if get_origin(kind) is tuple and isinstance(value, (list, tuple)):
            return tuple(convert(item, get_args(kind)[0], f"{where}[{i}]") for i, item in enumerate(value))
        if kind is float and type(value) in (int, float):
            return float(value)
        if kind is float and isinstance(value, str):  # a word of the command line
            try:
                return float(value)
            except ValueError:
                continue
        if kind in (bool, int, str, dict, type(None)) and type(value) is kind:
            return value
    near = [name for kind in _kinds(wanted) if get_origin(kind) is Literal for name in get_args(kind)]
    raise ValueError(f"{where} is {_said(value)}, but {_wanted(wanted)} is needed{nearest(str(value), near)}")


def nearest(word: str, names: Any) -> str:
    """'; did you mean ...?', or nothing where no name is near."""
    found = difflib.get_close_matches(word, [str(name) for name in names], n=1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else ""


def resume_changes(saved: Mapping[str, Any], recipe: Recipe) -> dict[str, str]:
    """The options that a continued run changes, a sentence each; ValueError where one would make it another run."""
    now, rules = recipe.flat(), {"task": "refuse"}
    for part in (recipe.engine, recipe.options):
        rules |= {f.name: f.metadata.get("on_resume", "refuse") for f in dataclasses.fields(part)}
    changed = {
        key: f"{key} was {saved[key]!r} and is now {now[key]!r}"
        for key in now
        if key in saved and saved[key] != now[key]
    }  # an option that is not there is newer than the run
    refused = [text for key, text in changed.items() if rules[key] == "refuse"]
    if refused:
        raise ValueError(
            f"this run cannot be continued with another recipe: {'; '.join(refused)}. Take the old values, "
            f"or start a new run with --output (with --checkpoint to begin from these weights)"
        )
    return {key: text for key, text in changed.items() if rules[key] == "say"}


def check_data(saved: Mapping[str, Any], data: Mapping[str, Any], where: Path) -> None:
    """ValueError where `where`, a run that has `saved`, was made with other data than those that have `data`."""
    other = [key for key, now in data.items() if _rounded(saved.get(key, now)) != _rounded(now)]
    if other:
        raise ValueError(
            f"{where} was made with other data: not the same {', '.join(other)}. Give the data that it was made with, "
            f"or start a new run with --output"
        )


def _rounded(value: Any) -> Any:
    """Means of the same images differ in their last digits from one processor to the next."""
    return [round(v, 5) if isinstance(v, float) else v for v in value] if isinstance(value, (list, tuple)) else value


def _hints(classes: Sequence[type]) -> dict[str, Any]:
    hints: dict[str, Any] = {}
    for cls in classes:
        own = get_type_hints(cls)
        for f in dataclasses.fields(cls):
            if f.name in hints:
                raise TypeError(f"two option classes have an option {f.name!r}")
            hints[f.name] = own[f.name]
    return hints


def _parser(classes: Sequence[type], tasks: Mapping[str, Any], default_task: str, description: str):
    parser = argparse.ArgumentParser(
        description=description,
        allow_abbrev=False,
        usage="%(prog)s [--config FILE] [--option value ...]",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=118),
        epilog="A config file's keys are these options with underscores. Order: defaults, config, command line.",
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of options, such as configs/digits/demo.yaml")
    parser.add_argument("--task", metavar="NAME", help=f"{', '.join(tasks)} (default: {default_task})")
    groups: dict[str, Any] = {}
    for cls in classes:
        hints = get_type_hints(cls)
        for f in dataclasses.fields(cls):
            title = f.metadata.get("group") or (cls.__doc__ or cls.__name__).strip().splitlines()[0].rstrip(".")
            if title not in groups:
                groups[title] = parser.add_argument_group(title)
            default = f.default if f.default is not dataclasses.MISSING else f.default_factory()
            text = f"{f.metadata.get('help', '')} ({_default(default)})".replace("%", "%%")
            flag = f"--{f.name.replace('_', '-')}"
            if bool in _kinds(hints[f.name]):
                groups[title].add_argument(
                    flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text
                )
            else:
                groups[title].add_argument(flag, metavar=_metavar(hints[f.name]), default=argparse.SUPPRESS, help=text)
    return parser


def _dashes(word: str) -> str:
    """--batch_size=64 as --batch-size=64."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _unknown(word: str, hints: Mapping[str, Any]) -> str:
    if not word.startswith("--"):
        return (
            f"{word!r} stands where an option is expected; options are written --name value, "
            f"and switches --name or --no-name without a value"
        )
    name = word[2:].partition("=")[0].replace("-", "_")
    switches = {f"no_{key}" for key, hint in hints.items() if bool in _kinds(hint)}
    near = nearest(name, {"config", *hints, *switches}).replace("_", "-").replace("'", "--", 1).replace("'", "")
    return f"there is no option {word}{near}"


def _kinds(wanted: Any) -> tuple[Any, ...]:
    return get_args(wanted) if get_origin(wanted) in (Union, types.UnionType) else (wanted,)


def _is_none(value: Any, kinds: tuple[Any, ...]) -> bool:
    """Whether the value is a word for nothing, where there may be nothing; YAML's own word is null."""
    return type(None) in kinds and isinstance(value, str) and value.lower() in ("none", "null", "")


def _wanted(wanted: Any) -> str:
    words = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        dict: "a mapping {key: value}",
        type(None): "none",
    }

    def one(kind: Any) -> str:
        if get_origin(kind) is Literal:
            return "one of " + ", ".join(str(name) for name in get_args(kind))
        return f"a list, each item {one(get_args(kind)[0])}," if get_origin(kind) is tuple else words[kind]

    return " or ".join(one(kind) for kind in _kinds(wanted))


def _metavar(wanted: Any) -> str:
    kind = _kinds(wanted)[0]
    if get_origin(kind) is Literal:
        return "{" + ",".join(str(name) for name in get_args(kind)) + "}"
    return {int: "N", float: "X", str: "TEXT", dict: "YAML"}.get(kind, "A,B")


def _said(value: Any) -> str:
    if value is None:
        return "empty"
    kind = {str: "text", list: "a list", dict: "a mapping", bool: "a switch"}.get(type(value))
    return f"{value!r} ({kind})" if kind else repr(value)


def _default(value: Any) -> str:
    if value is None or value == "" or value == () or value == {}:
        return "default: none"
    if isinstance(value, bool):
        return f"default: {'yes' if value else 'no'}"
    return f"default: {','.join(map(str, value)) if isinstance(value, tuple) else value}"
