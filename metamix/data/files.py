"""Read and decode image files, and list folders, which may also hold links, pipes and devices."""

import hashlib
import os
import re
import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from metamix.utils.text import package_logger, warn_once
from metamix.weights.checksums import digest

log = package_logger(__name__)

FORMATS = ("JPEG", "PNG", "WebP", "TIFF", "BMP", "PPM", "GIF")  # not EPS, for which Pillow starts Ghostscript
MAX_FILE_BYTES = 2**28  # 256 MiB; larger files are not images to train on
LONGEST = 1000  # largest ratio of the sides; a longer image becomes huge when its shorter side is resized to 224
MAX_SCANS = 100  # most scans that a JPEG may have; a scan of a few bytes takes as long to decode as the whole image
SCAN = re.compile(b"\xff\xda\0")  # start of a scan's header, which is shorter than 256 bytes; never in coded data
BLOCK, BLOCKS = 2**12, 4  # bytes of a block, and how many blocks of a file are hashed if it has more than 16 KiB
READERS = 8  # threads that hash files, to hide the delay of a slow disk; 100,000 files of 2 kB take 2 s of CPU time
CHUNK = 256  # files that a thread hashes at a time; digests depend on it
GREY_MODES = ("1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L")

Broken = list[tuple[str, str]]  # path of each sample that could not be read, and the reason
T = TypeVar("T")


class CorruptImage(OSError):
    """An image, or too large a share of all images, cannot be decoded. The message says why."""


@dataclass(frozen=True)
class Header:
    """Data from the header of an image file: (height, width) in pixels of the upright image, and whether it is grey."""

    size: tuple[int, int]
    grey: bool


@contextmanager
def open_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file that should hold an image, or a tar file of images.

    Raises:
        CorruptImage: the path leads to something other than a regular file, such as a pipe or a device.
        OSError: the file cannot be opened.
    """
    # Without O_NONBLOCK, opening a named pipe waits for a writer. Windows has neither the flag nor such pipes.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise CorruptImage("not a regular file")
        yield file


def open_image(file: BinaryIO) -> Image.Image:
    """Open an image of one of `FORMATS`. This reads the header and does not decode the pixels yet.

    Raises:
        CorruptImage: the file has another format, the image has more pixels than `PIL.Image.MAX_IMAGE_PIXELS`, one of
            its sides is more than `LONGEST` times as long as the other, a JPEG in memory has more than `MAX_SCANS`
            scans, or Pillow would misread a TIFF.
    """
    limit = Image.MAX_IMAGE_PIXELS
    try:
        image = Image.open(file, formats=FORMATS)
        too_large = limit is not None and image.width * image.height > limit
    except UnidentifiedImageError as error:
        raise CorruptImage(f"not an image of a known format ({', '.join(FORMATS)})") from error
    except Image.DecompressionBombError:  # more than twice the limit
        too_large = True
    if too_large:
        raise CorruptImage(
            f"it has more than {limit:,} pixels, and decoding it may take gigabytes of memory; if it should be that "
            f"large, raise the limit with --max-pixels, or in Python with PIL.Image.MAX_IMAGE_PIXELS"
        )
    if max(image.size) > LONGEST * min(image.size):
        size = f"{image.height:,} x {image.width:,}"
        raise CorruptImage(f"it has {size} pixels, but one side may be at most {LONGEST:,} times the other: crop it")
    if isinstance(image, JpegImageFile) and isinstance(file, BytesIO):
        check_scans(image, file)
    if isinstance(image, TiffImageFile):
        check_tiff(image)
    return image


def check_tiff(image: TiffImageFile) -> None:
    """Raise CorruptImage for a TIFF of 16 bits per channel that Pillow reads as a negative or as noise."""
    tags = image.tag_v2
    if 16 not in tags.get(258, ()):  # bits of each channel
        return
    if tags.get(262) == 0:  # photometric interpretation
        raise CorruptImage(
            "it is a 16-bit TIFF in which 0 is white, which Pillow reads as a negative: save it as a PNG"
        )
    if tags.get(284) == 2 and tags.get(259) == 1 and len(tags[258]) > 1:  # planar, without compression
        advice = "save it as a PNG, or with compression"
        raise CorruptImage(f"it is a 16-bit TIFF with a plane for each channel, which Pillow misreads: {advice}")


def check_scans(image: JpegImageFile, file: BytesIO) -> None:
    """Raise CorruptImage if a JPEG has more than `MAX_SCANS` scans; Pillow must have read its header before."""
    # Most files have one scan of all components, whose header Pillow read last. They need no search, which takes time.
    last = bytes((0xFF, 0xDA, 0, 6 + 2 * image.layers, image.layers))
    one = not image.info.get("progressive") and file.getvalue().startswith(last, file.tell() - 8 - 2 * image.layers)
    if not one and len(SCAN.findall(file.getvalue())) > MAX_SCANS:
        raise CorruptImage(f"it is a JPEG with over {MAX_SCANS} scans, and decoding it may take hours: save it again")


def limit_pixels(limit: int | None, worker: int = 0) -> None:
    """Limit the pixels of an image in this process; None lifts the limit. Spawned workers do not inherit it.

    `worker` is not used: a DataLoader passes it to its `worker_init_fn`.
    """
    Image.MAX_IMAGE_PIXELS = limit


def read_file(path: str | Path) -> bytes:
    """Read the bytes of an image file; raise the errors of `open_file`, and CorruptImage above `MAX_FILE_BYTES`."""
    with open_file(path) as file:
        check_size(os.fstat(file.fileno()).st_size)
        return file.read()


def read_image_file(path: str | Path) -> Image.Image:
    """Read an image file and open the image without decoding it; raise the errors of `read_file` and `open_image`."""
    return open_image(BytesIO(read_file(path)))


def read_mask_file(path: str | Path) -> Image.Image:
    """Read a mask as `read_image_file` does; raise CorruptImage if the file holds several images."""
    image = read_image_file(path)
    pages = getattr(image, "n_frames", 1)
    if isinstance(image, TiffImageFile):  # do not count smaller copies and masks of transparency, which GDAL adds
        pages = sum(not page.tag_v2.get(254, 0) & 5 for page in ImageSequence.Iterator(image))
        image.seek(0)
    if pages > 1 and image.format != "MPO":  # MPO is refused as a JPEG
        raise CorruptImage(f"it holds {pages} images, but a mask is a single image: save each as a PNG")
    return image


def check_size(size: int) -> None:
    """Raise CorruptImage if the size of an image file is above `MAX_FILE_BYTES`."""
    if size > MAX_FILE_BYTES:
        raise CorruptImage(f"it has {size:,} bytes, but images may have {MAX_FILE_BYTES:,} at most")


def read_header(path: Path) -> Header:
    """Read the header of an image file without decoding pixels; raise ValueError if that fails."""
    try:
        with open_file(path) as file, open_image(file) as image:
            # For a turned TIFF, Pillow returns the upright size; its tags hold the size before turning.
            width, height = (image.tag_v2[256], image.tag_v2[257]) if isinstance(image, TiffImageFile) else image.size
            has_exif = image.format != "PNG" or "exif" in image.info  # else Pillow decodes a PNG to look for EXIF
            turned = has_exif and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # EXIF's orientation: a quarter turn
            return Header((width, height) if turned else (height, width), image.mode in GREY_MODES)
    except Exception as error:  # decoders raise errors of many types on bad bytes
        raise ValueError(f"{path} cannot be read as an image ({error}): repair it or remove it") from None


def decode(source: Callable[[], Image.Image], path: str | Path, mode: str = "RGB") -> Image.Image:
    """Decode the image that `source()` opens, turned upright by its EXIF data and converted to `mode`.

    Raises:
        CorruptImage: "path: reason", for a file that cannot be opened or decoded.
    """
    with as_corrupt_image(path):
        image = to_eight_bits(ImageOps.exif_transpose(source()))
        if mode != "RGBA" and isinstance(image.info.get("transparency"), bytes):  # palette: Pillow would warn
            del image.info["transparency"]
        return (image.convert("RGB") if image.mode == "LAB" else image).convert(mode)  # Pillow cannot make LAB grey


def check_several(images: object) -> None:
    """Raise TypeError for a single image instead of a list, since each letter of a path would be taken for a file."""
    if isinstance(images, (str, Path, Image.Image)):
        raise TypeError(f"predict takes a list of images, but got a single {type(images).__name__}: give [image]")


def check_image(image: object) -> None:
    """Raise TypeError unless `image` is a path or a Pillow image, and CorruptImage if it has no pixels."""
    if not isinstance(image, (str, os.PathLike, Image.Image)):
        advice = "give a path or a PIL image. PIL.Image.fromarray converts an array (H, W, 3) uint8"
        raise TypeError(f"an image is of type {type(image).__name__}: {advice}")
    if isinstance(image, Image.Image) and not all(image.size):
        raise CorruptImage(f"an image has {image.height} x {image.width} pixels: leave it out")


def decode_file(image: str | Path | Image.Image, mode: str = "RGB") -> Image.Image:
    """Decode an image file or a Pillow image; see `decode` for the conversion and the errors."""
    check_image(image)
    if isinstance(image, Image.Image):
        return decode(lambda: image, "image", mode)
    return decode(lambda: read_image_file(image), image, mode)


def read_pixels(image: str | Path | Image.Image) -> Tensor:
    """Read an image file or a Pillow image, upright and in colour, as (3, H, W) uint8; raise the errors of `decode`."""
    return pil_to_tensor(decode_file(image))


@contextmanager
def as_corrupt_image(path: str | Path) -> Iterator[None]:
    """Turn any error in opening or decoding an image into CorruptImage with the message "path: reason"."""
    try:
        yield
    except CorruptImage as error:
        raise CorruptImage(f"{path}: {error}") from error
    except Exception as error:  # decoders raise errors of many types on bad bytes
        words = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"  # strerror of an OSError
        raise CorruptImage(f"{path}: {words}") from error


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Keep the upper 8 bits of a 16-bit grey image. Pillow does so for colour images, but clips grey ones to white."""
    if image.mode == "F":
        raise CorruptImage("its pixels are floating-point numbers; save it with 8 or 16 bits per channel")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    pixels = np.asarray(image)
    low, high = pixels.min(), pixels.max()
    if low < 0 or high > 65535 or 0 < high < 256:  # 8-bit values in a larger type would become black
        raise CorruptImage(
            f"its pixels range from {low} to {high}, unlike 16-bit values: save it with 8 bits or scale it to 16 bits"
        )
    if 0 < high < 2**14:
        warn_once(
            log,
            f"a 16-bit image has no value above {2 ** int(high).bit_length() - 1} of 65535 and is read as dark or "
            f"black: if its camera or scanner has fewer than 16 bits, multiply the values of all images so that its "
            f"white becomes 65535",
        )
    return Image.fromarray((pixels // 256).astype(np.uint8))


def first_readable(count: int, index: int, read: Callable[[int], T], path: Callable[[int], str]) -> tuple[T, Broken]:
    """Read sample `index` of `count`, or the next sample that can be read. Sample 0 follows the last one.

    Return what `read` returned, and (path, reason) of each sample for which it raised CorruptImage; raise CorruptImage
    if no sample can be read.
    """
    broken: Broken = []
    for shift in range(count):
        i = (index + shift) % count
        try:
            return read(i), broken
        except CorruptImage as error:
            broken.append((path(i), str(error)))
    raise CorruptImage(f"none of {count} images can be read; the first error is: {broken[0][1]}")


def file_content(path: str | Path, start: int = 0, size: int | None = None) -> str:
    """Hash a file, or `size` bytes of it from byte `start` on; return "" if it cannot be read.

    If there are more than BLOCKS * BLOCK bytes, only evenly spread blocks are hashed, from the first bytes to the last,
    so that hashing takes little time compared with an epoch. They reveal most edits, since an edit of a compressed file
    usually changes all bytes after it.
    """
    blocks = []
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size if size is None else size
            small = size <= BLOCKS * BLOCK
            for i in range(1 if small else BLOCKS):
                file.seek(start + i * (size - BLOCK) // (BLOCKS - 1))
                blocks.append(file.read(size if small else BLOCK))
        return hash_bytes(*blocks)
    except (OSError, ValueError):  # ValueError: a NUL in the name. Reading the image reports the error
        return ""


def hash_bytes(*blocks: bytes) -> str:
    """Hash bytes to 32 hexadecimal digits."""
    return hashlib.blake2b(b"".join(blocks), digest_size=16).hexdigest()


def content_digest(samples: Sequence[Any], content: Callable[[Any], str] = file_content) -> str:
    """Hash the contents of samples in their order. `content` hashes one sample; by default, a sample is a path."""

    def hash_chunk(start: int) -> list[str]:
        return [content(sample) for sample in samples[start : start + CHUNK]]

    with ThreadPoolExecutor(READERS) as threads:
        return digest(threads.map(hash_chunk, range(0, len(samples), CHUNK)))


def list_files(root: Path) -> list[str]:
    """List the files below a folder, as paths relative to it.

    Links are followed. Each folder is visited only once, so cycles of links end. Real folders are visited before links
    to them. Hidden files and folders are left out.
    """
    seen = {_identity(folder): folder for folder in root.resolve().parents}
    files: list[str] = []
    folders, links = deque([""]), deque[str]()
    while folders or links:
        folder = folders.popleft() if folders else links.popleft()
        place = root / folder
        identity = _identity(place)
        if identity in seen:
            warn_once(log, f"{place}: left out, since it is the same folder as {seen[identity]}")
            continue
        seen[identity] = place
        with os.scandir(place) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = f"{folder}/{entry.name}" if folder else entry.name
                if entry.name.startswith("."):
                    continue
                if entry.is_symlink():
                    (links if os.path.isdir(entry.path) else files).append(path)
                else:
                    (folders if entry.is_dir() else files).append(path)
    return files


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
