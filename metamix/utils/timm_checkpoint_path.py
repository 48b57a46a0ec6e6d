"""Load `timm.create_model(checkpoint_path=...)` with our own function.

Why: timm 1.0.31 reads the file and passes only its tensors to `load_state_dict`. Our models need
the file's path to read its metadata, and must resample weights of another image size.
Reproducer: tests/models/test_checkpoint_path.py::test_timm_alone_ignores_the_metadata
Remove when: that test fails because timm passes a filter or the path on; use that instead.
"""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import timm.models._factory as factory
from torch import nn


def load_checkpoint_path_with(load: Callable[[Any, str | Path], Any], cls: type[nn.Module]) -> None:
    """Make timm call `load(model, path)` for `checkpoint_path` if the model is a `cls`, and its own function if not."""
    timms = getattr(factory.load_checkpoint, "timms", factory.load_checkpoint)

    @wraps(timms)
    def load_checkpoint(model: nn.Module, checkpoint_path: str | Path, *args: Any, **kwargs: Any) -> Any:
        if isinstance(model, cls):
            return load(model, checkpoint_path)
        if isinstance(getattr(model, "model", None), cls):
            raise ValueError(
                f"features_only=True takes no checkpoint_path: give pretrained=True and "
                f"pretrained_cfg_overlay=dict(file={str(checkpoint_path)!r})."
            )
        return timms(model, str(checkpoint_path), *args, **kwargs)

    load_checkpoint.timms = timms  # type: ignore[attr-defined]
    factory.load_checkpoint = load_checkpoint
