"""Test how pairs and crops are made, and which data are refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from metamix.data import CorruptImage
from metamix.restoration.data import RestorationData, read_tensor, train_crop
from metamix.restoration.degradations import parse_degradations
from metamix.restoration.inference import enlarge
from metamix.restoration.options import RestorationOptions
from metamix.restoration.pixels import to_8_bits
from metamix.tasks.verify import main
from tests.helpers.advice import exit_code, follow_verify
from tests.helpers.batches import share_a_sample


def data(**options):
    return RestorationData(
        RestorationOptions(
            **{"workers": 0, "crop": 16} | {k: str(v) if k.endswith("dir") else v for k, v in options.items()}
        )
    )


def test_the_word_pairs_may_have_spaces_around_it(pairs):
    assert data(data_dir=pairs(), degradation=" pairs").paired


def batches(images, epoch=0, rank=0, world=1, seed=0):
    return list(images.train_loader(2, rank, world, seed).epoch(epoch))


def verify(*words):
    """Run `metamix verify` and return its exit code."""
    return exit_code(main, *words)


def verify_clean(folder):
    return verify(folder, "--task", "restoration", "--clean")


def test_images_to_score_are_not_trained_on(clean):
    """The folder `test` may be in the folder of the training images."""
    root = clean(count=3)
    clean(name="photos/test", count=2)
    photos = data(data_dir=root, degradation="noise:25")
    assert [len(photos.parts[name].samples) for name in ("train", "test")] == [3, 2]
    clean(name="scored/test", count=2)
    with pytest.raises(ValueError, match="all images of .* are in .*test, so none is left to train on: give another"):
        data(data_dir=root.parent / "scored", degradation="noise:25")


def test_val_is_held_out_where_there_is_a_test_folder(clean, capsys):
    root = clean(count=3)
    clean(name="photos/test", count=2)
    clean(name="photos/val", count=1)
    photos = data(data_dir=root, degradation="noise:25")
    assert photos.identity["samples"] == {"train": 3, "test": 2, "holdout": 1} and not photos.notes
    assert {split: len(loader) for split, loader in photos.eval_loaders(4, 0, 1).items()} == {"test": 2, "holdout": 1}
    elsewhere = data(data_dir=root, test_dir=clean("others", count=4), degradation="noise:25")
    assert elsewhere.identity["samples"] == {"train": 3, "test": 4, "holdout": 1}
    assert elsewhere.notes == [f"{root}/test is neither trained on nor scored, since --test-dir is given"]
    with pytest.raises(ValueError, match="test_share is 0.5, but .*others is scored: leave --test-share out"):
        data(data_dir=root, test_dir=root.parent / "others", degradation="noise:25", test_share=0.5)
    on_val = data(data_dir=root, test_dir=root / "val", degradation="noise:25")
    assert on_val.identity["samples"] == {"train": 3, "test": 1} and on_val.notes == elsewhere.notes
    assert verify_clean(root) == 0 and "all 6 images can be read" in capsys.readouterr().out
    for split in "train", "test", "val":
        clean(name=f"split/{split}", count=2)
    assert len(data(data_dir=root.parent / "split", degradation="noise:25").parts["holdout"]) == 2


@pytest.mark.parametrize("test_dir", [None, "my tests"])
def test_the_advised_command_finds_the_unreadable_image(clean, break_image, capsys, test_dir):
    root = clean("my photos")
    options = {"data_dir": root, "degradation": "noise:25"} | ({"test_dir": clean(test_dir)} if test_dir else {})
    broken = (root.parent / test_dir if test_dir else root) / "0.png"
    break_image(broken)
    photos = data(**options)
    loader = photos.eval_loaders(1, 0, 1)["test"] if test_dir else photos.train_loader(5, 0, 1, 0)
    with pytest.raises(CorruptImage, match="metamix verify --task restoration '.*my .*' --clean") as e:
        list(loader.epoch(0))
    assert follow_verify(e.value) == 1
    said = capsys.readouterr().out
    assert f"{broken}: " in said and "\n1 problem; " in said


def test_the_advised_command_names_the_folders_of_pairs(pairs, break_image, capsys):
    root = pairs()
    for place in root.glob("*/input"):
        for path in place.iterdir():
            path.rename(path.with_name(f"{path.stem} low.png"))
        place.rename(place.with_name("low"))
    for place in root.glob("*/target"):
        place.rename(place.with_name("high"))
    break_image(root / "train" / "low" / "1 low.png")
    names = {"input_folder": "low", "target_folder": "high", "input_name": "{name} low"}
    with pytest.raises(CorruptImage, match="To list them all: ") as error:
        list(data(data_dir=root, **names).train_loader(4, 0, 1, 0).epoch(0))
    assert follow_verify(error.value) == 1
    said = capsys.readouterr().out
    assert "train/low/1 low.png: " in said and "\n1 problem; " in said


def test_batches_depend_only_on_seed_and_epoch(clean):
    options = {"data_dir": clean(), "degradation": "noise:25", "crops": 3}
    first, again = batches(data(**options)), batches(data(**options))
    assert len(first) == 5 * 3 // 2
    for a, b in zip(first, again):
        assert a["image"].shape == a["target"].shape == (2, 3, 16, 16)
        assert torch.equal(a["image"], b["image"]) and torch.equal(a["target"], b["target"]) and a["name"] == b["name"]
    assert not share_a_sample(first, batches(data(**options), epoch=1))
    assert not share_a_sample(first, batches(data(**options), seed=1))
    halves = [batches(data(**options), rank=rank, world=2) for rank in (0, 1)]
    for whole, left, right in zip(first, *halves):
        assert torch.equal(whole["image"], torch.cat([left["image"], right["image"]]))


def test_crops_of_an_image_differ(clean):
    photos = data(data_dir=clean(count=2), degradation="noise:0", crops=8, test_share=0.5)
    crops = torch.cat([batch["target"] for batch in batches(photos)])
    assert len({tuple(crop.flatten().tolist()) for crop in crops}) > 4


def test_crops_of_pairs_lie_in_the_same_place():
    target = torch.rand(3, 24, 32)
    pair, chain = ("a", target, target[:, ::2, ::2]), parse_degradations("pairs")  # the input has half the size
    turned_too = RestorationOptions(data_dir="x", crop=8)
    upright = RestorationOptions(data_dir="x", crop=8, flip=False, rotate=False)
    for seed in range(8):
        torch.manual_seed(seed)
        _, image, crop = train_crop(pair, upright, chain, 2, 1)
        assert torch.equal(image, crop[:, ::2, ::2])
        torch.manual_seed(seed)
        _, turned_image, turned = train_crop(("a", target, 1 - target), turned_too, chain, 1, 1)
        assert torch.equal(turned_image, 1 - turned) and turned.shape == (3, 8, 8)


@pytest.mark.parametrize("paired", [False, True])
def test_crops_are_enlarged_like_the_whole_image(paired):
    target, chain = to_8_bits(torch.rand(1, 60, 48)), parse_degradations("downscale:2")
    small = chain(target, torch.default_generator)
    whole = enlarge(small, 2)
    options = RestorationOptions(data_dir="x", crop=16, flip=False, rotate=False)
    used = parse_degradations("pairs") if paired else chain
    for seed in range(6):
        torch.manual_seed(seed)
        _, image, clean = train_crop(("a", target, small if paired else None), options, used, 2, 2)
        top, left = next(
            (y, x) for y in range(45) for x in range(33) if torch.equal(target[:, y : y + 16, x : x + 16], clean)
        )
        assert torch.allclose(image, whole[:, top : top + 16, left : left + 16], atol=1e-6)


@pytest.mark.parametrize("ending", ["x2", "{x}"])
def test_the_scale_of_pairs_with_named_inputs_is_found(tmp_path, image, ending):
    for i, size in enumerate([(41, 50), (44, 48)]):  # target sides may have up to scale - 1 extra pixels
        for folder, name, shape in ("hr", f"{i}", size), ("lr", f"{i}{ending}", (size[0] // 2, size[1] // 2)):
            (tmp_path / "set" / folder).mkdir(parents=True, exist_ok=True)
            image(shape).save(tmp_path / "set" / folder / f"{name}.png")
    scaled = data(data_dir=tmp_path / "set", target_folder="hr", input_folder="lr", input_name="{name}" + ending)
    assert scaled.scale == 2
    batch = next(iter(scaled.eval_loaders(1, 0, 1)["test"]))
    (image,), (target,) = batch["image"], batch["target"]
    assert target.shape == (3, 2 * image.shape[1], 2 * image.shape[2])


def test_scored_images_do_not_depend_on_the_run(clean):
    options = {"data_dir": clean(), "degradation": "noise:25", "test_share": 0.45}  # 3 of 6 images
    first, again = ([batch["image"][0] for batch in data(**options).eval_loaders(4, 0, 1)["test"]] for _ in range(2))
    assert len(first) == 3 and all(torch.equal(a, b) for a, b in zip(first, again))
    assert not torch.equal(first[0], first[1])


def test_channels_follow_from_the_images_or_the_option(clean):
    grey, colour = clean("grey", mode="L"), clean("colour")
    assert data(data_dir=grey, degradation="noise:1").in_chans == 1
    assert data(data_dir=colour, degradation="noise:1").channels == "rgb"
    assert data(data_dir=grey, degradation="noise:1", channels="rgb").in_chans == 3
    y = read_tensor(colour / "0.png", "y")
    red, green, blue = np.moveaxis(np.array(Image.open(colour / "0.png")).astype(float), -1, 0)
    assert y.shape == (1, 48, 40)
    assert np.allclose(255 * y[0].numpy(), 16 + (65.481 * red + 128.553 * green + 24.966 * blue) / 255, atol=1e-3)


def test_grey_files_are_scored_as_stored_but_trained_on_as_luminance(clean):
    grey, colour = clean("grey", mode="L"), clean("colour")
    stored = torch.from_numpy(np.array(Image.open(grey / "0.png")))[None] / 255
    assert torch.equal(read_tensor(grey / "0.png", "y"), stored)
    restored = data(data_dir=grey, test_dir=grey, degradation="noise:0", channels="y")
    assert torch.equal(next(iter(restored.eval_loaders(1, 0, 1)["test"]))["target"][0], stored)
    assert "grey files are compared as stored, 0 to 255 (6 scored images)" in restored.notes
    trained_on = restored.parts["train"].read(0)[1]  # scaled like the luminance of a photograph in colour
    assert torch.allclose(255 * trained_on, 16 + 219 * stored, atol=1e-3)
    assert torch.equal(restored.training_images().read(0)[1], trained_on)
    assert not any("grey" in note for note in data(data_dir=colour, degradation="noise:0", channels="y").notes)


def test_grey_targets_of_colour_inputs_get_the_range_of_luminance(pairs, image):
    root = pairs()
    for split in "train", "test":
        image((40, 48), "L").save(root / split / "target" / "0.png")
    mixed = data(data_dir=root, channels="y")
    for part in mixed.parts.values():
        _, target, _ = part.read(0)
        assert target.min() >= 15.9 / 255 and target.max() <= 235.1 / 255


def test_one_input_in_colour_makes_the_channels_rgb(pairs, image):
    root = pairs(mode="L")
    assert data(data_dir=root).channels == "grey"
    image((40, 48)).save(root / "train" / "input" / "2.png")
    assert data(data_dir=root).channels == "rgb"
    with pytest.raises(ValueError, match="channels is grey, but .*/2.png is in colour: give --channels rgb, or y for"):
        data(data_dir=root, channels="grey")


def test_a_changed_data_set_has_another_identity(clean, image):
    photos = clean()
    before = data(data_dir=photos, degradation="noise:1").identity
    image((40, 48)).save(photos / "7.png")
    after = data(data_dir=photos, degradation="noise:1").identity
    assert before["samples"] == {"train": 5, "test": 1} and before["digest"] != after["digest"]


def test_pairs_with_changed_inputs_have_another_identity(pairs, image):
    root = pairs()
    before = data(data_dir=root).identity
    image((40, 48), "L").save(root / "train" / "input" / "0.png")
    after = data(data_dir=root).identity
    assert before["digest"]["train"] != after["digest"]["train"] and before["digest"]["test"] == after["digest"]["test"]


def test_pairs_that_do_not_fit_are_refused_and_named(pairs, image):
    root = pairs()
    (root / "train" / "input" / "2.png").rename(root / "train" / "input" / "two.png")
    with pytest.raises(ValueError, match="target/2.png has no partner 2 in .*train/input"):
        data(data_dir=root)
    (root / "train" / "input" / "two.png").rename(root / "train" / "input" / "2.png")
    image((40, 48)).save(root / "test" / "input" / "9.png")
    with pytest.raises(ValueError, match="input/9.png has no partner in .*test/target. .* named by --input-name"):
        data(data_dir=root)
    (root / "test" / "input" / "9.png").unlink()
    image((39, 48)).save(root / "train" / "input" / "0.png")
    with pytest.raises(ValueError, match="0.png has 48 x 39 pixels and .*0.png has 48 x 40; the target of a pair must"):
        data(data_dir=root)
    image((20, 24)).save(root / "train" / "input" / "0.png")
    with pytest.raises(ValueError, match="1.png has scale 1, but other pairs have 2: keep"):
        data(data_dir=root)


def test_verify_lists_every_problem(pairs, clean, image, break_image, capsys):
    root = pairs()
    assert verify(root) == 0 and "all 6 pairs can be read" in capsys.readouterr().out
    break_image(root / "train" / "target" / "1.png")
    (root / "train" / "input" / "1.png").write_bytes(b"no image")
    (root / "train" / "target" / "2.png").write_bytes(b"no image")
    image((39, 48)).save(root / "train" / "input" / "3.png")
    (root / "test" / "input" / "0.png").unlink()
    image((40, 48)).save(root / "test" / "input" / "9.png")
    assert verify(root) == 1
    said = capsys.readouterr().out
    for words in (
        "train/target/1.png: ",
        "train/input/1.png: ",
        "train/target/2.png: ",
        "train/input/3.png has 48 x 39 pixels and ",
        "test/target/0.png has no partner 0 in ",
        "test/input/9.png has no partner in ",
        "6 problems; 5 pairs checked",
    ):
        assert words in said


def test_verify_checks_clean_images(clean, image, capsys):
    photos = clean()
    assert verify_clean(photos) == 0 and "all 6 images can be read" in capsys.readouterr().out
    (photos / "test").mkdir()
    (photos / "5.png").rename(photos / "test" / "5.png")  # counted once
    assert verify_clean(photos) == 0 and "all 6 images can be read" in capsys.readouterr().out
    for i in (1, 4):
        (photos / f"{i}.png").write_bytes(b"no image")
    assert verify_clean(photos) == 1
    said = capsys.readouterr().out
    assert "photos/1.png: " in said and "photos/4.png: " in said and "2 problems; 6 images checked" in said
    image((33, 70)).save(photos / "0.png")
    assert verify_clean(photos) == 1
    said = capsys.readouterr().out
    assert "3 clean images are smaller than the default crop of 64 pixels" in said
    assert "give a --crop of at most 33; " in said
    assert verify(photos, "--task", "restoration") == 1 and "there is no folder" in capsys.readouterr().out


def test_verify_refuses_options_that_do_not_fit(pairs, clean):
    root, words = pairs(), ["--task", "restoration"]
    assert verify(root / "train", "--target-folder", "input", "--input-folder", "target", *words) == 0
    with pytest.raises(SystemExit, match="--input-folder target is for pairs, but --clean checks images"):
        main([str(clean()), "--clean", "--input-folder", "target", *words])
    with pytest.raises(SystemExit, match="data_dir is x: give only the folder: metamix ve"):
        main(["folder", "--data-dir", "x", *words])
