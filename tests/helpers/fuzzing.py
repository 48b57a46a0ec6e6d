"""Damage files at random, and check that reading them returns a result or raises an error with a message."""

import random
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.limits import seconds
from tests.helpers.running import assert_same

SECONDS, MEGABYTES = 10, 200  # limits of a read
WORD = re.compile(rb'"[^"]*"|[\w.+-]+')
HOSTILE = rb'-1 0 1.5 1e999 -1e300 -2147483649 NaN null true "" "a/../../b" "\u0000" "\ud800" [] {} [[]] "'.split()
HOSTILE += [b"", b"\0", b"\n", b"\xff\xfe", b"9" * 30, b"9" * 5000, b"a" * 5000]
REFUSED = object()


@dataclass(frozen=True)
class Kind:
    """Files of one kind.

    Attributes:
        name: names the kind in messages and seeds the random damage.
        make: writes the files into a folder.
        files: pattern of the files to damage.
        read: reads the folder as a command does.
        rounds: how many times one of the files is damaged.
        has_checksums: whether a damaged file must give the same result as the whole file, or be refused.
        names: words that an error may contain in place of the file's name.
    """

    name: str
    make: Callable[[Path], object]
    files: str
    read: Callable[[Path], object]
    rounds: int = 60
    has_checksums: bool = False
    names: tuple[str, ...] = ()


def flip(content, chance):
    """Flip up to four bits."""
    damaged = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def cut(content, chance):
    """Cut off the end."""
    return content[: chance.randrange(len(content))]


def replace(content, chance):
    """Replace a word or number in the bytes with a hostile value; if there is none, insert the value at the start."""
    start, end = chance.choice([word.span() for word in WORD.finditer(content)] or [(0, 0)])
    return content[:start] + chance.choice(HOSTILE) + content[end:]


def fuzz(kind, folder, rounds):
    """Damage the files of a kind, one at a time, and read them; return how many were refused."""
    kind.make(folder)
    expected, files, chance, refused = kind.read(folder), sorted(folder.glob(kind.files)), random.Random(kind.name), 0
    for i in range(rounds):
        file, damage = chance.choice(files), chance.choice([flip, flip, cut, replace])
        whole, where = file.read_bytes(), f"{kind.name}, round {i}: {file.name}, {damage.__name__}"
        rewrite(file, damage(whole, chance))
        result = read_within_limits(kind, folder, file, where)
        if result is REFUSED:
            refused += 1
        elif kind.has_checksums:
            assert_same(result, expected, where)
        rewrite(file, whole)
    return refused


def rewrite(file, content):
    """Replace a file with a new one, since tensors that were read may still map the old file into memory."""
    file.unlink()
    file.write_bytes(content)


def read_within_limits(kind, folder, file, where):
    """Read a folder with a damaged `file`; return the result or REFUSED. Fail on other errors or above a limit."""
    before, result = peak_memory(reset=True), REFUSED
    try:
        with seconds(SECONDS):
            result = kind.read(folder)
    except (ValueError, OSError, SystemExit) as error:
        names = file.name, str(folder), *kind.names
        assert any(name in str(error) for name in names), f"{where}: no file is named in {error!r}"
    except Exception as error:
        raise AssertionError(f"{where}: {error!r} is not a refusal") from error
    grown = peak_memory() - before
    assert grown < MEGABYTES, f"{where}: it took {grown:.0f} MiB"
    return result


def peak_memory(reset=False):
    """Return the peak memory of this process since the last reset, in MiB, or 0 on systems other than Linux."""
    if sys.platform != "linux":
        return 0
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
