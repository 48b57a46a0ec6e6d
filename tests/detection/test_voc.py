"""Test reading Pascal VOC annotations."""

import json

import pytest
from PIL import Image

from metamix.detection.coco import find_splits, open_split
from metamix.detection.voc import read_voc
from metamix.tasks.verify import main as verify
from tests.helpers.advice import exit_code
from tests.helpers.limits import seconds

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


def entries(folder, split=""):
    """Return the annotations of a split in COCO's format; "" stands for the annotations that are in no split."""
    labels = read_voc(folder)
    return labels.entries(sample for sample in labels.samples if sample.split == split)


def test_boxes_start_at_0_and_include_the_last_pixel(voc, tmp_path, capsys):
    (voc / "ImageSets/Main/train.txt").unlink()
    data = entries(voc)
    assert data["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert [a["bbox"] for a in data["annotations"]] == [[0, 0, 50, 40], [10, 20, 20, 20], [4, 5, 3, 3]]
    assert [(a["category_id"], a["iscrowd"]) for a in data["annotations"]] == [(2, 0), (1, 1), (1, 0)]

    (tmp_path / "set/annotations").mkdir(parents=True)
    (tmp_path / "set/annotations/instances_train.json").write_text(json.dumps(data))
    (tmp_path / "set/images").symlink_to(voc / "JPEGImages")
    source = open_split(find_splits(tmp_path / "set"), "train")
    assert [source.read(i)[1]["labels"].tolist() for i in range(3)] == [[2], [1], []]  # difficult objects are left out
    assert exit_code(verify, tmp_path / "set") == 0
    assert "training uses 1 image without a box as background, such as image 3 (c.jpg)" in capsys.readouterr().out


def test_image_size_may_have_decimals(voc):
    file = voc / "Annotations/b.xml"
    file.write_text(file.read_text().replace("<width>50</width>", "<width>50.0</width>"))
    assert entries(voc, "train")["images"][0]["width"] == 50


def test_splits_share_class_numbers(voc):
    data = entries(voc, "train")
    assert [image["file_name"] for image in data["images"]] == ["b.jpg", "c.jpg"]
    assert [category["name"] for category in data["categories"]] == ["cat", "dog"]


def test_names_in_lists_may_have_spaces_and_flags(voc):
    for old, new in (("a", "a 1"), ("b", "my cat")):
        (voc / f"Annotations/{old}.xml").rename(voc / f"Annotations/{new}.xml")
    (voc / "ImageSets/Main/train.txt").write_text("\ufeffmy cat\na 1\nmy cat  1\nc -1\na 1  0\n\n", encoding="utf-8")
    assert [image["file_name"] for image in entries(voc, "train")["images"]] == ["b.jpg", "a.jpg", "c.jpg"]
    (voc / "ImageSets/Main/train.txt").write_text("z" + " " * 200_000 + "x\n")
    with seconds(5), pytest.raises(FileNotFoundError, match="train.txt lists z +x, but there is no"):
        read_voc(voc)


def write_b(text):
    return lambda folder: (folder / "Annotations/b.xml").write_text(text)


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda folder: (folder / "ImageSets/Main/Valid.txt").write_text("z\n"), "Main/Valid.txt lists z, but .*z.xml"),
        (write_b("<annotation>"), "b.xml is not XML"),
        (write_b('<?xml version="1.0" encoding="gbk"?><a/>'), "b.xml is not XML: multi-byte encodings"),
        (write_b("<annotation/>"), "b.xml:1 has no <size><width>"),
        (write_b("<a><size><width>wide</width></size></a>"), "b.xml:1 has 'wide' in <size><width>, where a number of"),
        (lambda folder: [path.unlink() for path in (folder / "Annotations").iterdir()], "holds no .xml file"),
    ],
)
def test_damaged_lists_and_xml_files_are_refused(voc, spoil, words):
    spoil(voc)
    with pytest.raises((ValueError, OSError), match=words):
        read_voc(voc)
