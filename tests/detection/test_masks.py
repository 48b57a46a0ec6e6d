"""Test Mask R-CNN in train, eval, predict and load, on all forms of COCO's masks, and the conversion of PNG masks."""

import json
import shlex

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pycocotools import mask as coco_mask
from torchvision.models.detection.roi_heads import project_masks_on_boxes

import metamix
import metamix.cli.evaluate
from metamix.data.run_lengths import decode_runs
from metamix.detection.coco import find_splits, open_split
from metamix.detection.detectors import build_detector, detect
from metamix.detection.instances import read_objects
from metamix.detection.metric import score
from metamix.detection.objects import decode, paste
from metamix.detection.pictures import draw_image
from metamix.tasks.convert import main as convert
from metamix.tasks.convert import read_labels
from metamix.tasks.predict import main as predict
from metamix.tasks.verify import main as verify
from tests.helpers import shapes
from tests.helpers.advice import exit_code
from tests.helpers.detectors import DETECTION
from tests.helpers.running import metrics, train


def inside(category, x, y, side):
    """Return the mask of a square or a disc, (64, 96)."""
    pixels = np.array(shapes.draw([(category, x, y, side)]))
    return (pixels.max(2) > 200).astype(np.uint8)


def vary_forms(split, data):
    """Store masks in turn as polygons, run lengths in text and run lengths in lists; make the second object a crowd."""
    for i, annotation in enumerate(data["annotations"]):
        x, y, side, _ = annotation["bbox"]
        runs = coco_mask.encode(np.asfortranarray(inside(annotation["category_id"], x, y, side)))
        text = runs["counts"].decode()
        annotation["iscrowd"] = int(i == 1)
        if i % 3:
            annotation["segmentation"] = {"size": [64, 96], "counts": text if i % 3 == 1 else decode_runs(text)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masks") / "shapes"
    return shapes.write(folder, train=4, val=2, test=3, change=vary_forms)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "masks"
    words = "--detector mask_rcnn --epochs 1 --batch-size 2 --flip-vertical 0.5 --scales 0.9,1.1 "
    words += "--detector-args '{box_detections_per_img: 8, box_batch_size_per_image: 32}'"
    train(*DETECTION, *shlex.split(words), "--data-dir", data, "--output", folder)
    return folder


def test_masks_of_all_forms_are_read_and_scored(data):
    """Annotated masks that are given as detections score an AP of 100. The detection of the crowd is ignored."""
    split = open_split(find_splits(data), "train", masks=True)
    detections = []
    for number, annotation in split.coco.anns.items():
        runs = split.coco.annToRLE(annotation)
        where = {key: annotation[key] for key in ("image_id", "category_id")}
        detections.append(where | {"segmentation": runs, "score": 0.9})
        if number % 3 != 1:  # only run lengths: a disc's polygon is the square around it
            assert np.array_equal(decode(runs), inside(annotation["category_id"], *map(int, annotation["bbox"][:3])))
    assert [annotation["iscrowd"] for annotation in split.coco.anns.values()].count(1) == 1
    assert score(split, detections, "segm").summary["AP"] == pytest.approx(100)


def test_a_run_scores_boxes_and_masks(trained, data, tmp_path, capsys):
    summary = json.loads((trained / "summary.json").read_text())
    kinds = [name for name in summary["scores"] if not name.endswith(("small", "medium", "large"))]
    assert kinds == ["AP", "AP50", "AP75", "mask_AP", "mask_AP50", "mask_AP75"]
    (row,) = metrics(trained)
    assert float(row["train_mask_loss"]) > 0 and 0 <= float(row["holdout_mask_AP75"]) <= 100
    scores = json.loads((trained / "test_scores.json").read_text())
    assert scores["masks"]["all"]["AP50"] == pytest.approx(summary["mask_AP50"], abs=1e-3)
    assert scores["masks"]["classes"].keys() == scores["classes"].keys() == {"disc", "square"}

    words = f"--data-dir {data} --checkpoint {trained} --device cpu --amp none --workers 0 --output {tmp_path}"
    metamix.cli.evaluate.main(shlex.split(words))
    printed = capsys.readouterr().out.splitlines()
    assert printed.index("boxes") < printed.index("masks") and sum(line.startswith("square ") for line in printed) == 2
    result = json.loads((tmp_path / "result.json").read_text())
    assert all(result[name] == summary[name] for name in summary["scores"])
    assert result["by_class"]["disc"].keys() == {"AP", "AP50", "mask_AP", "mask_AP50"}


def test_predict_and_load_return_masks(trained, data, tmp_path):
    image = data / "images" / "test_0.png"
    words = "--threshold", 0, "--output", tmp_path, "--device", "cpu"
    assert exit_code(predict, image, "--checkpoint", trained, *words) == 0
    (record,) = json.loads((tmp_path / "predictions.json").read_text())
    (objects,) = metamix.load(trained).predict([image], threshold=0)
    assert len(record["objects"]) == 8 and objects["masks"].shape == (8, 1, 64, 96)
    assert objects["masks"].dtype == torch.bool and set(objects) == {"boxes", "labels", "scores", "masks"}
    for entry, mask in zip(record["objects"], objects["masks"], strict=True):
        assert np.array_equal(coco_mask.decode(entry["mask"]), mask[0])


def test_detect_returns_run_lengths_in_place_of_the_masks_of_torchvision():
    """Run lengths need the array of one mask at a time; torchvision makes the arrays of all masks at once."""
    torch.manual_seed(0)
    args = dict(out_indices=(1, 2), extra="none", out_channels=32, depths=(1, 1, 1), dims=(8, 8, 16))
    model = build_detector(
        "mask_rcnn", backbone="metaformer_pooling_nano", num_classes=2, backbone_args=args, min_size=64,
        box_detections_per_img=5, box_score_thresh=0.0,
    ).eval()  # fmt: skip
    image = torch.rand(3, 70, 90)
    with torch.no_grad():
        (expected,) = model([image])
        objects = detect(model, image)
        (again,) = model([image])
    masks, theirs = np.stack([decode(runs) for runs in objects["runs"]]), expected["masks"][:, 0].numpy() >= 0.5
    assert masks.shape == theirs.shape and masks.any() and not masks.all()
    assert (masks & theirs).sum() > 0.85 * (masks | theirs).sum()  # torchvision's are a pixel too large
    assert set(again) == set(expected) and "masks" not in objects
    assert paste(torch.zeros(0, 1, 28, 28), torch.zeros(0, 4), (70, 90), (70, 90)) == []


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("radius", [5, 12, 30])
def test_pasted_masks_are_the_masks_that_torchvision_trains_on(radius, scale):
    """torchvision's own function pastes masks that overlap with 80 to 97 % of these discs."""
    side = 96 * scale
    places = (torch.arange(side) + 0.5) / scale
    disc = (places - 43.3) ** 2 + ((places - 51.8) ** 2)[:, None] < radius**2
    box = torch.tensor([[43.3 - radius, 51.8 - radius, 43.3 + radius, 51.8 + radius]]) * scale
    resized = F.interpolate(disc[None, None].float(), (96, 96), mode="area")[0]
    learned = project_masks_on_boxes(resized, box / scale, torch.tensor([0]), 28)
    (runs,) = paste(learned[:, None], box, (side, side), (96, 96))
    pasted = torch.from_numpy(decode(runs))
    assert (pasted & disc).sum() > 0.98 * (pasted | disc).sum()


def test_a_mask_without_the_centre_of_a_pixel_gets_one_pixel():
    box = torch.tensor([[9.6, 3.6, 9.9, 3.8]])
    (runs,) = paste(torch.ones(1, 1, 28, 28), box, (6, 10), (6, 10))
    assert np.argwhere(decode(runs)).tolist() == [[4, 9]]


@pytest.mark.usefixtures("rendered_figures")
def test_masks_are_drawn_in_the_colour_of_their_class(tmp_path):
    pixels = torch.zeros(3, 60, 80, dtype=torch.uint8)
    square = np.zeros((60, 80), dtype=np.uint8)
    square[20:40, 30:60] = 1
    runs = [coco_mask.encode(np.asfortranarray(square))]
    objects = {"boxes": torch.tensor([[30.0, 20, 60, 40]]), "labels": torch.tensor([1]), "runs": runs}
    draw_image(tmp_path / "a.png", pixels, objects, ["a"])
    drawn = np.array(Image.open(tmp_path / "a.png").convert("RGB"))
    assert drawn[30, 45].tolist() == [15, 59, 90] and drawn[50, 45].tolist() == [0, 0, 0]
    assert not pixels.any()  # the caller's image is not changed


def test_png_masks_of_instance_numbers_become_a_data_set(tmp_path, capsys):
    source, out = tmp_path / "PennFudan", tmp_path / "set"
    images, masks = source / "PNGImages", source / "PedMasks"
    images.mkdir(parents=True)
    masks.mkdir()
    numbers = np.zeros((64, 96), dtype=np.uint8)
    numbers[10:20, 5:40], numbers[30:50, 60:90], numbers[33:35, 70:75] = 1, 7, 1  # object 1 has two parts
    for i in range(5):
        shapes.draw([]).save(images / f"{i}.jpg")
        Image.fromarray(numbers * (i != 4)).save(masks / f"{i}_mask.png")
    Image.fromarray(numbers).save(masks / "a\x1b_mask.png")

    convert(["instances", str(source), str(out)])
    printed = capsys.readouterr().out
    assert printed.startswith(f"{out}: 4 train, 1 val images, 1 class, 8 boxes\n")
    assert f"note: masks without an image were left out: {masks}/a\\x1b_mask.png\n" in printed
    assert exit_code(verify, out) == 0
    for split in (open_split(find_splits(out), name, masks=True) for name in ("train", "val")):
        for _, target in (split.read(i) for i in range(len(split)) if not split.path(i).endswith("4.jpg")):
            assert split.classes == ("object",) and target["boxes"].tolist() == [[5, 10, 75, 35], [60, 30, 90, 50]]
            assert [np.array_equal(decode(runs), numbers == n) for runs, n in zip(target["runs"], (1, 7))] == [True] * 2
    written = json.loads((out / "annotations" / "instances_train.json").read_text())["annotations"]
    assert {annotation["area"] for annotation in written} == {360, 590}

    def said():
        return exit_code(convert, "instances", source, tmp_path / "other")

    Image.new("L", (96, 64)).save(masks / "3-mask.png")
    assert f"{masks / '3-mask.png'} and {masks / '3_mask.png'} are both masks with the name PedMasks/3" in said()
    Image.new("L", (64, 96)).save(masks / "3_mask.png")
    (masks / "3-mask.png").unlink()
    assert f"{masks / '3_mask.png'} has (96, 64) pixels (height, width), but {images / '3.jpg'} has (64, 96)" in said()
    Image.new("RGB", (96, 64)).save(masks / "2_mask.png")
    assert "2_mask.png is in colour or a JPEG; a mask has the number of" in said()
    page = Image.new("L", (96, 64), 1)
    page.save(masks / "2_mask.png", "TIFF", save_all=True, append_images=[page])
    assert "2_mask.png: it holds 2 images, but a mask is a single image" in said()
    (overview := Image.new("L", (48, 32))).encoderinfo = {"tiffinfo": {254: 1}}
    page.save(masks / "2_mask.png", "TIFF", save_all=True, append_images=[overview])
    assert len(list(read_objects(masks / "2_mask.png", images / "2.jpg", "object"))) == 1
    for kind, *values in ("u1", 127, 255), ("u1", *range(1, 256)), ("u2", 3, 8, 255):
        Image.fromarray(np.resize(np.array([0, *values], kind), (64, 96))).save(masks / "2_mask.png")
        assert len(list(read_objects(masks / "2_mask.png", images / "2.jpg", "object"))) == len(values)
    for values in [1, 2, 255], [7, 64, 128, 255], [*range(1, 256), *[255] * 300]:
        Image.fromarray(np.resize(np.array([0, *values], np.uint8), (64, 96))).save(masks / "2_mask.png")
        assert f"2_mask.png has the values {values[0]}, {values[1]}, {values[2]}" in said()
    for mask in masks.iterdir():
        mask.unlink()
    assert f"there is no image with a box; labels are expected in {source}. images without a mask were left" in said()


def test_folders_of_masks_name_classes(tmp_path):
    """A folder does not name a class if it also holds images or names a split."""
    masks = ["masks/cell/val/a", "masks/dust/val/a", "masks/Train/c", "masks/scene/b"]
    for name in (*masks, "images/val/a", "train/c", "scene/b"):
        file = tmp_path / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L" if "masks" in name else "RGB", (9, 9), 1).save(file)
    labels = read_labels("instances", tmp_path)
    boxes = {sample.name: (sample.split, [box.label for box in sample.label[2]]) for sample in labels.samples}
    assert boxes == {
        "a.png": ("val", ["cell", "dust"]),
        "scene/b.png": ("", ["object"]),
        "c.png": ("train", ["object"]),
    }
    assert labels.classes == ["cell", "dust", "object"]


def test_object_masks_of_voc_are_read_without_their_borders(tmp_path):
    numbers = np.array([[1, 1, 255, 2], [1, 255, 2, 2]], dtype=np.uint8)
    for place, values in ("SegmentationClass", numbers > 0), ("SegmentationObject", numbers), ("JPEGImages", numbers):
        (tmp_path / place).mkdir()
        Image.fromarray(values.astype(np.uint8)).save(tmp_path / place / "a.png")
    (sample,) = read_labels("instances", tmp_path).samples
    assert [box.corners for box in sample.label[2]] == [(0, 0, 2, 2), (2, 0, 4, 2)]


def test_verify_notes_annotations_without_a_mask(coco, capsys):
    def bare(split, data):
        for annotation in data["annotations"]:
            if split == "val" or (split == "train" and annotation["id"] == 1):
                del annotation["segmentation"]

    assert exit_code(verify, coco(train=3, val=3, test=3, change=bare)) == 0  # detectors of boxes need no masks
    (note,) = [line for line in capsys.readouterr().out.splitlines() if "mask_rcnn" in line]
    assert note.endswith(
        "instances_train.json: mask_rcnn also needs a segmentation for 1 annotation, such as annotation 1"
    )


def test_verify_does_not_note_missing_masks_of_annotations_that_training_leaves_out(coco, capsys):
    def unusable(split, data):
        data["annotations"][0]["category_id"] = 99
        del data["annotations"][0]["segmentation"]

    assert exit_code(verify, coco(train=3, val=3, change=unusable)) == 1
    assert "mask_rcnn" not in capsys.readouterr().out
