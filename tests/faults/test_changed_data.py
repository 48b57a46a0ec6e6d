"""Test that changed data are noticed on resume, even if file names and sizes stay the same."""

import os
import shutil
import tarfile

import pytest
from PIL import Image

from examples.train_segmenter import draw_set
from metamix.classification.data import ClassificationData
from metamix.classification.options import ClassificationOptions
from metamix.data import files, open_data
from metamix.data.files import BLOCK, BLOCKS, content_digest, file_content
from metamix.detection.data import DetectionData
from metamix.detection.options import DetectionOptions
from metamix.restoration.data import RestorationData
from metamix.restoration.options import RestorationOptions
from metamix.segmentation.data import SegmentationData
from metamix.segmentation.options import SegmentationOptions
from metamix.weights.files import load_checkpoint, save_checkpoint
from tests.helpers import shapes
from tests.helpers.image_fixtures import folder, image
from tests.helpers.limits import seconds
from tests.helpers.running import train

__all__ = ["folder", "image"]

WORDS = ["--batch-size", 4, "--amp", "none", "--warmup-epochs", 0, "--data", "folder"]


@pytest.fixture
def run(folder, tmp_path):
    """Train for one epoch on bitmaps, whose files have equal sizes; return the run folder and the data."""
    root = folder(kind="bmp")
    train(*WORDS, "--data-dir", root, "--epochs", 1, "--output", tmp_path / "run")
    return tmp_path / "run", root


def exchange(root):
    """Swap the images of a cat and a dog."""
    cat, dog = root / "train" / "cat" / "0.bmp", root / "train" / "dog" / "0.bmp"
    assert cat.stat().st_size == dog.stat().st_size
    content = cat.read_bytes()
    cat.write_bytes(dog.read_bytes())
    dog.write_bytes(content)


def change_pixel(path):
    """Change the first pixel of an image or a mask, and keep the size of its file."""
    size = path.stat().st_size
    with Image.open(path) as opened:
        first = opened.getpixel((0, 0))
        opened.putpixel((0, 0), 1 - min(first, 1) if isinstance(first, int) else tuple(255 - value for value in first))
        opened.save(path, compress_level=0)
    assert path.stat().st_size == size


@pytest.mark.parametrize("epochs", [1, 2])  # with 1 the run is finished, and with 2 it resumes
def test_images_exchanged_between_classes_are_noticed(epochs, run):
    output, root = run
    exchange(root)
    with pytest.raises(SystemExit, match="was made with other data; these differ: content of the files. Give the data"):
        train(*WORDS, "--data-dir", root, "--epochs", epochs, "--output", output)


def test_a_resumed_run_of_version_0_2_checks_names_and_sizes_and_says_so(run, caplog):
    output, root = run
    state = load_checkpoint(output / "checkpoint.pt")
    del state["about"]["content"]
    save_checkpoint(output / "checkpoint.pt", state)
    (output / "summary.json").unlink()
    exchange(root)
    train(*WORDS, "--data-dir", root, "--epochs", 2, "--output", output)
    assert "was written by metamix 0.2: names, sizes and labels of its data are checked, but it has no" in caplog.text
    (root / "train" / "cat" / "0.bmp").rename(root / "train" / "cat" / "00.bmp")
    with pytest.raises(SystemExit, match="these differ: files, labels or boxes"):
        train(*WORDS, "--data-dir", root, "--epochs", 3, "--output", output)


def classes(place, image):
    for split in "train", "val":
        for label in "cat", "dog":
            (place / split / label).mkdir(parents=True)
            image().save(place / split / label / "0.png", compress_level=0)
    return ClassificationData, ClassificationOptions(data="folder", data_dir=str(place)), "train/cat/0.png"


def scenes(place, image):
    draw_set(place, (48, 40), train=2, val=1, test=1)
    return SegmentationData, SegmentationOptions(data_dir=str(place)), "train/masks/0.png"


def objects(place, image):
    shapes.write(place, train=2, val=1, test=1)
    return DetectionData, DetectionOptions(data_dir=str(place)), "images/train_0.png"


def pairs(place, image):
    for split in "train", "test":
        for side in "input", "target":
            (place / split / side).mkdir(parents=True)
            image().save(place / split / side / "0.png", compress_level=0)
    return RestorationData, RestorationOptions(data_dir=str(place), crop=16), "train/input/0.png"


@pytest.mark.parametrize("make", [classes, scenes, objects, pairs])
def test_each_task_notices_other_pixels_in_a_file_of_the_same_size(make, tmp_path, image):
    data, options, name = make(tmp_path / "set", image)
    path = tmp_path / "set" / name
    with Image.open(path) as opened:
        opened.save(path, compress_level=0)
    before = data(options).identity
    assert data(options).identity == before, "control: unchanged data have the same identity"
    change_pixel(path)
    after = data(options).identity
    assert after["digest"] == before["digest"], "names, sizes and labels are the same"
    assert make is not classes or after["mean"] != before["mean"]
    assert [split for split, value in after["content"].items() if value != before["content"][split]] == ["train"]


def test_content_is_the_same_in_a_folder_elsewhere_and_in_a_tar_file(folder, tmp_path):
    root = folder()
    before = open_data("folder", root=root).content
    assert before.keys() == {"train", "test"} and before["train"] != before["test"]
    for split in "train", "val":
        with tarfile.open(root / f"{split}.tar", "w") as tar:
            tar.add(root / split, split)
        shutil.rmtree(root / split)
    assert open_data("folder", root=root.rename(tmp_path / "elsewhere")).content == before


def test_images_of_a_tar_file_of_any_size_are_hashed(folder, monkeypatch):
    root = folder()
    with tarfile.open(root / "val.tar", "w") as tar:
        tar.add(root / "val", "val")
    shutil.rmtree(root / "val")
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 5000)
    assert (root / "val.tar").stat().st_size > 5000
    images = open_data("folder", root=root).test.images
    assert len({images.content(i) for i in range(6)} - {""}) == 6


def test_blocks_and_both_ends_of_a_large_file_are_hashed(tmp_path):
    path, whole = tmp_path / "a", BLOCKS * BLOCK

    def changed(size, place):
        path.write_bytes(bytes(size))
        before = file_content(path)
        with open(path, "r+b") as file:
            file.seek(place)
            file.write(b"1")
        return file_content(path) != before

    assert all(changed(whole, place) for place in range(0, whole, 997)), "every byte of a small file is hashed"
    assert all(changed(10 * whole, place) for place in (0, BLOCK - 1, 10 * whole - BLOCK, 10 * whole - 1))
    noticed = sum(changed(10 * whole, place) for place in range(0, 10 * whole, BLOCK))
    assert noticed == pytest.approx(2 * BLOCKS, abs=BLOCKS), "control: only some blocks of a large file are hashed"


def test_files_that_cannot_be_read_do_not_stop_hashing(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with seconds(20):
        assert content_digest([tmp_path / "pipe", tmp_path / "nowhere", "a\0b"]) == content_digest(["x", "y", "z"])
    assert content_digest([]) != content_digest(["x"])
