"""Test `metamix convert`: a CSV file of classes becomes class folders, and label folders become a labels.csv."""

import csv
import shutil
from pathlib import Path

import pytest
from PIL import Image

from metamix.data import open_data
from metamix.tasks.convert import LabelledImages, Sample, choose_splits
from tests.helpers.running import metamix_command


@pytest.fixture
def source(tmp_path):
    """Return a function that writes images and a CSV file with the given lines, and returns the path of that file."""

    def make(*lines):
        for name in [*(f"cats/{i}.png" for i in range(10)), *(f"dogs/{i}.png" for i in range(5)), "fox.png"]:
            path = tmp_path / "source/photos" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(path)
        file = tmp_path / "source/labels.csv"
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return file

    return make


LINES = [*(f"photos/cats/{i}.png,猫" for i in range(10)), *(f"photos/dogs/{i}.png,big dog" for i in range(5))]


def listed(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


@pytest.mark.parametrize("count, train, val", [(1, 1, 0), (2, 1, 1), (12, 10, 2), (13, 10, 3)])
def test_a_fifth_of_a_class_is_held_out_but_at_least_one_image_and_never_all(count, train, val):
    samples = [Sample(Path(str(i)), str(i)) for i in range(count)]
    splits = choose_splits(LabelledImages((), samples), None)
    assert (len(splits["train"]), len(splits.get("val", ()))) == (train, val)


def test_each_class_is_split_by_the_same_share(source, tmp_path, capsys):
    file, out = source("file,label", *LINES, "photos/fox.png,fox", LINES[0]), tmp_path / "out"
    assert metamix_command("convert", "csv", file, out) == 0
    said = capsys.readouterr().out
    assert f"{out}: 13 train, 3 val images, 3 classes\n" in said
    assert f"note: lines that repeat another line were left out: {file}:18\n" in said
    assert said.splitlines()[-1] == f"  metamix train --config finetune/tiny --data-dir {out}"
    names = listed(out)
    assert [sum(name.startswith(place) for name in names) for place in ("train/猫", "val/猫")] == [8, 2]
    assert [sum(name.startswith(place) for name in names) for place in ("train/big dog", "val/big dog")] == [4, 1]
    assert "train/fox/fox.png" in names  # a class with a single image is trained on
    assert {name.partition("/")[2] for name in names} == {
        *(f"猫/cats/{i}.png" for i in range(10)),
        *(f"big dog/dogs/{i}.png" for i in range(5)),
        "fox/fox.png",
    }
    splits = open_data("folder", root=out)
    assert splits.train.images.classes == ("big dog", "fox", "猫")
    assert metamix_command("verify", out) == 0

    capsys.readouterr()
    assert metamix_command("convert", "csv", file, tmp_path / "again") == 0
    assert listed(tmp_path / "again") == names


def test_the_splits_of_the_file_are_kept(source, tmp_path, capsys):
    lines = [f"{line},{'Training' if i % 3 else 'test'}" for i, line in enumerate(LINES)]
    file = source("file,label,split", *lines, "photos/fox.png,fox,")
    assert metamix_command("convert", "csv", file.parent, tmp_path / "out") == 0
    assert len(listed(tmp_path / "out/train")) == 10 and len(listed(tmp_path / "out/test")) == 5
    assert "note: images in none of the source's splits were left out: " in capsys.readouterr().out
    assert metamix_command("convert", "csv", file.parent, tmp_path / "new", "--split", 0.5) == 0
    assert len(listed(tmp_path / "new/val")) == 7


def test_a_column_may_be_named_like_one_side_of_a_box(source, tmp_path):
    file = source("file,label,Top", *(f"{line},1" for line in LINES))
    assert metamix_command("convert", "csv", file, tmp_path / "out") == 0


@pytest.mark.parametrize(
    "lines, said",
    [
        (["file,label", LINES[0], "photos/cats/0.png,dog"], "csv:3 gives .*0.png the label 'dog', but .*csv:2 .* '猫'"),
        (["file,label", *LINES[:2]], "labels.csv must have at least two different labels; found 猫"),
        (["file,label", "photos/cats/0.png,"], "labels.csv:2 has the class ''; it must not be empty,"),
        (["file,label", "photos/cats/0.png,../cat"], "labels.csv:2 has the class '../cat'; it must .* contain /"),
        (["file,label,split", f"{LINES[0]},dev"], "labels.csv:2 has the split 'dev', but it must be train, val or"),
        (["file,xmin,ymin,xmax,ymax", "photos/cats/0.png,0,0,1,1"], "csv:1 has .* ymax: the first line must name"),
        ([], "labels.csv:1 has no columns: the first line must name"),
        ([" , ", LINES[0]], "labels.csv:1 has no columns: the first line must name"),
    ],
)
def test_wrong_lines_of_a_csv_file_are_refused(lines, said, source, tmp_path):
    with pytest.raises(SystemExit, match=said):
        metamix_command("convert", "csv", source(*lines), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def albums(tmp_path):
    """Return a function that makes the image files "sea/1.png dune/1.png"; files with the same name are equal."""

    def make(names):
        shutil.rmtree(tmp_path / "albums", ignore_errors=True)
        shades = {}
        for name in names.split():
            path = tmp_path / "albums" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (shades.setdefault(path.name, len(shades)), 0, 0)).save(path)
        return tmp_path / "albums"

    return make


def labels_in(folder):
    rows = csv.DictReader((folder / "labels.csv").open(encoding="utf-8"))
    return {row["file"]: (row["labels"], row["split"]) for row in rows}


def test_an_image_has_the_labels_of_all_its_folders(albums, tmp_path, capsys):
    numbers = " ".join(f"sea/{i}.png" for i in range(20))
    source = albums(f"{numbers} 砂/1.png 砂/2.png 砂/3.png 砂/beach,a/7.png dogs/2.png dogs/3.png")
    out = tmp_path / "out"
    assert metamix_command("convert", "folders", source, out) == 0
    said = capsys.readouterr().out
    assert f"{out}: 16 train, 5 val images, 3 labels\n" in said
    assert said.splitlines()[-1] == f"  metamix train --config finetune/tiny --data-dir {out}"
    rows = labels_in(out)
    assert {file.partition("/")[2]: {*labels.split("|")} for file, (labels, _) in rows.items()} == {
        **{f"{i}.png": {"sea"} for i in range(20)},
        "1.png": {"sea", "砂"},
        "2.png": {"sea", "砂", "dogs"},
        "3.png": {"sea", "砂", "dogs"},
        "beach,a/7.png": {"砂"},
    }
    dogs = [split for labels, split in rows.values() if "dogs" in labels]
    assert sorted(dogs) == ["train", "val"]  # the rarest label is in both splits
    splits = open_data("folder", root=out)
    assert splits.classes == ("dogs", "sea", "砂") and splits.multi_label and len(splits.test) == 5
    assert metamix_command("verify", out) == 0 and "dogs            1    1\n" in capsys.readouterr().out
    assert len(listed(source)) == 26  # the source is not changed


def test_label_folders_of_splits_are_kept_apart(albums, tmp_path, capsys):
    source = albums("train/sea/1.png train/dune/1.png train/dune/2.png Valid/sea/3.png raw/sea/9.png")
    Image.new("RGB", (8, 8), "red").save(source / "Valid/sea/1.png")  # differs from the image in train/
    assert metamix_command("convert", "folders", source, tmp_path / "out") == 0
    assert labels_in(tmp_path / "out") == {
        "train/1.png": ("dune|sea", "train"),
        "train/2.png": ("dune", "train"),
        "val/1.png": ("sea", "val"),
        "val/3.png": ("sea", "val"),
    }
    assert f"note: folders beside the splits were left out: {source / 'raw'}\n" in capsys.readouterr().out


def test_label_folders_that_cannot_be_converted_are_refused(albums, tmp_path):
    def refused(names, said):
        with pytest.raises(SystemExit, match=said):
            metamix_command("convert", "folders", albums(names), tmp_path / "out")
        assert not (tmp_path / "out").exists()

    refused("a|b/1.png c/1.png", r"albums has the label 'a\|b'; it must not contain \| or ; or begin with = ")
    refused("=a/1.png c/1.png", "has the label '=a'")
    refused("train/a/1.png val/a/2.png", "albums must have at least two different labels; found a")
    refused("a/1.png 1.png", "1.png is in none of them")
    with pytest.raises(SystemExit, match="1.png is a file: give the folder that holds a folder for each label"):
        metamix_command("convert", "folders", albums("a/1.png") / "a/1.png", tmp_path / "out")
    refused("val/a/1.png valid/a/1.png val/b/2.png", "val/a/1.png and .*valid/a/1.png would become one image of val:")
    source = albums("cat/1.png dog/2.png")
    Image.new("RGB", (8, 8), "red").save(source / "dog/1.png")
    with pytest.raises(SystemExit, match="cat/1.png and .*dog/1.png are different images with .*: rename one"):
        metamix_command("convert", "folders", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
