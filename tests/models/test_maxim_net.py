"""Test every block of MAXIM and the whole network against outputs of the authors' code."""

import re
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from metamix.layers.image_inference import shrink_image
from metamix.models import load_official, maxim, maxim_layout, official
from metamix.models.image_models import create_image_model
from metamix.models.maxim import CrossGating, Down, Level, MaximUNet, Norm, Rcab, Rdcab, Rescale, Sam, Up
from metamix.weights.layout import Layout
from tests.helpers.goldens import read_exact, read_golden


class Golden:
    """Read the authors' arguments, weights, inputs and outputs from a file; maps become (B, C, H, W) in float64."""

    def __init__(self, name):
        self.constructor, self.state, tensors = read_golden(f"restoration/{name}")
        self.inputs = {k: v.movedim(-1, 1).double() for k, v in tensors.items() if k.startswith("input")}
        self.outputs = {k: v.movedim(-1, 1) for k, v in read_exact(f"restoration/{name}").items()}

    def load(self, module, part=""):
        """Load the tensors whose names begin with `part` into our module; "" loads all tensors."""
        state = {k.removeprefix(part): v for k, v in self.state.items() if k.startswith(part)}
        layout = Layout(maxim_layout.NAMES, maxim_layout.arrange_flax)
        tensors, unknown = layout.translate(state, module)
        assert not unknown
        module.load_state_dict(tensors)
        return module.double()

    def deviation(self, output, name="output"):
        assert output.shape == self.outputs[name].shape
        return float((output - self.outputs[name]).abs().max() / self.outputs[name].std())


FULL = "maxim_full_f4_s2_24x8"
BLOCK = Level(8, (4, 4), (4, 4))


def restored(golden):
    model = load_official("maxim", golden.state, **golden.constructor).double()
    stages = model.forward_stages(golden.inputs["input"])
    return {f"output/{i}/{j}": image for i, images in enumerate(stages) for j, image in enumerate(images)}


@torch.no_grad()
def test_outputs_of_the_network_equal_the_authors_outputs():
    golden = Golden(FULL)
    images = restored(golden)
    assert images.keys() == golden.outputs.keys()
    assert max(golden.deviation(image, name) for name, image in images.items()) < 1e-9


@pytest.mark.parametrize(
    "name, module",
    [
        ("maxim_rcab_12x10", lambda: Rcab(8, 4)),
        ("maxim_rdcab_12x10", lambda: Rdcab(16, 4)),
        ("maxim_sam_12x10", lambda: Sam(8, 3)),
        ("maxim_crossgating_noup_16x16", lambda: CrossGating(8, 8, BLOCK)),
        ("maxim_crossgating_up_16x16", lambda: CrossGating(12, 16, BLOCK, upsample_y=True)),
    ],
)
@torch.no_grad()
def test_outputs_of_each_block_equal_the_authors_outputs(name, module):
    golden = Golden(name)
    outputs = golden.load(module())(*golden.inputs.values())
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert len(outputs) == len(golden.outputs)
    for key, output in zip(golden.outputs, outputs):  # "output", then "output_y" or "output_image"
        assert golden.deviation(output, key) < 1e-9


@torch.no_grad()
def test_operations_equal_the_authors_operations():
    golden = Golden("maxim_ops_16x24")
    x = golden.inputs["input"]
    norm = Norm(3).double()
    norm.load_state_dict({"weight": golden.state["layernorm/scale"], "bias": golden.state["layernorm/bias"]})
    ours = {
        "gelu": maxim.GELUTanh()(2 * x),
        "layernorm": norm(0.02 * x),
        "conv_up": golden.load(Up(3, 5), "conv_up/")(x),
        "conv_down": golden.load(Down(3, 5), "conv_down/")(x),
        "upsample_ratio_x2": golden.load(Rescale(3, 4, 2.0), "up/")(x),
        "upsample_ratio_div2": golden.load(Rescale(3, 4, 0.5), "down/")(x),
        "bilinear_x2": maxim.resize_map(x, 2),
        "bilinear_x4": maxim.resize_map(x, 4),
        "bilinear_div2": maxim.resize_map(x, 0.5),
        "bilinear_div4": maxim.resize_map(x, 0.25),
        "nearest_div2": maxim.shrink_image(x, 2),
        "nearest_div4": maxim.shrink_image(x, 4),
    }
    assert {f"output/{name}" for name in ours} == golden.outputs.keys()
    for name, output in ours.items():
        assert golden.deviation(output, f"output/{name}") < 1e-9, name


def use_erf_gelu(monkeypatch):
    monkeypatch.setattr(maxim.GELUTanh, "forward", lambda self, x: nn.functional.gelu(x))


def use_other_eps(monkeypatch):
    monkeypatch.setattr(maxim, "Norm", lambda dim: maxim.Float32LayerNorm2d(dim, eps=1e-5))


def resize_without_antialias(monkeypatch):
    resize = nn.functional.interpolate
    monkeypatch.setattr(nn.functional, "interpolate", lambda x, **options: resize(x, **options | dict(antialias=False)))


def shrink_to_first_pixels(monkeypatch):
    monkeypatch.setattr(maxim, "shrink_image", lambda images, factor: images[..., ::factor, ::factor])


def keep_kernels_unflipped(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "flip", lambda x, *dims: x)


MISTAKES = use_erf_gelu, use_other_eps, resize_without_antialias, shrink_to_first_pixels, keep_kernels_unflipped


@pytest.mark.parametrize("mistake", MISTAKES)
@torch.no_grad()
def test_mistakes_exceed_the_tolerance(mistake, monkeypatch):
    golden = Golden(FULL)
    mistake(monkeypatch)
    assert max(golden.deviation(image, name) for name, image in restored(golden).items()) > 1e-6


# The authors' checkpoints


def test_checkpoints_with_optimizer_state_are_loaded(tmp_path):
    """Published .npz files have the parameters under opt/target, and also hold the optimizer's state."""
    golden = Golden(FULL)
    arrays = {f"opt/target/{key}": value.numpy() for key, value in golden.state.items()}
    arrays |= {"opt/state/step": np.int32(3), "opt/state/param_states/a/kernel": np.zeros(4)}
    np.savez(tmp_path / "checkpoint.npz", **arrays)
    with np.load(tmp_path / "checkpoint.npz", allow_pickle=False) as file:
        model = load_official("maxim", file, **golden.constructor)
    nested = {"opt": {"target": nest(golden.state), "state": {"step": 3}}}
    for other in (nested, nested["opt"]["target"], {"params": golden.state}):
        same = load_official("maxim", other, **golden.constructor)
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), same.state_dict().values()))


def nest(state):
    tree = {}
    for key, value in state.items():
        *path, leaf = key.split("/")
        level = tree
        for name in path:
            level = level.setdefault(name, {})
        level[leaf] = value.numpy()
    return tree


def test_rescales_are_ordered_by_number_even_with_gaps():
    """UpSampleRatio_9 comes before UpSampleRatio_12, although no module has the number 10 or 11."""
    golden = Golden(FULL)
    model = load_official("maxim", golden.state, **golden.constructor)
    spread = {
        re.sub(r"UpSampleRatio_(\d+)", lambda m: f"UpSampleRatio_{3 * int(m[1])}", k): v
        for k, v in golden.state.items()
    }
    same = load_official("maxim", spread, **golden.constructor)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), same.state_dict().values()))


@pytest.mark.parametrize("number", [-1, *(pytest.param(i, marks=pytest.mark.slow) for i in (0, 401, 802))])
def test_tensors_that_do_not_fit_are_named(number):
    golden = Golden(FULL)
    key = [*golden.state, "UpSampleRatio_7/Conv_0/kernel"][number]
    for state, words in (
        ({k: v for k, v in golden.state.items() if k != key}, f"lacks {key}"),
        (golden.state | {key: torch.ones(*golden.state[key].shape, 3)}, f"has {key} of shape"),
        (golden.state | {f"{key}.old": golden.state[key]}, f"that the model lacks: {key}.old"),
    ):
        with pytest.raises(ValueError, match=words):
            load_official("maxim", state, **golden.constructor)


GMLP = "stages.1.encoder.blocks.0.groups.0.gmlp.mixer"
BOTTLENECK = "stages.1.bottleneck.0.groups.0"

# Arguments, a tensor of the model that they build, and its shape, or None if the model must not have that tensor.
HONOURED = [
    (dict(variant="S-1"), "stages.0.inputs.convs.0.weight", (32, 3, 3, 3)),
    (dict(variant="S-1"), "stages.1.inputs.convs.0.weight", None),
    (dict(variant="S-1", features=8), "stages.0.inputs.convs.0.weight", (8, 3, 3, 3)),
    (dict(), "stages.1.inputs.convs.0.weight", (64, 3, 3, 3)),
    (dict(), "stages.1.inputs.convs.1.weight", None),
    (dict(), "stages.1.encoder.blocks.2.proj.weight", (256, 128, 1, 1)),
    (dict(), "stages.2.inputs.convs.0.weight", None),
    (dict(depth=2), "stages.1.encoder.blocks.2.proj.weight", None),
    (dict(num_stages=3), "stages.2.inputs.convs.0.weight", (8, 3, 3, 3)),
    (dict(num_groups=2), "stages.1.encoder.blocks.0.groups.1.gmlp.mixer.fc1.weight", (16, 8, 1, 1)),
    (dict(num_bottleneck_blocks=3), "stages.1.bottleneck.2.proj.weight", (16, 16, 1, 1)),
    (dict(num_supervision_scales=2), "stages.1.inputs.convs.1.weight", (16, 3, 3, 3)),
    (dict(num_supervision_scales=2), "stages.1.outputs.1.conv.weight", (3, 16, 3, 3)),
    (dict(high_res_stages=1), "stages.1.skips.gates.1.gate_x.block.weight", (64, 64, 1, 1)),
    (dict(block_size_hr=(4, 2)), f"{GMLP}.block.spatial.weight", (8, 8, 1, 1)),
    (dict(grid_size_hr=(4, 2)), f"{GMLP}.grid.spatial.weight", (8, 8, 1, 1)),
    (dict(block_size_lr=(4, 2), grid_size_lr=(4, 2)), f"{BOTTLENECK}.gmlp.mixer.grid.spatial.weight", (8, 8, 1, 1)),
    (dict(block_gmlp_factor=4), f"{GMLP}.block.fc1.weight", (32, 8, 1, 1)),
    (dict(grid_gmlp_factor=4), f"{GMLP}.grid.fc1.weight", (32, 8, 1, 1)),
    (dict(input_proj_factor=4), f"{GMLP}.fc1.weight", (32, 8, 1, 1)),
    (dict(input_proj_factor=4), f"{BOTTLENECK}.gmlp.mixer.fc1.weight", (64, 16, 1, 1)),
    (dict(input_proj_factor=4), "stages.1.decoder.blocks.0.groups.0.gmlp.mixer.fc1.weight", (16, 8, 1, 1)),
    (dict(channels_reduction=2), f"{BOTTLENECK}.attention.attention.fc1.weight", (8, 16, 1, 1)),
]

SMALL = dict(features=8, depth=2)


@pytest.mark.parametrize("constructor, tensor, shape", HONOURED)
def test_arguments_are_honoured(constructor, tensor, shape):
    small = SMALL if constructor and "variant" not in constructor else {}
    assert shapes_of(**small | constructor).get(tensor) == shape


@cache
def shapes_of(**constructor):
    with torch.device("meta"):
        model, _ = official.SOURCES["maxim"]({}, **constructor)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


REFUSED = [
    (dict(variant="L-1"), "variant is 'L-1'.*S-1, S-2"),
    (dict(use_bias=False), "use_bias is False"),
    (dict(dropout_rate=0.1), "dropout_rate is 0.1"),
    (dict(use_global_mlp=False), "use_global_mlp is False.*Accepted: True"),
    (dict(use_cross_gating=False), "use_cross_gating is False.*Accepted: True"),
    (dict(num_outputs=1), "num_outputs is 1.*Accepted: 3"),
    (dict(features="8"), "features is '8': give a whole number of at least 1"),
    (dict(num_supervision_scales=4), "num_supervision_scales is 4: give 1 to 3"),
    (dict(num_stages=0), "num_stages is 0: give a whole number of at least 1"),
    (dict(channels_reduction=128), "channels_reduction is 128: give at most 64"),
    (dict(block_size_hr=(0, 2)), r"block_size_hr is \(0, 2\)"),
    (dict(feature=8), "maxim has no option 'feature'; did you mean 'features'"),
]


@pytest.mark.parametrize("constructor, words", REFUSED)
def test_wrong_arguments_are_refused_by_name(constructor, words):
    with torch.device("meta"), pytest.raises(ValueError, match=words):
        load_official("maxim", {}, **constructor)


# The network itself


def tiny(**options):
    torch.manual_seed(0)
    sizes = dict(block_size_hr=2, grid_size_hr=2, block_size_lr=2)
    small = dict(features=8, depth=2, num_groups=1, num_bottleneck_blocks=1, num_supervision_scales=2, num_stages=2)
    return with_random_outputs(MaximUNet(**sizes | small | options).double())


def with_random_outputs(model):
    for module in model.modules():
        if isinstance(module, (maxim.OutputConv, Sam)):
            nn.init.normal_((module.conv if isinstance(module, maxim.OutputConv) else module.residual).weight, std=0.1)
    return model


def random_images(*shape):
    torch.manual_seed(1)
    return torch.rand(*shape, dtype=torch.float64)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 30), (16, 8)])
@torch.no_grad()
def test_images_of_any_size_and_memory_format_are_restored(size):
    model, x = tiny().eval(), random_images(2, 3, *size)
    y = model(x)
    assert y.shape == x.shape and y.isfinite().all()
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), y)
    torch.testing.assert_close(model.to(memory_format=torch.channels_last)(x), y)
    torch.testing.assert_close(model(x[:1]), y[:1])


def test_training_returns_the_images_of_all_stages_and_scales():
    model, x = tiny(in_chans=1).train(), random_images(2, 1, 16, 8)
    images = model(x)
    assert [tuple(i.shape) for i in images] == [(2, 1, 8, 4), (2, 1, 16, 8)] * 2
    torch.testing.assert_close(model.eval()(x), images[-1])
    with pytest.raises(ValueError, match="9 x 8 pixels, but MaximUNet trains on multiples of 8 x 8"):
        model.train()(x[:, :, :9])


@pytest.mark.parametrize("name", ["maxim_nano", "maxim_s2"])
@torch.no_grad()
def test_training_starts_from_the_identity(name):
    """Every stage returns its input at every scale; the control is a network whose output layers are not zero."""
    small = dict(features=8, num_groups=1, num_bottleneck_blocks=1) if name == "maxim_s2" else {}
    model, x = create_image_model(name, **small), torch.rand(1, 3, 64, 64)
    images, count = model.train()(x), len(model.stages) * model.num_scales
    assert len(images) == count
    for restored in images:
        assert torch.equal(restored, shrink_image(x, 64 // restored.shape[-1]))
    assert torch.equal(model.eval()(x[..., :50, :30]), x[..., :50, :30])
    assert not torch.allclose(with_random_outputs(model)(x), x, atol=0.01)


@pytest.mark.parametrize("options", [{}, dict(num_stages=1)])
def test_every_parameter_gets_a_gradient(options):
    model = tiny(**options)
    for module in model.modules():
        if isinstance(module, maxim.ChannelAttention):
            nn.init.ones_(module.fc1.bias)  # otherwise its few ReLUs may all be off
    sum(image.sin().mean() for image in model(random_images(2, 3, 16, 16))).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_autocast_to_bfloat16_stays_close_and_trains():
    model, x = tiny(features=16, num_stages=1).float(), random_images(2, 3, 16, 16).float()
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        images = model(x)
    for image, expected in zip(images, exact):
        assert (image - expected).std() < 0.05 * expected.std()
    sum(image.float().mean() for image in images).backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


ONE_STAGE = dict(num_stages=1, num_supervision_scales=1)


@pytest.mark.slow
def test_the_network_compiles_as_one_graph():
    model, x = tiny(depth=2, **ONE_STAGE), random_images(2, 3, 16, 16)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for image, expected in zip(compiled(x), model(x)):
        torch.testing.assert_close(image, expected)


@pytest.mark.slow
@torch.no_grad()
def test_an_exported_program_takes_any_multiple_of_the_step():
    model = tiny(depth=2, **ONE_STAGE).eval()
    step = model.multiple[0]
    h, w = step * torch.export.Dim("h", min=1), step * torch.export.Dim("w", min=1)
    program = torch.export.export(model, (random_images(1, 3, 3 * step, 2 * step),), dynamic_shapes=({2: h, 3: w},))
    for size in [(3, 2), (4, 3), (6, 1), (1, 1)]:
        x = random_images(1, 3, size[0] * step, size[1] * step)
        torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.parametrize("window", [(1, 1), (3, 3), (4, 5), (2, 99), (99, 99)])
def test_local_mean_equals_padded_average_pooling(window):
    x = random_images(1, 2, 7, 9)
    kh, kw = min(window[0], 7), min(window[1], 9)
    means = nn.functional.avg_pool2d(x, (kh, kw), stride=1)
    (top, left) = (kh - 1) // 2, (kw - 1) // 2
    expected = nn.functional.pad(means, (left, kw - 1 - left, top, kh - 1 - top), mode="replicate")
    torch.testing.assert_close(maxim.local_mean(x, window), expected)
    assert maxim.local_mean(x.bfloat16(), window).dtype == torch.bfloat16


@torch.no_grad()
def test_local_pooling_makes_far_pixels_independent():
    """A window as large as the map changes nothing; a smaller one makes far pixels independent of each other."""
    model = tiny(num_stages=1).eval()
    for module in model.modules():  # gMLPs and gates reach across the map
        if isinstance(module, maxim.MultiAxisGmlp):
            nn.init.zeros_(module.mixer.fc2.weight)
        elif isinstance(module, CrossGating):
            nn.init.zeros_(module.fc2_x.weight)
            nn.init.zeros_(module.fc2_y.weight)
    x = random_images(1, 3, 64, 128)
    whole = model(x)
    model.set_local_pooling((64, 128))
    torch.testing.assert_close(model(x), whole)
    other = x.clone()
    other[..., 100:] = 0
    model.set_local_pooling(None)
    assert not torch.allclose(model(other)[..., :8], whole[..., :8])
    model.set_local_pooling(16)
    assert torch.equal(model(other)[..., :8], model(x)[..., :8])
    with pytest.raises(ValueError, match="size is 0"):
        model.set_local_pooling(0)
