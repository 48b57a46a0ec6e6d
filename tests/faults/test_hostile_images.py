"""Test that images and labels that would start programs, block a run or fill the memory are refused."""

import ast
import io
import multiprocessing
import os
import struct
import tarfile
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, ImageFile

import metamix
from examples.train_segmenter import draw_set
from metamix.classification.metric import ClassificationMetric
from metamix.data import CorruptImage, DataOptions, decode_file, open_data, train_loader
from metamix.data.files import FORMATS, read_header
from metamix.data.formats.huggingface import HuggingFace
from metamix.data.formats.torchvision_sets import Torchvision
from metamix.restoration.data import RestorationData
from metamix.restoration.files import read_picture
from metamix.restoration.options import RestorationOptions
from metamix.segmentation.data import SegmentationData
from metamix.segmentation.labels import make_labels, read_mask
from metamix.segmentation.options import SegmentationOptions
from tests.helpers.fuzzing import peak_memory
from tests.helpers.image_fixtures import folder, image, shard
from tests.helpers.limits import seconds
from tests.helpers.running import metamix_command, train

__all__ = ["folder", "image", "shard"]

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n0 0 32 32 rectfill\nshowpage\n%%EOF\n"
FOUR_READERS = [decode_file, read_header, read_picture, lambda path: read_mask(path, make_labels(("a", "b")))]


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """Put a program `gs` into PATH that writes a file when it is started."""
    started, program = tmp_path / "started", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {started}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # Pillow searches for gs again
    return started


@pytest.fixture
def restore_limit(monkeypatch):
    """Restore the pixel limit after the test; an option sets it for the whole process."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)


def png(width, height):
    """Return a black PNG with one bit per pixel: 49 kB for 20,000 x 20,000 pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + -(-width // 8))) for _ in range(height)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("read", FOUR_READERS)
def test_postscript_named_like_a_jpeg_starts_no_program(read, ghostscript, tmp_path):
    (tmp_path / "a.jpg").write_bytes(EPS)
    with pytest.raises((CorruptImage, ValueError), match=r"a\.jpg.*not an image of a known format \(JPEG, PNG"):
        read(tmp_path / "a.jpg")
    assert not ghostscript.exists()


def test_postscript_in_a_training_folder_is_reported_and_not_run(ghostscript, folder, tmp_path, capfd):
    root = folder()
    (root / "train" / "cat" / "a.jpg").write_bytes(EPS)
    words = ["--data", "folder", "--data-dir", root, "--corrupt-limit", 0.5, "--batch-size", 4, "--warmup-epochs", 0]
    train(*words, "--epochs", 1, "--output", tmp_path / "run")
    assert f"{root}/train/cat/a.jpg: not an image of a known format (JPEG, PNG" in "".join(capfd.readouterr())
    assert not ghostscript.exists()


@pytest.mark.parametrize("kind", FORMATS)
def test_every_accepted_image_format_is_read(kind, tmp_path, image):
    image().save(tmp_path / "a", kind)
    assert decode_file(tmp_path / "a").size == (32, 32)


@pytest.mark.parametrize("progressive", [True, False])
def test_a_jpeg_with_thousands_of_scans_is_not_decoded(progressive, tmp_path):
    """Each scan takes up to 70 ms, as long as the whole image."""
    file = io.BytesIO()
    Image.new("L" if progressive else "RGB", (4000, 4000)).save(file, "JPEG", progressive=progressive)
    content = file.getvalue()[:-2]  # without the mark of the end
    start = content.rindex(b"\xff\xda")
    scan = content[start:]
    if not progressive:
        content, scan = content[:start], b"\xff\xda\0\x08\1\1\0\0\x3f\0"  # one colour, and no data
    for scans, name in ((50, "good.jpg"), (10_000, "bad.jpg")):
        (tmp_path / name).write_bytes(content + scan * scans + b"\xff\xd9")
    with seconds(20):
        assert decode_file(tmp_path / "good.jpg").size == (4000, 4000)
        with pytest.raises(CorruptImage, match="bad.jpg: it is a JPEG with over 100 scans, and decoding it may take"):
            decode_file(tmp_path / "bad.jpg")


def test_a_jpeg_may_be_followed_by_any_bytes(tmp_path, image):
    """Phones append videos to photographs. Their bytes hold FF DA hundreds of times by chance, but rarely FF DA 00."""
    image().save(tmp_path / "a.jpg", progressive=True)
    with open(tmp_path / "a.jpg", "ab") as file:
        file.write(np.random.default_rng(0).bytes(2**24))
    assert decode_file(tmp_path / "a.jpg").size == (32, 32)


def test_only_one_function_opens_image_files():
    """A second call to Pillow's `open` might lack the list of formats or the pixel limit."""
    package = Path(metamix.__file__).parent
    calls = [
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Image.open", "PIL.Image.open")
    ]
    assert calls == ["data/files.py"]


@pytest.mark.parametrize("place", ["images", "masks"])
def test_a_pipe_among_images_and_masks_is_refused(place, tmp_path):
    draw_set(tmp_path / "scenes", (48, 40), train=4, val=2, test=2)
    pipe = min((tmp_path / "scenes" / "train" / place).iterdir())
    pipe.unlink()
    os.mkfifo(pipe)
    with seconds(20), pytest.raises(ValueError, match=rf"{pipe} cannot be read as an image \(not a regular file\)"):
        SegmentationData(SegmentationOptions(data_dir=str(tmp_path / "scenes"), workers=0))


def test_a_pipe_among_images_to_restore_is_refused(tmp_path, image):
    for i in range(4):
        image().save(tmp_path / f"{i}.png")
    os.mkfifo(tmp_path / "a.png")
    options = RestorationOptions(data_dir=str(tmp_path), degradation="noise:25", crop=16, workers=0)
    with seconds(20), pytest.raises(ValueError, match=r"a.png cannot be read as an image \(not a regular file\)"):
        RestorationData(options)


def test_a_pipe_in_a_table_of_hugging_face_is_refused(tmp_path, image):
    file, pipe = io.BytesIO(), tmp_path / "a.png"
    image().save(file, "PNG")
    os.mkfifo(pipe)
    cells = {"bytes": file.getvalue(), "path": None}, {"bytes": None, "path": pipe}, None
    images = object.__new__(HuggingFace)  # the extra `datasets` may be missing
    images.images, images.column = [{"image": cell} for cell in cells], "image"
    assert images.open(0).size == (32, 32)
    with seconds(20), pytest.raises(CorruptImage, match="not a regular file"):
        images.open(1)
    with pytest.raises(CorruptImage, match="the table has no image in this row"):
        images.open(2)
    with seconds(20):
        assert images.content(0) and images.content(1) == images.content(2) == ""


def test_a_pipe_in_a_data_set_of_torchvision_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    images = object.__new__(Torchvision)
    images.files, images.parts = [tmp_path / "a.jpg"], [(SimpleNamespace(), 0)]
    with seconds(20), pytest.raises(CorruptImage, match="not a regular file"):
        images.open(0)


@pytest.mark.parametrize("side", [13312, 20000])  # Pillow warns about the smaller image and refuses the larger
@pytest.mark.parametrize("read", FOUR_READERS)
@pytest.mark.filterwarnings("ignore:Image size")
def test_a_small_file_of_many_pixels_is_refused_before_it_is_decoded(side, read, tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(png(side, side))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("the image is decoded"))
    with pytest.raises((CorruptImage, ValueError), match=r"a\.png.*it has more than 89,478,485 pixels, .*--max-pixels"):
        read(tmp_path / "a.png")


@pytest.mark.parametrize("width, height", [(100_100, 100), (1, 1001)])
@pytest.mark.parametrize("read", FOUR_READERS)
def test_a_strip_is_refused_since_resizing_it_would_fill_the_memory(width, height, read, tmp_path):
    """An image of 1 x 400,000 pixels fits into 128 bytes, but has 20 billion pixels once its shorter side is 224."""
    (tmp_path / "a.png").write_bytes(png(width - width // 1001, height - height // 1001))
    read(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(png(width, height))
    words = rf"a\.png.*it has {height:,} x {width:,} pixels, but one side may be at most 1,000 times the other: crop it"
    with pytest.raises((CorruptImage, ValueError), match=words):
        read(tmp_path / "a.png")


def test_max_pixels_sets_the_limit_of_verify(folder, restore_limit, capsys):
    root = folder()
    assert metamix_command("verify", root, "--max-pixels", 32 * 32 - 1) == 1
    assert "18 of 18 images" in (said := capsys.readouterr().out) and "it has more than 1,023 pixels" in said
    assert metamix_command("verify", root, "--max-pixels", 32 * 32) == 0


def test_max_pixels_sets_the_limit_of_convert(tmp_path, restore_limit):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        for name in "ab":
            (tmp_path / kind / f"{name}.png").write_bytes(png(8, 8))
    with pytest.raises(SystemExit, match="it has more than 63 pixels"):
        metamix_command("convert", "masks", tmp_path, tmp_path / "out", "--max-pixels", 63)


def test_max_pixels_sets_the_limit_of_explain(tmp_path, restore_limit, capsys):
    pytest.importorskip("pytorch_grad_cam", reason="needs grad-cam: pip install 'metamix[explain]'")
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(png(8, 8))
    words = tmp_path, "--checkpoint", "metaformer_pooling_nano.digits", "--output", tmp_path / "explained"
    assert metamix_command("explain", *words, "--max-pixels", 63) == 1
    assert capsys.readouterr().err.count("it has more than 63 pixels") == 2


@pytest.mark.filterwarnings("ignore:Image size")
def test_workers_that_are_not_forked_have_the_limit_too(folder, restore_limit):
    root = folder()
    options = DataOptions(
        data="folder", data_dir=str(root), memory="no", workers=1, corrupt_limit=1.0, max_pixels=1000, img_size=32
    )
    loader = train_loader(open_data("folder", root=root).train, options, batch_size=12)
    loader.loader.multiprocessing_context = multiprocessing.get_context("forkserver")
    with pytest.raises(CorruptImage, match="none of 12 images can be read; the first error is: .* 1,000 pixels"):
        next(loader.epoch(0))


def test_the_bytes_of_a_long_label_are_not_read(shard, tmp_path):
    shard(tmp_path / "val.tar", [("0", "png", b""), ("0", "cls", b"0")])
    info = tarfile.TarInfo("x.cls")
    info.size = 6 * 2**30
    with open(tmp_path / "train.tar", "wb") as file:
        file.write(info.tobuf())
        file.truncate(info.size)  # a hole in the file
    with seconds(20), pytest.raises(ValueError, match=r"x.cls holds b'.*'; expected the number of a class"):
        open_data("wds/", root=tmp_path)


def test_classes_whose_confusion_matrix_would_fill_the_memory_are_refused(shard, tmp_path, image):
    content = io.BytesIO()
    image().save(content, "PNG")
    for split in "train", "val":
        shard(tmp_path / f"{split}.tar", [("30", "png", content.getvalue()), ("30", "cls", b"25000\n")])
    words = ["--data", "wds/", "--data-dir", tmp_path, "--batch-size", 1, "--epochs", 1, "--warmup-epochs", 0]
    with pytest.raises(SystemExit, match="there are 25,001 classes, but at most 25,000 can be scored: merge or d"):
        train(*words, "--output", tmp_path / "run")
    metric = ClassificationMetric(tuple(map(str, range(20_000))), torch.nn.Identity())
    before, state, logits = peak_memory(reset=True), metric.start(), torch.zeros(2, 20_000)
    logits[:, 19_999] = 1
    metric.update(state, logits, {"label": torch.tensor([19_999, 7]), "index": torch.arange(2)})
    assert state["confusion"][19_999, 19_999] == state["confusion"][7, 19_999] == 1
    assert peak_memory() - before < 200  # MB; the whole matrix would take 3,200, but only two pages are used


def test_the_largest_label_is_accepted(shard, tmp_path, image):
    content = io.BytesIO()
    image().save(content, "PNG")
    for split in "train", "val":
        shard(tmp_path / f"{split}.tar", [("30", "png", content.getvalue()), ("30", "cls", b"99999\n")])
    assert open_data("wds/", root=tmp_path).train.labels.tolist() == [99_999]
    assert np.asarray(open_data("wds/", root=tmp_path).train.read(0)[0]).shape == (32, 32, 3)
