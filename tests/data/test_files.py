"""Test image files and folders: limits, EXIF rotation, links, pipes and devices."""

import os
import struct

import pytest
import torch
from PIL import Image

from metamix.data import CorruptImage, DataOptions, files, open_data, read_image_file, train_loader
from metamix.data.files import MAX_FILE_BYTES, decode, decode_file, list_files, read_header
from metamix.data.formats.tar import Member, TarImages
from metamix.data.sources import read_image
from tests.helpers.limits import seconds


def test_pipes_and_devices_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name in "pipe.png", "zero.png":
        with seconds(10), pytest.raises(CorruptImage, match="not a regular file"):
            read_image_file(tmp_path / name)


def test_a_file_above_the_limit_is_refused(tmp_path, image, monkeypatch):
    image().save(tmp_path / "0.png")
    size = (tmp_path / "0.png").stat().st_size
    monkeypatch.setattr(files, "MAX_FILE_BYTES", size)
    assert read_image_file(tmp_path / "0.png").size == (32, 32)
    monkeypatch.setattr(files, "MAX_FILE_BYTES", size - 1)
    with pytest.raises(CorruptImage, match=f"^it has {size:,} bytes, but images may have {size - 1:,} at most"):
        read_image_file(tmp_path / "0.png")


@pytest.mark.parametrize("orientation, size", [(1, (5, 7)), (4, (5, 7)), *((i, (7, 5)) for i in (5, 6, 7, 8))])
@pytest.mark.parametrize("kind", ["jpg", "png", "tif"])
def test_headers_give_the_size_after_the_exif_rotation(kind, orientation, size, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"tiffinfo": {0x0112: orientation}, "compression": "tiff_lzw"} if kind == "tif" else {"exif": exif}
    Image.new("L", (7, 5)).save(tmp_path / f"a.{kind}", **options)
    assert read_header(tmp_path / f"a.{kind}").size == size
    assert decode(lambda: Image.open(tmp_path / f"a.{kind}"), "a").size == size[::-1]


def tiff(path, values, channels=1, photometric=1, planar=1):
    """Write 16-bit values as an uncompressed TIFF of 2 x 2 pixels."""
    pixels, offset = struct.pack(f"<{len(values)}H", *values), 256
    strips, size = (channels, 8) if planar == 2 else (1, len(pixels))
    bits = 16 if channels == 1 else 200
    places = offset if strips == 1 else 208
    entries = [
        (256, 3, 1, 2),
        (257, 3, 1, 2),
        (258, 3, channels, bits),
        (259, 3, 1, 1),
        (262, 3, 1, photometric),
        (273, 4, strips, places),
        (277, 3, 1, channels),
        (278, 3, 1, 2),
        (279, 4, strips, size if strips == 1 else 224),
        (284, 3, 1, planar),
    ]
    header = b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(struct.pack("<HHII", *row) for row in entries)
    arrays = struct.pack("<4H3I4x3I", 16, 16, 16, 0, offset, offset + 8, offset + 16, 8, 8, 8)
    path.write_bytes(header.ljust(200, b"\0") + arrays.ljust(56, b"\0") + pixels)
    return path


def test_a_16_bit_tiff_in_which_0_is_white_is_refused(tmp_path):
    grey = [0, 16384, 32768, 65535]
    assert list(decode_file(tiff(tmp_path / "a.tif", grey), "L").tobytes()) == [0, 64, 128, 255]
    with pytest.raises(CorruptImage, match="b.tif: it is a 16-bit TIFF in which 0 is white, .*: save it as a PNG"):
        decode_file(tiff(tmp_path / "b.tif", grey, photometric=0))


def test_a_16_bit_tiff_with_a_plane_for_each_channel_is_refused(tmp_path):
    colours = [256 * value for value in range(12)]
    image = decode_file(tiff(tmp_path / "a.tif", colours, channels=3, photometric=2))
    assert list(image.tobytes()) == list(range(12))
    with pytest.raises(CorruptImage, match="b.tif: it is a 16-bit TIFF with a plane for each .*: save it as a PNG"):
        decode_file(tiff(tmp_path / "b.tif", colours, channels=3, photometric=2, planar=2))


def test_a_member_of_a_tar_file_above_the_limit_is_refused():
    images = TarImages(
        "train", [Member("set.tar", 0, MAX_FILE_BYTES + 1, "cat/0.png", "cat/0.png")], torch.tensor([0]), ("cat",)
    )
    with pytest.raises(CorruptImage, match=f"set.tar: cat/0.png: it has {MAX_FILE_BYTES + 1:,} bytes"):
        read_image(images, 0)


@pytest.mark.parametrize("memory", ["yes", "no"])
def test_a_pipe_in_a_class_folder_counts_as_a_broken_image(folder, memory, caplog):
    root = folder()
    os.mkfifo(root / "train" / "dog" / "pipe.png")
    options = DataOptions(memory=memory, workers=0, corrupt_limit=0.1)
    with seconds(30):
        source = open_data("folder", root=root).train
        (batch,) = train_loader(source, options, batch_size=13).epoch(0)
    assert len(batch["label"]) == 13
    assert f"{root}/train/dog/pipe.png: not a regular file" in caplog.text


@pytest.mark.parametrize("target", [".", "..", "../..", "../../..", "/"])
def test_a_link_to_an_enclosing_folder_adds_nothing(folder, target, caplog):
    root = folder()
    (root / "train" / "dog" / "loop").symlink_to(target)
    train = open_data("folder", root=root).train
    assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert f"{root}/train/dog/loop: left out, since it is the same folder as " in caplog.text


def test_each_folder_is_visited_once(tmp_path, caplog):
    """Files are listed under the folder's real path, or under the first link to it if that is outside the split."""
    for path in "split/b/0.png", "split/c/0.png", "elsewhere/deep/0.png":
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "split" / "b")
    for link, target in {"a": "b", "b/more": "../../elsewhere", "c/more": "../../elsewhere"}.items():
        (tmp_path / "split" / link).symlink_to(target)
    assert sorted(list_files(tmp_path / "split")) == ["b/0.png", "b/more/deep/0.png", "c/0.png"]
    left_out = [message.partition(": ")[0] for message in caplog.messages]
    assert left_out == [f"{tmp_path}/split/{name}" for name in ("a", "c/more", "b/more/back")]


def test_the_split_itself_may_be_a_link(folder):
    root = folder()
    (root / "train").rename(root.parent / "images")
    (root / "train").symlink_to(root.parent / "images")
    assert len(open_data("folder", root=root).train) == 12


def test_a_link_to_itself_is_not_a_folder(folder):
    root = folder()
    (root / "train" / "cat" / "self").symlink_to("self")
    assert "cat/self" in list_files(root / "train")
    assert len(open_data("folder", root=root).train) == 12


def test_a_link_that_leads_nowhere_is_a_broken_image(folder):
    root = folder()
    (root / "train" / "cat" / "x.png").symlink_to(root / "nowhere.png")
    source = open_data("folder", root=root).train
    with pytest.raises(CorruptImage, match="train/cat/x.png: No such file or directory$"):
        source.read(4)
