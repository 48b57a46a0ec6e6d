"""Files that hold a run: written whole or not at all, and read without trusting them.

A file is written under a temporary name, flushed to the disk, and renamed over the old one, so that at any moment the
name leads to a whole file: the old or the new. Checkpoints (`checkpoint.pt`) hold tensors and plain types and are read
with `weights_only=True`, so nothing in them can run. Weights are safetensors whose metadata say what they are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from .files import atomic_write
from .text import readable

FORMAT = "metamix-checkpoint-1"
CHECKPOINT = "checkpoint.pt"
WEIGHTS = "model.safetensors"


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Writes tensors and plain types; the file that had the name is kept until this one is on the disk.

    OSError where it cannot be written, a full disk for one; the old file is then still there, whole.
    """
    try:
        with atomic_write(path) as file:
            torch.save({"format": FORMAT, **state}, file)
    except (OSError, RuntimeError) as error:  # torch's archive writer raises a RuntimeError where it cannot write
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise OSError(f"{path} could not be written ({reason})") from error


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint of `save_checkpoint`, on the CPU. ValueError with one sentence for anything else."""
    state = _load_torch(path)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(
            f"{path} is not a checkpoint of metamix ({FORMAT}): it holds {_kind(state)}. "
            f"Weights alone start a new run with --checkpoint; they cannot be resumed"
        )
    return state


def save_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Writes safetensors; metadata are plain values, each kept as JSON, or as it is where it is text and no JSON."""
    texts = {key: _text(value) for key, value in metadata.items()}
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_write(path) as file:
        file.write(safetensors_bytes(whole, metadata=texts))


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and what is known of them, from any file that a user may have.

    Takes `model.safetensors` and other safetensors, a run's `checkpoint.pt` (the weights that its recipe scores) and
    PyTorch files of tensors alone (a state dict, also under "state_dict" or "model").

    Returns the tensors by name and the metadata: empty where the file has none.
    """
    path = Path(path)
    if path.is_dir():
        path = path / WEIGHTS
    if path.suffix == ".safetensors":
        try:
            with safe_open(_existing(path), framework="pt") as file:
                about = {key: _value(text) for key, text in (file.metadata() or {}).items()}
                return {name: file.get_tensor(name) for name in file.keys()}, about
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file ({error}); copy or download it again") from None
    state, metadata = _load_torch(path), {}
    if isinstance(state, dict) and state.get("format") == FORMAT:
        which = state["recipe"]["score"]
        state, metadata = state[which if which == "ema" else "model"], state["about"] | {"weights": which}
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not (isinstance(state, dict) and state and all(isinstance(value, Tensor) for value in state.values())):
        raise ValueError(f"{path} holds no weights by name, but {_kind(state)}")
    return dict(state), metadata


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], source: str, *, head: tuple[str, ...] = ()) -> list[str]:
    """Loads weights by name. All must be there and fit, but those of the parts `head`, which stay as they are made.

    Returns the names of the head's weights that were not loaded. ValueError with one sentence for anything else.
    """
    own = model.state_dict()
    differing = [name for name in own if name not in tensors or tensors[name].shape != own[name].shape]
    inside = tuple(f"{part}." for part in head)
    left = [name for name in differing if name.startswith(inside)]
    missing = [name for name in differing if name not in tensors and name not in left]
    resized = [name for name in differing if name in tensors and name not in left]
    foreign = [name for name in tensors if name not in own and not name.startswith(inside)]
    if missing or resized or foreign:
        found = [
            f"{len(names)} {what} (such as {names[0]})"
            for names, what in (
                (missing, "weights of the model are not in it"),
                (foreign, "of its weights are not the model's"),
            )
            if names
        ]
        found += (
            [
                f"{len(resized)} have another shape (such as {resized[0]}: {tuple(tensors[resized[0]].shape)} there, "
                f"{tuple(own[resized[0]].shape)} here)"
            ]
            if resized
            else []
        )
        raise ValueError(
            f"{source} does not fit this {type(model).__name__}: {'; '.join(found)}. Is it another model, or "
            f"another size of it?"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            if name not in left:
                tensor.copy_(tensors[name])
    return left


def _load_torch(path: str | Path) -> Any:
    try:
        return torch.load(_existing(path), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch.load raises whatever the bytes happen to break: zip, pickle, key, type errors
        reason = " ".join(str(error).split())
        if "Unsupported global" in reason or "Unsupported class" in reason:
            raise ValueError(
                f"{path} holds Python objects beside tensors, and metamix never unpickles them from a file; "
                f"save its tensors alone (a state dict) and give that file"
            ) from None
        raise ValueError(
            f"{path} is truncated or no PyTorch file ({os.path.getsize(path):,} bytes; {reason[:120]})"
        ) from None


def _existing(path: str | Path) -> str:
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    return str(path)


def _text(value: Any) -> str:
    """A plain value so that `_value` gives it back."""
    text = readable(value) if isinstance(value, str) else json.dumps(value)
    return json.dumps(text) if isinstance(value, str) and _value(text) != text else text


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        names = ", ".join(map(str, list(value)[:3]))
        return f"a dictionary of {len(value)} entries ({names}{', ...' if len(value) > 3 else ''})"
    return f"a {type(value).__name__}"
