"""Check the pickles of a PyTorch file before torch reads them, since a small file could hang or crash Python."""

import pickletools
import zipfile
from contextlib import suppress
from pickle import UnpicklingError
from typing import IO, Any

from metamix.utils.files import MAX_NESTING

MAX_EXPANSION = 100  # largest ratio of content to file size; compression and shared memory raise the ratio above 1


def check_pickles(path: str) -> None:
    """Check the pickles that torch reads from a file; see `check_pickle`."""
    with open(path, "rb") as file:
        if file.read(4) != b"PK\3\4":
            file.seek(0)
            for _ in range(5):  # the format before torch 1.6 begins with five pickles
                check_pickle(file)
            return
        archive = zipfile.ZipFile(file)
        for info in archive.infolist():
            if info.filename.lower().endswith("data.pkl"):
                info.CRC = None  # type: ignore[assignment]  # torch does not compare it
                check_pickle(archive.read(info))


def check_pickle(pickle: bytes | IO[bytes]) -> None:
    """Raise UnpicklingError if torch would need far more time or memory for a pickle than its size suggests.

    While torch reads, it hashes keys, and a tuple is hashed with all values in it. So each instruction costs as much
    as the values that it takes. The cost doubles with each level of tuples, since very deep tuples crash Python.
    """
    memo: dict[Any, list[int]] = {}
    # A stack of costs, and one more for each open mark. Each cost is in a list, so that it can grow with its value.
    stacks: list[list[list[int]]] = [[]]
    total = 0
    with suppress(ValueError, LookupError):  # raised for damage, which torch finds at the same instruction
        for code, arg, position in pickletools.genops(pickle):
            name, grows = code.name, code.name.startswith(("APPEND", "SETITEM", "BUILD"))
            if name == "GLOBAL" and str(arg).endswith(("bytearray", "encode", "Tensor", "_cpu_tensor")):
                raise UnpicklingError(f"CALL {str(arg).replace(' ', '.')}")  # these can make values of any size
            every = name in ("TUPLE", "APPENDS", "SETITEMS")  # these take all values since the last mark
            taken = stacks.pop() if every else [stacks[-1].pop() for _ in code.stack_before[grows:]]
            cost = sum(value[0] for value in taken)
            total += cost
            if total > MAX_EXPANSION * (1000 + (position or 0)):
                raise UnpicklingError(f"is nested deeper than {MAX_NESTING} levels, or repeats its values without end")
            if grows:
                stacks[-1][-1][0] += cost
            elif name.endswith("PUT"):
                memo[arg] = stacks[-1][-1]
            elif name == "MARK":
                stacks.append([])
            elif name not in ("PROTO", "STOP"):
                stacks[-1].append(memo[arg] if name.endswith("GET") else [1 + 2 * cost])
