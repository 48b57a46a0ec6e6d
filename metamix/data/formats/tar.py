"""Read images in uncompressed tar files."""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from ..files import check_size, file_content, open_file, open_image
from .base import ImageSplit


class Member(NamedTuple):
    """Place of an image in a tar file."""

    file: Path
    offset: int  # bytes
    size: int  # bytes
    name: str  # in the tar file, such as train/cat/0.png
    path: str  # in the split, such as cat/0.png


class TarImages(ImageSplit):
    """Read one split of images in tar files.

    For each image, the tar file is opened again, so that processes and threads do not share a file position.
    """

    def __init__(self, split: str, members: list[Member], labels: Tensor, classes: tuple[str, ...]):
        self.split, self.members, self.labels, self.classes = split, members, labels, classes

    def open(self, i: int) -> Image.Image:
        member = self.members[i]
        check_size(member.size)
        with open_file(member.file) as tar:
            tar.seek(member.offset)
            return open_image(BytesIO(tar.read(member.size)))

    def path(self, i: int) -> str:
        return f"{self.members[i].file}: {self.members[i].name}"

    def fingerprint(self, i: int) -> str:
        return f"{self.members[i].path} {self.members[i].size}"

    def content(self, i: int) -> str:
        member = self.members[i]
        return file_content(member.file, member.offset, member.size)


class ShortInfo(tarfile.TarInfo):
    """Reject a header whose text, such as a name, is longer than 1 MiB, and a header with a negative file size."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:  # the standard library allows overriding it
        if self.size > 2**20 and self.type in (b"L", b"K", b"x", b"g", b"X"):  # headers of GNU, POSIX, Solaris
            raise tarfile.ReadError(f"a header has {self.size:,} bytes")
        info = super()._proc_member(archive)  # type: ignore[misc]  # typeshed leaves it out
        if info.size < 0:  # tarfile would go back, and read the same headers forever
            raise tarfile.ReadError(f"a file has {info.size:,} bytes")
        return info


@contextmanager
def read_tar(path: Path) -> Iterator[tarfile.TarFile]:
    """Open an uncompressed tar file, whose members can be read by their offset."""
    if not path.is_file():
        raise ValueError(f"{path.absolute()} is missing, or is not a regular file; expected a tar file")
    try:
        with tarfile.open(path, "r:", tarinfo=ShortInfo) as tar:
            yield tar
    except RecursionError:
        raise ValueError(f"{path.absolute()} has too long a chain of headers: create it again") from None
    except tarfile.TarError as error:
        raise ValueError(f"{path.absolute()} is not a readable tar file, or is compressed: {error}") from error
