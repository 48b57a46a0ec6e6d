"""Test `torch.compile`, `torch.export`, ONNX, OpenVINO and torch.fx on shallow models of the mixers and families.

A program that is exported with dynamic shapes takes any batch and image size.
"""

import pytest
import timm
import torch
from torch.export import Dim
from torchvision.models.feature_extraction import create_feature_extractor

import metamix  # noqa: F401  registers the models

MIXERS = timm.list_models("metaformer_*_nano")
SHALLOW = {
    **{name: dict(depths=(1,), dims=(48,)) for name in MIXERS},
    "raftmlp_s": dict(
        depths=(1, 1), dims=(16, 32), patch_sizes=(4, 2), embedding_kernels=((4, 8), (2, 4)), img_size=64
    ),
    "wavemix_192_16_l3": dict(depth=1, dim=32, img_size=64),
    "wavemixlite_8_10": dict(depth=1),
    "ninformer_cifar": dict(num_layers=1),
    "minattn_full_mlp_h4_cifar": dict(depth=1),
    "minattn_symmetric_nomlp_h4_mnist": dict(depth=1),
}
ANY_SIZE = {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}


def create(name, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **SHALLOW[name], **kwargs).eval()


def images(model, batch=2, taller=0, wider=0):
    torch.manual_seed(1)
    channels, h, w = timm.models.get_model_input_config(model)["input_size"]
    return torch.randn(batch, channels, h + taller, w + wider)


QUICK = ("metaformer_raft_nano",)  # a mixer that depends on the map size
# The skeleton is the same for all mixers, and tests/mixers/test_contract.py compiles and exports each mixer alone.
SLOW = {name: pytest.mark.slow if name not in QUICK else () for name in MIXERS}
# These models take longest, or their skeleton differs little from another model's.
SLOW |= dict.fromkeys(
    (
        "wavemixlite_8_10",
        "minattn_full_mlp_h4_cifar",
        "minattn_symmetric_nomlp_h4_mnist",
        "wavemix_192_16_l3",
        "raftmlp_s",
    ),
    pytest.mark.slow,
)


@pytest.fixture(params=[pytest.param(name, marks=SLOW.get(name, ())) for name in SHALLOW])
def model(request):
    torch.compiler.reset()
    return create(request.param)


OTHERS = dict(batch=1), dict(batch=3, taller=5, wider=9), dict(batch=4, taller=-7, wider=16), dict(taller=32, wider=-1)


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_model_compiles_as_one_graph(model):
    x = images(model)
    assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), model(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["raftmlp_s", "minattn_full_mlp_h4_cifar"])
def test_a_compiled_model_takes_another_size(name):
    """Patch and position embeddings depend on the size too; mixers have their own tests."""
    torch.compiler.reset()
    model = create(name, mixer="pooling")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for other in ({}, OTHERS[1]):
        x = images(model, **other)
        assert_close(compiled(x), model(x))


@torch.no_grad()
def test_an_exported_program_takes_any_batch_and_image_size(model):
    program = torch.export.export(model, (images(model),), dynamic_shapes=(ANY_SIZE,)).module()
    for other in ({}, *OTHERS):
        x = images(model, **other)
        assert_close(program(x), model(x))


@pytest.mark.parametrize("name", MIXERS)
@torch.no_grad()
def test_an_onnx_file_takes_any_batch_and_image_size(name, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install metamix[deploy]")
    import onnxruntime

    model, file = create(name), tmp_path / "model.onnx"
    torch.onnx.export(model, (images(model),), file, dynamo=True, dynamic_shapes=(ANY_SIZE,), verbose=False)
    session = onnxruntime.InferenceSession(file)
    for other in ({}, *OTHERS):
        x = images(model, **other)
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert_close(torch.from_numpy(y), model(x))


@pytest.mark.parametrize("name", ["metaformer_raft_nano", "metaformer_maxim_nano", "metaformer_wavemix_nano"])
@pytest.mark.filterwarnings("ignore")  # the exporter is deprecated, and says that the image size is fixed
@torch.no_grad()
def test_the_torchscript_exporter_writes_valid_onnx(name, tmp_path):
    """The TorchScript exporter writes an invalid file if a module calls `movedim(-1, 1)`."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install metamix[deploy]")
    model, file = create(name), tmp_path / "model.onnx"
    torch.onnx.export(model, (images(model),), file, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "batch"}})
    x = images(model, batch=3)
    (y,) = onnxruntime.InferenceSession(file).run(None, {"x": x.numpy()})
    assert_close(torch.from_numpy(y), model(x))


@pytest.mark.parametrize("name", MIXERS)
@torch.no_grad()
def test_fx_tracing_and_vmap_give_the_same_outputs(name):
    """Test torch.fx, torchvision's feature extractor and per-sample functions, also at a different size."""
    model = create(name)
    traced, features = torch.fx.symbolic_trace(model), create_feature_extractor(model, ["stages.0"])
    for other in ({}, OTHERS[1]):
        x = images(model, **other)
        assert_close(traced(x), model(x))
        assert_close(features(x)["stages.0"], model.stages[0](model.stem(x)))
        assert_close(torch.func.vmap(lambda image: model(image[None])[0])(x), model(x))


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW[name]) for name in MIXERS])
@torch.no_grad()
def test_openvino_reads_an_exported_program(name):
    """The program is made for one size. tests/mixers/test_contract.py tests the warning for traced graphs."""
    openvino = pytest.importorskip("openvino")
    model = create(name)
    x = images(model)
    converted = openvino.convert_model(torch.export.export(model, (x,)))
    compiled = openvino.Core().compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert_close(torch.from_numpy(compiled([x.numpy()])[0]), model(x))
