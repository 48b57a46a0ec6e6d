"""Test `metamix predict` with segmenters: image sizes, tiles, images that are left out, and untrusted weight files."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from metamix.segmentation import inference, load
from metamix.segmentation.inference import Predictor
from metamix.segmentation.load import SegmenterSpec, TrainedSegmenter
from metamix.segmentation.predict import LabelPixels
from metamix.tasks.predict import main
from metamix.utils.checks import DoesNotFit
from metamix.utils.rules import rules_of
from tests.helpers import segmenters
from tests.helpers.advice import exit_code

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
SPEC = replace(segmenters.SPEC, classes=("red", "green", "blue"), palette=COLOURS)


class Colours(nn.Module):
    """Label each pixel with its strongest channel, and record the sizes of the images."""

    fixed_size = None

    def __init__(self):
        super().__init__()
        self.weight, self.sizes = nn.Parameter(torch.ones(())), []

    def forward(self, x):
        self.sizes.append(tuple(x.shape[-2:]))
        return x * self.weight


@pytest.fixture
def run(monkeypatch):
    """Return a function that runs `metamix predict` with `Colours` as the model."""

    def call(*words, **spec):
        trained = TrainedSegmenter(Colours().eval(), SegmenterSpec(**vars(SPEC) | spec), {})
        monkeypatch.setattr(load, "load_segmenter", lambda path: trained)
        code = exit_code(main, *words, "--task", "segmentation", "--checkpoint", "x", "--device", "cpu")
        if isinstance(code, str):
            raise SystemExit(code)
        return code, trained.model

    return call


@pytest.fixture
def photos(tmp_path):
    """Make three images of different sizes, one in a subfolder.

    Green is the strongest channel in the upper half, and blue is the strongest in the lower half.
    """
    sizes = {"a.jpg": (9, 7), "b.png": (64, 48), "inside/c.png": (3, 40)}
    for name, (width, height) in sizes.items():
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.zeros((height, width, 3), dtype=np.uint8)
        values[..., 1] = 200
        values[height // 2 :, :, 2] = 250
        Image.fromarray(values).save(path, quality=95)
    return tmp_path / "photos"


def test_masks_and_overlays_have_the_size_of_the_images(photos, tmp_path, run):
    out = tmp_path / "out"
    with pytest.raises(SystemExit, match="--overlap has no effect without --tile"):
        run(photos, "--output", out, "--tile", 0, "--overlap", 8)
    code, model = run(photos, "--output", out, "--tile", 32, "--overlap", 8)
    assert code == 0 and (out / "classes.txt").read_text() == "red\ngreen\nblue\n"
    for name, size in (("a", (9, 7)), ("b", (64, 48)), ("inside/c", (3, 40))):
        mask, overlay = (Image.open(out / kind / f"{name}.png") for kind in ("masks", "overlays"))
        assert mask.size == overlay.size == size
        values = np.array(mask)
        assert (values[: size[1] // 2 - 1] == 1).all() and (values[size[1] // 2 + 1 :] == 2).all()
    assert np.array(mask.convert("RGB"))[-1, 0].tolist() == [0, 0, 255]
    assert max(max(size) for size in model.sizes) == 32 and (7, 9) in model.sizes
    codes = [run(photos, "--output", photos / "out")[0] for _ in range(2)]
    assert codes == [0, 0]  # the second run does not label the output of the first
    assert not (photos / "out" / "masks" / "out").exists()


def test_the_output_folder_may_contain_the_input_images(photos, run):
    for output in (photos.parent, photos):
        for _ in range(2):  # the second run finds the output of the first
            code, model = run(photos, "--output", output)
            assert code == 0 and len(model.sizes) == 3
    with pytest.raises(SystemExit, match="masks/.*png is an image and would be overwritten: give another"):
        run(photos / "masks", "--output", photos)


def test_masks_of_a_data_set_are_not_overwritten(photos, tmp_path, run):
    root = tmp_path / "my set"
    root.mkdir()
    photos.rename(root / "images")
    (root / "masks").mkdir()
    (root / "masks" / "a.png").write_bytes(b"truth")
    (root / "classes.txt").write_text("red\ngreen\nblue\n")
    with pytest.raises(SystemExit, match="masks was not written by metamix predict: there is no .*predictions"):
        run(root / "images", "--output", root)
    for place in (root, tmp_path):
        with pytest.raises(SystemExit, match=f"{place} holds a data set, .* as images: give '{root}/images'$"):
            run(place, "--output", tmp_path / "out")
    assert (root / "masks" / "a.png").read_bytes() == b"truth"


def test_records_name_the_masks_and_their_classes(photos, tmp_path, run):
    (photos / "broken.png").write_bytes(b"")
    assert run(photos, "--output", tmp_path / "out")[0] == 1
    records = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [record["mask"] for record in records] == ["masks/a.png", "masks/b.png", "masks/inside/c.png"]
    assert records[0]["image"] == str(photos / "a.jpg")
    for record in records:
        labels = np.asarray(Image.open(tmp_path / "out" / record["mask"]))
        for i, name, colour in (0, "red", "#ff0000"), (1, "green", "#00ff00"), (2, "blue", "#0000ff"):
            rows = [row for row in record["classes"] if row["class"] == name]
            share = pytest.approx((labels == i).mean(), abs=1e-4)
            assert rows == ([{"class": name, "share": share, "colour": colour}] if (labels == i).any() else [])


def test_classes_of_a_data_set_are_not_overwritten(photos, tmp_path, run):
    (tmp_path / "classes.txt").write_text("road\nsky\n")
    with pytest.raises(SystemExit, match="classes.txt names classes that differ from the model's: give another"):
        run(photos, "--output", tmp_path)
    assert (tmp_path / "classes.txt").read_text() == "road\nsky\n" and not (tmp_path / "masks").exists()


def test_images_are_resized_as_in_training(photos, tmp_path, run):
    code, model = run(photos / "b.png", "--output", tmp_path / "out", "--flip", min_size=24, max_size=28)
    assert code == 0 and model.sizes == [(21, 28)] * 2
    assert Image.open(tmp_path / "out" / "masks" / "b.png").size == (64, 48)


def test_large_images_are_predicted_in_blocks(photos, tmp_path, run, monkeypatch):
    whole = run(photos / "b.png", "--output", tmp_path / "whole", "--tile", 8, "--overlap", 2)[1]
    monkeypatch.setattr(inference, "MAX_BYTES", 4 * 3 * 20**2)
    blocks = run(photos / "b.png", "--output", tmp_path / "blocks", "--tile", 8, "--overlap", 2)[1]
    assert len(blocks.sizes) > len(whole.sizes)  # where extended blocks overlap, tiles are predicted twice
    first, second = (np.array(Image.open(tmp_path / name / "masks" / "b.png")) for name in ("whole", "blocks"))
    assert (first == second).all()


def test_blocks_are_predicted_with_the_pixels_around_them(monkeypatch):
    monkeypatch.setattr(inference, "MAX_BYTES", 4 * 3 * 20**2)  # blocks of 20 x 20 pixels
    places, seen = torch.cartesian_prod(torch.arange(50), torch.arange(40)).T.reshape(1, 2, 50, 40), []

    def predictor(model, block, size):
        seen.append(block[0, :, 0, 0].tolist() + block[0, :, -1, -1].tolist())
        return block[0].sum(0).byte()

    predictor.tile = 8
    assert inference.predict(None, places, (50, 40), 3, predictor).equal(places[0].sum(0).byte())
    rows, columns = ((0, 27), (12, 47), (32, 49)), ((0, 27), (12, 39))
    assert seen == [[top, left, bottom, right] for top, bottom in rows for left, right in columns]


def test_weights_that_are_nan_are_refused():
    """Such weights would label every pixel as class 0."""
    model = Colours().eval()
    model.weight.data.fill_(torch.nan)
    for predictor in (Predictor(), Predictor(8, 2), Predictor(flip=True)):
        with pytest.raises(ValueError, match="the model returns NaN or infinity: use other weights"):
            predictor(model, torch.rand(1, 3, 16, 16), (16, 16))


def test_images_that_an_exported_model_does_not_take_are_left_out(photos, tmp_path, capsys):
    class Exported(Colours):
        def forward(self, x):
            if min(x.shape[-2:]) < 32:
                raise DoesNotFit("the exported model fails")
            return super().forward(x)

    Image.new("RGB", (20, 20)).save(photos / "small.png")
    options = LabelPixels((photos / "small.png", photos / "b.png"), output=tmp_path / "out")
    assert options.run(TrainedSegmenter(Exported().eval(), SPEC, {})) == 1
    said = capsys.readouterr()
    assert f"left out: {photos / 'small.png'}: the exported model fails" in said.err
    assert "written: masks and overlays of 1 image to" in said.out


def test_images_of_the_same_name_get_separate_masks_and_broken_images_are_left_out(photos, tmp_path, run, capsys):
    Image.new("RGB", (4, 4)).save(photos / "a.png")
    assert run(photos, "--output", tmp_path / "same")[0] == 0
    assert {path.name for path in (tmp_path / "same" / "masks").glob("*")} == {
        "a.png.png", "a.jpg.png", "b.png", "inside",
    }  # fmt: skip
    with pytest.raises(SystemExit, match="c.png and .*c.png would both become .*masks/c.png.png: rename one"):
        Image.new("RGB", (4, 4)).save(photos / "c.png")
        run(photos / "c.png", photos / "inside", "--output", tmp_path / "out")
    (photos / "a.png").write_bytes(b"no image")
    (photos / "a.jpg").unlink()
    assert run(photos, "--output", tmp_path / "out")[0] == 1
    assert "a.png: not an image of a known format" in capsys.readouterr().err
    assert run(photos / "a.png", "--output", tmp_path / "new")[0] == 1
    assert "written: masks and overlays of 0 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    "entry, words",
    [
        ({"task": "detection"}, "has weights for detection, not for a segmenter: give --task detection"),
        ({"head": "deeplab"}, "head in the metadata is 'deeplab', but it must be one of semantic_fpn, upernet"),
        ({"head_args": {"checkpoint": "x"}}, "head_args in the metadata is"),
        ({"head_args": {"neck_channels": 1e9}}, "x, head_args: model_args.'neck_channels'. in the metadata is"),
        ({"model_args": {"img_size": 8}}, "model_args in the metadata is"),
        ({"classes": ["one"]}, "classes in the metadata is .'one'., but it must be a list of 2 to 255 strings"),
        ({"min_size": 5000}, "min_size in the metadata is 5000, but it must be a whole number from 0 to 4,096"),
        ({"std": [0.5, 0.5, 0]}, "std in the metadata is"),
        ({"mean": [0.5]}, "mean in the metadata is .0.5., but it must be a list of 3 numbers from 0 to 1"),
        ({"ignore_index": 256}, "ignore_index in the metadata is 256, but it must be a whole number from 0 to 255"),
        ({"palette": [[0, 0]]}, "palette in the metadata is"),
        ({"frozen_norms": 1}, "frozen_norms in the metadata is 1, but it must be true or false"),
        ({"train_on": 5}, "train_on in the metadata is 5, but it must be a list of 0 to 1,000 strings"),
    ],
)
def test_wrong_metadata_are_refused(entry, words):
    good = SPEC.to_dict()
    assert SegmenterSpec.from_dict(good, "x") == SPEC
    with pytest.raises(ValueError, match=words):
        SegmenterSpec.from_dict(good | entry, "x")


def test_the_error_names_a_missing_metadata_entry():
    good = SPEC.to_dict()
    for name in rules_of(SegmenterSpec):
        with pytest.raises(ValueError, match=f"{name} is missing in the metadata"):
            SegmenterSpec.from_dict({key: value for key, value in good.items() if key != name}, "x")
