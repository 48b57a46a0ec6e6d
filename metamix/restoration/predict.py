"""Restore images that have no ground truth.

    metamix predict IMAGE_OR_FOLDER... --checkpoint RUN --output restored
    metamix predict --task restoration photos --model maxim_s3.sidd --pretrained

A folder stands for all images in it, at any depth. Each image is written to OUTPUT under its path inside the folder
that was given, in its own format: PNG, JPEG, WebP or TIFF, else PNG. OUTPUT/restored.json lists the files of the last
run. Alpha channels, colour profiles and 16 bits a channel are kept if the format has them; 16 bits need the extra
`restoration`. Values are rounded, not truncated. A model for the luminance restores a grey image as it is and Y of a
colour image, whose Cb and Cr are enlarged. Images that cannot be read or do not fit the model are named and left out;
the exit code is then 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from metamix.data.find import paths_inside
from metamix.data.outputs import change_extensions, check_outputs, predict_images
from metamix.layers.tiles import check_tiles
from metamix.utils.arguments import add_device, add_places
from metamix.utils.checks import DoesNotFit, check_finite
from metamix.utils.system import prepare_device
from metamix.utils.text import exit_with_message, plural, printable

from .colour import to_rgb, to_ycbcr
from .files import FORMATS, Picture, read_picture, write_picture
from .inference import Restorer, check_local_pooling, enlarge
from .load import load_trained

RECORDS = "restored.json"  # in the output folder


def main(argv: Sequence[str] | None = None) -> int:
    """Run `metamix predict` for restoration.

    Returns:
        1 if an image was left out, else 0.
    """
    options = make_parser().parse_args(argv)
    with exit_with_message(ValueError, OSError):
        check_tiles(options.tile, options.overlap)
        files = name_outputs(options.places, options.output, options.format)
        found = load_trained(options.checkpoint, model=options.model, pretrained=options.pretrained)
        if options.pretrained:
            print(printable(f"weights: {found.name}"), file=sys.stderr)  # the tag may be the default one
        device = prepare_device(options.device)
        model = found.model.to(device)
        restorer = Restorer(found.spec.enlarge, options.tile, options.overlap, options.ensemble, options.local_pooling)
        check_local_pooling(model, found.name, options.local_pooling)
        return restore_all(model, found.spec.channels, restorer, files, options.output)


def restore_all(model: nn.Module, channels: str, restorer: Restorer, files: Mapping[Path, Path], output: Path) -> int:
    """Restore image files, and say which were left out.

    Args:
        model: an image model in evaluation mode, on any device.
        channels: that the model takes: "rgb", "grey" or "y".
        restorer: how the model is applied.
        files: file to write for each image.
        output: folder of these files, and of restored.json, which names the image of each.

    Returns:
        1 if an image was left out, else 0.
    """

    def restore(path: Path, written: Path) -> dict[str, str]:
        picture = restore_file(model, path, channels, restorer)
        write_picture(picture, written)
        for lost in picture.lost:
            print(printable(f"note: {path}: {lost}"), file=sys.stderr)
        return {"file": written.relative_to(output).as_posix()}

    restored = predict_images(files, restore, output / RECORDS)
    print(printable(f"written: {plural(restored, 'image')} to {output}"))
    return 1 if restored < len(files) else 0


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(prog="metamix predict", description="Restore images.", allow_abbrev=False)
    parser.add_argument("--checkpoint", help="run folder or weight file")
    parser.add_argument("--model", help="image model, for weights that do not name it")
    parser.add_argument("--pretrained", action="store_true", help="the model's published weights")
    parser.add_argument(
        "--tile", type=int, default=512, help="side of the tiles in pixels; 0: whole images at once (default: 512)"
    )
    parser.add_argument("--overlap", type=int, default=32, help="least overlap of tiles in pixels (default: 32)")
    parser.add_argument(
        "--local-pooling",
        type=int,
        default=0,
        help="side of the windows that MAXIM's channel attention averages over; 0: the whole tile (default: 0)",
    )
    add_options(parser)
    add_device(parser)
    return parser


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the images, how they are written, and the self-ensemble."""
    add_places(parser, "restored")
    parser.add_argument(
        "--ensemble", action="store_true", help="average over eight orientations; takes eight times as long"
    )
    parser.add_argument(
        "--format",
        choices=["keep", "png", "jpg", "webp", "tif"],
        default="keep",
        help="format of the restored files (default: keep)",
    )


def name_outputs(places: Sequence[Path], output: Path, form: str) -> dict[Path, Path]:
    """Return the file that each image is written to.

    Images of an earlier run, where `output` lies in one of the folders, are left out.

    Args:
        form: extension of all files without its dot; "keep" for that of the image if it can be written, else png.

    Raises:
        FileNotFoundError: an image is missing, or a folder holds none.
        ValueError: two images would be written to one file, or a file that no earlier run wrote would be overwritten.
    """

    def extension(path: Path) -> str:
        if form != "keep":
            return f".{form}"
        return path.suffix if path.suffix.lower() in FORMATS else ".png"

    names = change_extensions(paths_inside(places, without=[output]), extension)
    files = {path: output / name for path, name in names.items()}
    check_outputs(files, marker=output / RECORDS)
    return files


def restore_file(model: nn.Module, path: Path, channels: str, restorer: Restorer) -> Picture:
    """Read and restore an image file.

    Args:
        model: an image model in evaluation mode, on any device.
        channels: that the model takes: rgb, grey or y.
        restorer: how the model is applied.

    Returns:
        The restored image, with the channels, bits and colour profile of the file.

    Raises:
        CorruptImage: the file cannot be read.
        DoesNotFit: it is in colour, and the model takes grey images.
        ValueError: the model returns values that are not finite.
    """
    picture = read_picture(path)
    colours, alpha = picture.colours, picture.alpha
    grey = len(colours) == 1
    if channels == "grey" and not grey:
        raise DoesNotFit(
            f"{path} is in colour, and the model was trained on grey images: save it in grey, or give a model trained "
            f"with --channels rgb or y"
        )
    colours = colours.expand(3, -1, -1) if channels == "rgb" else colours
    restored = check_finite(restore_colours(model, colours, channels, restorer), path)
    if grey:
        restored = restored.mean(0, keepdim=True)
    if alpha is not None:
        alpha = enlarge(alpha, restored.shape[-1] // alpha.shape[-1])
    return replace(picture, colours=restored, alpha=alpha)


def restore_colours(model: nn.Module, image: Tensor, channels: str, restorer: Restorer) -> Tensor:
    """Restore an image (C, H, W) on the CPU; of an image in colour, only the luminance if channels is y."""
    device = next(model.parameters()).device
    if channels != "y" or len(image) == 1:
        return restorer(model, image[None].to(device))[0].float().cpu()
    ycbcr = to_ycbcr(image)
    y = restorer(model, ycbcr[None, :1].to(device))[0].float().cpu()
    return to_rgb(torch.cat([y, enlarge(ycbcr[1:], y.shape[-1] // ycbcr.shape[-1])]))
