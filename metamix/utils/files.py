"""Read and write files, lock folders, and find folders that come with metamix."""

import codecs
import errno
import json
import os
import re
import secrets
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from .text import list_names

TEMPORARY = ".tmp"  # suffix of files that are not complete yet
LOCK = ".lock"  # file that locks its folder; it stays after unlocking
MACOS = ".DS_Store"  # file that macOS adds to folders that it shows
MAX_NESTING = 64  # levels of lists and mappings in JSON and YAML
# Matches brackets, and whole strings, so that brackets inside strings are not counted.
_PARTS = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[{\]}]', re.DOTALL)


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that replaces `path` once the block has ended without an error and the data are on disk.

    If `path` is a device or a pipe, such as /dev/stdout, the data are written to it and it is not replaced. If `path`
    is a link, its target is replaced and the link stays.

    The data are first written to a new file, NAME.RANDOM.tmp, next to the file to replace.

    Raises:
        OSError: the file cannot be written, for example because the disk is full. The old file is then unchanged.
            If the block raises an error about another file, its message is kept.
    """
    path = Path(path)
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f"{target.name[:50]}.{secrets.token_hex(8)}{TEMPORARY}")
    try:
        if path.exists() and (not path.is_file() or path.parent == Path("/dev")):  # /dev/stdout may be a link to a file
            with open(path, "wb") as file:
                yield file
            return
        with open(temporary, "xb") as file:  # mode x fails if there is a file or a link
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except BaseException as error:
        with suppress(OSError):  # on a read-only disk this fails too; the first error says more
            temporary.unlink()
        ours = {"None", *map(str, (path, target, temporary, target.parent))}  # errors about other files pass unchanged
        if isinstance(error, OSError) and str(error.filename) in ours:
            raise OSError(f"{path} could not be written ({reason(error)})") from error
        raise


def remove_temporary(folder: Path) -> None:
    """Remove files that `atomic_write` left in a folder when it was killed. No process may be writing into it."""
    for file in folder.glob(f"*.{'[0-9a-f]' * 16}{TEMPORARY}"):
        file.unlink(missing_ok=True)


def shipped_folder(name: str) -> Path:
    """Return the path of a folder that comes with metamix: in the installed package, or at the root of a clone."""
    package = Path(__file__).resolve().parents[1]
    return next((d for d in (package / "shipped" / name, package.parent / name) if d.is_dir()), package / name)


def make_output_folder(folder: Path) -> None:
    """Make the folder that a command writes to, unless it exists; raise OSError if it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"the folder {folder} could not be made ({reason(error)}); give another folder") from error


@contextmanager
def filled_at_once(folder: Path) -> Iterator[Path]:
    """Yield a hidden folder inside `folder`, and move its content into `folder` if the block ends without an error.

    A command that fails or is stopped then leaves no files that look like a complete result.
    """
    make_output_folder(folder)
    with TemporaryDirectory(TEMPORARY, ".", folder) as temporary:
        yield Path(temporary)
        running = {name for name in os.listdir(folder) if name.endswith(TEMPORARY)}  # hidden folders of all commands
        check_output_folder(folder, running)  # another command may have filled `folder` meanwhile
        for path in Path(temporary).iterdir():
            path.rename(folder / path.name)


def check_output_folder(folder: Path, ours: Collection[str]) -> None:
    """Raise ValueError if the path is a file, or if the folder holds files or folders that `ours` does not name."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give a folder to write to")
    if others := sorted(set(os.listdir(folder) if folder.is_dir() else ()) - {*ours, MACOS}):
        raise ValueError(f"{folder} holds other files ({list_names(others, 3)}): give a new folder")


def read_bytes(path: Path) -> bytes:
    """Read a file; raise ValueError for a folder, and for a pipe or a device, which may have no end."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a regular file: replace it with a regular file")
    return path.read_bytes()


def encoding(data: bytes) -> str:
    """Return the encoding of a text: UTF-16 if it begins with a UTF-16 byte order mark, as from Excel, else UTF-8."""
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and not data.startswith(codecs.BOM_UTF32_LE)
    return "utf-16" if is_utf16 else "utf-8-sig"


def read_text(path: Path) -> str:
    """Read UTF-8 text, or UTF-16 with a byte order mark; raise ValueError, with the line number, for other text."""
    data = read_bytes(path)
    try:
        return data.decode(encoding(data))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}:{line} is not UTF-8 text; save the file as UTF-8") from None


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Read a JSON object; raise ValueError if the file holds something else. `remedy` ends the message."""
    try:
        text = read_text(path)
        check_nesting(text, "it")
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}). {remedy}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a value of type {type(content).__name__}, not an object. {remedy}")
    return content


def check_nesting(text: str, source: str) -> None:
    """Raise ValueError if JSON text, valid or not, is nested so deeply that Python's recursive reader could fail.

    `source` begins the message.
    """
    depth = 0
    for part in _PARTS.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(part[0], 0)
        if depth > MAX_NESTING:
            raise ValueError(f"{source} is nested deeper than {MAX_NESTING} levels; give another file")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8."""
    with atomic_write(path) as file:
        file.write(text.encode(errors="backslashreplace"))  # escapes names that are not UTF-8


def lock_folder(folder: Path) -> IO[str]:
    """Lock a folder until the returned file is closed or this process ends, even if it is killed.

    Raises:
        ValueError: another process has locked the folder, or it holds a link or a pipe, perhaps from an attacker.
        OSError: the folder cannot be locked.
    """
    for path in folder.iterdir():
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path} is a link or a pipe, so data written to it would go elsewhere: remove it")
    try:
        file = open(folder / LOCK, "a+")  # noqa: SIM115 - kept open as long as the lock is held
    except OSError as error:
        raise OSError(f"{folder / LOCK} could not be written ({reason(error)}); give another --output") from error
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            # A POSIX record lock, not flock: the loader's workers, which may outlive this process, do not inherit it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise OSError(
                f"{folder} cannot be locked ({error.strerror}), so two processes could write into it; choose an "
                f"--output on another file system"
            ) from None
        raise ValueError(f"another process is writing into {folder}; wait, stop it, or give another --output") from None
    return file


def reason(error: BaseException) -> str:
    """Describe the OSError that is `error` or caused it; if there is none, return the text of `error` in one line."""
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and cause.errno):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return " ".join(str(error).split())
    if cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    return cause.strerror or str(cause)


def _sync_folder(folder: Path) -> None:
    """Make a renamed file survive a power failure."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
