"""Test `metamix convert` of masks, LabelMe's shapes and COCO's polygons: the classes of all pixels stay the same."""

import base64
import io
import json
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image

from metamix.segmentation.labelme import fill_polygon
from metamix.segmentation.labels import make_labels, read_classes, read_mask
from tests.helpers.running import metamix_command, train

RED, GREEN = (255, 0, 0), (0, 255, 0)


def quarters(*values, size=(24, 32)):
    """Return a mask (H, W), or (H, W, 3) of colours, whose four quarters have the given values."""
    rows = np.arange(size[0])[:, None] * 2 // size[0]
    columns = np.arange(size[1]) * 2 // size[1]
    return np.array(values, dtype=np.uint8)[2 * rows + columns]


def write(folder, masks, image="images/{}.png", mask="masks/{}.png"):
    """Write each mask, and an image of 24 x 32 pixels for it."""
    for name, values in masks.items():
        for path, pixels in ((image, np.full((24, 32, 3), 9, np.uint8)), (mask, values)):
            file = folder / path.format(name)
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)


def convert(folder, format="masks", *options):
    """Convert a folder; return the names of the classes, and the labels of each written mask by its path."""
    out = folder.parent / "out"
    assert metamix_command("convert", format, folder, out, *options) == 0
    classes = read_classes(out / "classes.txt")
    paths = {path.relative_to(out).as_posix(): path for path in sorted(out.glob("*/masks/**/*.png"))}
    return classes, {name: read_mask(path, make_labels(classes)).numpy() for name, path in paths.items()}


@pytest.mark.parametrize(
    "image, mask",
    [
        ("images/{}.png", "masks/{}.png"),
        pytest.param("Training_Images/{}.png", "Ground_Truth/{}.png", marks=pytest.mark.slow),
        pytest.param("imgs/{}_image.png", "annotations/{}_annotation.png", marks=pytest.mark.slow),
        ("{}.png", "{}_mask.png"),
        pytest.param("Kvasir-SEG/images/{}_segovia.png", "Kvasir-SEG/masks/{}_segovia.png", marks=pytest.mark.slow),
    ],
)
def test_masks_of_0_and_255_become_background_and_object(image, mask, tmp_path, capsys):
    masks = {f"{i:03}": quarters(0, 255, i % 2 * 255, 0) for i in range(10)}
    write(tmp_path / "source", masks, image, mask)
    classes, labels = convert(tmp_path / "source")
    assert classes == ("background", "object") and len(labels) == 10
    for name, values in labels.items():
        assert np.array_equal(values, masks[name.split("/")[-1][:3]] // 255)
    said = capsys.readouterr().out
    assert "8 train, 2 val images, 2 classes: background, object\n" in said and "note:" not in said
    assert metamix_command("verify", tmp_path / "out") == 0
    command = shlex.split(said.splitlines()[-1])
    train(*command[2:], "--no-pretrained", "--workers", 0, "--dry-run")


@pytest.mark.parametrize(
    "image, mask",
    [("{}/images/a.png", "{}/masks/a.png"), ("{}/a.png", "{}_masks/a_mask.png"), ("i/{}/a.png", "gt/{}/a.png")],
)
def test_splits_of_the_source_are_kept(image, mask, tmp_path):
    masks = {"train": quarters(0, 1, 2, 255), "valid": quarters(2, 1, 0, 0)}
    write(tmp_path / "source", masks, image, mask)
    classes, labels = convert(tmp_path / "source")
    assert classes == ("background", "value 1", "value 2")
    assert np.array_equal(labels["train/masks/a.png"], masks["train"])  # 255 stays ignored
    assert np.array_equal(labels["val/masks/a.png"], masks["valid"])


def test_the_note_on_255_says_how_to_make_it_a_class(tmp_path, capsys):
    source = tmp_path / "source"
    write(source, {name: quarters(0, 2, 5, 255) for name in "ab"})
    convert(source)
    advice = "the value 255 is ignored; to make it a class, list all classes in classes.txt and their values in palette"
    assert advice in capsys.readouterr().out
    (source / "classes.txt").write_text("sky\nroad\ncar\nsnow\n")
    (source / "palette.txt").write_text("".join(f"{value} {value} {value}\n" for value in (0, 2, 5, 255)))
    shutil.rmtree(tmp_path / "out")
    classes, labels = convert(source)
    assert classes == ("sky", "road", "car", "snow")
    assert all(np.array_equal(values, quarters(0, 1, 2, 3)) for values in labels.values())


@pytest.mark.parametrize(
    "values, wanted",
    [
        ((0, 2, 5, 255), (0, 1, 2, 255)),
        ((0, 5, 150, 255), (0, 1, 2, 255)),
        ((3, 9, 3, 255), (0, 1, 0, 255)),
        ((0, 127, 0, 255), (0, 1, 0, 2)),
    ],
)
def test_255_is_ignored_unless_the_values_are_evenly_spaced(values, wanted, tmp_path):
    write(tmp_path / "source", {name: quarters(*values) for name in "ab"})
    assert all(np.array_equal(labels, quarters(*wanted)) for labels in convert(tmp_path / "source")[1].values())


def test_files_with_the_same_name_in_two_folders_are_kept_apart(tmp_path, capsys):
    for folder, value in (("é 1", 255), ("2", 0), ("3", 0)):
        masks = {"a": quarters(0, value, 0, 255)}
        write(tmp_path / "source", masks, f"JPEGImages/{folder}/{{}}.png", f"SegmentationClass/{folder}/{{}}.png")
    (tmp_path / "source/SegmentationClass/3/a.png").unlink()
    _, labels = convert(tmp_path / "source")
    names = {path.partition("masks/")[2]: values for path, values in labels.items()}
    assert names.keys() == {"é 1/a.png", "2/a.png"}
    assert np.array_equal(names["é 1/a.png"], quarters(0, 1, 0, 1))
    assert np.array_equal(names["2/a.png"], quarters(0, 0, 0, 1))
    said = capsys.readouterr().out
    assert f"note: images without a mask were left out: {tmp_path}/source/JPEGImages/3/a.png\n" in said
    assert metamix_command("verify", tmp_path / "out") == 0


def test_masks_of_another_folder_are_not_taken(tmp_path):
    for folder, values in (("cat", (0, 255, 0, 0)), ("dog", (0, 0, 255, 0))):
        write(tmp_path / "source", {"1": quarters(*values)}, f"photos/{folder}/{{}}.png", f"gt/{folder}/{{}}.png")
    (tmp_path / "source/photos/dog/1.png").rename(tmp_path / "source/photos/dog/2.png")
    (tmp_path / "source/gt/cat/1.png").rename(tmp_path / "source/gt/cat/2.png")
    with pytest.raises(SystemExit, match="2 images and 2 masks, such as .*, but no mask has the name of an image"):
        convert(tmp_path / "source")


def test_splits_class_names_and_colours_of_cvat_are_read(tmp_path):
    source, white, black = tmp_path / "source", (255, 255, 255), (0, 0, 0)
    masks = {name: quarters(black, white, black, white) for name in "ab"}
    write(source, masks, "JPEGImages/{}.png", "SegmentationClass/{}.png")
    write(source, {"a": quarters(black, RED, black, GREEN)}, "JPEGImages/{}.png", "SegmentationObject/{}.png")
    (source / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\nsnow:255,255,255::\n")
    (source / "ImageSets/Segmentation").mkdir(parents=True)
    (source / "ImageSets/Segmentation/Train.txt").write_text("b\n")
    (source / "ImageSets/Segmentation/Validation.txt").write_text("a\n")
    classes, labels = convert(source)
    assert classes == ("background", "snow") and labels.keys() == {"train/masks/b.png", "val/masks/a.png"}
    assert all(np.array_equal(values, quarters(0, 1, 0, 1)) for values in labels.values())


@pytest.mark.parametrize("mode", ["I;16", "LA", "1"])
def test_masks_of_16_bits_or_one_bit_or_with_alpha_are_read(mode, tmp_path):
    write(tmp_path / "source", {name: quarters(0, 255, 0, 0) for name in "ab"})
    for path in (tmp_path / "source/masks").iterdir():
        image = Image.open(path)
        wide = Image.fromarray(np.array(image).astype(np.uint16) * 257)
        (wide if mode == "I;16" else image.convert(mode)).save(path)
    classes, labels = convert(tmp_path / "source")
    assert classes == ("background", "object")
    assert all(np.array_equal(values, quarters(0, 1, 0, 0)) for values in labels.values())


def test_images_are_refused_if_their_masks_would_have_the_same_name(tmp_path):
    masks = {name: quarters(0, 1, 0, 1) for name in "abcd"}
    for split, suffix in (("train", "png"), ("valid", "jpg")):
        write(tmp_path / "source", masks, f"{split}/images/{{}}.{suffix}", f"{split}/masks/{{}}.png")
    with pytest.raises(SystemExit, match="jpg would both become .*/masks/.[.]png: rename one of them"):
        metamix_command("convert", "masks", tmp_path / "source", tmp_path / "out", "--split", 0.9)
    assert not (tmp_path / "out").exists(), "the images must be refused before anything is written"


def test_colours_become_classes(tmp_path):
    black = (0, 0, 0)
    write(tmp_path / "source", {"a": quarters(black, RED, GREEN, RED), "b": quarters(black, black, black, black)})
    classes, labels = convert(tmp_path / "source")
    assert classes == ("background", "colour 0 255 0", "colour 255 0 0")
    (of_a,) = (values for name, values in labels.items() if name.endswith("a.png"))
    assert np.array_equal(of_a, quarters(0, 2, 1, 2))
    assert (tmp_path / "out/palette.txt").read_text() == "0 0 0\n0 255 0\n255 0 0\n"


def test_white_is_a_class_in_colour_masks(tmp_path):
    white = (255, 255, 255)
    write(tmp_path / "source", {name: quarters(white, RED, GREEN, (0, 0, 255)) for name in "ab"})
    classes, labels = convert(tmp_path / "source")
    assert len(classes) == 4 and all(set(values.flat) == {0, 1, 2, 3} for values in labels.values())


@pytest.mark.parametrize(
    "file, text, values, wanted",
    [
        ("labelmap.txt", "sky:255,0,0::\nroad:0,255,0::\n", [RED, GREEN, RED, RED], [0, 1, 0, 0]),
        ("labelmap.txt", "# name:colour\nsky:255,0,0\n\nroad:0,255,0\n", [RED, GREEN, RED, RED], [0, 1, 0, 0]),
        ("train/_classes.csv", "Pixel Value, Class\n0, sky\n1, road\n", [0, 1, 0, 0], [0, 1, 0, 0]),
        ("train/_classes.csv", "Pixel Value, Class\n7, sky\n0, road\n", [7, 0, 7, 7], [0, 1, 0, 0]),
        ("classes.txt", "sky\nroad\n", [0, 1, 0, 255], [0, 1, 0, 255]),
        # `metamix verify` suggests converting such masks, since 255 is ignored in training.
        ("classes.txt", "sky\nroad\n", [0, 255, 0, 0], [0, 1, 0, 0]),
    ],
)
def test_a_file_names_the_classes(file, text, values, wanted, tmp_path):
    write(tmp_path / "source", {name: quarters(*values) for name in "ab"})
    (tmp_path / "source/train").mkdir()
    (tmp_path / "source" / file).write_text(text)
    classes, labels = convert(tmp_path / "source")
    assert classes == ("sky", "road")
    assert all(np.array_equal(values, quarters(*wanted)) for values in labels.values())


def test_labelmap_txt_is_preferred_to_classes_csv(tmp_path):
    write(tmp_path / "source", {name: quarters(RED, GREEN, RED, RED) for name in "ab"})
    (tmp_path / "source/labelmap.txt").write_text("sky:255,0,0::\nroad:0,255,0::\n")
    (tmp_path / "source/_classes.csv").write_text("Pixel Value, Class\n0, sky\n1, road\n")
    classes, labels = convert(tmp_path / "source")
    assert classes == ("sky", "road")
    assert all(np.array_equal(values, quarters(0, 1, 0, 0)) for values in labels.values())


def test_a_line_of_labelmap_txt_without_a_colour_is_refused(tmp_path):
    write(tmp_path / "source", {name: quarters(RED, GREEN, RED, RED) for name in "ab"})
    (tmp_path / "source/labelmap.txt").write_text("sky:255,0,0::\nroad\n")
    with pytest.raises(SystemExit, match=r"labelmap.txt, line 2, is 'road': write it as NAME:RED,GREEN,BLUE::"):
        convert(tmp_path / "source")


def test_files_left_out_and_resized_masks_are_printed(tmp_path, capsys):
    source = tmp_path / "source"
    write(source, {name: quarters(0, 255, 0, 0) for name in "abcd"})
    write(source, {"e": quarters(0, 255, 0, 0, size=(12, 16)), "f": quarters(0, 255, 0, 0, size=(12, 20))})
    (source / "masks/c.png").unlink()
    (source / "images/d.png").unlink()
    _, labels = convert(source)
    (resized,) = (values for name, values in labels.items() if name.endswith("e.png"))
    assert np.array_equal(resized, quarters(0, 1, 0, 0))
    said = capsys.readouterr().out
    assert f"note: masks were resized to their images: {source}/images/e.png (24 x 32, mask 12 x 16)\n" in said
    assert f"whose mask has a different shape were left out: {source}/images/f.png (24 x 32, mask 12 x 20)\n" in said
    assert f"note: images without a mask were left out: {source}/images/c.png\n" in said
    assert f"note: masks without an image were left out: {source}/masks/d.png\n" in said


def test_masks_that_are_not_turned_like_all_images_are_refused(tmp_path):
    write(tmp_path / "source", {name: quarters(0, 255, 0, 0, size=(32, 24)) for name in "ab"})
    with pytest.raises(SystemExit, match=r"no image that can be used: images whose mask is not turned .*b.png \(24 x"):
        convert(tmp_path / "source")
    assert not any((tmp_path / "out").glob("*"))


def write_tiff(source):
    Image.fromarray(np.full((24, 32), 70_000, np.int32)).save(source / "masks/a.tif")
    (source / "masks/a.png").unlink()


def write_pages(source):
    page = Image.fromarray(quarters(0, 1, 200, 0))
    page.save(source / "masks/a.tif", save_all=True, append_images=[page])
    (source / "masks/a.png").unlink()


def write_palettes(source):
    """Save the masks with two palettes, in which the value 1 has different colours."""
    for name, palette in (("a", [0, 0, 0, 255, 0, 0]), ("b", [0, 0, 0, 0, 255, 0])):
        image = Image.fromarray(quarters(0, 1, 1, 0), mode="P")
        image.putpalette(palette)
        image.save(source / f"masks/{name}.png")


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda source: shutil.rmtree(source / "masks"), "2 images and 0 masks, such as .*: put the masks into"),
        (lambda source: shutil.copytree(source / "masks", source / "labels"), "both masks with the name a: move one"),
        (lambda source: write(source, {name: quarters(7, 7, 7, 7) for name in "ab"}), "have 1 value, but each value"),
        (
            lambda source: write(source, {"a": np.arange(768, dtype=np.uint8).reshape(24, 32)}),
            "have 256 values, .* save masks as PNGs without soft edges",
        ),
        (lambda source: (source / "classes.txt").write_text("a\nb\nc\n"), "have the value 200, which is not in"),
        (
            lambda source: write(source, {"a": quarters(0, 1, 2, 0)}, "train/{}.png"),
            "images/a.png and .*train/a.png both fit .*masks/a.png by their names: rename one",
        ),
        (write_pages, "masks/a.tif: it holds 2 images, but a mask is a single image"),
        (write_tiff, "a.tif has values from 70,000 to 70,000, but masks may have 0 to 65,535"),
        (write_palettes, "masks/a.png and .*masks/b.png show the value 1 in different colours: save masks in RGB"),
    ],
)
def test_odd_masks_are_refused(change, said, tmp_path):
    source = tmp_path / "source"
    write(source, {name: quarters(0, 1, 200, 0) for name in "ab"})
    change(source)
    with pytest.raises(SystemExit, match=said):
        metamix_command("convert", "masks", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def labelme(folder, shapes, height=24):
    """Write two images, and LabelMe's files beside them."""
    folder.mkdir(parents=True)
    for name in "ab":
        Image.new("RGB", (32, 24)).save(folder / f"{name}.jpg")
        data = {"imagePath": f"{name}.jpg", "imageHeight": height, "imageWidth": 32, "shapes": shapes}
        (folder / f"{name}.json").write_text(json.dumps(data))
    return folder


def test_shapes_of_labelme_are_drawn_in_their_order(tmp_path, capsys):
    shapes = [
        {"label": "pond", "points": [[0, 0], [26, 0], [26, 24], [0, 24]], "shape_type": "polygon"},
        {"label": "boat", "points": [[21, 11], [4, 2]], "shape_type": "rectangle"},
        {"label": "__ignore__", "points": [[0, 20], [32, 20], [32, 24], [0, 24]], "shape_type": "polygon"},
        {"label": "path", "points": [[0, 0], [1, 1]], "shape_type": "line"},
    ]
    classes, labels = convert(labelme(tmp_path / "source", shapes), "labelme")
    assert classes == ("background", "boat", "pond")
    for values in labels.values():
        assert (values[20:] == 255).all() and (values[2:11, 4:21] == 1).all()
        assert (values[:2, :26] == 2).all() and (values[:20, 26:] == 0).all()
    said = capsys.readouterr().out
    assert f"note: lines, points and the like were left out: {tmp_path}/source/a.json (line), " in said
    assert metamix_command("verify", tmp_path / "out") == 0


def test_circles_and_masks_of_labelme_are_drawn_and_other_json_files_are_left_out(tmp_path, capsys):
    file = io.BytesIO()
    Image.fromarray(quarters(0, 1, 1, 0, size=(4, 6))).save(file, "PNG")
    mask = {"label": "boat", "points": [[20.0, 3.0], [25.0, 6.0]], "mask": base64.b64encode(file.getvalue()).decode()}
    circle = {"label": "pond", "points": [[8, 10], [8, 15]], "shape_type": "circle"}
    source = labelme(tmp_path / "source", [circle, mask | {"shape_type": "mask"}])
    for name, data in (("a_coco", {"images": []}), ("classes", ["pond"])):
        (source / f"{name}.json").write_text(json.dumps(data))
    classes, labels = convert(source, "labelme")
    assert classes == ("background", "boat", "pond") and len(labels) == 2
    for values in labels.values():
        assert np.array_equal(values[3:7, 20:26], quarters(0, 1, 1, 0, size=(4, 6))) and (values == 1).sum() == 12
        rows, columns = np.where(values == 2)
        assert 4.5 < np.hypot(rows - 9.5, columns - 7.5).max() <= 5 and len(rows) == pytest.approx(25 * np.pi, rel=0.03)
    said = capsys.readouterr().out
    assert f"note: files that are not LabelMe's were left out: {source}/a_coco.json, {source}/classes.json\n" in said

    damaged = mask | {"mask": mask["mask"][:20], "shape_type": "mask"}
    labelme(tmp_path / "damaged", [damaged])
    with pytest.raises(SystemExit, match="damaged/..json, the mask of a shape: not an image of a known format"):
        metamix_command("convert", "labelme", tmp_path / "damaged", tmp_path / "none")
    assert not any((tmp_path / "none").iterdir())


def test_polygons_hold_the_pixels_whose_centres_are_inside():
    points = [(3.2, 1.0), (20.9, 4.4), (12.5, 22.8), (9.0, -5.0), (40.0, 9.5)]  # crosses itself, and leaves the image
    rows, columns = np.mgrid[:24, :32] + 0.5
    inside = np.zeros((24, 32), bool)
    for (x1, y1), (x2, y2) in zip(points, [*points[1:], points[0]]):  # count the edges on the left of each centre
        inside ^= ((y1 <= rows) != (y2 <= rows)) & (x1 + (rows - y1) * (x2 - x1) / (y2 - y1) <= columns)
    image = Image.new("L", (32, 24))
    for empty in ([(1, 1), (9, 1), (1, 1)], [(33, 1), (40, 1), (40, 9)]):
        fill_polygon(image, empty, 1)
    assert not np.any(image)
    fill_polygon(image, points, 1)
    assert np.array_equal(np.array(image), inside) and 100 < inside.sum() < 400


def test_labelme_files_in_several_folders_are_converted(tmp_path, capsys):
    corners = [[4, 2], [21, 2], [21, 11], [4, 11]]
    for name in ("labels", "night"):
        folder = labelme(tmp_path / "source" / name, [{"label": name, "points": corners, "shape_type": "rectangle"}])
        (folder / "a.jpg").rename(folder / "a_img.jpg")
        (folder / "a.json").rename(folder / "a_img.json")
        (folder / "b.json").unlink()
    classes, labels = convert(tmp_path / "source", "labelme")
    names = {path.partition("masks/")[2]: values for path, values in labels.items()}
    assert classes == ("background", "labels", "night") and names.keys() == {"a.png", "night/a.png"}
    for name, label in (("a.png", 1), ("night/a.png", 2)):
        assert (names[name][2:11, 4:21] == label).all() and (names[name] == label).sum() == 9 * 17
    folder = tmp_path / "source/night"
    shutil.copy(folder / "a_img.json", folder / "a.json")
    with pytest.raises(SystemExit, match="a.json and .*a_img.json are both labels with the name night/a: move one"):
        metamix_command("convert", "labelme", tmp_path / "source", tmp_path / "twice")
    said = capsys.readouterr().out
    assert f"without a label were left out: {tmp_path}/source/labels/b.jpg, {tmp_path}/source/night/b.jpg\n" in said


def test_labelme_files_may_lie_in_another_folder_than_the_images(tmp_path):
    folder = labelme(tmp_path / "source", [{"label": "x", "points": [[4, 2], [20, 2], [20, 10]], "shape_type": None}])
    for name, suffix in (("pictures", "jpg"), ("drawn", "json")):
        (folder / name).mkdir()
        for path in folder.glob(f"*.{suffix}"):
            path.rename(folder / name / path.name)
    assert convert(folder, "labelme")[1].keys() in (
        {"train/masks/a.png", "val/masks/b.png"},
        {"train/masks/b.png", "val/masks/a.png"},
    )


SQUARE = [2, 1, 20, 1, 20, 10, 2, 10]
MASK = "^e02f00R1"  # run lengths 686, 2, 22, 2, 56: rows 14 and 15 of columns 28 and 29


def coco(folder, annotations, **image):
    """Write a data set in COCO's format with an image of 24 x 32 pixels in train and in val."""
    for split in ("train", "val"):
        place = folder / split / "night/a.jpg"
        place.parent.mkdir(parents=True)
        Image.new("RGB", (32, 24)).save(place)
        images = [{"id": 7, "file_name": "night/a.jpg", "height": 24, "width": 32} | image]
        objects = [{"id": i, "image_id": 7, "category_id": 1, "area": 9} | a for i, a in enumerate(annotations)]
        data = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "pond"}]}
        data["categories"].append({"id": 2, "name": "boat"})
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / f"annotations/instances_{split}.json").write_text(json.dumps(data))
    return folder


def test_the_largest_polygons_of_coco_are_drawn_first(tmp_path, capsys):
    source = coco(
        tmp_path / "source",
        [
            {"segmentation": [[4, 2, 6, 2, 6, 5, 4, 5], [9, 2, 11, 2, 11, 5, 9, 5]], "category_id": 2, "area": 6},
            {"segmentation": [SQUARE], "area": 162},
            {"segmentation": [[0, 20, 32, 20, 32, 24, 0, 24]], "iscrowd": 1},
            {"bbox": [28, 0, 3, 3]},
            {
                "segmentation": {"size": [24, 32], "counts": [682, 3, 21, 3, 21, 3, 35]},
                "bbox": [28, 10, 3, 3],
                "area": None,
            },
            {
                "segmentation": {"size": [24, 32], "counts": MASK},
                "category_id": 2,
                "iscrowd": 1,
                "attributes": {},
            },  # CVAT
            {"segmentation": [[25, 0, 27, 0, 27, 2, 25, 2], [1, 1, 2, 2]]},
        ],
    )
    classes, labels = convert(source, "polygons")
    assert classes == ("background", "boat", "pond")
    assert labels.keys() == {"train/masks/night/a.png", "val/masks/night/a.png"}
    for values in labels.values():
        assert (values[20:] == 255).all() and (values[2:5, 4:6] == 1).all() and (values[2:5, 9:11] == 1).all()
        assert (values[1:10, 2:20] == 2).sum() == 162 - 12 and (values[:2, 25:27] == 2).all()
        assert (
            (values[:3, 28:31] == 255).all() and (values[10:13, 28:31] == 2).all() and (values[14:16, 28:30] == 1).all()
        )
        assert (values[:20] == 0).sum() == 640 - 162 - 4 - 9 - 9 - 4
    said = capsys.readouterr().out
    assert "1 train, 1 val images, 3 classes: background, boat, pond" in said
    assert f"pixels of their boxes are ignored: {source}/annotations/instances_train.json, annotation 3, " in said
    assert metamix_command("verify", tmp_path / "out") == 0


def test_images_outside_of_the_folder_are_not_read(tmp_path, capsys):
    Image.new("RGB", (32, 24)).save(tmp_path / "x.jpg")
    source = coco(tmp_path / "source", [{"segmentation": [SQUARE]}], file_name="..\\..\\x.jpg")
    with pytest.raises(SystemExit, match="source has no image with a polygon or mask: give a data set"):
        metamix_command("convert", "polygons", source, tmp_path / "out")
    (source / "train/x.jpg").symlink_to(source / "train/night/a.jpg")
    assert convert(source, "polygons")[1].keys() == {"train/masks/x.png"}
    assert f"do not exist were left out: x.jpg of {source}/annotations/instances_val.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    "annotation, image, said",
    [
        ({"segmentation": [SQUARE[:7]]}, {}, "train.json is not in COCO's format: ValueError: cannot reshape"),
        ({"segmentation": [[1, 1, 9, 9]], "bbox": [1, 1, 8, 8]}, {}, "source has no image with a polygon"),
        ({"segmentation": [[1, 1, 9, 9]]}, {}, "instances_train.json is not in COCO's format: KeyError: 'bbox'"),
        ({"area": 0, "bbox": [1, 2]}, {}, "instances_train.json is not in COCO's format: IndexError: list index"),
        (
            {"segmentation": [[1, 1, 9, 9, 1, float("nan")]]},
            {},
            "instances_train.json has a polygon with the points .*nan",
        ),
        ({"segmentation": [SQUARE], "area": -9}, {}, "annotation 0 has the area -9.0: leave area out, or correct its"),
        ({"segmentation": [SQUARE], "area": float("nan")}, {}, "annotation 0 has the area nan"),  # an arbitrary order
        ({"segmentation": [SQUARE], "category_id": 3}, {}, "instances_train.json is not in COCO's format: KeyError: 3"),
        ({"segmentation": [SQUARE], "image_id": 8}, {}, "instances_train.json is not in COCO's format: KeyError: 8"),
        ({"segmentation": {"counts": "abc"}}, {}, "not in COCO's format: .* annotation 0: .* height"),
        ({"segmentation": {"size": [24, 32], "counts": "abc"}}, {}, "annotation 0: its .* are damaged or cut off"),
        ({"segmentation": [SQUARE]}, {"height": 0}, "instances_train.json has an image of 0 x 32 pixels"),
    ],
)
def test_odd_polygons_are_refused(annotation, image, said, tmp_path):
    with pytest.raises(SystemExit, match=said):
        metamix_command("convert", "polygons", coco(tmp_path / "source", [annotation], **image), tmp_path / "out")
    with pytest.raises(SystemExit, match="out has no annotations/instances_train.json: make it with .metamix con"):
        (tmp_path / "out").mkdir()
        metamix_command("convert", "polygons", tmp_path / "out", tmp_path / "other")


def test_a_single_image_is_used_for_training(tmp_path):
    write(tmp_path / "source", {"a": quarters(0, 1, 2, 0)})
    assert convert(tmp_path / "source")[1].keys() == {"train/masks/a.png"}
    assert not (tmp_path / "out/val").exists()


@pytest.mark.parametrize(
    "shapes, height, said",
    [
        ([], 24, "source has no image with a shape to draw: name each .json file like its image"),
        ([{"label": "x", "points": [[1, "y"]]}], 24, "a.json is not in LabelMe's format: ValueError: could not"),
        (
            [{"label": "x", "points": [[1, 1], [9, 9]]}],
            24,
            "a.json has a polygon with the points .*: give 3 or more",
        ),
        ([{"label": "x", "points": [[1, 1]], "shape_type": "mask"}], 24, "a.json is not in LabelMe's format: KeyError"),
        (
            [{"label": "x", "points": [[1, float("nan")]], "shape_type": "point"}],
            24,
            "a.json has a point .* give 1 or",
        ),
        ([{"label": " ", "points": [[1, 1], [9, 9], [1, 9]]}], 24, "a.json has a polygon without a label"),
        ([{"points": []}], 24, "a.json is not in LabelMe's format: KeyError: 'label'"),
        (None, 24, "a.json is not in LabelMe's format: TypeError"),
        ([], None, "a.json .*: imageHeight or imageWidth is null: give the size"),
        ([], 0, "a.json has an image of 0 x 32 pixels"),
        ([], float("inf"), "a.json is not in LabelMe's format: OverflowError"),
    ],
)
def test_odd_files_of_labelme_are_refused(shapes, height, said, tmp_path):
    with pytest.raises(SystemExit, match=said):
        metamix_command("convert", "labelme", labelme(tmp_path / "source", shapes, height), tmp_path / "out")
