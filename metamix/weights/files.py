"""Write and read checkpoints and weights.

Files are replaced atomically: a path always holds a complete file, either the old or the new one. Checkpoints
(`checkpoint.pt`) hold tensors and plain values and are read with `weights_only=True`, so no code in them can run.
Weights are safetensors files whose metadata describe the model. Both hold a checksum of each tensor.
"""

import json
import os
import re
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor
from torch.serialization import safe_globals

from metamix.utils.files import MAX_NESTING, atomic_write, check_nesting, reason
from metamix.utils.system import is_out_of_memory
from metamix.utils.text import list_names, package_logger, plural, warn_once

from .checksums import VALUES, checksums, damaged
from .pickles import MAX_EXPANSION, check_pickles

FORMAT = "metamix-checkpoint-1"
CHECKPOINT = "checkpoint.pt"
WEIGHTS = "model.safetensors"
SUMMARY = "summary.json"
RECIPE = "recipe.yaml"
OURS = {"task", "versions"}  # metadata entries that only metamix writes
ARTIFACT = "export.json"  # file in every folder that metamix export writes
GRAPHS = (".onnx", ".xml", ".bin", ".pt2")  # suffixes of the other files there

_logger = package_logger(__name__)


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors and plain values with their checksums, atomically; raise OSError if the file cannot be written."""
    content = {"format": FORMAT, **state}
    try:
        with atomic_write(path) as file:
            torch.save(content | {"checksums": checksums(content)}, file)
    except RuntimeError as error:  # torch's archive writer hides the OSError of a failed write
        raise OSError(f"{path} could not be written ({reason(error)})") from error


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint that `save_checkpoint` wrote, to the CPU; reject damaged files and files of other programs."""
    state = _load_torch(path)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(
            f"{path} is not a checkpoint of metamix ({FORMAT}): it holds {_kind(state)}. "
            f"Weights without a training state cannot be resumed: start a new run with --checkpoint"
        )
    return state


def require(state: Mapping[str, Any], keys: Iterable[str], path: str | Path) -> None:
    """Raise ValueError if a checkpoint lacks one of the entries `keys`."""
    missing = [key for key in keys if key not in state]
    if missing:
        raise ValueError(f"{path} is incomplete: it has no {', '.join(missing)}. Use another checkpoint")


def save_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a safetensors file atomically, with checksums.

    The metadata are plain values, which are stored as JSON. Text that is not JSON is stored unchanged, but
    characters that UTF-8 cannot encode are escaped.
    """
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    texts = {key: _text(value) for key, value in metadata.items()}
    texts["checksums"] = json.dumps(checksums(copies | {"metadata": texts}))
    with atomic_write(path) as file:
        file.write(safetensors_bytes(copies, metadata=texts))


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read weights and their metadata from any file that a user may have.

    Args:
        path: one of
            - a run folder, to read its newest weights;
            - a run's checkpoint under any name: averaged weights if its option `score` is ema, else the last weights;
            - another PyTorch file of tensors; see `unwrap`;
            - a safetensors file, or an .npz file of flax.

    Returns:
        The tensors by name, and the metadata, which are empty if the file has none. If the tensors are another
        program's state dict, they keep its `_metadata`.

    Raises:
        ValueError: the file is damaged, or holds no weights.
        OSError: there is no such file, or too little memory to read it.
    """
    path, state = newest_weights(Path(path)) if Path(path).is_dir() else (Path(path), None)
    if path.suffix == ".npz":
        file = _existing(path)
        try:
            _check_expansion(file)
            with np.load(file, allow_pickle=False) as arrays:
                return flatten(flax_parameters(arrays)), {}
        except Exception as error:  # damaged bytes raise errors of any type
            problem = str(error).partition(". ")[0]  # numpy's next sentence explains how to run code in a file
            raise ValueError(f"{path} is not a complete .npz file of arrays ({problem}): download it again.") from None
    return _load_safetensors(path) if path.suffix == ".safetensors" else _load_torch_weights(path, state)


def _load_torch_weights(path: Path, state: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights and metadata of a metamix checkpoint or another PyTorch file; read it if `state` is None."""
    state, metadata = _load_torch(path) if state is None else state, {}
    if isinstance(state, dict) and state.get("format") == FORMAT:
        require(state, ("recipe", "about", "model"), path)
        which = "ema" if state["recipe"].get("score") == "ema" else "last"
        state, metadata = state["ema" if which == "ema" else "model"], state["about"] | {"weights": which}
    elif isinstance(state, dict):
        state = unwrap(state)
    if not (isinstance(state, dict) and state and all(isinstance(value, Tensor) for value in state.values())):
        raise ValueError(f"{path} does not map names to tensors: it holds {_kind(state)}")
    return (dict(state) if metadata else state), metadata  # dict() drops torch's `_metadata`; ours say more


def unwrap(state: Mapping) -> Mapping:
    """Return the tensors of another program's file by name.

    The tensors may be under a key such as "state_dict". As in timm, averaged weights are preferred. The prefixes
    that `DistributedDataParallel`, `torch.compile` and Lightning add to the names are removed.
    """
    prefixes = ["_orig_mod.", "module.", "_orig_mod."]  # either wrapper may be the outer one
    if "pytorch-lightning_version" in state:
        prefixes[2:2] = ["model."]
    for key in ("state_dict_ema", "model_ema", "state_dict", "model", "params"):
        if isinstance(state.get(key), Mapping):
            state = state[key]
    for prefix in prefixes:
        if all(str(name).startswith(prefix) for name in state):
            noted = getattr(state, "_metadata", None)
            state = OrderedDict((name.removeprefix(prefix), value) for name, value in state.items())
            if isinstance(noted, dict):  # what torch and `Stage` note about each module
                vars(state)["_metadata"] = {str(name).removeprefix(prefix): entry for name, entry in noted.items()}
    return state


def flatten(tree: Mapping, prefix: str = "") -> dict[str, Tensor]:
    """Flatten nested mappings of arrays to tensors by name, "level/level/name"; raise ValueError for other values."""
    flat: dict[str, Tensor] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}/")
        else:
            try:
                flat[f"{prefix}{key}"] = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
            except TypeError:
                raise ValueError(
                    f"{prefix}{key} is not a tensor, but of type {type(value).__name__}: give only tensors, by name."
                ) from None
    return flat


def flax_parameters(state: Mapping) -> Mapping:
    """Return the parameters of a flax checkpoint without the optimizer state; return other mappings unchanged.

    MAXIM's files have names such as "opt/target/stage_0_input_conv_0/kernel". In nested mappings, the parameters are
    the entry "target" of the entry "opt".
    """
    prefix = "opt/target/"
    names = [key for key in state if key.startswith(prefix)]
    if names:
        return {key.removeprefix(prefix): state[key] for key in names}  # only these arrays are read from an .npz file
    opt = state.get("opt")
    return opt["target"] if isinstance(opt, Mapping) and "target" in opt else state


def load_metadata(path: Path) -> dict[str, Any]:
    """Read the metadata that `load_weights` returns. Only the header of a safetensors file is read."""
    return (_load_safetensors(path, header_only=True) if path.suffix == ".safetensors" else load_weights(path))[1]


def newest_weights(folder: Path) -> tuple[Path, dict[str, Any] | None]:
    """Return the file with the newest weights of a run folder and, if it is a checkpoint, its content.

    A finished run has a summary and its final weights. A run that was continued afterwards and stopped has newer
    weights in its checkpoint. If the weights are not the final ones, a warning says so.

    Raises:
        FileNotFoundError: the folder holds no weights; the message names the runs in it.
        ValueError: the folder is an exported model, or its checkpoint is damaged or incomplete.
    """
    weights, checkpoint = folder / WEIGHTS, folder / CHECKPOINT
    if not weights.exists() and not checkpoint.exists():
        if (folder / ARTIFACT).is_file():
            raise ValueError(
                f"{folder} is an exported model, which has no weights to load: run it with metamix predict --model "
                f"{folder}, or in Python with metamix.deploy.load_exported"
            )
        runs = ", ".join(sorted(path.parent.name for path in folder.glob(f"*/{WEIGHTS}")))
        advice = f"it holds the runs {runs}: give one of them" if runs else "give a run folder or a weight file"
        if any(path.suffix in GRAPHS for path in folder.glob("model.*")):
            advice = "if it is an export, copy the whole folder again, or export the model again"
        files = f"{WEIGHTS} or {CHECKPOINT} of a run, and no {ARTIFACT} of an exported model"
        raise FileNotFoundError(f"{folder} has no {files}; {advice}")
    if not checkpoint.exists() or (weights.exists() and (folder / SUMMARY).exists()):
        return weights, None
    state = load_checkpoint(checkpoint)
    require(state, ("step",), checkpoint)
    step = state["step"]
    if weights.exists() and (final := load_metadata(weights).get("steps", 0)) >= step:
        return weights, None
    older = f", which is newer than {WEIGHTS} of step {final}" if weights.exists() else ""
    warn_once(_logger, f"the run in {folder} is not finished: weights are read from {CHECKPOINT}, step {step}{older}")
    return checkpoint, state


def _load_safetensors(path: Path, header_only: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read and check tensors and metadata; with `header_only`, check only metadata and return None for each tensor."""
    try:
        with safe_open(_existing(path), framework="pt") as file:
            texts = dict(file.metadata() or {})
            tensors: dict[str, Any] = dict.fromkeys(file.keys())
            if not header_only:
                tensors = {name: file.get_tensor(name) for name in tensors}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file ({error}); copy or download it again") from None
    expected = _value(texts.pop("checksums", "null"), path)
    if header_only and isinstance(expected, dict):
        expected = {VALUES: expected.get(VALUES)}
    if expected is not None or OURS & texts.keys():
        _check_damage(path, tensors | {"metadata": texts}, expected)
    elif not header_only:
        warn_once(_logger, f"{path} has no checksums, so damage to it would go unnoticed")
    return tensors, {key: _value(text, path) for key, text in texts.items()}


def _check_damage(path: str | Path, content: Mapping[str, Any], expected: Any) -> None:
    """Raise ValueError if the checksums of a file differ from the expected ones, or if it has none."""
    if not isinstance(expected, dict):
        raise ValueError(f"{path} is damaged: metamix wrote it, but it has no checksums. Use another copy of the file")
    names = damaged(content, expected)
    if names:
        tensors = [name for name in names if name != VALUES]
        what = f"the checksum of its tensor {tensors[0]}" if tensors else "the checksum of its metadata"
        more = f", and of {plural(len(tensors) - 1, 'other tensor')}," if len(tensors) > 1 else ""
        raise ValueError(f"{path} is damaged: {what}{more} is wrong. Use another copy of the file")


def _load_torch(path: str | Path) -> Any:
    """Read a PyTorch file without running code in it, and verify the checksums if it is one of our checkpoints."""
    file = _existing(path)
    try:
        _check_expansion(file)
        check_pickles(file)
        with safe_globals([Namespace]):  # timm's checkpoints hold training options as a Namespace
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise errors of any type
        raise _why_unreadable(path, error) from None  # torch's message explains how to run code in a file
    if isinstance(state, dict):
        _check_structure(path, state)
        expected = state.get("checksums")  # identify our checkpoint even if its entry "format" is damaged
        if state.get("format") == FORMAT or (isinstance(expected, dict) and VALUES in expected):
            _check_damage(path, state, state.pop("checksums", None))
    return state


def _why_unreadable(path: str | Path, error: Exception) -> Exception:
    """Return an error that says why torch could not read a file, and what to do."""
    text, size = " ".join(str(error).split()), f"{os.path.getsize(path):,} bytes"
    if is_out_of_memory(error):
        return OSError(f"{path} ({size}) needs more memory than is free, or it is damaged")
    if "without end" in text:
        return ValueError(f"{path} {text}. Use another file")
    advice = "save only the tensors, torch.save(model.state_dict(), FILE), and give that file"
    if call := re.search(r"CALL ([\w.]+)", text):
        return ValueError(
            f"{path} calls {call[1][:80]}, probably because it holds bytes or tensors with Python attributes. Such a "
            f"call can fill the memory, so metamix does not read the file: {advice}"
        )
    if code := re.search(r"GLOBAL ([\w.]+)", text):
        return ValueError(
            f"{path} holds code, not only tensors: reading it would run {code[1][:80]}, which metamix never does. "
            f"Delete it if you do not trust its source; otherwise {advice}"
        )
    later = "Unsupported operand" in text and zipfile.is_zipfile(path)  # pickle protocols 3 to 5
    if "legacy .tar" in text or later or _is_plain_pickle(path):
        kind = "in PyTorch's oldest format" if "legacy" in text else "a Python pickle that torch cannot read safely"
        return ValueError(f"{path} is {kind}: reading it could run code, so metamix does not read it; {advice}")
    why = f"; {text[:120]}" if "PytorchStreamReader" in text or "it expands" in text else ""  # other texts say little
    return ValueError(f"{path} is truncated or not a PyTorch file ({size}{why})")


def _check_expansion(path: str | Path) -> None:
    """Raise ValueError if a zip archive expands to more than 256 MiB and to more than 100 times its size.

    A damaged archive raises other errors.
    """
    with open(path, "rb") as file:
        if file.read(2) == b"PK":
            size = sum(info.file_size for info in zipfile.ZipFile(file).infolist())
            if size > max(2**28, MAX_EXPANSION * os.path.getsize(path)):
                raise ValueError(f"it expands to {size:,} bytes, over {MAX_EXPANSION} times its size")


def _check_structure(path: str | Path, content: Any) -> None:
    """Reject lists and mappings that are nested too deeply, contain themselves, or repeat the same values many times.

    Reject tensors that are sparse, quantized or without data, and mappings whose attributes hide methods, such as
    `values`. Each value takes at least one byte of the file, so if there are more values than bytes, some are repeated.
    A tensor's size in bytes, divided by `MAX_EXPANSION`, is added to the number of values, since the elements of an
    expanded tensor share their bytes.
    """
    values, left = [(content, 0)], os.path.getsize(path)
    while values:
        value, depth = values.pop()
        left -= 1
        if isinstance(value, Tensor):
            dense = value.layout is torch.strided and value.device.type == "cpu" and not value.is_quantized
            left = left - value.nbytes // MAX_EXPANSION if dense else -1
        attributes = getattr(value, "__dict__", {}) if isinstance(value, (dict, Namespace)) else {}
        hides = isinstance(value, dict) and any(hasattr(dict, str(name)) for name in attributes)
        if depth > MAX_NESTING or left < 0 or hides:
            raise ValueError(
                f"{path} is nested deeper than {MAX_NESTING} levels, or repeats its values without end, or has "
                f"tensors that are sparse, quantized or without data, or replaces methods. Use another file"
            )
        items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple, set)) else ()
        values += [(item, depth + 1) for item in (*items, *attributes.values())]


def _is_plain_pickle(path: str | Path) -> bool:
    """Return whether a file begins like a pickle of protocol 2 or later, but not like torch's old format."""
    with open(path, "rb") as file:
        start = file.read(32)
    return start[:1] == b"\x80" and b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19" not in start


def _existing(path: str | Path) -> str:
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with open(path, "rb") as file:  # raises PermissionError; safetensors would say that there is no such file
        start = file.read(100).lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a pointer of Git LFS, not the weights: fetch them with `git lfs pull`")
    if start.startswith((b"<!doctype", b"<html")):
        raise ValueError(f"{path} is a web page, perhaps about an error: download the weights again")
    return str(path)


def _text(value: Any) -> str:
    """Encode a plain value so that `_value` restores it. Escape characters that UTF-8 cannot encode."""
    if not isinstance(value, str):
        return json.dumps(value)
    text = value.encode(errors="backslashreplace").decode()  # such as a file name in Latin-1
    with suppress(ValueError):  # raised if brackets in the text are nested too deeply
        if _value(text, "it") == text:
            return text
    return json.dumps(text)


def _value(text: str, source: object) -> Any:
    check_nesting(text, f"{source}: an entry of its metadata")
    try:
        return json.loads(text)
    except ValueError:  # not JSON, or a number with thousands of digits
        return text


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return f"a dictionary of {len(value)} {'entry' if len(value) == 1 else 'entries'} ({list_names(value, 3)})"
    return f"an object of type {type(value).__name__}"
