"""Detect damaged files and changed data sets."""

import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

VALUES = "everything but tensors"  # name of the checksum of all values that are not tensors


def checksums(content: Mapping[str, Any]) -> dict[str, str]:
    """Compute a CRC-32 checksum of each tensor in nested dicts and lists, and one checksum of all other values.

    Return the checksums, as eight hexadecimal digits, by name. The name of a tensor is its path in `content`, such as
    "optimizer.state.0.exp_avg". The name of the checksum of the other values is `VALUES`.
    """
    tensors = dict(_tensors(content))
    plain = json.dumps(_plain(content), sort_keys=True, default=str)
    return {name: _crc(tensor) for name, tensor in tensors.items()} | {VALUES: f"{zlib.crc32(plain.encode()):08x}"}


def damaged(content: Mapping[str, Any], expected: Mapping[str, str]) -> list[str]:
    """Return the names of checksums that differ from `expected`, that are missing, or that `expected` does not have."""
    actual = checksums(content)
    return [name for name in sorted(actual.keys() | expected.keys()) if actual.get(name) != expected.get(name)]


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, as `sha256sum` prints it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digest(rows: Iterable[Iterable[str | int | float]]) -> str:
    """Hash rows of text and numbers, such as (relative path, label, file size), to 32 hexadecimal digits.

    The order of the rows matters. Use paths relative to the data set, with forward slashes, so that a data set keeps
    its digest when it is moved.
    """
    hash = hashlib.blake2b(digest_size=16)
    for row in rows:
        hash.update(json.dumps(list(row)).encode() + b"\n")
    return hash.hexdigest()


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, (Mapping, list, tuple)):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _tensors(item, f"{name}.{key}" if name else str(key))


def _plain(value: Any) -> Any:
    """Replace tensors with None."""
    if isinstance(value, Tensor):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _crc(tensor: Tensor) -> str:
    values = tensor.detach().cpu().contiguous().reshape(-1)
    crc = zlib.crc32(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    return f"{zlib.crc32(values.view(torch.uint8).numpy().data, crc):08x}"
