"""Test data sets in COCO's format, transforms, and batches that depend on (seed, epoch, index) alone."""

import json
import math
import os
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from metamix.data import CorruptImage
from metamix.detection.coco import find_splits, open_split
from metamix.detection.data import DetectionData, TrainTransform
from metamix.detection.objects import decode, encode
from metamix.detection.task import DetectionOptions
from metamix.detection.verify import VerifyAnnotations
from tests.helpers.advice import follow_verify
from tests.helpers.batches import share_a_sample
from tests.helpers.shapes import DISC, SQUARE


@pytest.fixture
def options(tmp_path):
    return DetectionOptions(
        data_dir=str(tmp_path / "shapes"), min_size=64, max_size=120, scales=(0.8, 1.25), flip=0.5, flip_vertical=0.5,
        photometric=0.5, iou_crop=0.5, workers=0,
    )  # fmt: skip


def find_problems(annotations, images):
    return list(VerifyAnnotations(data=str(annotations), images=images).problems())


def same(a, b):
    images = zip(a["image"], b["image"], strict=True)
    targets = zip(a["target"], b["target"], strict=True)
    return all(torch.equal(x, y) for x, y in images) and all(
        torch.equal(x[key], y[key]) for x, y in targets for key in ("boxes", "labels")
    )


def test_read_returns_the_written_images_and_objects(coco):
    def one_crowd(split, data):
        data["annotations"][1]["iscrowd"] = 1

    split = open_split(find_splits(coco(change=one_crowd)), "train", masks=True)
    assert split.classes == ("disc", "square") and split.category_ids == [DISC, SQUARE]
    assert split.ids == [10, 11, 12, 13, 14, 15, 16, 17]
    total = 0
    for i in range(len(split)):
        image, target = split.read(i)
        assert image.shape == (3, 64, 96) and image.dtype == torch.uint8 and target["boxes"].dtype == torch.float32
        assert len(target["boxes"]) == len(target["labels"]) == len(target["runs"])
        masks = map(decode, target["runs"])
        for (x0, y0, x1, y1), label, mask in zip(target["boxes"].int().tolist(), target["labels"], masks):
            colour = image[:, (y0 + y1) // 2, (x0 + x1) // 2].tolist()
            assert colour == {1: [30, 60, 250], 2: [250, 140, 20]}[label.item()]
            assert mask[y0:y1, x0:x1].all() and mask.sum() == (y1 - y0) * (x1 - x0)
        total += len(target["boxes"])
    assert total == len(split.coco.anns) - 1  # training leaves out the crowd
    assert len(split.read(3)[1]["boxes"]) == 0 and split.read(3)[1]["runs"] == []


def test_training_transforms_move_boxes_with_the_pixels(coco, options):
    """The centre of each box still shows the colour of its class."""
    coco()
    loader = DetectionData(replace(options, photometric=0.0)).train_loader(4, 0, 1, 1)
    seen = 0
    for epoch in range(4):
        for batch in loader.epoch(epoch):
            for image, target in zip(batch["image"], batch["target"]):
                height, width = image.shape[-2:]
                assert min(height, width) >= 50 and max(height, width) <= 150
                for box, label in zip(target["boxes"], target["labels"]):
                    assert box[0] >= 0 and box[1] >= 0 and box[2] <= width and box[3] <= height
                    x, y = ((box[:2] + box[2:]) / 2).int().tolist()
                    red, _, blue = image[:, min(y, height - 1), min(x, width - 1)].tolist()
                    assert (red > 150 and blue < 100) if label == 2 else (blue > 150 and red < 100)
                    seen += 1
    assert seen > 20


def test_every_augmentation_option_has_its_effect(coco, options):
    split = open_split(find_splits(coco()), "train")
    image, target = split.read(0)
    x1, y1, x2, y2 = target["boxes"].as_subclass(torch.Tensor).T
    plain = dict(scales=(1.0, 1.0), flip=0.0, flip_vertical=0.0, photometric=0.0, iou_crop=0.0)

    def augment(seed=0, **changes):
        torch.manual_seed(seed)
        made, objects = TrainTransform(replace(options, **plain | changes))(split.read(0))
        return made, objects["boxes"].as_subclass(torch.Tensor)

    def assert_is(made, image, *sides):
        assert torch.equal(made[0], image) and torch.equal(made[1], torch.stack(sides, 1))

    for seed in range(8):
        assert_is(augment(seed), image, x1, y1, x2, y2)
    assert_is(augment(flip=1.0), image.flip(-1), 96 - x2, y1, 96 - x1, y2)
    assert_is(augment(flip_vertical=1.0), image.flip(-2), x1, 64 - y2, x2, 64 - y1)
    larger = augment(scales=(2.0, 2.0))  # the limit of the longer side is doubled too
    assert larger[0].shape == (3, 128, 192) and torch.equal(larger[1], 2 * target["boxes"])
    coloured = augment(photometric=1.0)
    assert not torch.equal(coloured[0], image) and torch.equal(coloured[1], target["boxes"])
    assert any(augment(seed, iou_crop=1.0)[0].shape != image.shape for seed in range(8))


def test_boxes_at_the_edge_are_kept(coco, options):
    """Resizing to 57 rows would move the lower side of a box to 57.000004, outside of the image."""
    coco()
    split = open_split(find_splits(options.data_dir), "train")
    transform = TrainTransform(replace(options, iou_crop=1.0))
    for seed in range(71):
        torch.manual_seed(seed)
        assert len(transform(split.read(seed % 3))[1]["boxes"])


@pytest.mark.parametrize("seed", range(8))
def test_masks_equal_the_masks_that_torchvision_makes_of_arrays(coco, options, seed):
    """Masks are drawn only at the final size, from run lengths, which saves memory for large images."""
    split = open_split(find_splits(coco()), "train", masks=True)
    image, target = split.read(seed % 3)
    arrays = torch.stack([torch.from_numpy(decode(runs)).byte() for runs in target["runs"]])
    transform = TrainTransform(replace(options, flip=0.5, iou_crop=1.0))
    torch.manual_seed(seed)
    expected = dict(target, masks=tv_tensors.Mask(arrays))
    expected = v2.SanitizeBoundingBoxes()(transform.transform((image, expected))[1])
    torch.manual_seed(seed)
    _, made = transform((image, target))
    assert made["masks"].dtype == torch.uint8 and set(made) == {"boxes", "labels", "masks"}
    assert all(torch.equal(made[key], expected[key]) for key in made) and made["masks"].any()


def test_masks_lie_in_their_boxes_after_the_transform(options):
    """Masks that torchvision resizes are 0.4 pixels further right and down on average."""
    mask = torch.zeros(64, 96).byte()
    mask[10:41, 30:61] = 1
    box = tv_tensors.BoundingBoxes([[30.0, 10, 61, 41]], format="XYXY", canvas_size=(64, 96))
    moved = []
    for size in range(33, 63):
        transform = TrainTransform(replace(options, min_size=size, scales=(1.0, 1.0), flip=0.0, photometric=0.0))
        objects = {"boxes": box, "labels": torch.tensor([1]), "runs": [encode(mask.numpy())]}
        _, made = transform((tv_tensors.Image(mask.expand(3, -1, -1)), objects))
        rows, columns = made["masks"][0].nonzero().T
        drawn = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        moved.append(drawn - made["boxes"][0].as_subclass(torch.Tensor))
    assert torch.stack(moved).mean(0).abs().max() < 0.1


@pytest.mark.parametrize("height", [1, 2, 3])
def test_images_of_a_few_rows_can_be_cropped(options, height):
    transform = TrainTransform(replace(options, iou_crop=1.0))
    for seed in range(20):
        torch.manual_seed(seed)
        box = tv_tensors.BoundingBoxes([[8.0, 0, 40, height]], format="XYXY", canvas_size=(height, 96))
        image = tv_tensors.Image(torch.zeros(3, height, 96).byte())
        assert transform((image, {"boxes": box, "labels": torch.tensor([1])}))[0].numel()


def test_samples_depend_on_seed_epoch_and_index_alone(coco, options):
    coco()

    def batches(batch_size=4, rank=0, world_size=1, seed=0, workers=0, epoch=1, start=0):
        data = DetectionData(replace(options, workers=workers, train_on=("train", "val")))
        loader = data.train_loader(batch_size, rank, world_size, seed)
        assert len(loader) == 12 // batch_size
        return list(loader.epoch(epoch, start))

    whole = batches()
    torch.manual_seed(5)
    assert len(whole) == 3
    assert all(same(*pair) for pair in zip(whole, batches(workers=1), strict=True))
    assert all(same(*pair) for pair in zip(whole[1:], batches(start=1), strict=True))
    halves = [batches(rank=rank, world_size=2) for rank in (0, 1)]
    for batch, *parts in zip(whole, *halves, strict=True):
        assert same(batch, {key: [*parts[0][key], *parts[1][key]] for key in ("image", "target")})
    for others in (batches(seed=1), batches(epoch=2)):
        assert not share_a_sample(whole, others)


def test_eval_loader_yields_every_image_once_and_unchanged(coco, options):
    coco(test=5)
    seen = []
    for rank in (0, 1):
        for batch in DetectionData(options).eval_loaders(4, rank, 2)["test"]:
            seen += batch["index"].tolist()
            assert {image.shape for image in batch["image"]} == {(3, 64, 96)}
            assert type(batch["image"][0]) is torch.Tensor  # arithmetic on torchvision's subclasses warns
    assert seen == [0, 1, 2, 3, 4]


def test_training_images_of_a_trained_model_are_not_scored(coco, options):
    coco()
    data = DetectionData(replace(options, train_on=("train", "test")), ("disc", "square"))
    assert len(data.training_images()) == 8


def test_training_images_are_scaled_to_the_range_0_to_1(coco, options):
    coco()
    batch = {"image": [torch.tensor([0, 255], dtype=torch.uint8)]}
    assert DetectionData(options).augment(batch, 0, 0)["image"][0].tolist() == [0, 1]


def test_find_splits_takes_the_layout_and_years_of_coco(tmp_path):
    (tmp_path / "annotations").mkdir()
    for split in "train2017", "val2017":
        (tmp_path / split).mkdir()
        (tmp_path / "annotations" / f"instances_{split}.json").touch()
    assert find_splits(tmp_path) == {
        s: (tmp_path / f"annotations/instances_{s}2017.json", tmp_path / f"{s}2017") for s in ("train", "val")
    }
    (tmp_path / "images").mkdir()
    for fold in "fold0", "fold1":
        (tmp_path / "annotations" / f"instances_{fold}.json").touch()
    assert set(find_splits(tmp_path)) == {"fold0", "fold1", "train", "val"}
    (tmp_path / "annotations" / "instances_train2014.json").touch()
    with pytest.raises(ValueError, match="train2014.json and .*train2017.json both belong to split 'train': keep"):
        find_splits(tmp_path)


def test_broken_training_image_is_replaced_and_named(coco, options, tmp_path, caplog, capsys):
    folder = coco().rename(tmp_path / "my shapes")
    options = replace(options, data_dir=str(folder))
    (folder / "images" / "train_0.png").write_bytes((folder / "images" / "train_0.png").read_bytes()[:200])
    (folder / "images" / "train_1.png").unlink()
    batches = list(DetectionData(replace(options, corrupt_limit=0.3)).train_loader(8, 0, 1, 0).epoch(0))
    assert len(batches[0]["image"]) == 8
    assert "train_0.png" in caplog.text and "train_1.png" in caplog.text
    with pytest.raises(CorruptImage, match="cannot be read.*metamix verify '.*my shapes'$") as error:
        list(DetectionData(replace(options, corrupt_limit=0.2)).train_loader(8, 0, 1, 0).epoch(0))
    assert follow_verify(error.value) == 1
    said = capsys.readouterr().out
    assert "train_0.png" in said and "train_1.png" in said


def test_unreadable_eval_image_is_marked(coco, options):
    folder = coco()
    (folder / "images" / "test_1.png").write_bytes(b"no image")
    (batch,) = DetectionData(replace(options, corrupt_limit=0.5)).eval_loaders(4, 0, 1)["test"]
    assert batch["index"].tolist() == [0, -1, 2, 3] and torch.equal(batch["image"][1], batch["image"][2])


def test_exif_orientation_is_applied_before_boxes(coco):
    folder = coco()
    path = folder / "images" / "train_0.jpg"
    pixels = np.zeros((96, 64, 3), dtype=np.uint8)  # stored on its side: 96 pixels high, 64 wide
    pixels[:48] = 255
    orientation = Image.Exif()
    orientation[0x0112] = 6  # readers turn the image by 90 degrees
    Image.fromarray(pixels).save(path, exif=orientation)
    path.rename(folder / "images" / "train_0.png")
    image, target = open_split(find_splits(folder), "train").read(0)
    assert image.shape == (3, 64, 96) == (3, *target["boxes"].canvas_size)
    assert image[..., 60:].float().mean() > 250 and image[..., :36].float().mean() < 5


@pytest.mark.parametrize("height, width", [(64, 48), (32, 96)])
def test_an_image_whose_size_differs_from_the_annotations_is_refused(coco, height, width):
    folder = coco()
    Image.new("RGB", (width, height)).save(folder / "images" / "train_0.png")
    words = f"train_0.png has {height} x {width} pixels, but the annotations say 64 x 96"
    with pytest.raises(CorruptImage, match=words):
        open_split(find_splits(folder), "train").read(0)


def test_folders_without_a_data_set_are_refused(tmp_path, coco):
    with pytest.raises(FileNotFoundError, match="holds no data set: expected .*instances_train.json"):
        find_splits(tmp_path)
    folder = coco()
    (folder / "annotations" / "instances_more.json").touch()
    (folder / "images").rename(folder / "train")
    with pytest.raises(FileNotFoundError, match="the images of .*more.json are missing: .*/more or .*/images"):
        open_split(find_splits(folder), "more")
    assert len(open_split(find_splits(folder), "train"))  # a split that is not opened may lack images
    (folder / "train").rename(folder / "images")
    with pytest.raises(ValueError, match="no split 'trian'; did you mean 'train'"):
        open_split(find_splits(folder), "trian")
    file = folder / "annotations" / "instances_val.json"
    file.write_text(file.read_text().replace('"image_id"', '"picture"'))
    with pytest.raises(ValueError, match=r"not in COCO's format: annotations\[0\] has no image_id; .*metamix verify"):
        open_split(find_splits(folder), "val")


def change_first(key, **fields):
    def change(split, data):
        data[key][0] |= fields

    return change


@pytest.mark.parametrize(
    "key, fields, words",
    [
        # pycocotools would give the image of id "10" the boxes of the images "1" and "0"
        ("images", dict(id="10"), r"images\[0\] has the id '10'; it must be an integer"),
        ("images", dict(id=True), r"images\[0\] has the id True; it must be an integer"),
        ("images", dict(file_name=None), r"images\[0\] has no file_name; it must be a string"),
        ("images", dict(width="96"), r"images\[0\] has the width '96'; it must be a number, if it is given"),
        ("images", dict(width=math.nan), r"images\[0\] has the width nan; it must be a number of pixels"),
        ("images", dict(height=-64), r"images\[0\] has the height -64; it must be a number of pixels"),
        ("images", dict(height=10**400), r"images\[0\] has the height 10+; it must be a number of pixels"),
        ("annotations", dict(image_id="10"), r"annotations\[0\] has the image_id '10'; it must be an integer"),
        ("annotations", dict(id=1), "the id 1 appears twice in annotations"),
        ("annotations", dict(area="big"), r"annotations\[0\] has the area 'big'; it must be a number from 0 to 10,000"),
        # pycocotools would not score these objects
        ("annotations", dict(area=-400), r"annotations\[0\] has the area -400; it must be .*leave it out to compute"),
        ("annotations", dict(area=1e11), r"annotations\[0\] has the area 100000000000.0; it must be"),
        ("annotations", dict(area=math.nan), r"annotations\[0\] has the area nan; it must be"),
        ("annotations", dict(iscrowd="no"), r"annotations\[0\] has the iscrowd 'no'; it must be 0 or 1"),
        ("categories", dict(name=None), r"categories\[0\] has no name; it must be a string"),
        ("categories", dict(id=DISC), "the id 3 appears twice in categories"),
        ("categories", dict(name="disc"), "the name disc appears twice in categories"),
    ],
)
def test_training_and_verify_refuse_wrong_fields_in_the_same_words(coco, key, fields, words):
    folder = coco(train=1, val=1, test=1, change=change_first(key, **fields))
    annotations, images = find_splits(folder)["train"]
    said = f"train.json is not in COCO's format: .*{words}.*To list all problems: .*verify .*train.json --images"
    with pytest.raises(ValueError, match=said):
        open_split(find_splits(folder), "train")
    assert any(re.search(words, what) for what in find_problems(annotations, images))


def test_the_verify_command_in_an_error_can_be_pasted(coco):
    folder = coco(train=1, val=1, test=1, change=change_first("images", id="10"))
    folder = folder.rename(folder.with_name("two words"))
    with pytest.raises(ValueError) as error:
        open_split(find_splits(folder), "train")
    assert follow_verify(error.value) == 1


@pytest.mark.parametrize(
    "given, box, area",
    [
        (None, (5, 6, 7, 8), 56),
        (None, (5, 6, 1e6, 1e6), 1e10),  # pycocotools would not score a larger object
        (0, (5, 6, 7, 8), 0),  # as in COCO's own files
    ],
)
def test_missing_area_and_iscrowd_are_added(coco, given, box, area):
    change = change_first("annotations", area=given, iscrowd=None, bbox=box)
    first = open_split(find_splits(coco(change=change)), "train").coco.anns[1]
    assert first["area"] == area and first["iscrowd"] == 0


def test_images_are_at_least_one_pixel(coco, options):
    tiny = replace(options, scales=(0.001, 0.02), iou_crop=0.0)
    coco()
    (batch,) = DetectionData(tiny).train_loader(8, 0, 1, 0).epoch(0)
    assert {image.shape[1] for image in batch["image"]} == {1}


@pytest.mark.parametrize("height, width", [(1, 800), (800, 1)])
def test_strips_are_at_least_one_pixel(options, height, width):
    image = tv_tensors.Image(torch.zeros(3, height, width, dtype=torch.uint8))
    boxes = tv_tensors.BoundingBoxes([[0.0, 0, width, height]], format="XYXY", canvas_size=(height, width))
    made, target = TrainTransform(replace(options, iou_crop=0.0))(
        (image, {"boxes": boxes, "labels": torch.tensor([1])})
    )
    assert min(made.shape[-2:]) == 1 and len(target["boxes"]) == 1


@pytest.mark.parametrize(
    "key, fields, words",
    [
        ("images", dict(width=None), "such as 0: its image 10 has no width and height in pixels. mask_rcnn"),
        ("images", dict(height=64.0), "its image 10 has no width and height in pixels"),
        ("annotations", dict(segmentation=None), "such as 0: it has neither a polygon of three points or more nor"),
        ("annotations", dict(segmentation=[[5, 5]]), "such as 0: it has neither a polygon of three points or more nor"),
        ("annotations", dict(segmentation=[[1, 1, 9, 1, 9, 9, 1]]), r"has the polygon \[1, 1, 9, 1, 9, 9, 1\]"),
        ("annotations", dict(segmentation=[1, 1, 9, 1, 9, 9]), "has the polygon 1; x and y of three points or more"),
        ("annotations", dict(segmentation=[[0, 0, 96, 64] * 500]), "whose outline is over 1,000 times as long as the"),
        ("annotations", dict(segmentation=[[1, 1, 9, 1, 9, -97]]), "has a polygon with a point far outside"),
        ("annotations", dict(segmentation=[[1, 1, 9, 1, 9, math.nan]]), "has a polygon with a point far outside"),
        ("annotations", dict(segmentation=[[1, 1, 9, 1, 9, 10**400]]), "has a polygon with a point far outside"),
        ("annotations", dict(segmentation="x"), "its segmentation is 'x'; polygons or run lengths are needed"),
        ("annotations", dict(segmentation=dict(size=[64, 96])), "needs counts: a list of integers"),
        ("annotations", dict(segmentation=dict(size=[9, 9], counts=[81])), r"\[9, 9\], but the image has \[64, 96"),
        ("annotations", dict(segmentation=dict(size=[64, 96], counts=[9, 9])), "counts 18 pixels, .* has 6144"),
        ("annotations", dict(segmentation=dict(size=[64, 96], counts="")), "counts 0 pixels, .* has 6144"),
        ("annotations", dict(segmentation=dict(size=[64, 96], counts="000")), "counts 0 pixels, .* has 6144"),
        ("annotations", dict(segmentation=dict(size=[64, 96], counts="zzzzzz")), "COCO's text form that are damaged"),
        ("annotations", dict(segmentation=dict(size=[64, 96], counts="0P")), "COCO's text form that are damaged"),
        ("annotations", dict(segmentation=dict(size=[64, 96], counts="O0")), "COCO's text form that are damaged"),
        ("annotations", dict(segmentation=dict(size=[64, 96], counts="é")), "COCO's text form that are damaged"),
    ],
)
def test_segmentations_that_cannot_be_drawn_are_refused(coco, key, fields, words):
    splits = find_splits(coco(train=2, val=2, test=2, change=change_first(key, **fields)))
    assert open_split(splits, "train").objects
    with pytest.raises(ValueError, match=words + ".* use faster_rcnn"):
        open_split(splits, "train", masks=True)


def test_polygon_of_two_points_adds_nothing_to_a_mask(coco):
    square = [10, 10, 20, 10, 20, 20, 10, 20]
    change = change_first("annotations", segmentation=[[5, 5, 9, 9], square])
    split = open_split(find_splits(coco(change=change)), "train", masks=True)
    assert decode(split.read(0)[1]["runs"][0]).sum() == 100


@pytest.mark.parametrize("name", ["../secret.png", "a/../../secret.png", "/etc/passwd", "..", "{tmp}/secret.png"])
def test_file_names_outside_the_image_folder_are_refused(coco, tmp_path, name):
    Image.new("RGB", (96, 64)).save(tmp_path / "secret.png")
    name = name.replace("{tmp}", str(tmp_path))
    folder = coco(train=2, val=1, test=1, change=change_first("images", file_name=name))
    words = re.escape(f"images[0] has the file_name {name!r}; it must be a path inside the image folder")
    with pytest.raises(ValueError, match=words):
        open_split(find_splits(folder), "train")
    assert [bool(re.search(words, what)) for what in find_problems(*find_splits(folder)["train"])] == [True]


def make_link_out(path):
    Image.new("RGB", (96, 64)).save(path.parents[2] / "secret.png")
    path.symlink_to(path.parents[2] / "secret.png")


def make_large_file(path):
    with open(path, "wb") as file:
        file.truncate(2**40)  # a sparse file


@pytest.mark.parametrize(
    "make, words",
    [
        (make_link_out, "test_0.png leads out of .*images, to .*secret.png: copy the file into"),
        (lambda path: path.symlink_to("/dev/zero"), "leads out of .*images, to /dev/zero"),
        (lambda path: path.symlink_to(path), "test_0.png"),
        (os.mkfifo, "test_0.png: not a regular file"),
        (lambda path: path.mkdir(), "test_0.png"),
        (make_large_file, "test_0.png: it has 1,099,511,627,776 bytes, but images may have 268,435,456 at most"),
    ],
    ids=["link out", "device", "link to itself", "pipe", "folder", "too large"],
)
def test_files_that_are_not_images_of_the_folder_are_not_read(coco, options, make, words):
    folder = coco(train=1, val=1, test=3)
    path = folder / "images" / "test_0.png"
    path.unlink()
    make(path)
    split = open_split(find_splits(folder), "test")
    with pytest.raises(CorruptImage, match=words):
        split.read(0)
    (batch,) = DetectionData(replace(options, corrupt_limit=0.5)).eval_loaders(3, 0, 1)["test"]
    assert batch["index"].tolist() == [-1, 1, 2]
    problems = [what for what in find_problems(*find_splits(folder)["test"]) if "test_0.png" in what]
    assert len(problems) == 1 and re.search("cannot be used: .*" + words, problems[0])


def test_image_folder_and_images_may_be_links(coco, tmp_path):
    """The commands for BCCD make the image folder a link. A link to another image of the folder is read too."""
    folder = coco(train=2, val=1, test=1)
    (folder / "images").rename(tmp_path / "elsewhere")
    (folder / "images").symlink_to(tmp_path / "elsewhere")
    (folder / "images" / "train_1.png").unlink()
    (folder / "images" / "train_1.png").symlink_to("train_0.png")
    split = open_split(find_splits(folder), "train")
    assert split.missing_images() == [] and torch.equal(split.read(0)[0], split.read(1)[0])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_annotations_with_a_byte_order_mark_are_read(coco, encoding):
    folder = coco(train=2, val=1, test=1)
    file = folder / "annotations" / "instances_train.json"
    file.write_text(file.read_text(), encoding=encoding)
    assert len(open_split(find_splits(folder), "train")) == 2
    assert not any("COCO's format" in what for what in find_problems(file, folder / "images"))


def digest(folder, **options):
    return DetectionData(DetectionOptions(data_dir=str(folder), **options)).identity["digest"]


def test_a_moved_data_set_keeps_its_digest(coco, tmp_path):
    folder = coco(train=2, val=1, test=1)
    before = digest(folder)
    assert before.keys() == {"train", "test", "holdout"} and len(set(before.values())) == 3
    folder.rename(tmp_path / "moved")
    assert digest(tmp_path / "moved") == before


def edit(folder, key, change):
    file = folder / "annotations" / "instances_train.json"
    data = json.loads(file.read_text())
    change(data[key])
    file.write_text(json.dumps(data))


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: edit(folder, "annotations", lambda boxes: boxes[0]["bbox"].__setitem__(0, 1)),
        lambda folder: edit(
            folder, "annotations", lambda boxes: boxes[0].update(category_id=10 - boxes[0]["category_id"])
        ),
        lambda folder: edit(folder, "annotations", lambda boxes: boxes[0].update(iscrowd=1)),
        lambda folder: edit(folder, "annotations", list.pop),
        lambda folder: edit(folder, "images", lambda images: images[0].update(file_name="train_1.png")),
        lambda folder: Image.new("RGB", (96, 64)).save(folder / "images" / "train_0.png"),
    ],
    ids=["box", "class", "crowd", "annotation", "name", "file"],
)
def test_changed_data_change_the_digest(coco, change):
    folder = coco(train=2, val=1, test=1)
    before = digest(folder)
    change(folder)
    after = digest(folder)
    assert after["train"] != before["train"] and after["test"] == before["test"]


def test_changed_masks_change_the_digest(coco):
    folder = coco(train=2, val=1, test=1)
    boxes, masks = digest(folder), digest(folder, detector="mask_rcnn")
    edit(folder, "annotations", lambda shapes: shapes[0]["segmentation"][0].__setitem__(0, 1))
    assert digest(folder) == boxes and digest(folder, detector="mask_rcnn")["train"] != masks["train"]
