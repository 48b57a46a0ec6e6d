"""Lock a folder, so that only one process at a time writes into it."""

import errno
from pathlib import Path
from typing import IO

from .files import reason

LOCK = ".lock"  # file in the folder; it stays there


def lock_folder(folder: Path) -> IO[str]:
    """Lock a folder until the file that is returned is closed, or until this process ends, however it ends.

    Raises:
        ValueError: another process has locked the folder, or it holds a link or a pipe, which may have been planted.
        OSError: the folder cannot be locked.
    """
    try:
        import fcntl
    except ImportError:
        raise OSError(f"{folder} cannot be locked: writing to it needs Linux or macOS") from None
    for path in folder.iterdir():
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path} is a link or a pipe, and what is written to it goes elsewhere: remove it")
    try:
        file = open(folder / LOCK, "a+")  # noqa: SIM115 - kept open as long as the lock is held
    except OSError as error:
        raise OSError(f"{folder / LOCK} could not be written ({reason(error)}); give another --output") from error
    try:
        # A POSIX record lock. Unlike flock's, the loader's workers do not inherit it; they may outlive this process.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise OSError(
                f"{folder} cannot be locked ({error.strerror}), so two processes could write into it; take an "
                f"--output on another file system"
            ) from None
        raise ValueError(f"another process is writing into {folder}; wait, stop it, or give another --output") from None
    return file
