"""Test layouts, masks, augmentation and the checks of a data set."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from examples.train_segmenter import CLASSES, COLOURS
from metamix.data import CorruptImage
from metamix.segmentation.data import (
    MaskedImages,
    SegmentationData,
    largest_share,
    limited_crop,
    random_scale,
    resize_image,
    resized_size,
    train_transform,
)
from metamix.segmentation.labels import (
    BadMask,
    colours_of,
    index_image,
    make_labels,
    read_classes,
    read_mask,
    read_palette,
)
from metamix.segmentation.loss import class_weights
from metamix.segmentation.options import SegmentationOptions, verify_command
from metamix.segmentation.sources import open_set
from metamix.segmentation.task import Segmentation
from metamix.tasks.verify import main
from tests.helpers.advice import exit_code, follow_verify

ABC = ("a", "b", "c")


def options(root, **changes):
    return SegmentationOptions(**{"data_dir": str(root), "workers": 0, "crop": (32,)} | changes)


def write_mask(path, values, mode="L"):
    image = Image.fromarray(np.array(values, dtype=np.uint8))
    if mode == "P":
        image = index_image(torch.tensor(values, dtype=torch.uint8), colours_of(3))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def test_mask_values_become_labels(tmp_path):
    values = [[0, 1, 2, 255], [0, 1, 2, 3]]
    path = write_mask(tmp_path / "a.png", values)
    labels = make_labels(ABC, reduce_zero_label=True)
    assert read_mask(path, labels).tolist() == [[255, 0, 1, 255], [255, 0, 1, 2]]
    assert read_mask(path, make_labels(ABC, reduce_zero_label=True)).dtype == torch.uint8
    path = write_mask(tmp_path / "b.png", [[0, 1, 2, 11]])
    assert read_mask(path, make_labels(ABC, ignore_index=11)).tolist() == [[0, 1, 2, 255]]
    assert read_mask(write_mask(tmp_path / "p.png", [[0, 1, 2, 255]], "P"), make_labels(ABC)).tolist() == [
        [0, 1, 2, 255]
    ]
    Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint16)).save(tmp_path / "16.png")
    assert read_mask(tmp_path / "16.png", make_labels(ABC)).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    "values, words",
    [
        ([[0, 3, 3]], r"a.png has the value 3 at 2 pixels, but there are 3 classes.* values 0 to 2, 255: correct"),
        ([[9, 8, 7, 6, 5, 4]], "has the values 4, 5, 6, 7, 8 and 1 more at 6 pixels"),
    ],
)
def test_labels_out_of_range_are_refused_and_the_file_is_named(values, words, tmp_path):
    with pytest.raises(BadMask, match=words):
        read_mask(write_mask(tmp_path / "a.png", values), make_labels(ABC))


def test_the_error_says_why_a_mask_cannot_be_read(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(CorruptImage, match="a.png: not an image of a known format"):
        read_mask(tmp_path / "a.png", make_labels(ABC))
    write_mask(tmp_path / "b.jpg", np.zeros((8, 8)))
    with pytest.raises(BadMask, match="b.jpg is a JPEG, and JPEG changes labels: save masks as PNGs"):
        read_mask(tmp_path / "b.jpg", make_labels(ABC))
    Image.new("CMYK", (8, 8)).save(tmp_path / "c.tif")
    with pytest.raises(BadMask, match="c.tif has the mode CMYK, but masks must be PNGs of indices in mode"):
        read_mask(tmp_path / "c.tif", make_labels(ABC))


def test_masks_are_turned_by_their_exif_data(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn to the right
    for mode in "L", "P":
        image = Image.open(write_mask(tmp_path / "a.png", [[0, 1, 2], [1, 1, 1]], mode))
        image.save(tmp_path / "b.png", exif=turned)
        assert read_mask(tmp_path / "b.png", make_labels(ABC)).tolist() == [[1, 0], [1, 1], [1, 2]]


def test_masks_of_three_equal_channels_hold_labels(tmp_path):
    grey = Image.open(write_mask(tmp_path / "a.png", [[0, 1, 2, 255]]))
    for mode in "RGB", "RGBA":
        grey.convert(mode).save(tmp_path / "b.png")
        assert read_mask(tmp_path / "b.png", make_labels(ABC)).tolist() == [[0, 1, 2, 255]]
    with pytest.raises(BadMask, match="b.png has the value 2 at 1 pixel, but there are 2 classes"):
        read_mask(tmp_path / "b.png", make_labels(ABC[:2]))
    black_and_white = make_labels(ABC[:2], palette=((255, 255, 255), (0, 0, 0)), ignore_index=None)
    Image.new("RGB", (2, 1)).save(tmp_path / "b.png")
    # With a palette, pixels of three equal channels are colours, not labels.
    assert read_mask(tmp_path / "b.png", black_and_white).tolist() == [[1, 1]]


def test_masks_in_colour_need_a_palette(tmp_path):
    Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0], [9, 9, 9]]], dtype=np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(BadMask, match="a.png is in colour: give the colours of the classes in palette.txt"):
        read_mask(tmp_path / "a.png", make_labels(("red", "green")))
    (tmp_path / "palette.txt").write_text("255 0 0\n0,255,0\n")
    palette = read_palette(tmp_path / "palette.txt")
    with pytest.raises(BadMask, match=r"has the colour \(9, 9, 9\), which is not in palette.txt"):
        read_mask(tmp_path / "a.png", make_labels(("red", "green"), palette=palette))
    labels = make_labels(("red", "green"), palette=(*palette, (9, 9, 9)))
    assert read_mask(tmp_path / "a.png", labels).tolist() == [[0, 1, 255]]
    with pytest.raises(ValueError, match="palette.txt has 2 colours, and there are 3 classes"):
        make_labels(ABC, palette=palette)
    with pytest.raises(BadMask, match=r"palette.txt has \(255, 0, 0\) twice: give each class its own colour"):
        read_mask(tmp_path / "a.png", make_labels(ABC, palette=(*palette, palette[0])))
    (tmp_path / "palette.txt").write_text("255 0 256\n")
    with pytest.raises(ValueError, match="palette.txt, line 1: '255 0 256' is not a colour"):
        read_palette(tmp_path / "palette.txt")


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("ignored", [255, 2])
def test_masks_in_colour_equal_masks_of_indices(first, ignored, tmp_path):
    colours = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9))  # the last colour is for ignored pixels
    labels = make_labels(ABC, ignore_index=ignored, reduce_zero_label=first == 1, palette=colours)
    values = np.array([[0, 1, 2]], dtype=np.uint8)
    Image.fromarray(np.array(colours, dtype=np.uint8)[values]).save(tmp_path / "colours.png")
    indices = read_mask(write_mask(tmp_path / "indices.png", values + first), labels)
    assert read_mask(tmp_path / "colours.png", labels).equal(indices)
    assert indices.tolist() == [[255 if label + first == ignored else label for label in range(3)]]
    Image.fromarray(np.array([[colours[3]]], dtype=np.uint8)).save(tmp_path / "colours.png")
    assert read_mask(tmp_path / "colours.png", labels).tolist() == [[255]]


def test_the_palette_of_a_mask_must_agree_with_palette_txt(tmp_path):
    colours = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    mask = Image.fromarray(np.array([[1, 0, 2, 255]], dtype=np.uint8), mode="P")

    def read(*palette, **changes):
        mask.putpalette([channel for colour in palette for channel in colour])
        mask.save(tmp_path / "a.png")
        return read_mask(tmp_path / "a.png", make_labels(ABC, **{"palette": colours} | changes)).tolist()

    same = [[1, 0, 2, 255]]
    assert read(*colours, *[(9, 9, 9)] * 253) == same
    assert read(*colours, *[colours[0]] * 253) == same  # the colour of ignored pixels is not checked
    assert read(*[(i, i, i) for i in range(256)]) == same  # colours that no class has are not checked
    assert read(*colours, *[(9, 9, 9)] * 253, palette=(colours[0],) * 3) == same  # equal colours are not checked
    shifted = ((9, 9, 9), *colours[:2], *[(9, 9, 9)] * 253)
    assert read(*shifted, reduce_zero_label=True) == [[0, 255, 1, 255]]
    with pytest.raises(BadMask, match=r"a.png shows the value 1, b, in \(255, 0, 0\), .* colour of a in palette.txt"):
        read(*shifted)
    with pytest.raises(BadMask, match="shows the value 1, a, .* colour of b in palette.txt: correct palette.txt, or"):
        read(*colours, *[(9, 9, 9)] * 253, reduce_zero_label=True)


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("classes.txt", b"sky\n\nground\n", "classes.txt, line 2 is empty: give the label 1 a name"),
        ("classes.txt", "stra\u00dfe\nsky\n".encode("latin-1"), "classes.txt:1 is not UTF-8 text; save the file as"),
        ("classes.txt", b"sky\nsky\n", "classes.txt has the class 'sky' twice"),
        ("classes.txt", b"sky\n", "classes.txt names 1 class, not 2 to 255: write the names"),
        ("palette.txt", b"1 2 3\n\n4 5 6\n", "palette.txt, line 2: '' is not a colour"),
        ("palette.txt", b"1 2 " + b"9" * 5000, "palette.txt, line 1: .* is not a colour"),
    ],
)
def test_files_of_names_and_colours_are_checked(name, text, words, tmp_path):
    (tmp_path / name).write_bytes(text)
    with pytest.raises(ValueError, match=words):
        (read_classes if name == "classes.txt" else read_palette)(tmp_path / name)


def test_index_images_keep_the_labels(tmp_path):
    labels = torch.tensor([[0, 1], [2, 255]], dtype=torch.uint8)
    index_image(labels, colours_of(3, ((1, 2, 3), (4, 5, 6), (7, 8, 9)))).save(tmp_path / "a.png")
    read = Image.open(tmp_path / "a.png")
    assert np.array(read).tolist() == labels.tolist()
    assert np.array(read.convert("RGB"))[0, 1].tolist() == [4, 5, 6]
    for count in (10, 20, 150):
        colours = colours_of(count)
        assert len({tuple(colour) for colour in colours[:count].tolist()}) == count and not colours[count:].any()


def test_folders_become_splits(scenes):
    data = SegmentationData(options(scenes()))
    assert {split: len(samples) for split, samples in data.parts.items()} == {"train": 4, "test": 2, "holdout": 2}
    assert data.classes == ("sky", "ground", "house", "tree") and data.name == "scenes"
    both = SegmentationData(options(scenes(), train_on=("train", "val")))
    assert {split: len(samples) for split, samples in both.parts.items()} == {"train": 6, "test": 2}
    trained = SegmentationData(options(scenes(), train_on=("train", "test")), train=False)
    assert len(trained.training_images()) == 4, "images that are scored are left out"
    on_val = SegmentationData(options(scenes("few", train=2, val=1)))
    assert {split: len(samples) for split, samples in on_val.parts.items()} == {"train": 2, "test": 1}
    assert (data.test_split, on_val.test_split) == ("test", "val")
    assert on_val.identity["test_split"] == "val"
    loader = data.eval_loaders(8, 0, 1)["test"]
    (first, second) = loader
    assert first["image"][0].shape == (3, 40, 48) and first["target"][0].shape == (40, 48) and second["name"] == ["1"]


def test_partners_and_sizes_are_checked(scenes):
    root = scenes()
    (root / "train" / "masks" / "2.png").rename(root / "train" / "masks" / "2b.png")
    with pytest.raises(ValueError, match="2.png has no partner 2 in .*masks; did you mean '2b'.* 1 more has no"):
        SegmentationData(options(root))
    (root / "train" / "images" / "2.png").unlink()
    with pytest.raises(ValueError, match="2b.png has no partner in .*images. Partners are named by --mask-name"):
        SegmentationData(options(root))
    (root / "train" / "masks" / "2b.png").unlink()
    Image.new("L", (47, 40)).save(root / "train" / "masks" / "3.png")
    with pytest.raises(ValueError, match="3.png has 40 x 48 pixels, but its mask .*3.png has 40 x 47: .* same size"):
        SegmentationData(options(root))
    (root / "classes.txt").unlink()
    with pytest.raises(FileNotFoundError, match="there is no .*classes.txt: write the names of the classes into it"):
        SegmentationData(options(root))


def test_mask_name_names_the_masks(scenes):
    root = scenes()
    for path in root.glob("*/masks/*.png"):
        path.rename(path.with_name(f"{path.stem}_mask.png"))
    assert len(SegmentationData(options(root, mask_name="{name}_mask")).parts["train"]) == 4


def test_augmentation_is_a_function_of_seed_epoch_and_index(scenes):
    root = scenes()

    def batches(seed=0, epoch=0, **changes):
        loader = SegmentationData(options(root, **changes)).train_loader(4, 0, 1, seed)
        (batch,) = loader.epoch(epoch)
        order = batch["index"].argsort()
        return batch["image"][order], batch["target"][order]

    first, again = batches(), batches(memory="no", workers=1)
    assert all(a.equal(b) for a, b in zip(first, again))
    for other in (batches(seed=1), batches(epoch=1)):
        assert not first[0].equal(other[0]) and not first[1].equal(other[1])
    halves = [SegmentationData(options(root)).train_loader(4, rank, 2, 0) for rank in (0, 1)]
    parts = [next(loader.epoch(0)) for loader in halves]
    joined = torch.cat([part["image"] for part in parts])[torch.cat([part["index"] for part in parts]).argsort()]
    assert joined.equal(first[0])
    assert first[0].shape == (4, 3, 32, 32) and first[1].shape == (4, 32, 32) and first[1].dtype == torch.uint8


def test_image_and_mask_are_augmented_in_the_same_way(scenes):
    """The colour of a pixel follows from its label, so image and mask must change alike."""
    data = SegmentationData(options(scenes(train=8, test=1), photometric=0.0, scales=(1.0, 1.0)))
    (batch,) = data.train_loader(8, 0, 1, 0).epoch(0)
    shown = torch.tensor(COLOURS).float()
    distance = (batch["image"].permute(0, 2, 3, 1)[..., None, :].float() - shown).square().sum(-1)
    labelled = batch["target"] != 255
    assert (distance.argmin(-1)[labelled] == batch["target"][labelled]).float().mean() > 0.97


def test_flip_scales_and_photometric_have_an_effect():
    torch.manual_seed(0)
    image = tv_tensors.Image(torch.randint(60, 200, (3, 32, 32), dtype=torch.uint8))
    mask = tv_tensors.Mask(torch.arange(32 * 32).view(32, 32).remainder(5).byte())

    def augment(**changes):
        plain = dict(flip=0.0, photometric=0.0, scales=(1.0, 1.0), crop_share=1.0)
        transform = train_transform(options("x", **plain | changes), (0.2, 0.4, 0.6))
        return transform(("x", image, mask))[1:]

    same = augment()
    assert same[0].equal(image) and same[1].equal(mask)
    mirrored = augment(flip=1.0)
    assert mirrored[0].equal(image.flip(-1)) and mirrored[1].equal(mask.flip(-1))
    small = augment(scales=(0.5, 0.5))
    assert (small[1][16:] == 255).all() and (small[1][:, 16:] == 255).all() and (small[1][:16, :16] < 5).all()
    assert (small[0][:, 16:] == torch.tensor([51, 102, 153])[:, None, None]).all()  # the mean
    assert small[0][:, :16, :16].equal(resize_image(image, 16, 0))  # smoothed, as in scoring
    coloured = augment(photometric=1.0)
    assert not coloured[0].equal(image) and coloured[1].equal(mask)


def test_small_images_are_extended_with_ignored_pixels():
    image, mask = (
        tv_tensors.Image(torch.full((3, 6, 7), 9, dtype=torch.uint8)),
        tv_tensors.Mask(torch.zeros(6, 7).byte()),
    )
    _, image, mask = limited_crop(("x", image, mask), options("x", crop=(8, 10)), (1, 2, 3))
    assert image.shape == (3, 8, 10) and mask.shape == (8, 10)
    assert image[:, 7, 9].tolist() == [1, 2, 3] and (mask[6:] == 255).all() and (mask[:, 7:] == 255).all()
    assert (mask[:6, :7] == 0).all() and (image[:, :6, :7] == 9).all()


def test_crops_limit_the_share_of_a_class():
    mask = tv_tensors.Mask(torch.zeros(40, 40, dtype=torch.uint8))
    mask[:, :20] = 1  # most crops lie in one half
    pair = "x", tv_tensors.Image(torch.zeros(3, 40, 40, dtype=torch.uint8)), mask
    torch.manual_seed(0)
    for share, few in ((0.8, True), (1.0, False)):
        limits = options("x", crop=(10,), crop_share=share)
        shares = [largest_share(limited_crop(pair, limits, (0, 0, 0))[2]) for _ in range(60)]
        above = sum(largest > 0.8 for largest in shares) / 60
        assert above < 0.25 if few else above > 0.6
    assert largest_share(torch.full((4, 4), 255, dtype=torch.uint8)) == 0
    columns = "x", torch.zeros(3, 9, 9).byte(), torch.arange(9).byte().expand(9, 9)
    lefts = {int(limited_crop(columns, options("x", crop=(8,)), (0, 0, 0))[2][0, 0]) for _ in range(20)}
    assert lefts == {0, 1}  # a crop may end at the last column


def test_min_size_max_size_and_scales_set_the_size():
    assert resized_size((360, 480), 0, 0) == (360, 480) and resized_size((360, 480), 180, 0) == (180, 240)
    assert resized_size((360, 480), 180, 200) == (150, 200) and resized_size((480, 360), 180, 200) == (200, 150)
    assert resized_size((360, 480), 180, 0, 2.0) == (360, 480)
    assert resized_size((1, 100), 288, 0) == (23, 2304) and resized_size((1, 100), 288, 4000) == (40, 4000)
    assert resized_size((36, 288), 288, 0) == (288, 2304) and resized_size((300, 9000), 150, 0) == (150, 4500)
    pair = "x", tv_tensors.Image(torch.zeros(3, 40, 80).byte()), tv_tensors.Mask(torch.zeros(40, 80).byte())
    scales = options("x", min_size=20, scales=(0.5, 2.0))
    torch.manual_seed(0)
    sides = [random_scale(pair, scales)[2].shape for _ in range(200)]
    assert all(10 <= h <= 40 and w == pytest.approx(2 * h, abs=1) for h, w in sides) and len(set(sides)) > 10
    assert sum(h for h, _ in sides) / 200 == pytest.approx(25, abs=2)


def test_scaled_masks_lie_on_their_images():
    """Masks that torchvision resizes are 0.4 pixels further right and down on average."""
    mask = torch.zeros(60, 80).byte()
    mask[20:41, 30:61] = 1
    pair = "x", tv_tensors.Image(255 * mask.expand(3, -1, -1)), tv_tensors.Mask(mask)
    torch.manual_seed(0)
    moved = []
    for _ in range(50):
        _, image, scaled = random_scale(pair, options("x", scales=(0.5, 2.0)))
        centres = [values.nonzero().float().mean(0) for values in (image[0] > 127, scaled)]
        moved.append(centres[1] - centres[0])
    assert torch.stack(moved).mean(0).abs().max() < 0.1


def test_a_broken_image_is_replaced_and_a_bad_label_ends_the_run(scenes, break_image):
    root = scenes()
    break_image(root / "test" / "images" / "0.png")
    first, second = SegmentationData(options(root, corrupt_limit=1.0)).eval_loaders(1, 0, 1)["test"]
    assert first["index"].tolist() == [-1] and first["name"] == ["1"] and second["index"].tolist() == [1]
    write_mask(root / "train" / "masks" / "0.png", np.full((40, 48), 7))
    for memory in ("yes", "no"):
        with pytest.raises((BadMask, OSError), match="masks/0.png has the value 7 at 1,920 pixels"):
            list(SegmentationData(options(root, memory=memory)).train_loader(4, 0, 1, 0).epoch(0))


def test_the_advised_command_finds_the_unreadable_image(scenes, break_image, capsys):
    root = scenes("my scenes")
    (root / "classes.txt").write_text("a\nb\nc\nd\n")
    for path in root.glob("*/masks/*.png"):
        path.unlink()
        write_mask(path.with_name(f"{path.stem} mask.png"), np.random.default_rng(0).integers(0, 5, (40, 48)))
    break_image(root / "train" / "images" / "0.png")
    reading = {"mask_name": "{name} mask", "ignore_index": None, "reduce_zero_label": True}
    with pytest.raises(CorruptImage, match="metamix verify --task segmentation '.*my scenes'") as error:
        list(SegmentationData(options(root, memory="no", **reading)).train_loader(4, 0, 1, 0).epoch(0))
    assert follow_verify(error.value) == 1
    said = capsys.readouterr().out
    assert "train/images/0.png: " in said and "\n1 problem\n" in said, said


def test_the_advised_command_names_the_layout():
    command = verify_command(options("cities", data="cityscapes"))
    assert command == "metamix verify --task segmentation cityscapes --data-dir cities"


def test_masks_to_score_are_read_before_training(scenes, break_image):
    root = scenes()
    write_mask(root / "test" / "masks" / "1.png", np.full((40, 48), 7))
    with pytest.raises(BadMask, match="test/masks/1.png has the value 7 at 1,920 pixels"):
        SegmentationData(options(root))
    SegmentationData(options(root), train=False)  # without training, the mask is read when it is scored
    write_mask(root / "test" / "masks" / "1.png", np.full((40, 48), 1))
    write_mask(root / "val" / "masks" / "0.png", np.full((40, 48), 7))
    with pytest.raises(BadMask, match="val/masks/0.png has the value 7"):
        SegmentationData(options(root))
    write_mask(root / "val" / "masks" / "0.png", np.random.default_rng(0).integers(0, 4, (40, 48)))
    break_image(root / "val" / "masks" / "0.png")
    with pytest.raises(CorruptImage):
        read_mask(root / "val" / "masks" / "0.png", make_labels(CLASSES))
    assert len(SegmentationData(options(root)).parts["holdout"]) == 2  # scoring reports the broken mask


def test_pixels_of_each_class_are_counted_for_class_weights(scenes):
    root = scenes()
    data = SegmentationData(options(root))
    counts = data.train_images.label_counts()[: len(data.classes)]
    masks = [np.array(Image.open(path)) for path in (root / "train" / "masks").iterdir()]
    assert counts.tolist() == [sum(int((mask == k).sum()) for mask in masks) for k in range(4)]
    for weights, wanted in (((0.0, 1.0, 2.0, 3.0), torch.arange(4.0)), ("log", class_weights("log", counts))):
        assert torch.equal(Segmentation(options(root, class_weights=weights)).loss.class_weights(), wanted)
    images = MaskedImages(SegmentationData(options(root)).parts["train"], make_labels(CLASSES))
    assert not images.loaded
    images.load()
    assert len(images.loaded) == 4


@pytest.mark.parametrize(
    "values, ignored, missing, hint",
    [
        # 255 is ignored by default, so the second class would never be trained.
        ([0, 255], 255, "object", "; 255 is ignored: if it shows object, save 1 .*, or run `metamix convert masks`"),
        ([0, 1], 0, "background", "; the value of background is ignored: give another --ignore-index"),
        ([0, 0], 255, "object", ""),
    ],
)
def test_masks_of_a_single_class_are_refused(values, ignored, missing, hint, scenes, capsys):
    root = scenes(train=1, test=1)
    (root / "classes.txt").write_text("background\nobject\n")
    for path in root.glob("*/masks/*.png"):
        write_mask(path, [values * 24] * 40)
    with pytest.raises(ValueError, match=f"pixel of {missing}, so there is nothing to tell apart{hint}. To") as error:
        SegmentationData(options(root, ignore_index=ignored)).train_loader(1, 0, 1, 0)
    assert follow_verify(error.value) == 1
    assert re.search(rf"train: these classes have no pixels \(1 of 2\): {missing}{hint}\n", capsys.readouterr().out)


def test_classes_without_a_pixel_are_noted(scenes):
    root = scenes(train=1, test=1)
    (root / "classes.txt").write_text("background\nobject\nbox\n")
    for path in root.glob("*/masks/*.png"):
        write_mask(path, [[0, 1, 255] * 16] * 40)
    data = SegmentationData(options(root))
    for _ in range(2):  # the engine makes the loader again when it chooses the batch size
        data.train_loader(1, 0, 1, 0)
    (note,) = data.notes
    assert note.startswith("no mask to train on has a pixel of box; to see the shares of all classes: ")
    assert follow_verify(note) == 1


def write_pair(image, mask, values):
    """Write a mask of 40 x 48 pixels, and an image of its size."""
    write_mask(mask, values)
    image.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (48, 40)).save(image)


def test_ade20k_is_read_with_its_classes_and_labels(tmp_path):
    for split in "training", "validation":
        mask = tmp_path / "annotations" / split / "a.png"
        write_pair(tmp_path / "images" / split / "a.jpg", mask, np.full((40, 48), 2))
    rows = "".join(f"{i}\t0.1\t1\t1\tname{i}, other\n" for i in range(1, 4))
    (tmp_path / "objectInfo150.txt").write_text(f"Idx\tRatio\tTrain\tVal\tName\n{rows}")
    data = SegmentationData(options(tmp_path, data="ade20k"))
    assert data.classes == ("name1", "name2", "name3") and list(data.parts) == ["train", "test"]
    assert data.train_images.label_counts()[:3].tolist() == [0, 40 * 48, 0] and data.labels.accepted() == "0 to 3"
    assert data.labels.table[:4].tolist() == [255, 0, 1, 2]


def test_cityscapes_is_read_with_its_classes_and_labels(tmp_path):
    values = np.array([[7, 8, 0, 33]] * 40).repeat(12, 1)
    for split in "train", "val":
        mask = tmp_path / "gtFine" / split / "ulm" / "ulm_0_1_gtFine_labelIds.png"
        write_pair(tmp_path / "leftImg8bit" / split / "ulm" / "ulm_0_1_leftImg8bit.png", mask, values)
    data = SegmentationData(options(tmp_path, data="cityscapes"))
    assert (len(data.classes), *data.classes[:2], data.classes[18]) == (19, "road", "sidewalk", "bicycle")
    assert data.parts["train"][0].name == "ulm/ulm_0_1_leftImg8bit"
    _, _, mask = data.train_images.read(0)
    assert mask[0, ::12].tolist() == [0, 1, 255, 18] and data.labels.palette[0] == (128, 64, 128)
    assert data.labels.accepted() == "0 to 33"
    write_mask(data.parts["train"][0].mask, np.full((40, 48), 99))
    with pytest.raises(BadMask, match="value 99 at 1,920 pixels.* have the values 0 to 33: correct the mask, or"):
        SegmentationData(options(tmp_path, data="cityscapes")).train_images.label_counts()


def test_voc_and_oxford_pets_are_read_with_their_classes_and_labels(tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2012"
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    for split in "train", "val":
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(f"{split}1\n")
        mask = root / "SegmentationClass" / f"{split}1.png"
        write_pair(root / "JPEGImages" / f"{split}1.jpg", mask, np.full((40, 48), 20))
    data = SegmentationData(options(tmp_path, data="voc"))
    assert data.labels.accepted() == "0 to 20, 255"
    assert len(data.classes) == 21 and data.train_images.label_counts()[20] == 40 * 48
    palette = data.labels.palette
    assert palette[:3] == ((0, 0, 0), (128, 0, 0), (0, 128, 0)) and palette[21] == (224, 224, 192)

    pets = tmp_path / "oxford-iiit-pet"
    for split in "trainval", "test":
        mask = pets / "annotations" / "trimaps" / f"{split}_1.png"
        write_pair(pets / "images" / f"{split}_1.jpg", mask, [[1] * 24 + [2] * 20 + [3] * 4] * 40)
        (pets / "annotations" / f"{split}.txt").write_text(f"{split}_1 1 1 1\n")
    data = SegmentationData(options(tmp_path, data="oxford_pets"))
    assert data.train_images.label_counts()[:3].tolist() == [40 * 24, 40 * 20, 40 * 4]
    assert list(data.parts) == ["train", "test"] and data.labels.accepted() == "1 to 3"
    assert open_set(options(tmp_path, data="voc")).find("val")[0].name == "val1"


@pytest.mark.parametrize(
    "words, message",
    [
        (["--data", "cityscapes"], "there is no option --data for segmentation; it is an option of "),
        (["--data-folder", "cityscapes"], "there is no option --data-folder; did you mean '--data-dir'"),
        (["nowhere"], "there is no folder nowhere: give one with SPLIT/images .* layout .*, cityscapes, .* --data-dir"),
        (["cityscapes"], "no data set is given: give --data-dir FOLDER"),
        (["cityscape", "--data-dir", "."], "data is 'cityscape', but it must be one of .*; did you mean 'cityscapes'"),
        (["voc", "--data-dir", "nowhere"], "there is no folder nowhere"),
    ],
)
def test_verify_refuses_wrong_options(words, message, scenes):
    place = [str(scenes())] if words[0].startswith("--") else []
    with pytest.raises(SystemExit, match=message):
        main(["--task", "segmentation", *place, *words])


def test_verify_takes_the_task_from_the_folder(scenes, capsys, tmp_path):
    assert exit_code(main, scenes()) == 0
    for folder in ("leftImg8bit", "gtFine"):
        (tmp_path / "cities" / folder).mkdir(parents=True)
    assert exit_code(main, "cityscapes", "--data-dir", tmp_path / "cities") == 1
    assert "train: there is no " in capsys.readouterr().out


def test_verify_reports_no_missing_class_of_a_split_without_valid_masks(scenes, capsys):
    root = scenes(train=1, test=1)
    write_mask(root / "train" / "masks" / "0.png", np.full((40, 48), 7))
    assert exit_code(main, root) == 1
    said = capsys.readouterr().out
    assert "masks/0.png has the value 7" in said and "\n1 problem\n" in said and "no pixels" not in said
    assert "% of the pixels   test\n" in said
    write_mask(root / "test" / "masks" / "0.png", np.full((40, 48), 7))
    assert exit_code(main, root) == 1
    assert capsys.readouterr().out.endswith("\n2 problems\n")


def test_verify_lists_every_problem(scenes, break_image, capsys):
    root = scenes()
    assert exit_code(main, root) == 0
    said = capsys.readouterr().out
    assert "nothing is wrong" in said and "% of the pixels" in said and "(ignored)" in said
    break_image(root / "train" / "images" / "0.png")
    write_mask(root / "train" / "masks" / "1.png", np.full((40, 48), 7))
    write_mask(root / "val" / "masks" / "0.png", np.zeros((40, 47)))
    (root / "test" / "masks" / "0.png").rename(root / "test" / "masks" / "other.png")
    (root / "classes.txt").write_text("sky\nground\nhouse\ntree\nbox\n")
    assert exit_code(main, root) == 1
    said = capsys.readouterr().out
    for words in (
        "train/images/0.png: ",
        "masks/1.png has the value 7 at 1,920 pixels",
        "val/images/0.png has 40 x 48 pixels, but its mask",
        "train: these classes have no pixels (1 of 5): box",
        "0.png has no partner 0 in",
        "other.png has no partner in",
        "8 problems",
    ):
        assert words in said, (words, said)
    with pytest.raises(SystemExit, match="^error: .*Give a folder with SPLIT/images and SPLIT/masks"):
        main([str(root / "train")])
