"""Read and write image files of 8 and 16 bits per channel, with their alpha channels and colour profiles.

Pillow reads and writes files of 8 bits, and cannot hold colour images of 16 bits. OpenCV reads and writes PNG and TIFF
files of 16 bits. OpenCV turns grey images with an alpha channel into colour images, and writes no colour profiles into
TIFF files.
"""

import sys
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from metamix.data.files import CorruptImage, as_corrupt_image, check_image, open_image, read_file, to_eight_bits
from metamix.utils.checks import DoesNotFit
from metamix.utils.files import atomic_write, make_output_folder
from metamix.utils.text import printable

from .pixels import to_levels

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF"}
SAVING = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"quality": 95}, "PNG": {}, "TIFF": {}}
HAVE_16_BITS = ("PNG", "TIFF")
OTHER_COLOURS = ("CMYK", "LAB")  # Pillow's modes whose colour profiles do not fit RGB
# Dimensions to flip for each EXIF orientation. Orientations 5 to 8 also transpose the image.
FLIPPED = {2: (-1,), 3: (-2, -1), 4: (-2,), 6: (-1,), 7: (-2, -1), 8: (-2,)}
# Our channels in OpenCV's order, blue first, for images of 1 to 4 channels. Grey with alpha becomes colour with alpha.
OPENCV_ORDER = {1: [0], 2: [0, 0, 0, 1], 3: [2, 1, 0], 4: [2, 1, 0, 3]}


@dataclass(frozen=True)
class Picture:
    """A decoded image file, upright, with values from 0 to 1."""

    colours: Tensor  # (1 or 3, H, W) float32
    alpha: Tensor | None  # (1, H, W) float32, or None
    bits: int = 8  # 8 or 16, for each channel
    profile: bytes | None = None  # colour profile of the file (ICC), or None
    lost: tuple[str, ...] = ()  # notes on what was dropped while reading, such as further pages of the file
    name: str = "image"  # name of the file in messages


def read_picture(source: str | Path | Image.Image) -> Picture:
    """Read an image file, or convert a PIL image to 8 bits per channel. Keep only the first page of a file.

    Raises:
        CorruptImage: the file cannot be read, or it has 16 bits per channel and OpenCV is missing.
    """
    check_image(source)
    path = None if isinstance(source, Image.Image) else Path(source)
    name = str(path or "image")
    with as_corrupt_image(name):
        content = read_file(path) if path else b""
        image = source if isinstance(source, Image.Image) else open_image(BytesIO(content))
        profile, lost = image.info.get("icc_profile"), list[str]()
        pages = getattr(image, "n_frames", 1)
        if pages > 1 and image.format != "MPO":  # MPO is a camera's JPEG with several views
            lost.append(f"only the first of {pages} images is kept")
        if profile and image.mode in OTHER_COLOURS:
            profile = None
            lost.append(f"the colour profile of {image.mode} is dropped, and the colours become RGB")
        layout = str(getattr(image, "tile", ""))  # how samples are stored, such as "RGB;16B"; empty once decoded
        if content and (image.mode.startswith("I") or ";16" in layout):
            is_grey = image.mode.startswith("I") or "LA;16" in layout  # Pillow calls grey with alpha RGBA
            orientation = 1 if image.format == "TIFF" else image.getexif().get(0x0112, 1)  # OpenCV turns TIFFs upright
            picture = _read_16_bits(content, is_grey, orientation, profile)
            if picture.alpha is None and "transparency" in image.info:
                lost.append("the transparency of one grey level is dropped")
            return replace(picture, lost=tuple(lost), name=name)
        image = to_eight_bits(ImageOps.exif_transpose(image))
        has_alpha = image.getbands()[-1] == "A" or "transparency" in image.info
        mode = ("L" if image.mode in ("1", "L", "LA") else "RGB") + ("A" if has_alpha else "")
        values = pil_to_tensor(image.convert(mode)).float() / 255
    colours, alpha = (values[:-1], values[-1:]) if has_alpha else (values, None)
    return Picture(colours.contiguous(), alpha, 8, profile, tuple(lost), name)


def to_image(picture: Picture) -> Image.Image:
    """Convert a picture to a PIL image of 8 bits per channel with its colour profile; clip and round the values."""
    image = to_pil_image(_to_pixels(picture, 8).astype(np.uint8))
    image.info |= {"icc_profile": picture.profile} if picture.profile else {}
    return image


def write_picture(picture: Picture, path: Path) -> None:
    """Write a picture in the format of the path's extension; values are clipped and rounded.

    JPEG and WebP get 8 bits per channel. Raise DoesNotFit for an alpha channel, which JPEG cannot hold.
    """
    kind = FORMATS[path.suffix.lower()]
    if kind == "JPEG" and picture.alpha is not None:
        raise DoesNotFit(f"{path}: the image has an alpha channel, which JPEG cannot hold: give --format png")
    make_output_folder(path.parent)
    wide = picture.bits == 16 and kind in HAVE_16_BITS
    content = _encode_16_bits(_to_pixels(picture, 16).astype(np.uint16), path, picture.profile) if wide else b""
    with atomic_write(path) as file:
        if wide:
            file.write(content)
        else:
            to_image(picture).save(file, kind, **SAVING[kind], icc_profile=picture.profile)


def _to_pixels(picture: Picture, bits: int) -> np.ndarray:
    """Return the values of a picture and its alpha channel, scaled to `bits`, as (H, W, C) float64."""
    values = picture.colours if picture.alpha is None else torch.cat([picture.colours, picture.alpha])
    return to_levels(values.double(), 2**bits - 1).permute(1, 2, 0).numpy()


def _read_16_bits(content: bytes, is_grey: bool, orientation: int, profile: bytes | None) -> Picture:
    """Read an image of 16 bits per channel; `orientation` is the EXIF value, or 1 if OpenCV turns it upright."""
    cv2 = _opencv()
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        raise CorruptImage("OpenCV cannot read it with 16 bits per channel; save it with 8 or 16 bits per channel")
    values = torch.from_numpy(pixels.astype(np.float32) / 65535).view(*pixels.shape[:2], -1).permute(2, 0, 1)
    values = (values.mT if orientation > 4 else values).flip(FLIPPED.get(orientation, ()))
    colours = values[:1] if is_grey else values[:3].flip(0)  # OpenCV stores blue first
    return Picture(colours, values[3:] if len(values) == 4 else None, 16, profile)


def _encode_16_bits(pixels: np.ndarray, path: Path, profile: bytes | None) -> bytes:
    """Encode (H, W, C) uint16 in the format of the path's extension."""
    cv2 = _opencv()
    pixels = np.ascontiguousarray(pixels[..., OPENCV_ORDER[pixels.shape[-1]]])
    if profile and FORMATS[path.suffix.lower()] == "PNG" and hasattr(cv2, "imencodeWithMetadata"):
        entries = [cv2.IMAGE_METADATA_ICCP], [np.frombuffer(profile, np.uint8)]
        done, content = cv2.imencodeWithMetadata(path.suffix, pixels, *entries)
        if done:  # false if libpng refuses the profile
            return content.tobytes()
    if profile:
        print(printable(f"note: {path} has no colour profile: OpenCV cannot write it"), file=sys.stderr)
    return cv2.imencode(path.suffix, pixels)[1].tobytes()


def _opencv() -> Any:
    try:
        import cv2
    except ImportError:
        raise CorruptImage(
            "it has 16 bits per channel, which need OpenCV: pip install 'metamix[restoration]', or save it with 8 bits"
        ) from None
    return cv2
