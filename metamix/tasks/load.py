"""Load trained models of every task: `metamix.load`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metamix.deploy.runtime import load_exported

from .find import is_exported, task_of
from .registry import DEFAULT, find_task
from .spec import Trained


def load(
    source: str | Path,
    *,
    model: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    threads: int | None = None,
    trust: bool = False,
) -> Trained:
    """Load a trained model with its preprocessing and class names.

        digits = metamix.load("metaformer_pooling_nano.digits")
        digits.predict(["digit.png"])[0][0]                         # ("7", 0.98), a label and its probability

    Args:
        source: a run folder, a weight file, a folder that `metamix export` wrote, hf-hub:USER/NAME, or the
            name of shipped or published weights of metamix or timm, such as NAME.TAG.
        model: name of the model, for a file that does not name its model.
        model_args: arguments of a classifier or a restoration model, which replace the arguments in the file.
        threads: number of threads for the engine of an exported model; None for its default.
        trust: load a model that was exported in the format torch; its files can run code.

    Returns:
        An object with `model`, `spec`, `metadata` and `predict(images)`. It is the object that the task's own function,
        such as `load_classifier`, returns.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: the weights or the arguments cannot be used.
        ImportError: the engine of an exported model is not installed.
    """
    if is_exported(source):
        if model or model_args:
            raise ValueError(f"{source} is an exported model, which is fixed: leave model and model_args out")
        exported = load_exported(source, threads=threads, trust=trust)
        return find_task(exported.artifact.model.task or DEFAULT).part("exported")(exported)
    if threads is not None:
        raise ValueError("threads is for exported models: call torch.set_num_threads instead")
    if trust:
        raise ValueError(f"trust is for exported models, and {source} runs no code: leave it out")
    task, path = task_of(str(source), model)
    spec = find_task(task)
    if path is None or not spec.takes_names:
        refuse_name(model, source)
    if not spec.takes_names:
        if model_args:
            raise ValueError(f"model_args is {dict(model_args)}, but {source} names its model: leave it out")
        return spec.part("load")(source)
    if path is None:
        return spec.part("load")(None, model=str(source), model_args=model_args, pretrained=True)
    return spec.part("load")(source, model=model, model_args=model_args)


def refuse_name(model: str | None, source: object) -> None:
    """Raise ValueError if `model` is given, though the weights name their model."""
    if model:
        raise ValueError(f"model is {model}, but {source} names its model: leave model out")
