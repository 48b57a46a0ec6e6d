"""Test reading and downloading Tiny-ImageNet, with a data set of two classes in the official layout."""

import hashlib
import re
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from metamix.data import CorruptImage, open_data
from metamix.data.formats import tiny_imagenet
from metamix_cli import main
from tests.helpers.advice import exit_code


@pytest.fixture
def tiny(tmp_path, image):
    """Make the data set: three training images and one validation image for each of two classes."""
    root = tmp_path / "data" / tiny_imagenet.NAME
    for number in "n02124075", "n01443537":
        (root / "train" / number / "images").mkdir(parents=True)
        (root / "train" / number / f"{number}_boxes.txt").write_text(f"{number}_0.JPEG\t0\t0\t9\t9\n")
        for i in range(3):
            image((64, 64)).save(root / "train" / number / "images" / f"{number}_{i}.JPEG")
    (root / "val" / "images").mkdir(parents=True)
    for i in range(2):
        image((64, 64)).save(root / "val" / "images" / f"val_{i}.JPEG")
    (root / "val" / "val_annotations.txt").write_text(
        "val_0.JPEG\tn02124075\t0\t0\t9\t9\nval_1.JPEG\tn01443537\t0\t0\t9\t9\n"
    )
    (root / "wnids.txt").write_text("n02124075\nn01443537\n")
    (root / "words.txt").write_text(
        "n00001740\tentity\nn01443537\tgoldfish, Carassius auratus\nn02124075\tEgyptian cat\n"
    )
    return root


@pytest.mark.parametrize("of", ["the folder", "its parent"])
def test_the_data_set_is_read_in_the_order_of_its_class_numbers(tiny, of):
    splits = open_data("tiny_imagenet", root=tiny if of == "the folder" else tiny.parent)
    assert splits.classes == ("goldfish", "Egyptian cat")  # in the order of WordNet's numbers
    assert (splits.test.size, splits.in_chans, splits.train.labels.tolist()) == (64, 3, [0, 0, 0, 1, 1, 1])
    assert [splits.test.path(i).rpartition("/")[2] for i in range(2)] == ["val_0.JPEG", "val_1.JPEG"]
    assert splits.test.labels.tolist() == [1, 0]
    image, label = splits.train.read(4)
    assert (image.size, label, splits.train.path(4)) == ((64, 64), 1, f"{tiny}/train/n02124075/images/n02124075_1.JPEG")


def test_download_unpacks_the_official_archive(tiny, tmp_path, monkeypatch):
    archive = Path(shutil.make_archive(str(tmp_path / tiny.name), "zip", tiny.parent))
    monkeypatch.setattr(tiny_imagenet, "MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    serve = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(tiny_imagenet, "URL", f"http://127.0.0.1:{server.server_port}/{archive.name}")
        splits = open_data("tiny_imagenet", root=tmp_path / "new", download=True)
        server.shutdown()
    assert len(splits.train) == 6 and (tmp_path / "new" / tiny.name / "wnids.txt").is_file()


def test_a_failed_download_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_imagenet, "URL", f"file://{tmp_path}/nothing.zip")
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded to .*: fetch file://.*nothing.zip yourself"):
        open_data("tiny_imagenet", root=tmp_path / "new", download=True)


def test_a_missing_data_set_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"was not found in .*, which has no wnids.txt: give .*--data-dir"):
        open_data("tiny_imagenet", root=tmp_path)


def test_a_class_that_wnids_txt_lacks_is_refused(tiny):
    (tiny / "wnids.txt").write_text("n01443537\n")
    with pytest.raises(ValueError, match=r"n02124075_0.JPEG has the class n02124075, which is not in wnids.txt"):
        open_data("tiny_imagenet", root=tiny)


@pytest.mark.parametrize("name", ["words.txt", "val/val_annotations.txt"])
def test_a_truncated_line_is_refused(name, tiny):
    file = tiny / name
    file.write_text(file.read_text().partition("\t")[0])
    with pytest.raises(ValueError, match=f"{file}:1 has fewer than two values separated by tabs: unpack the archive"):
        open_data("tiny_imagenet", root=tiny)


def test_an_impossible_name_is_a_broken_image(tiny):
    file = tiny / "val/val_annotations.txt"
    file.write_text(file.read_text().replace("val_1", "val\0"))
    images = open_data("tiny_imagenet", root=tiny).test
    assert images.images.fingerprint(1).endswith(" -1")
    with pytest.raises(CorruptImage, match="embedded null byte"):
        images.read(1)


def test_no_image_outside_of_the_data_set_is_read(tiny, image):
    for name in ("beside", "secret"):
        image((64, 64)).save(tiny.parent / f"{name}.JPEG")
    lines = f"../../../beside.JPEG\tn02124075\n{tiny.parent}/secret.JPEG\tn01443537\nval_1.JPEG\tn01443537\n"
    (tiny / "val" / "val_annotations.txt").write_text(lines)
    test = open_data("tiny_imagenet", root=tiny).test
    for i, name in enumerate(("beside", "secret")):
        with pytest.raises(CorruptImage, match=rf"val/images/{name}.JPEG: No such file"):
            test.read(i)


def test_opening_the_data_set_as_a_folder_is_refused_with_the_right_option(tiny):
    with pytest.raises(ValueError, match=re.escape(f"open it with --data tiny_imagenet --data-dir {tiny}")):
        open_data("folder", root=tiny)


@pytest.mark.parametrize("words", [["tiny_imagenet", "--data-dir"], []], ids=["by name", "by folder"])
def test_verify_finds_the_broken_image(tiny, words, capsys):
    (tiny / "val" / "images" / "val_1.JPEG").write_bytes(b"no image")
    assert exit_code(main, "verify", *words, tiny, "--workers", 0) == 1
    assert "val_1.JPEG" in capsys.readouterr().out
