"""Find code in pickles without running it, for the message that refuses the file."""

import io
import pickletools
import re
import zipfile
from pathlib import Path

SEARCHED = 2**20  # bytes of a pickle that are searched, at most
TENSOR_CODE = re.compile(
    r"collections\.OrderedDict|argparse\.Namespace"
    r"|torch\.(_utils\._rebuild_\w+|_tensor\._rebuild_\w+|(storage\.)?\w+Storage|nn\.parameter\.Parameter|Size|\w+\d+|bool)"
)


def code_in(path: str | Path) -> str | None:
    """Return the name of a function or class that unpickling a file would call; None if there are only torch's.

    A pickle is the file itself or, in a zip archive, a file in it such as data.pkl.
    """
    try:
        if not zipfile.is_zipfile(path):
            with open(path, "rb") as file:
                content = file.read(SEARCHED)
            return None if content[:2] == b"PK" else _code_in_pickles(content)  # PK: a truncated zip archive
        with zipfile.ZipFile(path) as archive:
            pickles = (archive.open(name) for name in archive.namelist() if name.endswith(".pkl"))
            return next(filter(None, (_code_in_pickles(file.read(SEARCHED)) for file in pickles)), None)
    except Exception:  # damaged bytes raise errors of any type
        return None


def _code_in_pickles(content: bytes) -> str | None:
    """Search pickles that follow one another, as in torch's old format, without running them."""
    stream, code, complete = io.BytesIO(content), None, content[:1] == b"\x80"
    words = ["?", "?"]  # the last texts, which STACK_GLOBAL takes as module and name
    try:
        while stream.tell() < len(content):
            for operation, argument, _ in pickletools.genops(stream):
                if operation.name in ("GLOBAL", "INST"):
                    words = argument.split(" ", 1)
                elif isinstance(argument, str):
                    words = [words[-1], argument]
                name = ".".join(words)
                if operation.name in ("GLOBAL", "INST", "STACK_GLOBAL") and not TENSOR_CODE.fullmatch(name):
                    code = code or name[:80]
            complete = True
    except Exception:  # after complete pickles, tensors follow; otherwise it is no pickle, and nothing in it is code
        return code if complete else None
    return code
