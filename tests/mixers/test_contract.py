"""Test that all mixers, including users' mixers, fulfil the contract in `metamix/mixers/registry.py`."""

import copy
import inspect
import pickle
import re

import pytest
import torch
from torch import nn
from torch.export import Dim

from metamix.mixers import MixerOption, create_mixer, list_mixers, mixer_options, register_mixer, registry
from metamix.mixers.raft import Raft
from metamix.models import MetaFormer

DIM, SIZE = 16, (8, 6)
SIZES = [(1, 1), (1, 5), (7, 5), SIZE, (31, 33)]


class Mine(nn.Module):
    """A user's mixer, without the optional parts of the contract."""

    def __init__(self, dim, *, size, kernel=3):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)

    def forward(self, x):
        return self.conv(x)


# Each mixer with its default options, then mixers with options that change the computation
CASES = {name: (name, {}) for name in (*list_mixers(), "mine")} | {
    "raft-stream": ("raft", dict(resample="stream", raft_size=4)),
    "raft-weights": ("raft", dict(resample="weights")),
    "raft-windows": ("raft", dict(resample="windows", grid=(3, 4))),
    "maxim-uneven": ("maxim", dict(block_size=(2, 4), grid_size=(3, 2))),
    "wavemix-levels": ("wavemix", dict(level=2, norm="group")),
    "wavemix-sym4": ("wavemix", dict(level=2, wavelet="sym4", upsample="bilinear")),
    "nin-grid": ("nin", dict(grid=(3, 4))),
    "minattn": ("minattn", dict(num_heads=2)),
    "minattn-collapsed": ("minattn", dict(qk="collapsed", value=False)),
    "minattn-shared": ("minattn", dict(qk="shared", num_heads=2, context=(4, 4))),
    "minattn-cholesky": ("minattn", dict(qk="cholesky", num_heads=2, context=(3, 9))),
    "minattn-positions": ("minattn", dict(num_heads=2, positions=True)),
    "minattn-positions-context": ("minattn", dict(num_heads=2, context=4, positions=True)),
}


@pytest.fixture(params=CASES)
def case(request, forget_mixers):
    """Return a function that builds one mixer of `CASES` in evaluation mode."""
    register_mixer("mine")(Mine)
    name, options = CASES[request.param]

    def build(dim=DIM, size=SIZE, **more):
        torch.manual_seed(0)
        return create_mixer(name, dim, size=size, **options, **more).eval()

    build.id, build.mixer = request.param, name
    return build


def images(*size, batch=2, dim=DIM, dtype=torch.float32):
    torch.manual_seed(1)
    return torch.randn(batch, dim, *size, dtype=dtype)


def assert_close(actual, expected, tolerance=1e-5):
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("size", SIZES)
def test_takes_maps_of_any_size_in_any_memory_format(case, size):
    mixer, x = case(), images(*size)
    y = mixer(x)
    assert y.shape == x.shape and y.isfinite().all()
    assert_close(mixer(x.contiguous(memory_format=torch.channels_last)), y)
    assert_close(mixer.to(memory_format=torch.channels_last)(x), y)
    assert_close(mixer(x[:1]), y[:1])  # images of a batch do not influence each other


def test_every_convolution_is_called(case):
    """A tool that wraps convolutions, such as LoRA, has no effect on a convolution that is not called."""
    mixer, called = case(), set()
    layers = {m: name for name, m in mixer.named_modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))}
    for layer in layers:
        layer.register_forward_hook(lambda module, *_: called.add(module))
    mixer(images(*SIZE))
    assert not [name for layer, name in layers.items() if layer not in called]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_outputs_have_the_dtype_of_the_input(case, dtype):
    mixer, x = case(), images(7, 5)
    y = case().to(dtype)(x.to(dtype))
    assert y.dtype == dtype
    assert_close(y.float(), mixer(x), 1e-4 if dtype == torch.float64 else 0.1)


def test_gradients_under_autocast_are_float32(case):
    mixer, x = case().train(), images(7, 5).requires_grad_()
    expected = copy.deepcopy(mixer)(x.detach())
    with torch.autocast("cpu", torch.bfloat16):
        y = mixer(x)
    assert_close(y.float(), expected, 0.1)
    y.float().square().sum().backward()
    for p in (x, *mixer.parameters()):
        assert p.grad.dtype == torch.float32 and p.grad.isfinite().all()


# Parameters whose gradient is mathematically zero.
NO_EFFECT = {
    "minattn": {"key.bias"},  # adds a constant to all similarities of a query, which softmax ignores
    "minattn-positions": {"key.bias"},  # for the same reason
    "minattn-positions-context": {"key.bias"},
    "wavemix": {"levels.0.up.bias"},  # in training, the next batch norm subtracts this bias
    "wavemix-sym4": {"levels.0.fc2.bias", "levels.1.fc2.bias"},  # upsampling keeps biases, and a norm subtracts them
}


def test_every_parameter_gets_a_gradient(case):
    mixer, x = case().double().train(), images(7, 5, dtype=torch.float64).requires_grad_()
    (mixer(x) * images(7, 5, dtype=torch.float64).cos()).sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().max() > 1e-3
    for name, p in mixer.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
        if name in NO_EFFECT.get(case.id, ()):
            assert p.grad.abs().max() < 1e-9, name
        else:
            assert p.grad.abs().max() > 1e-6, name


def test_gradients_are_correct(case):
    mixer = case(dim=4, size=(3, 2)).double()
    names, parameters = zip(*mixer.named_parameters()) if list(mixer.parameters()) else ((), ())

    def function(x, *parameters):
        return torch.func.functional_call(mixer, dict(zip(names, parameters)), x)

    x = images(2, 3, batch=1, dim=4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(function, (x, *parameters), fast_mode=True)


def assert_compiles(mixer, sizes, **options):
    torch._dynamo.reset()
    compiled = torch.compile(mixer, fullgraph=True, backend="eager", **options)
    for size in sizes:
        x = images(*size, batch=3)
        assert_close(compiled(x), mixer(x))


@pytest.mark.slow  # `test_exports_for_any_size` traces the mixers too, in less time
def test_compiles_in_one_graph_for_any_size(case):
    assert_compiles(case(), [(31, 33), (15, 20)], dynamic=True)


@pytest.mark.parametrize("case", [id for id in CASES if "-" not in id], indirect=True)
def test_compiles_in_one_graph_at_its_size(case):
    assert_compiles(case(), [SIZE])


# Smallest side for exported WaveMix mixers. Haar wavelets halve maps, and torch.export assumes that no side is 1.
SMALLEST = {"wavemix": 3, "wavemix-levels": 5}


@pytest.mark.parametrize(
    "case, example",
    [
        *(pytest.param(id, (20, 17), marks=pytest.mark.slow if "-" in id or id == "maxim" else ()) for id in CASES),
        *(pytest.param(id, SIZE, marks=pytest.mark.slow) for id in CASES if "-" not in id),
    ],
    indirect=["case"],
)
def test_exports_for_any_size(case, example):
    mixer, auto = case(), {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}
    exported = torch.export.export(mixer, (images(*example),), dynamic_shapes=(auto,)).module()
    for size in (SIZE, (5, 7), (16, 24), (31, 33), (3, 4), (1, 1)):
        if min(size) >= SMALLEST.get(case.id, 1):
            x = images(*size, batch=3)
            assert_close(exported(x), mixer(x))


def test_is_built_and_runs_on_the_meta_device(case):
    with torch.device("meta"):
        mixer = case()
    assert all(p.is_meta for p in (*mixer.parameters(), *mixer.buffers()))
    assert mixer(torch.empty(2, DIM, 7, 5, device="meta")).shape == (2, DIM, 7, 5)


def pickled(mixer):
    return pickle.loads(pickle.dumps(mixer))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled])
def test_can_be_copied(case, duplicate):
    mixer, x = case(), images(7, 5)
    twin = duplicate(mixer)
    assert_close(twin(x), mixer(x), 0)
    for p in twin.parameters():
        p.data.zero_()
    assert all(p.abs().max() > 0 for n, p in mixer.named_parameters() if n.endswith("weight"))


def test_forward_writes_no_state(case):
    mixer = case()

    def state():
        plain = {n: {k: v for k, v in vars(m).items() if k[0] != "_"} for n, m in mixer.named_modules()}
        return copy.deepcopy(plain), {k: v.clone() for k, v in mixer.state_dict().items()}

    before = state()
    for size in SIZES:
        mixer(images(*size))
    after = state()
    assert after[0] == before[0]
    assert after[1].keys() == before[1].keys() and all(torch.equal(v, before[1][k]) for k, v in after[1].items())


@pytest.mark.parametrize("size", [SIZE, (16, 12), (5, 9), (4, 3), (1, 1)])
def test_adapt_state_brings_parameters_to_another_size(case, size):
    old, new = case(), case(size=size)
    saved = {k: v.clone() for k, v in old.state_dict().items()}
    new.load_state_dict(new.adapt_state(saved) if hasattr(new, "adapt_state") else saved)
    x = images(*size)
    assert new(x).isfinite().all()
    if size == SIZE:
        assert_close(new(x), old(x), 0)
    assert all(torch.equal(v, saved[k]) for k, v in old.state_dict().items())  # unchanged


ONNX = [
    id for id in CASES if "-" not in id or id in ("nin-grid", "minattn-shared", "minattn-positions", "maxim-uneven")
]


@pytest.mark.parametrize("case", ONNX, indirect=True)
def test_runs_in_onnx_runtime_at_any_size(case, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install metamix[deploy]")
    import onnxruntime

    mixer, file = case(), tmp_path / "mixer.onnx"
    auto = {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}
    torch.onnx.export(mixer, (images(20, 17),), file, dynamo=True, dynamic_shapes=(auto,), verbose=False)
    session = onnxruntime.InferenceSession(file)
    for size in (SIZE, (31, 33), (5, 7)):
        x = images(*size, batch=3)
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert_close(torch.from_numpy(y), mixer(x), 1e-4)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # torch 2.13 has no batched attention
def test_per_sample_gradients_equal_a_loop_over_the_images(case):
    """The gradients come from `torch.func.vmap` on channels_last maps."""
    mixer, x = case(), images(7, 5, batch=3).contiguous(memory_format=torch.channels_last)
    state = {k: v.detach() for k, v in mixer.state_dict().items()}

    def loss(image):
        return torch.func.functional_call(mixer, state, image[None]).square().sum()

    assert_close(torch.func.vmap(lambda image: mixer(image[None])[0])(x), mixer(x))
    gradients = torch.func.vmap(torch.func.grad(loss))(x)
    for image, gradient in zip(x, gradients):
        assert_close(gradient, torch.func.grad(loss)(image), 1e-4)


def test_is_traced_by_fx(case):
    mixer = case()
    traced = torch.fx.symbolic_trace(mixer)
    for size in SIZES:
        assert_close(traced(images(*size)), mixer(images(*size)), 0)


def test_proj_drop_is_an_option_of_mixers_that_have_dropout(case):
    if case.mixer not in ("maxim", "wavemix", "nin", "minattn"):
        with pytest.raises(ValueError, match="has no option 'proj_drop'"):
            case(proj_drop=0.5)
        return
    mixer, x = case(proj_drop=0.5), images(7, 5)
    assert_close(mixer(x), case()(x), 0)
    mixer.train()
    assert any(isinstance(m, nn.Dropout) and m.p == 0.5 for m in mixer.modules())
    assert not torch.equal(mixer(x), mixer(x))


def test_name_that_is_taken_is_refused(forget_mixers):
    with pytest.raises(ValueError, match=r"'raft' is registered already \(metamix.mixers.raft\): choose another name"):
        register_mixer("raft")(Mine)
    assert registry._MIXERS["raft"] is Raft


@pytest.mark.parametrize("name", ["", "my mixer", "my.mixer", "my/mixer"])
def test_name_that_cannot_be_part_of_a_model_name_is_refused(name):
    with pytest.raises(ValueError, match=re.escape(f"got the name {name!r}: use letters, digits, underscores and")):
        register_mixer(name)


def test_an_option_called_name_is_refused(forget_mixers):
    class Named(Mine):
        def __init__(self, dim, *, size, name="conv"):
            super().__init__(dim, size=size)

    with pytest.raises(ValueError, match="'named' has an option called name, .*: rename it"):
        register_mixer("named")(Named)


def test_class_that_is_defined_again_is_listed_once(forget_mixers):
    def define():
        class Again(Mine):
            pass

        return register_mixer("again")(Again)

    assert define() is not define()
    assert list_mixers().count("again") == 1


@pytest.mark.parametrize(
    "name, option", [("maxim", "block_size"), ("maxim", "grid_size"), ("nin", "grid"), ("minattn", "context")]
)
@pytest.mark.parametrize("value", [0, -1, (4,), (4, 0), (4, 4, 4), 2.5])
def test_options_that_are_not_sizes_are_refused(name, option, value):
    words = f"{option} is {value!r}: give a whole number of at least 1, or (height, width)."
    with pytest.raises(ValueError, match=re.escape(words)):
        create_mixer(name, 8, size=(8, 8), **{option: value})


@pytest.mark.parametrize(
    "name, option, least",
    [
        ("raft", "raft_size", 1),
        ("maxim", "input_proj_factor", 1),
        ("maxim", "block_gmlp_factor", 1),
        ("maxim", "grid_gmlp_factor", 1),
        ("wavemix", "mult", 1),
        ("wavemix", "ff_channel", 0),
        ("nin", "token_dim", 1),
        ("nin", "channel_dim", 1),
        ("minattn", "num_heads", 1),
    ],
)
def test_options_that_are_not_counts_are_refused(name, option, least):
    for value in (least - 1, 2.0, "2", [2]):
        words = f"{option} is {value!r}: give a whole number of at least {least}."
        with pytest.raises(ValueError, match=re.escape(words)):
            create_mixer(name, 8, size=(8, 8), **{option: value})


def test_only_module_classes_can_be_registered(forget_mixers):
    with pytest.raises(TypeError, match=r"register_mixer\('mine'\) takes a torch.nn.Module class, got <function"):
        register_mixer("mine")(lambda dim, *, size: None)
    with pytest.raises(TypeError, match=r"takes a torch.nn.Module class, got Identity\(\)"):
        register_mixer("mine")(nn.Identity())
    assert "mine" not in list_mixers()


def test_registering_without_a_name_is_refused():
    with pytest.raises(TypeError, match=r"takes the mixer's name, got Mine: write @register_mixer\("):
        register_mixer(Mine)


def constructors():
    def no_size(self, dim):
        """Take no size."""

    def positional(self, dim, size):
        """Take size by position."""

    def other(self, channels, *, size):
        """Give `dim` another name."""

    def more(self, dim, heads, *, size):
        """Take an option by position."""

    def any_option(self, dim, *, size, **options):
        """Leave the options unnamed."""

    return [no_size, positional, other, more, any_option]


@pytest.mark.parametrize("init", constructors(), ids=lambda f: f.__name__)
def test_constructor_that_breaks_the_contract_is_refused(init, forget_mixers):
    cls = type("Wrong", (nn.Module,), {"__init__": init})
    with pytest.raises(ValueError, match=r"has the constructor Wrong\(.*write `def __init__\(self, dim, \*, size"):
        register_mixer("mine")(cls)
    assert "mine" not in list_mixers()


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("rafft", {}, r"mixer is 'rafft'; did you mean 'raft'\? Accepted: identity,"),
        ("xyz", {}, r"mixer is 'xyz'\. Accepted: .*, add --import MODULE\."),
        ("pooling", {"pool": 3}, "no option 'pool'; did you mean 'pool_size'. Its options: pool_size, subtract"),
        ("identity", {"kernel": 3}, r"mixer 'identity' has no option 'kernel'\. Its options: none"),
    ],
)
def test_unknown_mixers_and_options_are_refused(name, options, words):
    with pytest.raises(ValueError, match=words):
        create_mixer(name, DIM, size=SIZE, **options)


def test_mixers_are_listed_in_order_of_registration(forget_mixers):
    before = list_mixers()
    register_mixer("mine")(Mine)
    assert before[:3] == ["identity", "pooling", "raft"] and list_mixers() == [*before, "mine"]
    assert create_mixer("mine", DIM, size=SIZE, kernel=5).conv.kernel_size == (5, 5)


@pytest.mark.parametrize("name", list_mixers())
def test_every_option_has_a_doc(name):
    assert all(option.doc and option.default is not inspect.Parameter.empty for option in mixer_options(name))


def test_mixer_options_returns_names_defaults_and_docs(forget_mixers):
    register_mixer("mine")(Mine)
    assert mixer_options("identity") == []
    assert mixer_options("mine") == [MixerOption("kernel", 3, "")]
    assert [(option.name, option.default) for option in mixer_options("raft")] == [
        ("raft_size", 2), ("expansion", 2.0), ("resample", "branch"), ("grid", None),
    ]  # fmt: skip
    assert mixer_options("raft")[0].doc == "r, number of channel groups; must divide `dim`."
    context = {option.name: option.doc for option in mixer_options("minattn")}["context"]
    assert context == "side or (h, w) of the grid for keys and values, limited to `size`; None for all tokens."


class OneChannel(Mine):
    """Return a map that broadcasts to the right shape."""

    def forward(self, x):
        return x.mean(1, keepdim=True)


class Flat(Mine):
    """Return a tuple instead of a tensor."""

    def forward(self, x):
        return (x,)


@pytest.mark.parametrize("cls, returned", [(OneChannel, "(2, 1, 4, 4)"), (Flat, "a tuple")])
def test_mixer_that_changes_the_shape_is_refused(cls, returned, forget_mixers):
    register_mixer("wrong")(cls)
    model = MetaFormer(img_size=16, depths=(1,), dims=(8,), mixer="wrong")
    words = f"{cls.__name__} returned {returned} for a map of shape (2, 8, 4, 4): a mixer must keep the shape"
    with pytest.raises(ValueError, match=re.escape(words)):
        model(torch.randn(2, 3, 16, 16))


def test_mixer_that_changes_the_shape_is_refused_in_a_compiled_model(forget_mixers):
    register_mixer("wrong")(OneChannel)
    model = MetaFormer(img_size=16, depths=(1,), dims=(8,), mixer="wrong")
    with pytest.raises(Exception, match="a mixer must keep the shape"):
        torch.compile(model, backend="eager")(torch.randn(2, 3, 16, 16))


@pytest.mark.parametrize("mixer", ["raft", "maxim", "wavemix", "nin-grid", "minattn-shared", "minattn-positions"])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_tracing_warns_that_the_graph_is_for_one_size(mixer):
    name, options = CASES[mixer]
    with pytest.warns(UserWarning, match="is correct for the example's image size only"):
        traced = torch.jit.trace(create_mixer(name, DIM, size=SIZE, **options).eval(), images(16, 12))
    assert traced(images(16, 12)).shape == (2, DIM, 16, 12)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_tensorboard_draws_the_graph(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    model = MetaFormer(img_size=16, depths=(1,), dims=(8,), mixer="raft").eval()
    with SummaryWriter(tmp_path) as writer, pytest.warns(UserWarning, match="for the example's image size only"):
        writer.add_graph(model, torch.randn(1, 3, 16, 16))
    assert next(tmp_path.iterdir()).stat().st_size > 1000
