"""Test int8: what is quantized, what stays in fp32, and what is refused."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from metamix.deploy import quantize
from metamix.deploy.formats import FORMATS, Graph, onnx
from metamix.deploy.formats.base import sums_saturate

IMAGES = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
BATCHES = [IMAGES[:8].numpy(), IMAGES[8:].numpy()]


class Cube(nn.Module):
    def forward(self, x):
        return x * x * x


def fragile() -> nn.Module:
    """Return three convolutions; the second reads a channel with values about 100 times as large as in the others."""
    torch.manual_seed(0)
    first, second, third = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3), nn.Conv2d(32, 4, 1)
    with torch.no_grad():
        first.weight[0] *= 5
        second.weight[:, 0] /= 125
    return nn.Sequential(first, Cube(), second, nn.ReLU(), third, nn.Flatten(2)).eval()


def format_of(file):
    return FORMATS["onnx" if file.suffix == ".onnx" else "openvino"]


def open_file(file, precision="fp32"):
    return format_of(file).open(file, precision=precision)


def quantize_file(file, batches, score, max_drop):
    return quantize.quantize_file(format_of(file), file, batches, score, max_drop=max_drop, minutes=1, unit="points")


def write(model: nn.Module, suffix: str, folder) -> Path:
    """Write a model in fp32 and return the file."""
    file = folder / f"model{suffix}"
    format_of(file).write(Graph(model, IMAGES[:2], ["y"]), file)
    return file


@pytest.fixture(scope="module", params=[".onnx", ".xml"])
def written(request, tmp_path_factory):
    return write(fragile(), request.param, tmp_path_factory.mktemp("fp32"))


@pytest.fixture
def file(written, tmp_path):
    for part in written.parent.iterdir():
        shutil.copy(part, tmp_path)
    return tmp_path / written.name


def score_of(file):
    """Return a function that scores each image: 100 minus its error in % of the fp32 outputs' standard deviation."""
    expected = open_file(file)(IMAGES.numpy())[0]
    return lambda run: 100 - 100 * np.abs(run(IMAGES.numpy())[0] - expected).mean((1, 2)) / expected.std()


def sizes(file):
    return {part.name: part.stat().st_size for part in file.parent.iterdir()}


def test_files_name_no_path_of_this_machine(written):
    assert all(b"site-packages" not in part.read_bytes() for part in written.parent.iterdir())


def test_all_layers_are_int8_if_the_limit_allows(file):
    score, before = score_of(file), sizes(file)
    result = quantize_file(file, BATCHES, score, max_drop=100)
    assert (result.fp32, result.layers, result.kept) == (100, 3, ())
    assert 1 < result.drop < 100 and score(open_file(file, precision="int8")).mean() == pytest.approx(result.int8)
    after = sizes(file)
    assert after.keys() == before.keys()
    largest = max(before, key=before.get)  # the file that holds the weights
    assert after[largest] < (0.6 if file.suffix == ".onnx" else 0.35) * before[largest]


def test_onnx_weights_have_seven_bits_where_sums_saturate(tmp_path, monkeypatch):
    """On x86 without VNNI, if the second layer is in fp32, 8-bit weights lose three times as much as 7-bit weights."""
    package = pytest.importorskip("onnx")
    assert sums_saturate(["avx2", "avx512f"])
    assert not sums_saturate(["avx2", "avx512f", "avx512_vnni"]) and not sums_saturate([])
    file, largest = write(fragile(), ".onnx", tmp_path), {}
    for instructions in (["avx2"], ["avx2", "avx_vnni"]):
        monkeypatch.setattr(onnx, "processor", lambda names=instructions: {"instructions": names})
        onnx.OnnxFile(file, tmp_path).quantize(tmp_path / "int8.onnx", BATCHES)
        weights = [
            w for w in package.load(tmp_path / "int8.onnx").graph.initializer if w.data_type == package.TensorProto.INT8
        ]
        largest[len(instructions)] = max(np.abs(package.numpy_helper.to_array(w).astype(int)).max() for w in weights)
    assert largest == {1: 64, 2: 127}


def test_the_layer_that_costs_accuracy_stays_in_fp32(file):
    score = score_of(file)
    result = quantize_file(file, BATCHES, score, max_drop=10)
    assert len(result.kept) == 1 and "conv" in result.kept[0] and "_1" in result.kept[0]
    assert result.drop <= 10 and score(open_file(file, precision="int8")).mean() == pytest.approx(result.int8)


def test_openvino_does_not_round_the_biases(tmp_path):
    package = pytest.importorskip("openvino")
    file, output = write(fragile(), ".xml", tmp_path), tmp_path / "int8.xml"
    format_of(file).quantizer(file, tmp_path).quantize(output, BATCHES)
    operations = package.Core().read_model(output).get_ops()
    constants = [each.data.ravel() for each in operations if each.get_type_name() == "Constant"]
    biases = [layer.bias.detach().numpy() for layer in fragile() if isinstance(layer, nn.Conv2d)]
    assert all(any(np.array_equal(bias, each) for each in constants) for bias in biases)


def test_a_mixed_graph_runs_the_chosen_layers_in_int8(file, tmp_path):
    quantizer, output = format_of(file).quantizer(file, tmp_path), tmp_path / f"int8{file.suffix}"
    quantizer.quantize(output, BATCHES)
    run, exact = quantizer.open_mixed(output), open_file(file)(IMAGES.numpy())[0]

    def error(*chosen):
        switches = np.array([name in chosen for name in quantizer.layers])
        return np.abs(run(IMAGES.numpy(), switches)[0] - exact).mean() / exact.std()

    first, second, third = sorted(quantizer.layers)
    int8 = np.abs(open_file(output, precision="int8")(IMAGES.numpy())[0] - exact).mean() / exact.std()
    assert error(first, second, third) == pytest.approx(int8, rel=0.1)
    assert error() < 1e-5 < error(first) < error(second) and 1e-5 < error(third) < error(second)
    assert error(first, third) < error(second) < error(first, second, third)


@pytest.fixture
def search(tmp_path):
    """Return a function that quantizes a fake model of ten layers; layers 3, 5 and 7 lose 1, 2 and 3 dB in int8."""
    costs = {"3": 1, "5": 2, "7": 3}

    class Fake:
        layers = tuple("0123456789")

        def quantize(self, output, batches, keep=()):
            output.write_text(" ".join(keep))

        def open_mixed(self, quantized):
            losses = np.array([costs.get(name, 0) for name in self.layers])
            return lambda images, switches: [np.array([0.0, losses @ switches])]

    def lost(file):
        return 0 if file.name == "fp32" else sum(costs[k] for k in costs.keys() - file.read_text().split())

    format = SimpleNamespace(
        open=lambda file, **hints: lambda images: [np.array([lost(file)])], quantizer=lambda file, folder: Fake()
    )
    file = tmp_path / "fp32"
    file.touch()

    def run(max_drop, minutes=1.0, score=lambda run: np.full(20, 90 - run(None)[0][0])):
        return quantize.quantize_file(format, file, BATCHES, score, max_drop=max_drop, minutes=minutes, unit="dB")

    return run


def test_more_layers_stay_in_fp32_until_the_limit_is_met(search):
    assert search(6).kept == ()
    assert search(3).kept == ("7",)
    assert search(1.5).kept == ("7", "5")
    result = search(0.5)
    assert result.kept[:3] == ("7", "5", "3") and len(result.kept) == 4 and result.drop == 0


def test_the_search_logs_its_progress(search, caplog):
    caplog.set_level("INFO")
    search(1.5)
    tries = "int8 with {} of 10 layers in fp32 loses {} dB on 20 held-out images"
    first, *others = [tries.format(*each) for each in ((0, "6.00"), (1, "3.00"), (2, "1.00"))]
    start = "calibrating int8 for 10 layers on 16 images"
    assert caplog.messages == [start, first, "ranking the layers, batch 1 of 1", *others]


def test_the_search_stops_at_its_time_limit(search):
    with pytest.raises(ValueError, match="6.00 dB on .* limit is 1: raise --search-minutes above 0, or use fp32"):
        search(1, minutes=0)


@pytest.mark.parametrize("wrong, kept", [(1, ()), (4, ()), (5, ("7",))])
def test_a_drop_that_may_be_chance_is_accepted(search, wrong, kept):
    """If int8 gets five images wrong that fp32 gets right, and none right that fp32 gets wrong, p is 1/32."""
    result = search(0.3, score=lambda run: np.where(np.arange(287) < (wrong if run(None)[0][0] > 5 else 0), 0, 100))
    assert result.kept == kept


def test_chance_depends_on_how_much_each_score_changes():
    """Nine images lose much and eleven gain little. McNemar's test would accept that: it only counts the images."""
    before = np.full(20, 50.0)
    assert not quantize.is_chance(before, before + np.repeat([-5.0, 0.1], [9, 11]))
    assert quantize.is_chance(before, before + np.repeat([-5.0, 4.0], [11, 9]))
    assert not quantize.is_chance(before[:4], before[:4] - [9, 0, 0, 0])  # for fewer than five images, any drop counts


def test_differences_are_relative_to_each_output_and_ignore_the_order_of_candidates():
    boxes, scores = np.array([[0.0, 200.0]]), np.array([[0.2, 0.4]])  # variances of 10,000 and 0.01
    assert quantize.difference([boxes[:, ::-1] + 10, scores], [boxes, scores]) == pytest.approx(0.01)
    assert quantize.difference([boxes, scores + 0.01], [boxes, scores]) == pytest.approx(0.01)


def test_a_model_that_loses_too_much_is_refused_and_unchanged(file):
    score, before = score_of(file), file.read_bytes()
    with pytest.raises(ValueError, match=r"1 of 3 layers in fp32 loses \d\.\d\d points .*; the limit is 0"):
        quantize_file(file, BATCHES, score, max_drop=0)
    assert file.read_bytes() == before


def test_quantizing_without_images_or_layers_is_refused(file, tmp_path):
    def unused(run):
        raise AssertionError("scored before the arguments were checked")

    with pytest.raises(ValueError, match="there are no calibration images: give images of the training split"):
        quantize_file(file, [], unused, max_drop=1)
    pool = write(nn.AvgPool2d(2), file.suffix, tmp_path)
    with pytest.raises(ValueError, match="has no convolution and no matrix product: int8 would change nothing"):
        quantize_file(pool, BATCHES, unused, max_drop=1)
