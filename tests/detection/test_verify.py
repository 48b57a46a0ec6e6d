"""Test that `metamix verify` names the file, image and annotation of each problem."""

import json
import re

import pytest

from metamix.tasks.verify import main
from tests.helpers.advice import exit_code


def verify(capsys, *words):
    """Return the exit code and output of `metamix verify`; a folder needs no --task, but an annotation file does."""
    task = ["--task", "detection"] * str(words[0]).endswith(".json")
    return exit_code(main, *words, *task), capsys.readouterr().out


def test_good_data_set_passes(coco, capsys):
    folder = coco(train=3, val=3, test=3)  # each of these images has an object
    code, out = verify(capsys, folder)
    assert code == 0 and "nothing is wrong" in out
    sizes = r"instances_train.json: for min_size 800 and max_size 1333, boxes are \d+ to \d+ pixels large .*; anchors"
    assert re.search(sizes + " are 32 to 813 .retinanet with anchor_scale 4.$", out, re.M)
    _, out = verify(capsys, folder, "--min-size", 64, "--max-size", 120)
    assert "train.json: for min_size 64 and max_size 120, boxes are 17" in out and "anchors are 17 to" in out


def test_anchors_are_chosen_for_the_boxes_of_train(coco, capsys):
    """Training chooses the anchors once, for the boxes that it trains on."""

    def shrink(split, data):
        if split == "test":
            for annotation in data["annotations"]:
                annotation["bbox"] = [*annotation["bbox"][:2], 1, 1]

    _, out = verify(capsys, coco(train=3, val=3, test=3, change=shrink))
    anchors = r"anchors are 32 to 813 .retinanet with anchor_scale 4"
    _, train, test, val = out.splitlines()
    assert re.search(rf"instances_train.json: .*{anchors}\)$", train)
    assert re.search(rf"instances_test.json: .*boxes are 12 to .*{anchors}, as for instances_train.json\)$", test)
    assert re.search(rf"instances_val.json: .*{anchors}, as for instances_train.json\)$", val)


@pytest.mark.parametrize(
    "change, what",
    [
        (dict(bbox=[5, 6, 0, 8]), "annotation 0: its box [5, 6, 0, 8] has no area; finite x, y, width, height are"),
        (dict(bbox=[5, 6, 7, -8]), "annotation 0: its box [5, 6, 7, -8] has no area"),
        (dict(bbox=[90, 6, 10, 8]), "annotation 0: its box [90, 6, 10, 8] extends beyond the image of 64 x 96 pixels"),
        (dict(bbox=[-3, 6, 10, 8]), "extends beyond the image"),
        (dict(bbox=[96, 6, 7, 8]), "its box [96, 6, 7, 8] has no area inside the image of 64 x 96 pixels"),
        (dict(bbox=[95.99999999999999, 6, 1e-20, 8]), "has no area inside the image"),  # the width becomes 0
        (dict(bbox=[1, 2, 3]), "annotation 0: its box is [1, 2, 3]; four numbers"),
        (dict(bbox=[1, 2, 3, float("nan")]), "annotation 0: its box [1, 2, 3, nan] has no area"),
        (dict(category_id=9), "annotation 0: class 9 is unknown; the classes are 3, 7"),
        (dict(image_id=99), "image 99, annotation 0: its image is not in the file"),
        (dict(segmentation=[[5, 5]]), "annotation 0: its segmentation has the polygon [5, 5]; x and y of three points"),
    ],
)
def test_bad_annotation_is_named(coco, capsys, change, what):
    def spoil(split, data):
        if split == "val":
            data["annotations"][0] |= change

    folder = coco(train=3, val=3, test=3, change=spoil)
    code, out = verify(capsys, folder)
    first, *_ = out.splitlines()
    assert code == 1 and first.startswith(f"{folder / 'annotations' / 'instances_val.json'}: image ") and what in first
    assert "image_id" in change or "image 10 (val_0.png)" in first
    assert verify(capsys, folder / "annotations" / "instances_train.json", "--images", folder / "images")[0] == 0


def test_rounded_boxes_and_missing_masks_and_sizes_are_no_problems(coco, capsys):
    def change(split, data):
        data["annotations"][0] |= {"bbox": [86, 6, 10.4, 8], "segmentation": []}  # 0.4 pixels beyond the edge
        data["images"][1]["width"] = None

    assert verify(capsys, coco(train=3, val=3, test=3, change=change))[0] == 0


def test_bad_images_are_named(coco, capsys):
    def spoil(split, data):
        if split == "train":
            data["images"][1]["width"] = 100
            data["annotations"].append(dict(data["annotations"][-1]))

    folder = coco(change=spoil, train=4, val=3, test=3)
    (folder / "images" / "train_0.png").unlink()
    truncated = folder / "images" / "train_2.png"
    truncated.write_bytes(truncated.read_bytes()[:-40])
    code, out = verify(capsys, folder)
    file = folder / "annotations" / "instances_train.json"
    *lines, last, background, _, _, _ = out.splitlines()
    assert code == 1 and last == "4 problems" and len(lines) == 4
    assert "appears twice in annotations" in lines[0]
    missing = folder / "images" / "train_0.png"
    assert lines[1] == f"{file}: image 10 (train_0.png): it cannot be used: there is no file {missing}"
    assert "image 11 (train_1.png)" in lines[2] and "has 64 x 96 pixels, but the annotations say 64 x 100" in lines[2]
    assert "image 12 (train_2.png)" in lines[3] and "cannot be used" in lines[3]
    assert background == f"{file}: training uses 1 image without a box as background, such as image 13 (train_3.png)"


def test_images_without_usable_boxes_are_named(coco, capsys):
    def change(split, data):
        if split == "train":
            first, second = (
                [a for a in data["annotations"] if a["image_id"] == image["id"]] for image in data["images"][:2]
            )
            for annotation in first:
                annotation["bbox"] = [90, 6, 10, 8]  # cut at the edge of the image in training
            for annotation in second:
                annotation["iscrowd"] = 1

    _, out = verify(capsys, coco(train=3, val=3, test=3, change=change))
    assert "(train_0.png), annotation 0: its box [90, 6, 10, 8] extends beyond" in out
    assert "training uses 1 image without a box as background, such as image 11 (train_1.png)" in out


def test_splits_of_other_classes_are_named(coco, capsys):
    def rename(split, data):
        if split == "test":
            data["categories"][0]["name"] = "box"

    folder = coco(train=3, val=3, test=3, change=rename)
    code, out = verify(capsys, folder)
    train, test = (folder / "annotations" / f"instances_{split}.json" for split in ("train", "test"))
    assert code == 1 and out.splitlines()[:2] == [
        f"{test} has the classes disc, box, but {train} has disc, square; all splits need the same classes",
        "1 problem",
    ]
    assert verify(capsys, test, "--images", folder / "images")[0] == 0


def test_wrong_fields_are_named_first(tmp_path, capsys):
    image, box = {"id": 1, "file_name": "a.png"}, {"id": 1, "image_id": "1", "category_id": 2, "bbox": [0, 0, 5, 5]}
    data = {"images": [image], "annotations": [box], "categories": [{"id": 2, "name": "disc"}, {"name": "square"}]}
    (tmp_path / "x.json").write_text(json.dumps(data))
    code, out = verify(capsys, tmp_path / "x.json")
    assert code == 1 and out.splitlines() == [
        f"{tmp_path / 'x.json'}: annotations[0] has the image_id '1'; it must be an integer",
        f"{tmp_path / 'x.json'}: categories[1] has no id; it must be an integer",
        "2 problems",
    ]


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"images": []}',
        '{"images": null, "annotations": [], "categories": []}',
        '{"images": ["a.png"], "annotations": [], "categories": []}',
        '{"images": [], "annotations": [[1, 2]], "categories": []}',
    ],
)
def test_other_formats_are_refused(tmp_path, capsys, content):
    (tmp_path / "x.json").write_text(content)
    code, out = verify(capsys, tmp_path / "x.json")
    assert code == 1 and "x.json: it cannot be read as annotations in COCO's format: " in out


def test_annotations_are_checked_without_their_images_or_other_files(coco, capsys):
    def spoil(split, data):
        if split == "val":
            data["annotations"][0]["bbox"] = [5, 6, 0, 8]

    folder = coco(train=3, val=3, test=3, change=spoil)
    (folder / "images").rename(folder / "elsewhere")
    test = folder / "annotations/instances_test.json"
    test.unlink()
    test.symlink_to("nowhere.json")
    code, out = verify(capsys, folder)
    assert code == 1 and "5 problems" in out  # three splits lack images, one file is missing, and one box is wrong
    assert f"{test}: it cannot be read as annotations in COCO's format: [Errno 2] No such file" in out
    assert "image 10 (val_0.png), annotation 0: its box [5, 6, 0, 8] has no area" in out


def test_missing_data_and_wrong_options_are_refused(tmp_path):
    for words, said in (
        ([tmp_path], ".* holds no data set: expected"),
        ([tmp_path, "--images", tmp_path], "--images is for one annotation file"),
        ([tmp_path / "nowhere"], "there is no file or folder"),
        ([tmp_path, "--min-size", 9, "--max-size", 8], "--min-size is 9, above --max-size, which is 8"),
        (["cells", "--data-dir", tmp_path], "--data-dir is only for the data set coco, but data is cells: leave"),
    ):
        assert re.match(f"error: {said}", exit_code(main, "--task", "detection", *words))


def test_the_data_set_may_be_named_as_for_training(coco, capsys):
    code, out = verify(capsys, "coco", "--data-dir", coco(train=3, val=3, test=3))
    assert code == 0 and "nothing is wrong" in out
