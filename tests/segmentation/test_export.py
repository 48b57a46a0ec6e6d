"""Test that exported segmenters give the masks and scores of the original, even in tiles and in `metamix predict`."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import metamix
import metamix.tasks.export
import metamix.tasks.predict
from metamix.data.files import read_pixels
from metamix.deploy import export, load_exported
from metamix.deploy.artifact import Artifact, load_artifact
from metamix.deploy.runtime import ExportedModel
from metamix.layers.image_inference import PadAndCrop, tiles
from metamix.segmentation.export import exported_segmenter, open_segmenter
from metamix.segmentation.inference import Predictor
from metamix.segmentation.load import load_segmenter
from metamix.tasks.exportable import ExportOptions
from metamix.weights.files import save_weights
from metamix.weights.metadata import ModelMetadata
from tests.helpers.advice import exit_code
from tests.helpers.exports import edit, needs_engines
from tests.helpers.segmenters import SPEC


@pytest.fixture
def source(tmp_path):
    torch.manual_seed(0)
    save_weights(tmp_path / "segmenter.safetensors", SPEC.build().state_dict(), SPEC.to_dict())
    return str(tmp_path / "segmenter.safetensors")


@pytest.fixture
def scenes(tmp_path):
    """Draw a data set of two images of 40 x 56 pixels to score."""
    return draw(tmp_path / "scenes", test=2)


def draw(root, **counts):
    """Draw noise of 40 x 56 pixels, bright in the split "train", and masks of about 20 % ground and 80 % sky."""
    random = np.random.default_rng(0)
    for split, count in counts.items():
        for folder in ("images", "masks"):
            (root / split / folder).mkdir(parents=True)
        for i in range(count):
            image = random.integers(200 if split == "train" else 0, 256, (40, 56, 3), np.uint8)
            mask = (random.random((40, 56)) < 0.2).astype(np.uint8)
            Image.fromarray(image).save(root / split / "images" / f"{i}.png")
            Image.fromarray(mask).save(root / split / "masks" / f"{i}.png")
    (root / "classes.txt").write_text("sky\nground\n")
    return root


@pytest.mark.parametrize(
    ("format", "dynamic"),
    [
        pytest.param("openvino", True, marks=needs_engines),
        pytest.param("onnx", False, marks=[pytest.mark.slow, needs_engines]),
        pytest.param("onnx", True, marks=[pytest.mark.slow, needs_engines]),
        pytest.param("torch", False, marks=pytest.mark.slow),
    ],
)
def test_an_exported_segmenter_gives_the_same_masks_and_scores(format, dynamic, source, scenes, tmp_path):
    folder = tmp_path / "out"
    report = export(source, output=folder, format=format, dynamic=dynamic, data_dir=str(scenes), seconds=0)
    assert report["parity"]["images"] == 2 and report["parity"]["same_top1"] > 0.999
    assert report["scores"]["exported"]["miou"] == pytest.approx(report["scores"]["eager"]["miou"], abs=0.1)
    images = torch.randn(2, 3, 40, 56) if dynamic else torch.randn(2, 3, 32, 32)
    expected = load_segmenter(source).model(images).detach()
    torch.testing.assert_close(load_exported(folder, trust=True)(images), expected, rtol=1e-4, atol=1e-4)
    pictures = scenes / "test" / "images"
    words = [pictures, "--model", folder, "--output", tmp_path / "predicted", "--trust"]
    assert exit_code(metamix.tasks.predict.main, *words, "--flip") == 0
    trained, size = load_segmenter(source), None if dynamic else (32, 32)
    eager = PadAndCrop(trained.model, size or (1, 1))
    predictor = Predictor(*tiles(size), flip=True, whole=size)
    expected = replace(trained, model=eager).label(read_pixels(pictures / "0.png"), predictor)
    with Image.open(tmp_path / "predicted" / "masks" / "0.png") as mask:
        assert (torch.from_numpy(np.array(mask)) == expected).float().mean() > 0.999
    loaded = metamix.load(folder, trust=True)
    assert loaded.spec == trained.spec and loaded.graph_size == size
    assert (loaded.predict([pictures / "0.png"], flip=True)[0] == expected).float().mean() > 0.999
    assert "--tile has no effect on" in exit_code(metamix.tasks.predict.main, *words, "--tile", 16)


@pytest.mark.slow
def test_a_graph_of_an_odd_size_equals_the_model(source, tmp_path):
    export(source, output=tmp_path / "out", format="torch", img_size=33, seconds=0)
    images = torch.randn(1, 3, 33, 33)
    expected = load_segmenter(source).model(images).detach()
    torch.testing.assert_close(load_exported(tmp_path / "out", trust=True)(images), expected, rtol=1e-4, atol=1e-4)
    assert len(metamix.load(tmp_path / "out", trust=True).predict([Image.new("RGB", (50, 41))])) == 1


def test_an_image_that_fits_a_rectangular_graph_is_not_cut():
    sizes = []

    def graph(images):
        sizes.append(tuple(images.shape[-2:]))
        return images

    predictor, model = Predictor(*tiles((32, 64)), whole=(32, 64)), PadAndCrop(graph, (32, 64))
    for size in ((32, 64), (20, 50), (33, 64)):
        image = torch.rand(1, 3, *size)
        assert predictor.logits(model, image).allclose(image, atol=1e-6)
    assert sizes == [(32, 64)] * (1 + 1 + 6)  # six square tiles of 32 pixels, padded to the graph's size


def fixed_size_segmenter(folder):
    """Write a segmenter whose backbone takes images of 32 x 32 pixels at most."""
    torch.manual_seed(0)
    spec = replace(SPEC, model="mixer_s32_224", model_args=dict(mlp_ratio=[0.1, 0.1]))
    save_weights(folder / "mixer.safetensors", spec.build().state_dict(), spec.to_dict())
    return str(folder / "mixer.safetensors")


@pytest.mark.slow
def test_backbone_of_fixed_size_gets_tiles(scenes, tmp_path):
    folder = tmp_path / "out"
    report = export(fixed_size_segmenter(tmp_path), output=folder, format="torch", data_dir=str(scenes), seconds=0)
    assert any("scores of tiles of 32 pixels" in note for note in report["notes"])
    assert report["parity"]["same_top1"] > 0.999
    with pytest.raises(ValueError, match="mixer_s32_224 takes images of 32 x 32 pixels at most: leave --dynamic out"):
        open_segmenter(ExportOptions(fixed_size_segmenter(tmp_path), tmp_path / "new", dynamic=True))


def test_comparing_runs_the_exported_model_once_for_each_tile(source, scenes, tmp_path):
    exportable = open_segmenter(ExportOptions(source, tmp_path / "out", data_dir=str(scenes)))
    calls = []

    def exported(images):
        calls.append(images.shape)
        return exportable.model(images)

    scores = exportable.compare(exported, "fp32").scores
    assert len(calls) == 2 * 2 * 2  # two images of 40 x 56 pixels in 2 x 2 tiles of 32
    assert scores["eager"] == scores["exported"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"extra": {}}, r"scale is missing in extra\. Export the model again"),
        ({"model": SPEC.to_dict()}, r"img_size is missing in model\. Export the model again"),
        ({"model": SPEC.to_dict() | {"classes": [*"abc"], "img_size": 32}}, "has 3 classes, but the graph returns"),
        ({"extra": {"scale": 1, "multiple": [1, 0]}}, r"multiple in extra is \[1, 0\], but it must be two"),
        ({"model": SPEC.to_dict() | {"crop": [0, 32], "img_size": 32}}, "crop in the metadata is .0, 32., but it must"),
    ],
)
def test_damaged_exports_are_refused(change, words, tmp_path):
    shape, extra = (None, 3, None, None), {"scale": 1, "multiple": [1, 1]}
    metadata = ModelMetadata.from_dict(SPEC.to_dict() | {"img_size": 32})
    Artifact("onnx", "fp32", metadata, shape, ("logits",), extra).save(tmp_path)

    def graph(images):
        return [images[:, :2]]

    assert exported_segmenter(ExportedModel(graph, load_artifact(tmp_path))).spec == SPEC
    edit(tmp_path, **change)
    with pytest.raises(ValueError, match=words):
        exported_segmenter(ExportedModel(graph, load_artifact(tmp_path)))


@needs_engines
def test_options_that_do_not_fit_are_refused(source, scenes, tmp_path):
    for options, words in (
        (dict(data="camvid", data_dir=str(tmp_path)), "data is 'camvid', but it must be one of folder, ade20k"),
        (dict(precision="int8", data_dir=str(scenes)), "scenes has no training split, and int8 is not calibrated on"),
        (dict(data="folder", seconds=0), "data is folder, but no folder is given: give --data-dir DIR"),
    ):
        with pytest.raises(ValueError, match=words):
            export(source, output=tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()


@needs_engines
@pytest.mark.parametrize("format", ["openvino", pytest.param("onnx", marks=pytest.mark.slow)])
def test_int8_is_reported_with_size_speed_and_loss(format, source, tmp_path, capsys):
    data = draw(tmp_path / "scenes", train=12, test=1)
    words = [source, "--output", tmp_path / "out", "--format", format, "--precision", "int8", "--data-dir", data]
    metamix.tasks.export.main([*map(str, words), "--max-drop", "90", "--seconds", "0.01"])
    said = capsys.readouterr().out
    assert re.search(
        rf"\n{format} int8: 0.\d MB, \d.\d times smaller than fp32; one image runs \d+.\d times as fast as in torch; "
        r"(lost|gained) \d+.\d\d points on 6 training images \(limit 90\), 0 of 26 layers kept in fp32\nwritten: ",
        said,
    )
    assert load_exported(tmp_path / "out")(torch.zeros(1, 3, 32, 32)).shape == (1, 2, 32, 32)


def test_int8_is_calibrated_on_tiles_of_training_images_only(source, tmp_path, monkeypatch):
    data = draw(tmp_path / "scenes", train=12, test=1)
    exportable = open_segmenter(ExportOptions(source, tmp_path / "out", data_dir=str(data)))
    assert exportable.calibration_count(500) == 6
    inputs = list(exportable.calibration(10))
    assert {images.shape for images in inputs} == {(1, 3, 32, 32)} and len(inputs) == 10
    assert min(images.min() for images in inputs) >= (200 / 255 - 0.5) / 0.25
    for number, batch in enumerate(exportable.load(slice(10))):
        tiles = exportable.inputs(batch)
        assert len(tiles) > 1 and np.array_equal(inputs[number], tiles[number % len(tiles)])
    with monkeypatch.context() as patch:
        patch.setattr("metamix.tasks.exportable.MAX_BYTES", 2 * inputs[0].nbytes)
        assert len(list(exportable.calibration(10))) == 2
        patch.setattr("metamix.tasks.exportable.MAX_BYTES", 1)
        assert len(list(exportable.calibration(10))) == 1
    seen = []

    def sky(images):
        seen.extend(images)
        return torch.tensor([1.0, 0.0])[:, None, None].expand(len(images), 2, 32, 32)

    scores = exportable.held_out_scores(sky, 10)
    assert scores == pytest.approx([40, 40], abs=2)  # the IoU of sky is 80 %, the IoU of ground 0 %
    assert not any(np.array_equal(a, images[0]) for a in seen for images in inputs)
