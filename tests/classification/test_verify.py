"""Test that `metamix verify` names each image that cannot be read, and the classes with too few images."""

import os
import shutil

import pytest

from tests.helpers.classifiers import small_task
from tests.helpers.running import metamix_command


def main(words):
    return metamix_command("verify", *words)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_images_that_cannot_be_read_are_named(folder, break_image, capsys, recwarn, workers):
    root = folder(kind="jpg", size=(64, 64))
    assert main(["folder", "--data-dir", str(root), "--workers", workers]) == 0
    assert capsys.readouterr().out == "all 18 images can be read\n"

    break_image(root / "train" / "dog" / "1.jpg")
    (root / "val" / "eel" / "0.jpg").write_bytes(b"")
    assert main(["folder", "--data-dir", str(root), "--workers", workers]) == 1
    first, second, summary = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{root}/train/dog/1.jpg: OSError: image file is truncated")
    assert second.startswith(f"{root}/val/eel/0.jpg: not an image of a known format (")
    assert summary == f"2 of 18 images of {root} cannot be read"
    assert not [warning for warning in recwarn.list if "worker" in str(warning.message)], "more workers than cores"


def test_files_that_are_not_images_are_named(folder, capsys):
    root = folder()
    os.mkfifo(root / "train" / "dog" / "pipe.png")
    (root / "val" / "eel" / "zero.png").symlink_to("/dev/zero")
    assert main([root, "--workers", "0"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{root}/train/dog/pipe.png: not a regular file",
        f"{root}/val/eel/zero.png: not a regular file",
        f"2 of 20 images of {root} cannot be read",
    ]


def test_a_data_set_without_a_training_split_can_be_verified(folder, capsys):
    root = folder()
    shutil.rmtree(root / "train")
    assert main([root, "--workers", "0"]) == 0
    assert capsys.readouterr().out == "all 6 images can be read\n"
    for path in [*(root / "val").rglob("*.png")][1:]:
        path.unlink()
    for path in (root / "val").iterdir():
        if not any(path.iterdir()):
            path.rmdir()
    assert main([root, "--workers", "0"]) == 0
    assert capsys.readouterr().out.startswith("1 image can be read\n")


def test_classes_with_few_images_are_named(folder, capsys):
    root = folder()
    for path in [*(root / "train" / "dog").iterdir()][1:]:
        path.unlink()
    shutil.rmtree(root / "val" / "eel")
    shutil.rmtree(root / "val" / "cat")
    notes = ["1 class has at most one image in train: dog", "2 classes have no image in val: cat, eel"]
    assert main([root, "--workers", "0"]) == 0  # the files themselves can be read
    assert capsys.readouterr().out.splitlines() == ["all 11 images can be read", *(f"note: {note}" for note in notes)]
    assert small_task(data="folder", data_dir=str(root)).notes == notes
    assert main([str(root / "train"), "--workers", "0"]) == 0
    assert "note: 1 class has at most one image: dog" in capsys.readouterr().out


def test_a_single_class_is_noted(folder, capsys):
    root = folder() / "train"
    for name in ("cat", "eel"):
        shutil.rmtree(root / name)
    assert main([root, "--workers", "0"]) == 0  # a model of several classes can be scored on this folder
    assert "note: there is one class, dog, and training needs two" in capsys.readouterr().out


def test_a_file_name_that_is_not_utf8_is_printed_escaped(folder, capsys):
    root = folder(kind="jpg", size=(64, 64))
    (root / "train" / "dog" / "caf\udce9.jpg").write_bytes(b"")
    assert main([root, "--workers", "0"]) == 1
    assert capsys.readouterr().out.startswith(f"{root}/train/dog/caf\\udce9.jpg: not an image")


def test_unknown_names_and_options_are_refused():
    with pytest.raises(SystemExit, match="^error: .*did you mean 'digits'"):
        main(["digitss"])
    with pytest.raises(SystemExit, match="for classification; it is an option of restoration: add --task restoration"):
        main(["digits", "--clean"])
