"""Test `metamix convert`: annotations of other programs become a data set with the same boxes."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest

from metamix.detection.coco import find_splits, open_split
from metamix.tasks.convert import LabelledImages, Sample, check_names, choose_splits
from tests.helpers import shapes
from tests.helpers.running import metamix_command, train

XML = """<annotation>
<filename>{name}</filename>
<size><width>96</width><height>64</height></size>
{objects}</annotation>"""
OBJECT = (
    "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>\n"
)
CLASSES = ["disc", "square"]
FOLDER_ABOVE = r"data.yaml has train: \.+, but /.* contains data.yaml: name the folder of images"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return shapes.write(tmp_path_factory.mktemp("original") / "shapes", train=8, val=4)


def boxes_of(folder, splits=("train", "val")):
    """Return the boxes of a data set as training reads them: a sorted list of (class, (x1, y1, x2, y2)) by image."""
    boxes_by_name = {}
    for name in splits:
        split = open_split(find_splits(folder), name)
        for i in range(len(split)):
            _, target = split.read(i)
            labels = [split.classes[label - 1] for label in target["labels"]]
            boxes = [tuple(round(value, 2) for value in box) for box in target["boxes"].tolist()]
            boxes_by_name[os.path.basename(split.path(i))] = sorted(zip(labels, boxes))
    return boxes_by_name


def copy_images(original, place, split=""):
    place.mkdir(parents=True)
    for file in sorted((original / "images").glob(f"{split}*.png")):
        shutil.copy(file, place / file.name)
    return sorted(place.iterdir())


def labelimg(original, folder):
    """Write the layout of LabelImg: annotations/ beside images/. The file names in the XML files are out of date."""
    write_xml(copy_images(original, folder / "images"), folder / "annotations")


def write_xml(files, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        objects = "".join(OBJECT.format(label, *xy(box)) for label, box in BOXES[file.name])
        (folder / f"{file.stem}.xml").write_text(XML.format(name="old.png", objects=objects))


def voc_by_split(original, folder):
    """Write the layout of Roboflow: XML files beside the images of each split."""
    for split, name in (("train", "Train"), ("val", "valid")):
        write_xml(copy_images(original, folder / name, split), folder / name)
    (folder / "test").touch()  # a file, so not a split


def voc_with_folders_of_splits(original, folder):
    for split in ("train", "val"):
        write_xml(copy_images(original, folder / "images" / split, split), folder / "annotations" / split)


def voc_of_cvat(original, folder):
    """Write the layout of CVAT: images in folders, names of splits with capitals, and XML files without sizes."""
    for split, name in (("train", "Train"), ("val", "Validation")):
        files = copy_images(original, folder / "JPEGImages" / f"{split} é", split)
        write_xml(files, folder / "Annotations" / f"{split} é")
        (folder / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
        lines = "".join(f"{split} é/{file.stem}\n" for file in files)
        (folder / f"ImageSets/Main/{name}.txt").write_text(lines, encoding="utf-8")
    for path in folder.rglob("*.xml"):
        path.write_text(re.sub("<size>.*</size>", "", path.read_text()))


def xy(box):
    """Return a box in VOC's convention: pixels are counted from 1, and the box includes the last pixel."""
    x1, y1, x2, y2 = map(int, box)
    return x1 + 1, y1 + 1, x2, y2


def write_yolo(original, images, labels, split):
    labels.mkdir(parents=True)
    for file in copy_images(original, images, split):
        lines = [
            f"{CLASSES.index(label)} {(x1 + x2) / 192} {(y1 + y2) / 128} {(x2 - x1) / 96} {(y2 - y1) / 64}"
            for label, (x1, y1, x2, y2) in BOXES[file.name]
        ]
        if lines:  # an image without objects has no label file
            (labels / f"{file.stem}.txt").write_text("\n".join(lines) + "\n")


def yolo_by_kind(original, folder):
    for split in ("train", "val"):
        write_yolo(original, folder / "images" / split, folder / "labels" / split, split)
    (folder / "data.yaml").write_text(
        "path: ../datasets/shapes\ntrain: images/train\nval: images/val\ntest:\nnames: {1: square, 0: disc}\n"
    )


def yolo_with_names_alone(original, folder):
    yolo_by_kind(original, folder)
    (folder / "data.yaml").write_text("names: [disc, square]\n")


def yolo_of_other_numbers(original, folder):
    """Write class numbers with gaps, as in labels that were made from COCO's categories."""
    yolo_by_kind(original, folder)
    for label in folder.glob("labels/*/*.txt"):
        label.write_text(re.sub("^1 ", "17 ", label.read_text(), flags=re.MULTILINE))
    replace("data.yaml", "1: square", "17: square")(folder)


def yolo_by_split(original, folder):
    """Write the layout of Roboflow, whose data.yaml has paths that lead nowhere."""
    for split, name in (("train", "train"), ("val", "valid")):
        write_yolo(original, folder / name / "images", folder / name / "labels", split)
    (folder / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\nnc: 2\nnames: [disc, square]\n")


def yolo_without_splits(original, folder):
    write_yolo(original, folder / "images", folder / "labels", "")
    (folder / "classes.yml").write_text("names: [disc, square]\n")


def yolo_of_cvat(original, folder):
    """Write the layout of CVAT: files that list the images, and polygons, which are rectangles here."""
    lines = ["path: ./", "names:", "  0: disc", "  1: square"]
    for split in ("train", "val"):
        (folder / f"labels/{split}").mkdir(parents=True)
        files = copy_images(original, folder / f"images/{split}", split)
        for file in files:
            outlines = []
            for label, (x1, y1, x2, y2) in BOXES[file.name]:
                left, top, right, bottom = x1 / 96, y1 / 64, x2 / 96, y2 / 64
                outlines.append(f"{CLASSES.index(label)} {left} {top} {right} {top} {right} {bottom} {left} {bottom}\n")
            (folder / f"labels/{split}/{file.stem}.txt").write_text("".join(outlines))
        (folder / f"{split}.txt").write_text("".join(f"data/images/{split}/{file.name}\n" for file in files))
        lines.append(f"{split}: {split}.txt")
    text = (folder / "val.txt").read_text()
    (folder / "val.txt").write_text(text.replace("/", "\\"))  # as on Windows
    (folder / "data.yaml").write_text("\n".join(lines) + "\n")


def yolo_of_darknet(original, folder):
    """Write the layout of Darknet and of CVAT's YOLO 1.1: labels beside the images, and lists of images."""
    for split, name in (("train", "train"), ("val", "valid")):
        place = folder / f"obj_{name}_data"
        write_yolo(original, place, folder / "labels", split)
        for label in folder.glob("labels/*"):
            label.rename(place / label.name)
        (folder / "labels").rmdir()
        images = sorted(place.glob("*.png"))
        (folder / f"{name}.txt").write_text("".join(f"data/{place.name}/{image.name}\n" for image in images))
    (folder / "obj.names").write_text("disc\nsquare\n")
    (folder / "obj.data").write_text(
        "classes = 2\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\nbackup = backup/\n"
    )


def coco_by_split(original, folder):
    """Write the layout of Roboflow, which has an extra category for the group of all classes."""
    for split, name in (("train", "Train"), ("val", "valid")):
        copy_images(original, folder / name, split)
        data = json.loads((original / f"annotations/instances_{split}.json").read_text())
        data["categories"].insert(0, {"id": 0, "name": "shapes", "supercategory": "none"})
        (folder / name / "_annotations.coco.json").write_text(json.dumps(data))


def coco_of_cvat(original, folder):
    """Write the layout of CVAT: images in folders, names of splits with capitals, and a byte order mark."""
    (folder / "annotations").mkdir(parents=True)
    for split, name in (("train", "Train"), ("val", "Validation")):
        copy_images(original, folder / "images" / name / "a b", split)
        data = json.loads((original / f"annotations/instances_{split}.json").read_text())
        for image in data["images"]:
            image["file_name"] = f"a b/{image['file_name']}"
        (folder / f"annotations/instances_{name}.json").write_text(json.dumps(data), encoding="utf-8-sig")


def coco_of_one_file(original, folder):
    """Write the layout of Label Studio on Windows: result.json and images/, without splits."""
    copy_images(original, folder / "images")
    train, val = (json.loads((original / f"annotations/instances_{x}.json").read_text()) for x in ("train", "val"))
    for entries, key in ((val["images"], "id"), (val["annotations"], "id"), (val["annotations"], "image_id")):
        for entry in entries:
            entry[key] += 1000
    data = {key: train[key] + val[key] for key in ("images", "annotations")} | {"categories": train["categories"]}
    for image in data["images"]:
        image["file_name"] = f"images\\{image['file_name']}"
    (folder / "result.json").write_text(json.dumps(data))


def csv_of_corners(original, folder):
    lines = ["filename,width,height,class,xmin,ymin,xmax,ymax"]
    for file in copy_images(original, folder / "images"):
        lines += [f"{file.name},96,64,{label},{','.join(map(str, box))}" for label, box in BOXES[file.name]]
        lines += [f"{file.name},96,64,,,,,"] * (not BOXES[file.name])
    (folder / "boxes.csv").write_text("\n".join(lines) + "\n")


def csv_of_sizes(original, folder):
    lines = ["Image Path;Width;Height;X;Y;W;H;Label;Split"]  # Width and Height are the size of the image
    for file in copy_images(original, folder / "images"):
        split = {"train": "train", "val": "validation"}[file.name.partition("_")[0]]
        lines += [
            f"images\\{file.name};96;64;{x1};{y1};{x2 - x1};{y2 - y1};{label};{split}"
            for label, (x1, y1, x2, y2) in BOXES[file.name]
        ]
        lines += [f"images\\{file.name};96;64;;;;;;{split}"] * (not BOXES[file.name])
    (folder / "boxes.csv").write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")


BOXES = {}


@pytest.fixture(scope="module", autouse=True)
def boxes(original):
    BOXES.update(boxes_of(original))


@pytest.mark.parametrize(
    "write, format, own_splits",
    [
        (labelimg, "voc", False),
        (voc_by_split, "voc", True),
        (voc_with_folders_of_splits, "voc", True),
        (voc_of_cvat, "voc", True),
        (yolo_by_kind, "yolo", True),
        (yolo_with_names_alone, "yolo", True),
        (yolo_by_split, "yolo", True),
        (yolo_of_other_numbers, "yolo", True),
        (yolo_without_splits, "yolo", False),
        (yolo_of_cvat, "yolo", True),
        (yolo_of_darknet, "yolo", True),
        (coco_of_one_file, "coco", False),
        (coco_of_cvat, "coco", True),
        (csv_of_corners, "csv", False),
        (csv_of_sizes, "csv", True),
    ],
)
def test_conversion_keeps_boxes_classes_and_splits(write, format, own_splits, original, tmp_path, capsys):
    source, out = tmp_path / "source", tmp_path / "out"
    write(original, source)
    before = {path: path.stat().st_mtime_ns for path in source.rglob("*")}
    assert metamix_command("convert", format, source, out) == 0
    said = capsys.readouterr().out
    assert "2 classes, " in said and "note:" not in said, said
    assert boxes_of(out) == BOXES
    splits = {name: open_split(find_splits(out), name) for name in ("train", "val")}
    assert {name: len(split) for name, split in splits.items()} == (
        {"train": 8, "val": 4} if own_splits else {"train": 10, "val": 2}
    )
    if own_splits:
        assert all(Path(splits["val"].path(i)).name.startswith("val") for i in range(4))
    assert {path: path.stat().st_mtime_ns for path in source.rglob("*")} == before
    assert metamix_command("verify", out) == 0

    assert splits["train"].classes == ("disc", "square")


def test_a_split_of_voc_may_have_no_objects(original, tmp_path, capsys):
    voc_by_split(original, tmp_path / "source")
    for path in tmp_path.glob("source/valid/*.xml"):
        path.write_text(XML.format(name="old.png", objects=""))
    assert metamix_command("convert", "voc", tmp_path / "source", tmp_path / "out") == 0
    assert "8 train, 4 val images, 2 classes, " in capsys.readouterr().out


def test_conversion_of_roboflows_coco_drops_only_the_category_of_the_group(original, tmp_path, capsys):
    coco_by_split(original, tmp_path / "source")
    assert metamix_command("convert", "coco", tmp_path / "source", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "8 train, 4 val images, 2 classes, " in said
    assert said.count("note:") == 1 and "note: classes without an object were left out: shapes\n" in said
    assert boxes_of(tmp_path / "out") == BOXES


def test_a_coco_file_is_converted_with_the_images_beside_it_or_beside_its_folder(original, tmp_path, monkeypatch):
    coco_of_one_file(original, tmp_path / "source")
    monkeypatch.chdir(tmp_path / "source")
    assert metamix_command("convert", "coco", "result.json", "out") == 0
    assert boxes_of(tmp_path / "source/out") == BOXES

    coco_of_cvat(original, tmp_path / "cvat")
    assert metamix_command("convert", "coco", tmp_path / "cvat/annotations/instances_Train.json", tmp_path / "out") == 0
    assert boxes_of(tmp_path / "out") == {name: boxes for name, boxes in BOXES.items() if "train" in name}


def test_coco_writes_nothing_outside_of_the_new_folder(original, tmp_path, capsys):
    coco_of_one_file(original, tmp_path / "source")
    file = tmp_path / "source/result.json"
    data = json.loads(file.read_text())
    (tmp_path / "source/images/deep/er/dir").mkdir(parents=True)
    (tmp_path / "source/images/link").symlink_to("deep/er/dir")
    shutil.copy(
        tmp_path / "source" / data["images"][0]["file_name"].replace("\\", "/"), tmp_path / "source/images/x.png"
    )
    data["images"][0]["file_name"] = "link\\..\\..\\..\\x.png"  # through the link, this is images/x.png
    data["images"][1]["file_name"] = "images\\link\\a.png"
    data["annotations"][-1]["bbox"] = [0, 0, float("inf"), 1]
    file.write_text(json.dumps(data))
    assert metamix_command("convert", "coco", tmp_path / "source", tmp_path / "a/out") == 0
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["out"]
    said = capsys.readouterr().out
    assert "note: images that do not exist were left out: images/link/a.png of " in said
    assert "note: images were found by their file names, without their folders: ../../x.png of " in said
    assert "note: boxes without a finite area were left out: " in said


@pytest.mark.parametrize(
    "folder", [r"..\..\media\upload\1", "{}/source/images", "/data/upload/1", "C:\\data", r"\\server"]
)
def test_coco_of_label_studio_is_converted_by_unique_file_names(folder, original, tmp_path, capsys):
    coco_of_one_file(original, tmp_path / "source")
    file = tmp_path / "source/result.json"
    data = json.loads(file.read_text())
    for image in data["images"]:
        image["file_name"] = image["file_name"].replace("images", folder.format(tmp_path))
    file.write_text(json.dumps(data))
    assert metamix_command("convert", "coco", tmp_path / "source", tmp_path / "out") == 0
    assert boxes_of(tmp_path / "out") == BOXES and "were found by their file names" in capsys.readouterr().out

    data["images"][1]["file_name"] = "other/" + os.path.basename(data["images"][0]["file_name"].replace("\\", "/"))
    file.write_text(json.dumps(data))
    assert metamix_command("convert", "coco", tmp_path / "source", tmp_path / "less") == 0
    assert "note: images that do not exist were left out: " in capsys.readouterr().out
    assert len([*tmp_path.glob("less/*/*.png")]) == 10


@pytest.mark.parametrize("name", ["../../x.png", "/x.png"])
def test_a_name_that_leads_out_of_the_new_folder_is_refused(name):
    with pytest.raises(ValueError, match=r"a.png would become .*x.png, which is not in out/train: correct its path"):
        check_names(Path("out"), {"train": [Sample(Path("a.png"), name)]})


def test_a_list_of_yolo_writes_nothing_outside_of_the_new_folder(original, tmp_path):
    yolo_of_cvat(original, tmp_path / "source")
    (tmp_path / "source/other").mkdir()
    shutil.copy(original / "images/train_0.png", tmp_path / "source/other/x.png")
    append("train.txt", "images/train/../../other/x.png\n")(tmp_path / "source")
    assert metamix_command("convert", "yolo", tmp_path / "source", tmp_path / "a/out") == 0
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["out"]
    assert [*(tmp_path / "a/out").rglob("x.png")] == [tmp_path / "a/out/train/other/x.png"]


def test_coco_keeps_masks_areas_and_crowds(original, tmp_path, capsys):
    file = original / "annotations/instances_val.json"
    data = json.loads(file.read_text())
    x, y, width, height = data["annotations"][0]["bbox"]
    polygon = [[x, y, x + width, y, x, y + height]]
    data["annotations"][0] |= {"segmentation": [*polygon, [x, y, x, y]], "area": 7, "iscrowd": 1, "id": 0}
    (tmp_path / "my.json").write_text(json.dumps(data))
    shutil.copytree(original / "images", tmp_path / "images")
    assert metamix_command("convert", "coco", tmp_path / "my.json", tmp_path / "out", "--split", 0.5) == 0
    annotations = [
        annotation
        for split in ("train", "val")
        for annotation in json.loads((tmp_path / f"out/annotations/instances_{split}.json").read_text())["annotations"]
    ]
    assert len(annotations) == len(data["annotations"])
    (kept,) = (each for each in annotations if each.get("segmentation") == polygon)
    assert (kept["bbox"], kept["area"], kept["iscrowd"]) == ([x, y, width, height], 7, 1)
    assert "polygons of fewer than three points were left out: " in capsys.readouterr().out


@pytest.mark.parametrize(
    "attributes, iscrowd, said",
    [
        ({"attributes": {"occluded": False}}, 0, "masks of CVAT's brush are read as objects: "),
        ({}, 1, "crowds are ignored in training; set their iscrowd to 0 if they are single objects: "),
    ],
)
def test_masks_of_cvats_brush_become_objects_not_crowds(attributes, iscrowd, said, original, tmp_path, capsys):
    coco_of_cvat(original, tmp_path / "source")
    file = tmp_path / "source/annotations/instances_Train.json"
    data = json.loads(file.read_text(encoding="utf-8-sig"))
    runs = {"size": [64, 96], "counts": [0, 64, 95 * 64]}
    data["annotations"][0] |= {"segmentation": runs, "iscrowd": 1} | attributes
    file.write_text(json.dumps(data))
    assert metamix_command("convert", "coco", tmp_path / "source", tmp_path / "out") == 0
    assert f"note: {said}{file}, annotation {data['annotations'][0]['id']}\n" in capsys.readouterr().out
    written = json.loads((tmp_path / "out/annotations/instances_train.json").read_text())["annotations"][0]
    assert (written["segmentation"], written["iscrowd"]) == (runs, iscrowd)
    assert metamix_command("verify", tmp_path / "out") == 0
    assert ("training ignores 1 crowd, such as annotation 1; set" in capsys.readouterr().out) == bool(iscrowd)


def test_an_obj_data_is_found_by_a_relative_path(original, tmp_path, monkeypatch):
    """Empty lines of obj.names count as classes, and `valid =` without a path means that there is no list."""
    yolo_of_darknet(original, tmp_path / "source")
    (tmp_path / "source/obj.names").write_text("disc\n\nsquare\n\n")
    for label in tmp_path.glob("source/*/*.txt"):
        label.write_text(re.sub("^1 ", "2 ", label.read_text(), flags=re.MULTILINE))
    replace("obj.data", "data/valid.txt", "")(tmp_path / "source")
    replace("obj.data", "data/train.txt", "data\\train.txt")(tmp_path / "source")
    monkeypatch.chdir(tmp_path)
    assert metamix_command("convert", "yolo", "source", "out") == 0
    assert boxes_of(tmp_path / "out") == {name: boxes for name, boxes in BOXES.items() if "train" in name}


def test_yolo_keeps_polygons_and_leaves_out_keypoints(original, tmp_path, capsys):
    source = tmp_path / "source"
    yolo_by_kind(original, source)
    wide = "1 -0.005 0.25 1.005 0.25 0.5 0.75\n"  # rounding puts points a little outside of the image
    (source / LABEL).write_text("0 0.5 0.5 0.25 0.5\n1 0.25 0.25 0.75 0.25 0.5 0.75\n" + wide)
    assert metamix_command("convert", "yolo", source, tmp_path / "out") == 0
    box, triangle, _ = read_annotations_of(tmp_path / "out", "train_0.png")
    assert (triangle["bbox"], triangle["area"]) == ([24, 16, 48, 32], 48 * 32 / 2)
    assert triangle["segmentation"] == [[24, 16, 72, 16, 48, 48]]
    assert "segmentation" not in box and box["area"] == 24 * 32
    assert metamix_command("verify", tmp_path / "out") == 0

    append("data.yaml", "kpt_shape: [2, 2]\n")(source)
    (source / LABEL).write_text("0 0.5 0.5 0.25 0.5 0.5 0.4 0.5 0.6\n")
    assert metamix_command("convert", "yolo", source, tmp_path / "points") == 0
    assert f"note: keypoints were left out: {source / 'data.yaml'}\n" in capsys.readouterr().out
    (box,) = read_annotations_of(tmp_path / "points", "train_0.png")
    assert box["bbox"] == [36, 16, 24, 32] and "segmentation" not in box


def read_annotations_of(folder, image):
    """Return the annotations of an image of the split train."""
    data = json.loads((folder / "annotations/instances_train.json").read_text())
    (number,) = (each["id"] for each in data["images"] if each["file_name"] == image)
    return [annotation for annotation in data["annotations"] if annotation["image_id"] == number]


def test_yolo_images_of_two_splits_stay_in_both(original, tmp_path, capsys):
    source = tmp_path / "source"
    yolo_by_kind(original, source)
    replace("data.yaml", "test:", "test: images/val")(source)
    assert metamix_command("convert", "yolo", source, tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "8 train, 4 val, 4 test images" in said
    assert f"note: images belong to several splits: {source / 'images/val/val_0.png'}, " in said
    assert boxes_of(tmp_path / "out", ("train", "test")) == boxes_of(tmp_path / "out") == BOXES
    assert metamix_command("convert", "yolo", source, tmp_path / "new", "--split", 0.5) == 0
    assert "6 train, 6 val images" in capsys.readouterr().out


def test_yolo_lists_may_repeat_images(original, tmp_path, monkeypatch, capsys):
    """train names its folder twice, and val lists all images by paths relative to the folder of the list."""
    yolo_by_kind(original, tmp_path / "source")
    paths = [path.relative_to(tmp_path / "source") for path in sorted(tmp_path.glob("source/images/*/*.png"))]
    (tmp_path / "source/val.txt").write_text("\n".join(map(str, paths)))
    (tmp_path / "source/data.yaml").write_text(
        "train: [images/train, images/train]\nval: val.txt\nnames: [disc, square]\n"
    )
    monkeypatch.chdir(tmp_path)
    assert metamix_command("convert", "yolo", "source", "out") == 0
    said = capsys.readouterr().out
    assert "8 train, 12 val images" in said and "note: images belong to several splits: " in said
    assert "label files" not in said
    assert metamix_command("convert", "yolo", "source", "new", "--split", 0.5) == 0
    assert "6 train, 6 val images" in capsys.readouterr().out


def test_an_image_with_different_labels_in_two_splits_is_refused():
    samples = [Sample(Path("0.png"), "0.png", split, label=label) for split, label in (("train", 1), ("val", 2))]
    labels = LabelledImages((), samples)
    with pytest.raises(ValueError, match="0.png is listed twice with different labels: correct them"):
        choose_splits(labels, 0.5)


def test_yolo_labels_are_found_beside_images_that_lie_in_no_images_folder(original, tmp_path, monkeypatch):
    for split in ("train", "val"):
        write_yolo(original, tmp_path / "source" / split, tmp_path / "source/labels", split)
        for label in tmp_path.glob("source/labels/*"):
            label.rename(tmp_path / "source" / split / label.name)
        (tmp_path / "source/labels").rmdir()
    (tmp_path / "source/data.yaml").write_text("train: train\nval: val\nnames: [disc, square]\n")
    (tmp_path / "labels/source/train").mkdir(parents=True)  # labels of other data
    monkeypatch.chdir(tmp_path)
    assert metamix_command("convert", "yolo", "source", "out") == 0
    assert boxes_of(tmp_path / "out") == BOXES


def test_yolo_without_data_yaml_reads_the_first_yaml_file(original, tmp_path, monkeypatch):
    yolo_without_splits(original, tmp_path / "source")
    (tmp_path / "source/settings.yaml").write_text("path: settings\n")
    (tmp_path / "source/settings").mkdir()
    replace("classes.yml", "names", "path: settings\nnames")(tmp_path / "source")  # settings/ holds no images/
    glob = type(tmp_path).glob
    monkeypatch.setattr(type(tmp_path), "glob", lambda *place: sorted(glob(*place), reverse=True))
    assert metamix_command("convert", "yolo", tmp_path / "source", tmp_path / "out") == 0
    assert boxes_of(tmp_path / "out") == BOXES


def test_a_new_split_is_repeatable_and_has_the_given_share(original, tmp_path, monkeypatch):
    yolo_by_kind(original, tmp_path / "source")
    monkeypatch.chdir(tmp_path)
    for name, source in (("a", "source"), ("b", tmp_path / "source/data.yaml")):
        assert metamix_command("convert", "yolo", source, name, "--split", 0.5) == 0
    a, b = ((tmp_path / name / "annotations/instances_val.json").read_text() for name in ("a", "b"))
    assert a == b and len(json.loads(a)["images"]) == 6
    assert boxes_of(tmp_path / "a") == BOXES


def test_the_printed_command_trains(original, tmp_path, capsys):
    labelimg(original, tmp_path / "source")
    assert metamix_command("convert", "voc", tmp_path / "source", tmp_path / "out") == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert command[:2] == ["metamix", "train"]
    train(*command[2:], "--no-pretrained", "--min-size", 32, "--max-size", 48, "--workers", 0, "--dry-run")
    assert "data     out: 10 train, 2 val" in capsys.readouterr().out


def test_images_are_hard_links_if_possible_and_copies_otherwise(original, tmp_path, monkeypatch):
    labelimg(original, tmp_path / "source")
    assert metamix_command("convert", "voc", tmp_path / "source", tmp_path / "out") == 0
    image = next((tmp_path / "out/train").iterdir())
    assert image.samefile(tmp_path / "source/images" / image.name)
    monkeypatch.setattr(os, "link", lambda *paths: os.stat("/no such file"))
    assert metamix_command("convert", "voc", tmp_path / "source", tmp_path / "copied") == 0
    copy = tmp_path / "copied/train" / image.name
    assert not copy.samefile(image) and copy.read_bytes() == image.read_bytes()


def test_early_stopping_needs_a_val_split_that_is_not_the_test_split(original, tmp_path):
    with pytest.raises(SystemExit, match="the data need a split val that is neither trained on nor scored as the test"):
        train("--task", "detection", "--data-dir", original, "--early-stopping", 2, "--dry-run", "--min-size", 64)


@pytest.fixture
def source(original, tmp_path):
    """Return a function that calls `write` and `change` on a folder, and returns the format and the folder."""

    def make(write, change):
        write(original, tmp_path / "source")
        change(tmp_path / "source")
        formats = {labelimg: "voc", csv_of_corners: "csv", coco_of_one_file: "coco"}
        return formats.get(write, "yolo"), tmp_path / "source"

    return make


def append(name, text):
    return lambda folder: (folder / name).write_text((folder / name).read_text() + text)


def replace(name, old, new):
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new, 1))


def relative_boxes(folder):
    (folder / "boxes.csv").write_text("file,class,x1,y1,x2,y2\ntrain_0.png,disc,0.1,0.2,0.3,0.4\n")


LABEL = "labels/train/train_0.txt"


@pytest.mark.parametrize(
    "write, change, said",
    [
        (yolo_by_kind, append(LABEL, "2 0.5 0.5 0.1 0.1\n"), r"train_0.txt:\d has the class 2, but .*data.yaml names"),
        (yolo_by_kind, append(LABEL, "0.5 0.5 0.5 0.1 0.1\n"), r"train_0.txt:\d has the class 0.5"),
        (yolo_by_kind, append(LABEL, "0 50 60 10 10\n"), r"train_0.txt:\d has the values 50, 60, 10, 10, but they"),
        (yolo_by_kind, append(LABEL, "0 nan 0.5 0.1 0.1\n"), r"train_0.txt:\d has the values nan, but they"),
        (yolo_by_kind, append(LABEL, "0 0 0 1 0 1\n"), r"train_0.txt:\d has 6 values, but a line has a class, and"),
        (yolo_by_kind, lambda folder: (folder / LABEL).write_bytes(b"\xff\xfe\n"), "train_0.txt:1 is not UTF-8 text"),
        (yolo_by_kind, replace("data.yaml", "square", "disc"), "data.yaml has the class 'disc' twice"),
        (yolo_by_kind, replace("data.yaml", "square, 0: disc", "'1', 0: 1"), "data.yaml has the class '1' twice"),
        (yolo_by_kind, replace("data.yaml", "../datasets/shapes\ntrain: images/train", "/\ntrain: ."), FOLDER_ABOVE),
        (yolo_by_kind, replace("data.yaml", "images/train", ".."), FOLDER_ABOVE),
        (yolo_by_kind, replace("data.yaml", "1: square", "2: square"), "has the class 1, but .*names the classes 0, 2"),
        (yolo_by_kind, replace("data.yaml", "1: square", "x: square"), "data.yaml has the names .*: give the names"),
        (yolo_by_kind, append("data.yaml", "nc: 3\n"), "data.yaml has 2 names, but nc is 3"),
        (yolo_by_kind, replace("data.yaml", "images/val", "images/dev"), "has val: images/dev, but there is no /"),
        (
            yolo_by_kind,
            replace("data.yaml", "path: ../datasets/shapes\ntrain: images/train", "train: dev"),
            "dev: add the images, or",
        ),
        (yolo_of_cvat, append("val.txt", "images/val/away.png\n"), "val.txt lists images/val/away.png, but there"),
        (yolo_of_cvat, lambda folder: (folder / "val.txt").write_text("\n"), "val.txt lists no image"),
        (yolo_by_kind, lambda folder: (folder / "data.yaml").unlink(), "holds no data.yaml: write one with the names"),
        (yolo_of_darknet, replace("obj.data", "names = ", "n = "), "obj.data has no line 'names = obj.names', which"),
        (yolo_by_kind, lambda folder: shutil.rmtree(folder / "labels"), "labels are expected in [^,]*/labels/train, /"),
        (
            yolo_by_kind,
            lambda folder: shutil.copy(folder / "images/train/train_0.png", folder / "images/train/train_0.jpg"),
            "have the same name without extensions: rename one",
        ),
        (labelimg, append("annotations/train_0.xml", "<"), "train_0.xml is not XML"),
        (labelimg, replace("annotations/train_0.xml", "<xmin>", "<xmin>x"), r"_0.xml:4 has 'x\d+' in <bndbox><xmin>"),
        (labelimg, replace("annotations/train_0.xml", "<name>", "<name></name><name>"), r"_0.xml:4 has no <name>"),
        (coco_of_one_file, append("result.json", "]"), "result.json is not in COCO's format: .* To list all problems"),
        (coco_of_one_file, replace("result.json", '"category_id"', '"class"'), "annotations.* has no category_id"),
        (coco_of_one_file, replace("result.json", '"bbox": [', '"bbox": ["1", '), "has the bbox .*; four numbers x, y"),
        (coco_of_one_file, lambda folder: (folder / "a.json").touch(), "holds several .json files: give the"),
        (coco_of_one_file, lambda folder: (folder / "result.json").unlink(), "holds no .json file: give the"),
        (coco_of_one_file, lambda folder: shutil.rmtree(folder / "images"), "images that do not exist were left out"),
        (csv_of_corners, append("boxes.csv", "train_0.png,96,64,disc,1,2,3\n"), r"boxes.csv:\d+ has 7 columns, but"),
        (csv_of_corners, append("boxes.csv", "train_0.png,96,64,disc,1,2,3,x\n"), r"boxes.csv:\d+ has 'x' in ymax"),
        (csv_of_corners, append("boxes.csv", "train_0.png,96,64,,1,2,3,4\n"), r"boxes.csv:\d+ has a box, but no class"),
        (csv_of_corners, append("boxes.csv", "train_0,96,64,disc,1,2,3,4\n"), r"boxes.csv:\d+ has the file 'train_0'"),
        (csv_of_corners, append("boxes.csv", '"train_0'), r"boxes.csv:\d+ is not CSV"),
        (csv_of_corners, replace("boxes.csv", "xmin", "left"), "boxes.csv:1 has only left, xmax, ymax, ymin of a box"),
        (csv_of_corners, replace("boxes.csv", "filename,", "a,"), "boxes.csv:1 has the columns a, .* line must name"),
        (csv_of_corners, lambda folder: shutil.rmtree(folder / "images"), "boxes.csv lists no image that exists"),
        (csv_of_corners, relative_boxes, "at most 1: boxes must be in pixels"),
        (csv_of_corners, lambda folder: (folder / "a.csv").touch(), "holds 2 .csv files: give the path of one"),
    ],
)
def test_wrong_labels_are_refused_with_their_file_and_line(write, change, said, source, tmp_path):
    format, folder = source(write, change)
    with pytest.raises(SystemExit, match=said):
        metamix_command("convert", format, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_entries_that_are_left_out_or_clipped_are_printed(original, tmp_path, capsys):
    source = tmp_path / "source"
    yolo_by_kind(original, source)
    (source / LABEL).write_text("0 0.5 0.5 0.2 0.2\n1 0.5 0.5 0 0.1\n0 0.9 0.5 0.8 0.2\n")
    (source / "images/train/train_1.png").write_text("no image")
    (source / "images/val/val_0.png").unlink()
    (source / "labels/val/more").mkdir()
    (source / "labels/val/more/a.txt").touch()
    assert metamix_command("convert", "yolo", source, tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert f"{tmp_path / 'out'}: 7 train, 3 val images, 2 classes, " in said
    assert f"note: boxes without a finite area were left out: {source / LABEL}:2\n" in said
    assert f"note: boxes extend beyond their image, and training clips them: {source / LABEL}:3\n" in said
    assert f"note: images that cannot be read were left out: {source / 'images/train/train_1.png'}\n" in said
    stray = [source / "labels/val/more/a.txt"] + ([source / "labels/val/val_0.txt"] if BOXES["val_0.png"] else [])
    assert f"note: label files without an image were left out: {', '.join(map(str, stray))}\n" in said

    source = tmp_path / "labelimg"
    labelimg(original, source)
    (source / "images/val_0.png").unlink()
    (source / "annotations/val_1.xml").unlink()
    replace("annotations/val_2.xml", "<width>96", "<width>64")(source)
    replace("annotations/train_0.xml", "</annotation>", OBJECT.format("disc", 100, 1, 120, 9) + "</annotation>")(source)
    assert metamix_command("convert", "voc", source, tmp_path / "voc") == 0
    said = capsys.readouterr().out
    assert f"note: annotations without an image were left out: {source / 'annotations/val_0.xml'}\n" in said
    assert f"note: images without an annotation were left out: {source / 'images/val_1.png'}\n" in said
    assert re.search(r"images whose size differs from .* were left out: .* \(64 x 96 instead of 64 x 64\)", said)
    assert "boxes outside of their image were left out: " in said and "annotations/train_0.xml:" in said

    source = tmp_path / "csv"
    csv_of_corners(original, source)
    append("boxes.csv", "away.png,96,64,disc,1,2,30,40\n" * 7)(source)
    count = len((source / "boxes.csv").read_text().splitlines())
    assert metamix_command("convert", "csv", source / "boxes.csv", tmp_path / "boxes") == 0
    said = capsys.readouterr().out
    assert re.search(rf"image does not exist were left out: {source}/boxes.csv:{count - 6}, .* and 2 more\n", said)


@pytest.mark.parametrize(
    "words, said",
    [
        (["vok", "{source}", "{out}"], "did you mean 'voc'[?] Accepted: coco, csv, folders, ins"),
        (["yolo", "{source}/nowhere", "{out}"], "there is no file or folder .*nowhere"),
        (["yolo", "{source}", "{source}"], "source holds other files .*: give a new folder"),
        (["yolo", "{source}", "{source}/data.yaml"], "data.yaml is a file: give a folder to write to"),
        (["yolo", "{source}", "{out}", "--split", "1"], "--split is '1', but it must be a number above 0 and below 1"),
    ],
)
def test_wrong_arguments_are_refused(words, said, original, tmp_path):
    yolo_by_kind(original, tmp_path / "source")
    with pytest.raises(SystemExit, match=said):
        metamix_command("convert", *(word.format(source=tmp_path / "source", out=tmp_path / "out") for word in words))


def test_images_with_the_same_name_in_two_folders_are_refused_in_a_new_split(original, tmp_path):
    yolo_by_kind(original, tmp_path / "source")
    (tmp_path / "source/images/val/val_0.png").rename(tmp_path / "source/images/val/train_0.png")
    with pytest.raises(SystemExit, match="would both become .*train_0.png: rename one of them"):
        metamix_command("convert", "yolo", tmp_path / "source", tmp_path / "out", "--split", 0.9)
    assert metamix_command("convert", "yolo", tmp_path / "source", tmp_path / "out") == 0
