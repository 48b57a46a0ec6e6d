"""Test that exported restorers give the images and scores of the original, at any size and in `metamix predict`."""

import numpy as np
import pytest
import torch
from PIL import Image

import metamix
import metamix_cli
from metamix.deploy.artifact import Artifact
from metamix.deploy.runtime import ExportedModel, load_exported
from metamix.layers.image_inference import PadAndCrop, apply_in_tiles, tiles
from metamix.restoration.export import exported_restorer, open_restorer
from metamix.restoration.inference import Restorer
from metamix.restoration.load import RestorationSpec, TrainedRestorer
from metamix.tasks.export import export
from metamix.tasks.exportable import ExportOptions
from metamix.weights.files import save_weights
from metamix.weights.metadata import ModelMetadata
from tests.helpers.advice import exit_code
from tests.helpers.exports import needs_engines

MAXIM = ("maxim_nano", dict(features=4, depth=1, block_size_hr=4, grid_size_hr=4, block_size_lr=4))
WAVEMIX = ("wavemix_sisr_144_4", dict(dim=8, depth=1))


@pytest.fixture
def photos(tmp_path):
    """Make a folder of three images of 40 x 56 pixels."""
    return draw(tmp_path / "photos", 3)


def draw(folder, count):
    random = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        small = Image.fromarray(random.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        small.resize((56, 40), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


def weights(folder, name, model_args, degradation):
    torch.manual_seed(0)
    model = metamix.create_image_model(name, **model_args)
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():  # an output layer of zeros would hide the other layers
            torch.nn.init.normal_(parameter, std=0.1)
    metadata = dict(
        task="restoration", model=name, model_args=model_args, in_chans=3, channels="rgb", enlarge=1,
        degradation=degradation, test_share=0.4,
    )  # fmt: skip
    save_weights(folder / "restorer.safetensors", model.state_dict(), metadata)
    return str(folder / "restorer.safetensors"), model.eval()


@needs_engines
@pytest.mark.parametrize(
    ("model", "degradation", "format", "dynamic"),
    [
        (MAXIM, "noise:25", "onnx", False),
        (WAVEMIX, "downscale:2", "openvino", True),
        pytest.param(MAXIM, "noise:25", "openvino", False, marks=pytest.mark.slow),
        pytest.param(MAXIM, "noise:25", "torch", False, marks=pytest.mark.slow),
        pytest.param(WAVEMIX, "downscale:2", "onnx", False, marks=pytest.mark.slow),
    ],
)
def test_an_exported_restorer_gives_the_same_images_and_scores(model, degradation, format, dynamic, photos, tmp_path):
    source, eager = weights(tmp_path, *model, degradation)
    folder = tmp_path / "out"
    report = export(source, output=folder, format=format, data_dir=str(photos), img_size=32, dynamic=dynamic, seconds=0)
    assert report["parity"]["of_the_deviation"] < 2e-5
    assert report["scores"]["exported"]["psnr"] == pytest.approx(report["scores"]["eager"]["psnr"], abs=0.01)
    exported = load_exported(folder, trust=True)
    restorer = Restorer(1, *tiles(None if dynamic else (32, 32)))
    image = torch.rand(1, 3, 40, 27)
    restored = restorer(PadAndCrop(exported, exported.artifact.extra["multiple"] if dynamic else (32, 32)), image)
    scale = exported.artifact.extra["scale"]
    assert restored.shape == (1, 3, 40 * scale, 27 * scale)
    if dynamic:
        torch.testing.assert_close(restored, eager(image).detach(), rtol=0, atol=1e-4)
    else:
        pad = PadAndCrop(eager, (32, 32))
        torch.testing.assert_close(restored, apply_in_tiles(pad, image, tile=32, overlap=4), rtol=0, atol=1e-4)
    words = ["--model", folder, "--output", tmp_path / "restored", "--ensemble", "--format", "tif", "--trust"]
    assert exit_code(metamix_cli.main, "predict", photos / "0.png", *words) == 0
    photo = torch.from_numpy(np.array(Image.open(photos / "0.png"))).permute(2, 0, 1)[None] / 255
    size = None if dynamic else (32, 32)
    expected = Restorer(1, *tiles(size), ensemble=True, whole=size)(
        PadAndCrop(eager, size or exported.artifact.extra["multiple"]), photo
    )
    with Image.open(tmp_path / "restored" / "0.tif") as picture:
        written = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    assert (written - 255 * expected[0].clamp(0, 1)).abs().max() < 0.51
    restorer = metamix.load(folder, trust=True)
    (restored,) = restorer.predict([Image.open(photos / "0.png")], ensemble=True)
    assert torch.equal(torch.from_numpy(np.array(restored)).permute(2, 0, 1), written)
    assert restorer.graph_size == size and restorer.spec.degradation == degradation
    with pytest.raises(ValueError, match="is an exported model, which is fixed: leave model and model_args out"):
        metamix.load(folder, model="wavemixsr_nano")


def test_the_option_model_is_used_for_a_file_that_does_not_name_its_model(tmp_path):
    file = str(tmp_path / "plain.pt")
    torch.save(metamix.create_image_model("wavemixsr_nano").state_dict(), file)
    metadata = open_restorer(ExportOptions(file, tmp_path / "out", model="wavemixsr_nano")).metadata
    assert metadata.task == "restoration" and metadata.model == "wavemixsr_nano"


def test_an_image_that_fits_a_rectangular_graph_is_not_tiled():
    sizes = []

    def graph(images):
        sizes.append(tuple(images.shape[-2:]))
        return images

    restorer = Restorer(1, *tiles((32, 64)), whole=(32, 64))
    model = PadAndCrop(graph, (32, 64))
    for size in ((32, 64), (20, 50), (33, 64)):
        image = torch.rand(1, 3, *size)
        assert restorer(model, image).allclose(image, atol=1e-6)
    assert sizes == [(32, 64)] * (1 + 1 + 6)  # six square tiles of 32 pixels, padded to the graph's size


@pytest.mark.parametrize("size", [(100, 100), (64, 96)])
def test_the_ensemble_of_a_graph_turns_only_tiles_that_fit(size):
    sizes = set()

    def graph(images):
        sizes.add(tuple(images.shape[-2:]))
        return images

    spec, model = RestorationSpec("rgb", 1, ""), PadAndCrop(graph, size)
    restorer = TrainedRestorer("graph", model, spec, None, size).restorer(0, 0, ensemble=True)
    image = torch.rand(1, 3, 100, 150)
    assert restorer(model, image).allclose(image, atol=1e-6) and sizes == {size}


def test_the_default_size_fits_the_model(tmp_path):
    source, model = weights(tmp_path, "maxim_nano", MAXIM[1] | dict(block_size_hr=3, grid_size_hr=3), "noise:25")
    assert model.multiple == (24, 24) and open_restorer(ExportOptions(source, tmp_path)).metadata.img_size == (264, 264)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(img_size=30), r"img_size is 30 x 30: .* takes multiples of 8 x 8"),
        (dict(data="folder", data_dir="."), "data is folder, but restoration reads one layout: give only"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, words, tmp_path):
    source, _ = weights(tmp_path, *MAXIM, "noise:25")
    with pytest.raises(ValueError, match=words):
        open_restorer(ExportOptions(source, tmp_path / "out", **options))


def test_a_name_of_published_weights_names_the_model(tmp_path):
    options = ExportOptions("wavemixsr_nano.x2", tmp_path / "out")
    extra = dict(channels="y", enlarge=1, degradation="downscale:2", scale=2, multiple=[1, 1])
    assert open_restorer(options).extra == extra
    with pytest.raises(ValueError, match="model is maxim_nano, but wavemixsr_nano.x2 names its model: leave"):
        export(options.source, output=options.output, model="maxim_nano")


@needs_engines
@pytest.mark.parametrize(
    ("model", "degradation", "format"),
    [(WAVEMIX, "downscale:2", "openvino"), pytest.param(MAXIM, "noise:25", "onnx", marks=pytest.mark.slow)],
)
def test_int8_is_calibrated_and_reported_in_db(model, degradation, format, tmp_path):
    source, _ = weights(tmp_path, *model, degradation)
    data = str(draw(tmp_path / "photos", 20))
    options = dict(format=format, precision="int8", data_dir=data, img_size=32, seconds=0, images=2)
    report = export(source, output=tmp_path / "out", max_drop=50, **options)
    quantized = report["quantization"]
    assert quantized["unit"] == "dB" and not quantized["kept"] and quantized["calibration_images"] == 6  # half of 12
    assert abs(quantized["fp32"] - report["scores"]["eager"]["psnr"]) < 3  # the same degradation, other images
    assert load_exported(tmp_path / "out")(torch.zeros(1, 3, 32, 32)).shape[:2] == (1, 3)


def test_int8_is_not_calibrated_on_scored_images(tmp_path):
    source, _ = weights(tmp_path, *MAXIM, "noise:25")
    data = draw(tmp_path / "photos", 20)
    exportable = open_restorer(ExportOptions(source, tmp_path / "out", data_dir=str(data), img_size=32))
    scored = {sample.name for sample in exportable.task.data.parts["test"].samples}
    names = [exportable.training_images.read(i)[0] for i in range(len(exportable.training_images))]
    assert len(names) == 12 and scored.isdisjoint(names) and exportable.max_drop == 0.1
    assert {images.shape for images in exportable.calibration(10)} == {(1, 3, 32, 32)}
    psnr = exportable.held_out_scores(lambda images: images, 10)
    # Noise of sigma 25 leaves 20 log10(255 / 25) dB, and clipping adds a little.
    assert psnr == pytest.approx([20.5, 20.5], abs=1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ""),
        ({"channels": "u"}, r"channels in extra is 'u', but it must be one of rgb, grey, y.* Export the model again"),
        ({"multiple": [8]}, r"multiple in extra is \[8\], but it must be two whole numbers"),
        ({"scale": 0}, "scale in extra is 0, but it must be a whole number"),
        ({"enlarge": None}, "enlarge in extra is None, but it must be a whole number"),
    ],
)
def test_damaged_exports_are_refused(change, words):
    extra = dict(channels="rgb", enlarge=1, degradation="noise:25", scale=1, multiple=[8, 8])
    metadata = ModelMetadata(task="restoration", model="maxim_nano")
    artifact = Artifact("onnx", "fp32", metadata, (None, 3, 16, 24), ("restored",), extra | change)
    exported = ExportedModel(lambda images: [images], artifact)
    if words:
        with pytest.raises(ValueError, match=words):
            exported_restorer(exported)
        return
    restorer, photo = exported_restorer(exported), Image.new("RGB", (30, 20), (10, 20, 30))
    assert restorer.graph_size == (16, 24)
    assert np.array_equal(np.array(restorer.predict([photo])[0]), np.array(photo))
