"""Test the conversion of Pascal VOC annotations to COCO's format."""

import json

import pytest
from PIL import Image

from metamix.detection.coco import find_splits, open_split
from metamix.detection.voc import main
from metamix.tasks.verify import main as verify
from tests.helpers.advice import exit_code

OBJECT = """<object><name>{name}</name>{difficult}<part><name>head</name></part>
<bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"""


@pytest.fixture
def voc(tmp_path):
    folder = tmp_path / "VOC2012"
    for place in "Annotations", "JPEGImages", "ImageSets/Main":
        (folder / place).mkdir(parents=True)
    images = {
        "a": [("dog", (1, 1, 50, 40), ""), ("cat", (11, 21, 30, 40), "<difficult>1</difficult>")],
        "b": [("cat", (5, 6, 7, 8), "<difficult>0</difficult>")],
        "c": [],
    }
    for stem, objects in images.items():
        Image.new("RGB", (50, 40)).save(folder / "JPEGImages" / f"{stem}.jpg")
        inside = "".join(OBJECT.format(*box, name=name, difficult=difficult) for name, box, difficult in objects)
        (folder / "Annotations" / f"{stem}.xml").write_text(
            f"<annotation><filename>{stem}.jpg</filename><size><width>50</width><height>40</height></size>"
            f"{inside}</annotation>"
        )
    (folder / "ImageSets/Main/train.txt").write_text("b\nc\n")
    return folder


def test_boxes_start_at_0_and_include_the_last_pixel(voc, tmp_path, capsys):
    out = tmp_path / "set" / "annotations" / "instances_train.json"
    main([str(voc), str(out)])
    assert "3 images, 3 annotations, 2 categories" in capsys.readouterr().out
    data = json.loads(out.read_text())
    assert data["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert [a["bbox"] for a in data["annotations"]] == [[0, 0, 50, 40], [10, 20, 20, 20], [4, 5, 3, 3]]
    assert [(a["category_id"], a["iscrowd"]) for a in data["annotations"]] == [(2, 0), (1, 1), (1, 0)]

    (tmp_path / "set" / "images").symlink_to(voc / "JPEGImages")
    source = open_split(find_splits(tmp_path / "set"), "train")
    assert [source.read(i)[1]["labels"].tolist() for i in range(3)] == [[2], [1], []]  # difficult objects are left out
    assert exit_code(verify, tmp_path / "set") == 0
    assert "1 image without a box, background in training" in capsys.readouterr().out


def test_image_size_may_have_decimals(voc, tmp_path):
    file = voc / "Annotations/b.xml"
    file.write_text(file.read_text().replace("<width>50</width>", "<width>50.0</width>"))
    main([str(voc), str(tmp_path / "out.json")])
    assert json.loads((tmp_path / "out.json").read_text())["images"][1]["width"] == 50


def test_output_folder_is_refused(voc, tmp_path):
    with pytest.raises(SystemExit, match=r"could not be written \(Is a directory\)"):
        main([str(voc), str(tmp_path)])


def test_splits_share_class_numbers(voc, tmp_path):
    main([str(voc), str(tmp_path / "train.json"), "--split", "train"])
    data = json.loads((tmp_path / "train.json").read_text())
    assert [image["file_name"] for image in data["images"]] == ["b.jpg", "c.jpg"]
    assert [category["name"] for category in data["categories"]] == ["cat", "dog"]


def test_names_in_lists_may_have_spaces_and_flags(voc, tmp_path):
    for old, new in (("a", "a 1"), ("b", "my cat")):
        (voc / f"Annotations/{old}.xml").rename(voc / f"Annotations/{new}.xml")
    (voc / "ImageSets/Main/train.txt").write_text("\ufeffmy cat\na 1\nmy cat  1\nc -1\na 1  0\n\n", encoding="utf-8")
    main([str(voc), str(tmp_path / "out.json"), "--split", "train"])
    names = [image["file_name"] for image in json.loads((tmp_path / "out.json").read_text())["images"]]
    assert names == ["b.jpg", "a.jpg", "c.jpg"]


def write_b(text):
    return lambda folder: (folder / "Annotations/b.xml").write_text(text)


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda folder: (folder / "ImageSets/Main/train.txt").write_text("z\n"), "train.txt lists z, but .*z.xml"),
        (
            lambda folder: (folder / "ImageSets/Main/train.txt").rename(folder / "ImageSets/Main/val.txt"),
            "there is no .*train.txt; splits of .*: val",
        ),
        (write_b("<annotation>"), "b.xml is not XML"),
        (write_b('<?xml version="1.0" encoding="gbk"?><a/>'), "b.xml is not XML: multi-byte encodings"),
        (write_b("<annotation/>"), "b.xml:1 has no <size><width>"),
        (write_b("<a><size><width>wide</width></size></a>"), "b.xml:1 has 'wide' in <size><width>, where a number of"),
        (lambda folder: [path.unlink() for path in (folder / "Annotations").iterdir()], "holds no .xml file"),
    ],
)
def test_other_formats_are_refused(voc, tmp_path, spoil, words):
    spoil(voc)
    with pytest.raises(SystemExit, match=words):
        main([str(voc), str(tmp_path / "out.json"), "--split", "train"])
    assert not (tmp_path / "out.json").exists()
