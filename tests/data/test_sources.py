import importlib.util
import io
import json
import os
import pickle
import shutil
import struct
import sys
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from metamix.data import CorruptImage, open_data
from metamix.data.counter_rng import stratified_choice
from metamix.data.files import decode, read_pixels
from metamix.data.formats.base import choose_test_split, match_classes, natural_order
from metamix.data.formats.torchvision_sets import TORCHVISION_SETS
from metamix.utils.text import warn_once


def test_digits_have_a_fixed_split():
    splits = open_data("digits")
    assert (len(splits.train), len(splits.test), splits.holdout) == (1437, 360, None)
    assert (splits.in_chans, splits.test.size, splits.classes, splits.train.small) == (1, 32, tuple("0123456789"), True)
    paths = {source.path(i) for source in (splits.train, splits.test) for i in range(len(source))}
    assert len(paths) == 1797
    assert splits.test.labels.bincount().tolist() == [36, 36, 36, 36, 37, 36, 36, 36, 35, 36]
    assert [splits.test.path(i) for i in range(4)] == ["digits 3", "digits 4", "digits 8", "digits 15"]
    image, label = splits.test.read(1)
    assert (image.size, image.mode, label) == ((32, 32), "L", 4)


def test_a_subset_keeps_its_order():
    test = open_data("digits").test
    for samples in (slice(3), slice(357, None), torch.tensor([7, 2])):
        some = test.subset(samples)
        assert [some.path(i) for i in range(len(some))] == [test.path(i) for i in torch.arange(360)[samples]]
        assert torch.equal(some.labels, test.labels[samples])


def test_holdout_is_stratified_disjoint_and_repeatable():
    splits = open_data("digits", holdout=0.1)
    assert (len(splits.train), len(splits.holdout)) == (1293, 144)
    held = {splits.holdout.path(i) for i in range(144)}
    assert held.isdisjoint(splits.train.path(i) for i in range(1293))
    assert held.isdisjoint(splits.test.path(i) for i in range(360))
    assert splits.holdout.labels.bincount().tolist() == pytest.approx([14.4] * 10, abs=1.5)
    again = open_data("digits", holdout=0.1)
    assert held == {again.holdout.path(i) for i in range(144)}


def test_stratified_choice_takes_each_class_by_its_share():
    labels = torch.arange(1000).sqrt().long() % 7
    chosen = stratified_choice(labels, 123)
    assert chosen.sum() == 123
    assert (labels[chosen].bincount() - labels.bincount() * 0.123).abs().max() < 1
    assert stratified_choice(labels, 0).sum() == 0


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(name="cifer10"), "no data set or folder is called 'cifer10'; did you mean 'cifar10'"),
        (dict(name="digits", root="cls"), "data is digits, .* but data_dir is cls: .* --data folder --data-dir cls"),
        (dict(name="digits", holdout=0.0001), "holdout 0.0001 of 1437 images leaves 0 to tune on and 1437 to train on"),
        (dict(name="folder"), "needs --data-dir; expected train/ and val/"),
    ],
)
def test_wrong_names_and_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        open_data(**options)


def test_a_path_given_as_a_name_is_refused_with_the_right_options(tmp_path):
    (tmp_path / "my images").mkdir()
    with pytest.raises(ValueError, match=f"in this folder, write --data folder --data-dir '{tmp_path}/my images'"):
        open_data(str(tmp_path / "my images"))
    (tmp_path / "boxes.json").touch()
    with pytest.raises(ValueError, match="is called .*boxes.json'. It is a file: give the folder of the data set, or"):
        open_data(str(tmp_path / "boxes.json"))


def test_class_folders_are_read_in_order(folder):
    splits = open_data("folder", root=folder(train=5, val=2))
    assert (len(splits.train), len(splits.test)) == (15, 6)
    assert (splits.classes, splits.in_chans, splits.test.size) == (("cat", "dog", "eel"), 3, 32)
    assert splits.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert splits.train.path(7).endswith("train/dog/2.png")
    image, label = splits.train.read(7)
    assert (label, np.asarray(image).tolist()) == (1, np.asarray(Image.open(splits.train.path(7))).tolist())


def test_memory_is_for_small_images_of_one_size(folder):
    small, large = folder(name="small"), folder(size=(100, 100), name="large")
    mixed = folder(name="mixed")
    Image.new("RGB", (40, 30)).save(mixed / "train" / "cat" / "0.png")
    sources = {root.name: open_data("folder", root=root).train for root in (small, large, mixed)}
    assert {name: source.small for name, source in sources.items()} == {"small": True, "large": False, "mixed": False}
    assert {name: source.size for name, source in sources.items()} == {"small": 32, "large": 100, "mixed": None}


def test_a_missing_folder_and_a_folder_of_another_layout_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"there is no folder {tmp_path}/none; expected train/ and val/"):
        open_data("folder", root=tmp_path / "none")
    (tmp_path / "training").mkdir()
    with pytest.raises(FileNotFoundError, match="holds training; expected train/ and val/ .*or a .tar file"):
        open_data("folder", root=tmp_path)


@pytest.mark.parametrize("inside", ["", "train"])
def test_a_share_of_a_folder_without_a_test_split_is_scored(folder, tmp_path, inside):
    root = folder(train=10)
    shutil.rmtree(root / "val")
    flat = tmp_path / "flat"
    (root / "train").rename(flat if not inside else root / "train")
    place = root if inside else flat
    splits = open_data("folder", root=place, test_share=0.2, holdout=0.25)
    parts = splits.sources()
    assert {name: len(part) for name, part in parts.items()} == {"train": 18, "holdout": 6, "test": 6}
    paths = {name: {part.path(i) for i in range(len(part))} for name, part in parts.items()}
    assert len(set.union(*paths.values())) == 30 and parts["test"].labels.bincount().tolist() == [2, 2, 2]
    again = open_data("folder", root=place, test_share=0.2).test
    assert {again.path(i) for i in range(6)} == paths["test"] and again.images.split == "test"

    everything = open_data("folder", root=place, test_share=1, train_required=False)
    assert everything.train is None and len(everything.test) == 30
    with pytest.raises(FileNotFoundError, match="expected train/ and val/"):
        open_data("folder", root=place, test_on="val")


@pytest.mark.parametrize(
    "folders",
    [
        ("train2017", "val2017"), ("train/cat", "train/dog", "Val/cat"), ("cat", "TestSet"), ("cat", "trainval"),
        ("trainA", "trainB", "testA", "testB"),
    ],
)  # fmt: skip
def test_splits_of_other_names_are_not_classes(tmp_path, image, folders):
    for name in folders:
        (tmp_path / name).mkdir(parents=True)
        image().save(tmp_path / name / "0.png")
    with pytest.raises(FileNotFoundError, match="expected train/ and val/"):
        open_data("folder", root=tmp_path)


def test_a_class_with_a_name_that_begins_like_a_split_is_reported(tmp_path, image):
    for name in ("pump", "valve"):
        (tmp_path / name).mkdir()
        image().save(tmp_path / name / "0.png")
    with pytest.raises(FileNotFoundError, match="class folders whose names begin with the name of a split: valve$"):
        open_data("folder", root=tmp_path)


def test_a_tar_file_is_not_reported_as_a_class_folder(tmp_path):
    (tmp_path / "train-0000.tar").touch()
    with pytest.raises(FileNotFoundError, match="holds train-0000.tar; expected (?!.*Rename class folders)"):
        open_data("folder", root=tmp_path)


def test_a_training_folder_takes_precedence_over_its_tar_file(folder):
    root = folder()
    shutil.rmtree(root / "val")
    (root / "train.tar").touch()
    splits = open_data("folder", root=root, test_share=0.25)
    assert (len(splits.train), len(splits.test)) == (9, 3)


@pytest.mark.parametrize("beside", ["guide.pdf", ".cover.png"])
def test_a_folder_of_several_data_sets_is_not_a_data_set(tmp_path, image, beside):
    for name in ("birds/jay", "flowers/rose"):
        (tmp_path / name).mkdir(parents=True)
        image().save(tmp_path / name / "0.png")
        (tmp_path / name).parent.joinpath(beside).touch()
    with pytest.raises(FileNotFoundError, match="holds birds, flowers; expected train/"):
        open_data("folder", root=tmp_path)


def test_each_class_keeps_an_image_to_train_on(folder):
    root = folder(train=2) / "train"
    splits = open_data("folder", root=root, test_share=0.9)
    assert splits.train.labels.tolist() == [0, 1, 2] and len(splits.test) == 3
    for label in root.iterdir():
        (label / "1.png").unlink()
    with pytest.raises(
        ValueError, match="each class has one image, which is kept to train on: add images, or a folder val"
    ):
        open_data("folder", root=root, test_share=0.5)


def test_an_image_outside_of_the_class_folders_is_refused(folder, image):
    root = folder()
    image().save(root / "train" / "stray.png")
    with pytest.raises(ValueError, match="train must hold one folder of images per class; stray.png is in none of"):
        open_data("folder", root=root)


def test_one_class_can_be_tested_but_not_trained_on(folder):
    root = folder()
    for label in "cat", "eel":
        shutil.rmtree(root / "val" / label)
    assert open_data("folder", root=root).test.labels.tolist() == [1, 1]
    for label in "cat", "eel":
        shutil.rmtree(root / "train" / label)
    with pytest.raises(ValueError, match=f"{root}/train must hold two or more .*, one per class; found only dog"):
        open_data("folder", root=root)


def test_a_class_is_a_top_level_folder(folder):
    """The folder may be a link. Images in its subfolders belong to the class. Hidden files and folders are left out."""
    root = folder(train=2)
    train = root / "train"
    shutil.copytree(train / "dog", train / "cat" / "day")
    shutil.copytree(train / "dog", train / ".ipynb_checkpoints")
    shutil.copy(train / "dog" / "0.png", train / "dog" / "._0.png")
    (train / "cat").rename(root / "elsewhere")
    (train / "cat").symlink_to(root / "elsewhere")
    splits = open_data("folder", root=root)
    assert splits.classes == ("cat", "dog", "eel")
    assert splits.train.labels.tolist() == [0, 0, 0, 0, 1, 1, 2, 2]
    assert splits.train.path(2).endswith("train/cat/day/0.png")


def test_images_of_every_format_are_found(folder, image):
    root = folder(train=1)
    for kind in "JPG", "jpeg", "webp", "bmp", "tif", "tiff", "ppm", "pgm":
        image().save(root / "train" / "cat" / f"1.{kind}")
    splits = open_data("folder", root=root)
    assert splits.train.labels.tolist() == [0] * 9 + [1, 2]
    assert {splits.train.read(i)[0].mode for i in range(11)} == {"RGB"}


def test_class_folders_of_photographs_that_pillow_cannot_read_are_named(tmp_path, caplog):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "IMG_1.HEIC").touch()
    with pytest.raises(ValueError, match=rf"{tmp_path} has no image \(\.jpg"):
        open_data("folder", root=tmp_path)
    assert "images of other types are left out: 2 .heic. Save them as .png or .jpg" in caplog.text


def test_nothing_is_left_out_silently(folder, caplog):
    root = folder()
    (root / "val" / "dog").rename(root / "val" / "fox")
    with pytest.raises(ValueError, match="val has the classes fox, which .*train does not have: .* another --test-on"):
        open_data("folder", root=root)
    (root / "val" / "fox").rename(root / "val" / "dog")

    (root / "train" / "gnu").mkdir()
    (root / "train" / "gnu" / "0.tga").write_bytes(b"")
    with pytest.raises(ValueError, match=r"/train has no image \(.*png.*\) in 'gnu'; remove these folders"):
        open_data("folder", root=root)
    (root / "train" / "gnu" / "0.tga").unlink()
    (root / "train" / "gnu").rmdir()

    for name in ("1.gif", "2.gif", "3.tga", "4.HEIC", ".hidden.gif", "notes.txt"):
        (root / "train" / "dog" / name).touch()
    open_data("folder", root=root)
    assert ": images of other types are left out: 2 .gif, 1 .heic, 1 .tga. Save them as .png" in caplog.text

    (root / "train").rename(root / "kept")
    (root / "train").mkdir()
    with pytest.raises(ValueError, match=rf"{root}/train has no image \(.*\.png"):
        open_data("folder", root=root)
    (root / "train").rmdir()
    (root / "kept").rename(root / "train")

    (root / "test").mkdir()
    open_data("folder", root=root)
    assert "val is scored; not used: test. Choose a split with --test-on" in caplog.text


def test_classes_of_the_test_split_are_numbered_as_in_train(folder):
    root = folder()
    shutil.rmtree(root / "val" / "cat")
    assert open_data("folder", root=root).test.labels.tolist() == [1, 1, 2, 2]
    several = SimpleNamespace(labels=torch.tensor([[1.0, 0.0], [1.0, 1.0]]), classes=("eel", "cat"))
    assert match_classes(several, ("cat", "dog", "eel")) == []
    assert several.labels.tolist() == [[0, 0, 1], [1, 0, 1]]


def test_class_names_may_have_different_normal_forms(folder):
    """An archive that was packed on a Mac holds decomposed names: A and a combining diaeresis instead of Ä."""
    root = folder()
    (root / "train" / "dog").rename(root / "train" / "\u00c4")
    (root / "val" / "dog").rename(root / "val" / "A\u0308")
    splits = open_data("folder", root=root)
    assert splits.classes == ("cat", "eel", "\u00c4") and splits.test.labels.tolist() == [2, 2, 0, 0, 1, 1]
    splits = open_data("folder", root=root, classes=("A\u0308", "cat", "eel"))  # of an older model
    assert splits.test.labels.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("names", [("①", "②", "③"), ("m²", "m3", "m٣a")])
def test_class_names_with_digits_of_any_script_are_read(folder, names):
    """`int` cannot read every character that `str.isdigit` calls a digit."""
    root = folder()
    for split in ("train", "val"):
        for old, new in zip(sorted((root / split).iterdir()), names, strict=True):
            old.rename(root / split / new)
    assert set(open_data("folder", root=root).classes) == set(names)


@pytest.fixture
def tars(folder):
    """Return a function that makes class folders, and tar files of them; `inside` is their folder in the tar file."""

    def make(inside="."):
        root = folder()
        shutil.copytree(root / "train" / "dog", root / "train" / "cat" / "day")
        shutil.copytree(root / "train" / "dog", root / "train" / ".hidden")
        for split in "train", "val":
            with tarfile.open(root / f"{split}.tar", "w") as tar:
                tar.add(root / split, arcname=inside.format(split))
        return root

    return make


@pytest.mark.parametrize("inside", [".", "{}", "./set/{}", "elsewhere"])
def test_tar_files_hold_what_folders_hold(tars, inside):
    root = tars(inside)
    folders = open_data("folder", root=root)
    images = [folders.train.read(i)[0].tobytes() for i in range(len(folders.train))]
    assert (folders.train.path(0), folders.test.path(0)) == (f"{root}/train/cat/0.png", f"{root}/val/cat/0.png")
    for split in "train", "val":
        shutil.rmtree(root / split)
    archives = open_data("folder", root=root)
    assert folders.classes == archives.classes and torch.equal(folders.train.labels, archives.train.labels)
    assert [archives.train.read(i)[0].tobytes() for i in range(len(archives.train))] == images
    assert archives.test.path(2) == f"{root}/val.tar: " + os.path.normpath(f"{inside.format('val')}/dog/0.png")


def test_tar_files_in_a_tar_file_are_classes(folder, tmp_path):
    root = folder()
    images = [open_data("folder", root=root).train.read(i)[0].tobytes() for i in range(12)]
    with tarfile.open(root / "train.tar", "w") as tar:
        for label in "cat", "dog", "eel":
            with tarfile.open(tmp_path / f"{label}.tar", "w") as inner:
                for path in (root / "train" / label).iterdir():
                    inner.add(path, arcname=path.name)
            tar.add(tmp_path / f"{label}.tar", arcname=f"{label}.tar")
    shutil.rmtree(root / "train")
    train = open_data("folder", root=root).train
    assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert [train.read(i)[0].tobytes() for i in range(12)] == images


@pytest.mark.parametrize(
    "link, target, name",
    [(os.link, "cat/0.png", "cat/9.png"), (os.symlink, "cat/0.png", "cat/9.png"), (os.symlink, "cat", "fox")],
)
def test_links_in_a_tar_file_are_refused(tars, link, target, name):
    """tar stores the links of a folder as links. Leaving them out would change the data set silently."""
    root = tars()
    link(root / "train" / target, root / "train" / name)
    with tarfile.open(root / "train.tar", "w") as tar:
        tar.add(root / "train", ".")
    shutil.rmtree(root / "train")
    with pytest.raises(ValueError, match=r"train.tar holds (cat/.\.png|fox) as a link to .*tar --dereference --hard"):
        open_data("folder", root=root)


def test_a_truncated_tar_file_is_refused(tars):
    root = tars()
    shutil.rmtree(root / "train")
    content = (root / "train.tar").read_bytes()
    (root / "train.tar").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="train.tar is not a readable tar file, or is compressed"):
        open_data("folder", root=root)


@pytest.mark.parametrize("kind, dtype", [("png", "uint16"), ("tif", ">u2"), ("tif", "int32"), ("pgm", "uint16")])
def test_images_of_16_bits_keep_their_upper_8_bits(tmp_path, kind, dtype):
    path = tmp_path / f"0.{kind}"
    Image.fromarray(np.array([[0, 255, 256], [25700, 65280, 65535]], dtype)).save(path)
    image = decode(lambda: Image.open(path), path)
    assert np.asarray(image).tolist() == [[[n] * 3 for n in row] for row in ([0, 0, 1], [100, 255, 255])]
    assert decode(lambda: Image.open(path), path, mode="L").tobytes() == bytes([0, 0, 1, 100, 255, 255])
    Image.fromarray(np.zeros((2, 3), dtype)).save(path)
    assert decode(lambda: Image.open(path), path, mode="L").tobytes() == bytes(6)


def test_a_16_bit_image_with_values_of_12_bits_is_noted_once(tmp_path, caplog):
    warn_once.cache_clear()
    for i, white in enumerate((65535, 4000, 2100)):
        Image.fromarray(np.uint16([[0, white]])).save(path := tmp_path / f"{i}.png")
        assert read_pixels(path)[0].tolist() == [[0, white // 256]]
    (record,) = caplog.records
    assert "no value above 4095 of 65535 and is read as dark or black: if its camera" in record.message


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_palette_with_transparency_gives_its_colours_without_a_warning(tmp_path, mode, recwarn):
    path = tmp_path / "0.png"
    image = Image.fromarray(np.arange(4, dtype="uint8")[None], "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    colours = image.convert(mode).tobytes()
    image.save(path, transparency=bytes([0, 128, 255, 255]))
    assert decode(lambda: Image.open(path), path, mode).tobytes() == colours
    assert not recwarn.list


def test_lab_is_read_in_colour_and_in_grey(tmp_path):
    path = tmp_path / "0.tif"
    Image.new("LAB", (2, 1), (50, 20, 200)).save(path)
    colours = decode(lambda: Image.open(path), path)
    assert colours.getpixel((0, 0)) == Image.new("LAB", (2, 1), (50, 20, 200)).convert("RGB").getpixel((0, 0))
    assert decode(lambda: Image.open(path), path, "L").tobytes() == colours.convert("L").tobytes()


@pytest.mark.parametrize(
    "pixels, words",
    [
        (np.float32([[0.5]]), "0.tif: its pixels are floating-point numbers; save it with 8 or 16 bits per channel"),
        (np.int32([[0, 65536]]), "0.tif: its pixels range from 0 to 65536, unlike 16-bit values: save it with 8 bits"),
        (np.uint16([[0, 255]]), "0.tif: its pixels range from 0 to 255"),  # they would become black
        (np.int32([[-1, 5]]), "0.tif: its pixels range from -1 to 5, unlike 16-bit values"),
    ],
)
def test_pixels_of_unknown_range_are_refused(tmp_path, pixels, words):
    path = tmp_path / "0.tif"
    Image.fromarray(pixels).save(path)
    with pytest.raises(CorruptImage, match=f"^{tmp_path}/{words}"):
        decode(lambda: Image.open(path), path)


@pytest.mark.skipif(not importlib.util.find_spec("datasets"), reason="the extra `datasets` is not installed")
def test_a_hugging_face_data_set_is_read(folder, tmp_path):
    root = folder()
    splits = open_data(f"hfds/{root}", root=str(tmp_path / "cache"))
    assert (len(splits.train), len(splits.test), splits.classes) == (12, 6, ("cat", "dog", "eel"))
    image, label = splits.train.read(6)
    assert (image.size, image.mode, label) == ((32, 32), "RGB", 1)
    with pytest.raises(FileNotFoundError, match="the Hugging Face data set '.*nowhere' could not be opened"):
        open_data(f"hfds/{tmp_path}/nowhere")


@pytest.mark.parametrize(
    "splits, test_on, words",
    [
        (["train"], "", "a/b has the splits train; expected train and one of val"),
        (["val", "test"], "", "a/b has the splits val, test; expected train"),
        (["train", "dev"], "", "a/b has none of the splits val, .*; choose another split to score with --test-on: dev"),
        (["train", "test"], "tset", "test_on is 'tset'; did you mean 'test'"),
    ],
)
def test_wrong_splits_of_hugging_face_are_refused_before_any_is_downloaded(splits, test_on, words, monkeypatch):
    fake = SimpleNamespace(get_dataset_split_names=lambda name: splits)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    monkeypatch.setattr("metamix.data.formats.huggingface.HuggingFace", lambda *_: pytest.fail("downloaded"))
    with pytest.raises(ValueError, match=words):
        open_data("hfds/a/b", test_on=test_on)


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'metamix\[datasets\]'"):
        open_data("hfds/mnist")


@pytest.fixture
def shards(tmp_path, image, shard):
    """Make two shards of train and one of val, with two samples each."""
    for n, name in enumerate(("x-train-0000.tar", "x-train-0001.tar", "x-val-0000.tar")):
        samples = []
        for i in range(2):
            content = io.BytesIO()
            image().save(content, "PNG")
            samples += [(f"{n}{i}", "png", content.getvalue()), (f"{n}{i}", "cls", str(i + n).encode())]
        shard(tmp_path / name, samples)
    return tmp_path


def check_shards(splits):
    assert splits.train.labels.tolist() == [0, 1, 1, 2]
    assert splits.test.labels.tolist() == [2, 3]
    assert splits.classes == ("0", "1", "2", "3")
    assert splits.train.path(2).endswith("x-train-0001.tar: 10.png")
    assert splits.train.read(3)[0].size == (32, 32)


def test_shards_are_found_by_their_names(shards):
    check_shards(open_data("wds/", root=shards))
    check_shards(open_data(f"wds/{shards.name}", root=shards.parent))
    with pytest.raises(FileNotFoundError, match="nowhere needs shards for train and for val"):
        open_data("wds/nowhere", root=shards)


def test_shards_that_info_json_lists_are_read(shards):
    names = {"train": ["x-train-0000.tar", "x-train-0001.tar"], "validation": ["x-val-0000.tar"]}
    splits = {
        split: dict(name=split, filenames=files, shard_lengths=[2] * len(files), num_samples=2 * len(files))
        for split, files in names.items()
    }
    for content in {"splits": splits}, {"license": "CC0"}:  # without splits, shards are found by their names
        (shards / "info.json").write_text(json.dumps(content))
        check_shards(open_data("wds/", root=shards))


def test_file_names_of_many_digits_can_be_sorted():
    assert natural_order("9" * 5000) > natural_order("10") > natural_order("9")


@pytest.mark.parametrize(
    "text, problem",
    [
        ("{", "is not valid JSON .*. Repair it or remove it"),
        ("5", "holds a value of type int, not an object"),
        ('{"splits": 5}', "splits is 5, but it must be a mapping"),
        ('{"splits": {"train": []}}', "splits is "),
        ('{"splits": {"train": {}}}', "filenames is missing in the split 'train'"),
        ('{"splits": {"train": {"filenames": "a.tar"}}}', "filenames in the split 'train' is 'a.tar'"),
    ],
)
def test_a_damaged_info_json_is_refused(text, problem, shards):
    (shards / "info.json").write_text(text)
    with pytest.raises(ValueError, match=f"{shards}/info.json:? {problem}"):
        open_data("wds/", root=shards)


PNG, LABEL = ("30", "png", b""), ("30", "cls", b"0")


@pytest.mark.parametrize(
    "files, words",
    [
        ([PNG], "sample 30 must have an image .* and a label"),
        ([PNG, LABEL, ("30", "jpg", b"")], "sample 30 has two images; the second is 30.jpg: keep one"),
        ([PNG, LABEL, ("30", "cls", b"1")], "sample 30 has two labels; the second is 30.cls: keep one"),
        ([PNG, ("30", "cls", b"cat")], "30.cls holds b'cat'; expected the number of a class"),
        ([PNG, ("30", "cls", b"-1")], "30.cls holds b'-1'; expected the number of a class"),
        ([PNG, ("30", "cls", b"")], "30.cls holds b''; expected the number of a class"),
        ([PNG, ("30", "cls", b"0" * 33)], "30.cls holds b'00000000000000000000'; expected the number of a class"),
        ([PNG, ("30", "cls", b"100000")], "30.cls holds the label 100000; it must be below 100,000"),
    ],
)
def test_wrong_samples_in_shards_are_refused(files, words, shards, shard):
    shard(shards / "x-train-0002.tar", files)
    with pytest.raises(ValueError, match=f"x-train-0002.tar: {words}"):
        open_data("wds/", root=shards)


def test_a_key_ends_at_its_first_dot(shards, shard):
    shard(shards / "x-val-0000.tar", [("30.1", "png", b""), ("30.1", "cls", b"0")])
    with pytest.raises(ValueError, match="no sample found; expected .* KEY without a dot; found 30.1.png, 30.1.cls"):
        open_data("wds/", root=shards)


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes())


@pytest.mark.parametrize(
    "name, place, classes, files",
    [
        *((place.lower(), place, 10, ("train", "t10k")) for place in ("MNIST", "KMNIST")),
        ("fashion_mnist", "FashionMNIST", 10, ("train", "t10k")),
        ("emnist", "EMNIST", 47, ("emnist-balanced-train", "emnist-balanced-test")),
    ],
)
def test_mnist_and_similar_sets_are_read(tmp_path, name, place, classes, files):
    for file, count in zip(files, (30, 20)):
        labels, pixels = np.arange(count, dtype=np.uint8) % 10, np.arange(count * 28 * 28, dtype=np.uint8)
        write_idx(tmp_path / place / "raw" / f"{file}-images-idx3-ubyte", pixels.reshape(count, 28, 28))
        write_idx(tmp_path / place / "raw" / f"{file}-labels-idx1-ubyte", labels)
    splits = open_data(name, root=tmp_path)
    assert (len(splits.train), len(splits.test), len(splits.classes)) == (30, 20, classes)
    assert (splits.in_chans, splits.test.size, splits.train.small) == (1, 28, True)
    assert splits.test.path(7) == f"{name} test 7" and splits.train.read(3)[1] == 3


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_read_with_its_class_names(tmp_path, name, monkeypatch):
    """Small files replace CIFAR's files, so checksums are not checked."""
    make = TORCHVISION_SETS[name][0]
    monkeypatch.setattr(make, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    place = tmp_path / make.base_folder
    place.mkdir()
    for file, _ in make.train_list + make.test_list:
        labels = [i % 10 for i in range(10)]
        entry = {"data": np.zeros((10, 3072), np.uint8), "labels": labels, "fine_labels": labels}
        (place / file).write_bytes(pickle.dumps(entry))
    names = [f"class {i}" for i in range(10)]
    (place / make.meta["filename"]).write_bytes(pickle.dumps({make.meta["key"]: names}))
    splits = open_data(name, root=tmp_path)
    assert (len(splits.train), len(splits.test)) == (10 * len(make.train_list), 10)
    assert (splits.classes, splits.in_chans, splits.test.size) == (tuple(names), 3, 32)


def test_svhn_is_read_with_the_label_10_as_digit_0(tmp_path, monkeypatch):
    scipy_io = pytest.importorskip("scipy.io")
    monkeypatch.setattr("torchvision.datasets.SVHN._check_integrity", lambda self: True)
    for split, count in ("train", 20), ("test", 10):
        labels = np.arange(count)[:, None] % 10 + 1  # 10 stands for the digit 0
        scipy_io.savemat(tmp_path / f"{split}_32x32.mat", {"X": np.zeros((32, 32, 3, count), np.uint8), "y": labels})
    splits = open_data("svhn", root=tmp_path)
    assert (len(splits.train), len(splits.test), splits.classes) == (20, 10, tuple("0123456789"))
    assert splits.train.labels[:10].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]


def test_flowers_trains_on_its_train_and_val_splits(tmp_path, image, monkeypatch):
    scipy_io = pytest.importorskip("scipy.io")
    monkeypatch.setattr("torchvision.datasets.Flowers102._check_integrity", lambda self: True)
    place = tmp_path / "flowers-102"
    (place / "jpg").mkdir(parents=True)
    for i in range(1, 13):
        image((60, 50)).save(place / "jpg" / f"image_{i:05d}.jpg")
    scipy_io.savemat(place / "imagelabels.mat", {"labels": [list(range(1, 13))]})
    scipy_io.savemat(place / "setid.mat", {"trnid": [[1, 2]], "valid": [[3, 4]], "tstid": [list(range(5, 13))]})
    splits = open_data("flowers", root=tmp_path)
    assert (len(splits.train), len(splits.test), splits.in_chans, splits.test.size) == (4, 8, 3, None)
    assert splits.train.labels.tolist() == [0, 1, 2, 3] and splits.train.read(3)[0].size == (60, 50)


def test_pets_are_read_from_their_lists(tmp_path, image):
    place = tmp_path / "oxford-iiit-pet"
    (place / "images").mkdir(parents=True)
    (place / "annotations").mkdir()
    for split, count in ("trainval", 4), ("test", 2):
        lines = []
        for i in range(count):
            image((50, 40)).save(place / "images" / f"Pug_{split}{i}.jpg")
            lines.append(f"Pug_{split}{i} {i % 2 + 1} 1 1")
        (place / "annotations" / f"{split}.txt").write_text("\n".join(lines))
    splits = open_data("pets", root=tmp_path)
    assert (len(splits.train), len(splits.test)) == (4, 2)
    assert splits.train.path(2).endswith("images/Pug_trainval2.jpg")
    assert splits.train.labels.tolist() == [0, 1, 0, 1] and not splits.train.small


def test_food_is_read_from_its_lists(tmp_path, image):
    place = tmp_path / "food-101"
    (place / "meta").mkdir(parents=True)
    for split in "train", "test":
        files = {label: [f"{label}/{split}"] for label in ("pie", "soup")}
        (place / "meta" / f"{split}.json").write_text(json.dumps(files))
        for label in files:
            (place / "images" / label).mkdir(parents=True, exist_ok=True)
            image((50, 40)).save(place / "images" / label / f"{split}.jpg")
    splits = open_data("food", root=tmp_path)
    assert (len(splits.train), len(splits.test), splits.classes) == (2, 2, ("pie", "soup"))


@pytest.mark.parametrize("name", TORCHVISION_SETS)
def test_a_missing_data_set_is_refused(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{name} was not found in {tmp_path}.*--data-dir.*--download"):
        open_data(name, root=tmp_path)


def test_a_failed_download_is_reported(tmp_path, monkeypatch):
    def unreachable(root, **_):
        raise OSError("no route to host")

    monkeypatch.setitem(TORCHVISION_SETS, "cifar10", (unreachable, [{}], [{}]))
    with pytest.raises(FileNotFoundError, match=rf"cifar10 could not be downloaded to {tmp_path} \(no route to host"):
        open_data("cifar10", root=tmp_path, download=True)
    (tmp_path / "train").mkdir()
    with pytest.raises(FileNotFoundError, match="for class folders in train/ and val/, give --data folder"):
        open_data("cifar10", root=tmp_path)


@pytest.mark.parametrize("change", ["size", "name", "class"])
def test_the_digest_changes_with_size_name_and_class_but_not_with_the_place(folder, change, tmp_path):
    root = folder()
    before = open_data("folder", root=root).digest
    assert before.keys() == {"train", "test"} and before["train"] != before["test"]
    assert open_data("folder", root=root, holdout=0.25).digest == before, "the holdout is part of train"
    root = root.rename(tmp_path / "elsewhere")
    assert open_data("folder", root=root).digest == before
    path = root / "train" / "cat" / "0.png"
    if change == "size":
        path.write_bytes(path.read_bytes() + b"0")
    elif change == "name":
        path.rename(path.with_name("00.png"))
    else:
        path.rename(root / "train" / "dog" / "9.png")
    after = open_data("folder", root=root).digest
    assert after["train"] != before["train"] and after["test"] == before["test"]


def test_folders_and_their_tar_files_have_the_same_digest(tars):
    root = tars("{}")
    before = open_data("folder", root=root).digest
    for split in "train", "val":
        shutil.rmtree(root / split)
    assert open_data("folder", root=root).digest == before


def test_a_missing_split_cannot_be_scored(folder):
    root = folder()
    with pytest.raises(ValueError, match="test_on is 'test'. Accepted: val. These splits of .*set can be scored"):
        open_data("folder", root=root, test_on="test")
    with pytest.raises(ValueError, match="Accepted: test. These splits of digits"):
        open_data("digits", test_on="val")
    with pytest.raises(ValueError, match="^set has none of the splits val, .*--test-on: dev"):
        choose_test_split(["dev"], "", "set")
