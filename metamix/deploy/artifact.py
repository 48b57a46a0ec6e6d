"""Read and write export.json, which describes the folder that `metamix export` writes.

export.json holds the SHA-256 of each other file and of its own content. The checksums reveal damage. They do not
protect against an attacker, who can recompute them.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from metamix.utils.files import read_json, write_text
from metamix.utils.rules import Rule, check_entries, rule, rules_of, shown, where
from metamix.weights.checksums import sha256
from metamix.weights.files import ARTIFACT, CHECKPOINT, WEIGHTS
from metamix.weights.metadata import ModelMetadata, Side

from .formats import FORMATS, check_format

REPORT = "report.json"
VERSION = 2  # version 1 has no checksums
CHECKSUM = "sha256"  # entry of export.json: the SHA-256 of all other entries
AGAIN = "Export the model again"


def file_names() -> set[str]:
    """Return the names of all files that an export may have besides export.json."""
    return {REPORT}.union(*((format.file, *format.more_files) for format in FORMATS.values()))


Files = Annotated[
    dict[str, str],
    where(lambda files: files.keys() <= file_names(), "a mapping of names of exported files to their SHA-256"),
]


@dataclass(frozen=True)
class Artifact:
    """Description of an exported model, the content of export.json."""

    format: str  # a key of `FORMATS`
    precision: str  # one of `PRECISIONS`
    model: ModelMetadata  # task, name, class names, and how images are prepared
    # (batch, channels, height, width) of the input `images`, float32; None for a dimension that may vary
    input_shape: Annotated[tuple[Side | None, ...], Field(min_length=4, max_length=4)]
    outputs: Annotated[tuple[str, ...], Field(max_length=1_000)]  # names of the outputs
    extra: dict[str, Any] = field(default_factory=dict)  # values that the task needs to run the model, such as a scale
    versions: dict[str, Any] = field(default_factory=dict)  # versions of the packages that wrote the export
    files: Files = field(default_factory=dict)  # SHA-256 of each file beside export.json

    @property
    def file(self) -> str:
        """Return the name of the main file."""
        return FORMATS[self.format].file

    @property
    def size(self) -> tuple[int, int] | None:
        """Return (height, width) of the input; None if the height or the width may vary."""
        height, width = self.input_shape[2:]
        return None if height is None or width is None else (height, width)

    def check(self, extra: Mapping[str, Rule], needs: Collection[str] = ()) -> None:
        """Raise ValueError if `self.extra` breaks the rules, or if `self.model` lacks an entry named in `needs`."""
        check_entries(self.model.to_dict(), dict.fromkeys(needs, rule(Any)), ARTIFACT, "model", AGAIN)
        check_entries(self.extra, extra, ARTIFACT, "extra", AGAIN)

    def check_files(self, folder: Path) -> None:
        """Raise FileNotFoundError if a file of the export is missing, and ValueError if one is damaged."""
        for name in dict.fromkeys((self.file, *self.files)):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} lacks {name}: copy the whole folder, or export the model again")
            if sha256(folder / name) != self.files.get(name):
                raise ValueError(
                    f"{folder / name} is damaged: its SHA-256 is not the one in {ARTIFACT}. Copy the whole folder "
                    f"again, or export the model again"
                )

    def save(self, folder: Path) -> None:
        """Write export.json, with the SHA-256 of each file that the export has in the folder."""
        files = {name: sha256(folder / name) for name in sorted(file_names()) if (folder / name).is_file()}
        entries = {"version": VERSION} | asdict(self) | {"model": self.model.to_dict(), "files": files}
        write_text(folder / ARTIFACT, json.dumps(with_checksum(entries), indent=2) + "\n")


def with_checksum(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Convert entries of export.json to plain JSON values, and add the SHA-256 of their canonical JSON."""
    plain = json.loads(json.dumps({key: value for key, value in entries.items() if key != CHECKSUM}))
    canonical = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return plain | {CHECKSUM: hashlib.sha256(canonical.encode()).hexdigest()}


def load_artifact(folder: str | Path) -> Artifact:
    """Read only the export.json of a folder.

    Raises:
        FileNotFoundError: there is no export.json.
        ValueError: export.json cannot be used.
    """
    path = Path(folder) / ARTIFACT
    if not path.is_file():
        raise FileNotFoundError(_not_exported(Path(folder)))
    raw = read_json(path, AGAIN)
    if raw.get("version") != VERSION:
        version = shown(raw.get("version"))
        raise ValueError(f"{path} has version {version}, but this metamix reads version {VERSION}: export again")
    if raw.get(CHECKSUM) != with_checksum(raw)[CHECKSUM]:
        raise ValueError(f"{path} is damaged or edited: its SHA-256 is wrong. Copy the folder again, or export again")
    rules = rules_of(Artifact, "model")
    check_entries(raw, rules, path, None, AGAIN)
    check_format(raw["format"], raw["precision"])
    entries: dict[str, Any] = {name: raw[name] for name in rules}
    entries |= {name: tuple(raw[name]) for name in ("input_shape", "outputs")}
    return Artifact(**entries, model=ModelMetadata.from_dict(raw.get("model", {}), path))


def _not_exported(path: Path) -> str:
    """Return the message for a path without export.json, which says what to give instead."""
    if path.is_file() and path.with_name(ARTIFACT).is_file():
        return f"{path} is a file of an exported model: give its folder, {path.parent}"
    if (path / WEIGHTS).is_file() or (path / CHECKPOINT).is_file():
        return f"{path} is a run: give it as --checkpoint, or export it with metamix export {path} --output NEW"
    if path.is_file():
        return f"{path} is a file: give a folder that metamix export wrote. If it has weights, give it as --checkpoint"
    return f"{path} is not an exported model: there is no {ARTIFACT}. Make one with metamix export MODEL --output NEW"
