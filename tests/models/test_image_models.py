"""Test names, tags and files of image models. The files are small, but have the formats of the published files."""

import copy
import io
import re
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import metamix
from metamix.models import image_models, maxim_layout
from metamix.models.image_models import MAXIM_URL, create_image_model, image_model_names, weights_of
from metamix.weights.files import save_weights
from tests.helpers.goldens import wavemix_state

TINY = dict(
    features=8, depth=2, num_stages=2, num_supervision_scales=2, num_groups=1, num_bottleneck_blocks=1,
    block_size_hr=2, grid_size_hr=2, block_size_lr=2,
)  # fmt: skip
PARAMETERS = {
    "maxim_s1": 6_139_561,
    "maxim_s2": 14_176_178,
    "maxim_s3": 22_212_795,
    "maxim_m1": 19_464_265,
    "maxim_m2": 43_227_986,
    "maxim_m3": 66_991_707,
    "maxim_nano": 756_235,
    "wavemixsr_144_4": 1_704_385,
    "wavemix_sisr_144_4": 1_944_867,
    "wavemixsr_nano": 190_273,
    "wavemix_restore_nano": 602_403,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_models_have_the_known_parameters_scale_and_channels(name):
    with torch.device("meta"):
        model = create_image_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert model.scale == (2 if "sr" in name else 1) and len(model.multiple) == 2 and model.in_chans in (1, 3)


@pytest.mark.parametrize("name, options", [
    ("maxim_nano", TINY), ("wavemixsr_nano", dict(dim=16, depth=2)), ("wavemix_restore_nano", dict(dim=16, depth=2)),
])  # fmt: skip
def test_gradient_checkpointing_keeps_gradients_and_buffers(name, options):
    plain = create_image_model(name, **options).train()
    for parameter in plain.parameters():  # some start at zero, which would stop the gradients
        torch.nn.init.normal_(parameter, std=0.1) if parameter.ndim > 1 else None
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    runs = []
    layer = next(m for m in saving.modules() if hasattr(m, "grad_checkpointing"))
    repeated = getattr(layer, "groups", layer)  # MAXIM's blocks do not repeat their first convolution
    next(repeated.children()).register_forward_pre_hook(lambda *_: runs.append(1))
    images = torch.rand(2, plain.in_chans, 16, 16)
    for model in (plain, saving):
        torch.manual_seed(0)
        model(images)[-1].square().sum().backward()
    assert len(runs) == 2  # the forward pass, and its repetition
    for (key, expected), parameter in zip(plain.named_parameters(), saving.parameters()):
        torch.testing.assert_close(parameter.grad, expected.grad, msg=key)
    for expected, buffer in zip(plain.buffers(), saving.buffers()):
        assert torch.equal(buffer, expected)
    saving.set_grad_checkpointing(False)
    saving(images)
    assert len(runs) == 3


def test_models_and_weights_are_listed():
    assert image_model_names() == list(PARAMETERS)
    assert [model.name for model in metamix.list_image_models()] == list(PARAMETERS)
    assert [model.name for model in metamix.list_image_models("maxim_s*")] == ["maxim_s1", "maxim_s2", "maxim_s3"]
    with pytest.raises(ValueError, match=r"No model matches 'maxin\*'; did you mean 'maxim_nano'\? metamix.list_im"):
        metamix.list_image_models("maxin*")
    published = metamix.list_image_models("maxim_s*", pretrained=True)
    assert [f"{model.name}.{weights.tag}" for model in published for weights in model.weights] == [
        *(f"maxim_s2.{tag}" for tag in ("rain13k", "raindrop", "sots_indoor", "sots_outdoor", "lol", "fivek")),
        *(f"maxim_s3.{tag}" for tag in ("sidd", "gopro", "reds", "realblur_r", "realblur_j")),
    ]
    folder = "https://storage.googleapis.com/gresearch/maxim/ckpt/Dehazing/SOTS-Indoor/checkpoint.npz"
    assert image_models._TAGS["maxim_s2"]["sots_indoor"] == folder
    assert MAXIM_URL.format("Denoising/SIDD") == folder.replace("Dehazing/SOTS-Indoor", "Denoising/SIDD")


def test_a_user_can_register_an_image_model(monkeypatch):
    for registry in ("_MODELS", "_TAGS"):
        monkeypatch.setattr(image_models, registry, dict(getattr(image_models, registry)))
    image_models.register_image_model("mine", torch.nn.Conv2d, in_channels=3, out_channels=3, kernel_size=1)
    assert create_image_model("mine", kernel_size=3).kernel_size == (3, 3)
    with pytest.raises(ValueError, match="'mine' is already registered"):
        image_models.register_image_model("mine", torch.nn.Conv2d)
    with pytest.raises(ValueError, match="An image model cannot be named 'mine.x2': the part after a dot"):
        image_models.register_image_model("mine.x2", torch.nn.Conv2d)


REFUSED = [
    (("maxim_s4",), {}, "no image model 'maxim_s4'; did you mean 'maxim_s"),
    (("maxim_s3.gopr",), {}, "maxim_s3 has no tag 'gopr'; did you mean 'gopro'"),
    (("maxim_m1.sidd",), {}, "maxim_m1 has no tag 'sidd'. It has none."),
    (
        ("maxim_m1", True),
        {},
        "No weights are published for maxim_m1: give a run or a weight file, or leave pretrained out",
    ),
    (("maxim_m1", True), dict(checkpoint="a.pt"), "both say where weights come from: give one"),
    (("maxim_nano",), dict(feature=8), "maxim_nano has no option 'feature'; did you mean 'features'"),
]


@pytest.mark.parametrize("arguments, options, words", REFUSED)
def test_wrong_names_and_options_are_refused(arguments, options, words):
    with pytest.raises(ValueError, match=words):
        create_image_model(*arguments, **options)


def test_a_small_file_that_describes_a_huge_model_is_refused(tmp_path):
    metadata = {"model": "wavemixsr_144_4", "model_args": {"dim": 1024}}
    save_weights(tmp_path / "w.safetensors", {"weight": torch.zeros(3)}, metadata)
    with pytest.raises(ValueError, match="its metadata describe a wavemixsr_144_4 of .* values, but the file holds 3"):
        create_image_model("wavemixsr_144_4", checkpoint=tmp_path / "w.safetensors")


# Files


def flax_arrays(model):
    """Return the arrays of the authors' .npz file for a model, with some of the optimizer's state."""
    layout = maxim_layout.maxim_layout(model, {})
    arrays = {}
    for key, value in model.state_dict().items():
        name, parent = layout.name(key), model.get_submodule(key.rpartition(".")[0])
        if value.ndim == 4 and re.search(r"Dense|project", name):
            value = value[..., 0, 0].T
        elif isinstance(parent, torch.nn.ConvTranspose2d) and value.ndim == 4:
            value = value.flip(2, 3).permute(2, 3, 0, 1)
        elif value.ndim == 4:
            value = value.permute(2, 3, 1, 0)
        arrays[f"opt/target/{name}"] = value.numpy()
        arrays[f"opt/state/param_states/{name}/grad_ema"] = value.numpy()
    return arrays | {"opt/state/step": np.int32(1)}


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Return a function that publishes a file at a file:// address, as the weights maxim_s3.sidd of a tiny MAXIM."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))

    def publish(content):
        path = tmp_path / "checkpoint.npz"
        path.write_bytes(content)
        monkeypatch.setitem(image_models._TAGS, "maxim_s3", {"sidd": path.as_uri()})
        monkeypatch.setitem(image_models._MODELS, "maxim_s3", partial(image_models.MaximUNet, **TINY))
        return path

    return publish


def npz(arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def test_the_authors_weights_are_downloaded_and_then_read_from_the_cache(published):
    model = create_image_model("maxim_s3", **TINY)
    content = npz(flax_arrays(model))
    path = published(content)
    assert same_weights(create_image_model("maxim_s3.sidd", pretrained=True), model)
    path.unlink()  # from here on, only the cache has the file
    assert same_weights(create_image_model("maxim_s3", pretrained=True), model)
    assert same_weights(create_image_model("maxim_s3", pretrained=True, num_groups=1), model)
    words = r"maxim_s3.sidd.npz does not fit the maxim_s3 with these"
    with pytest.raises(ValueError, match=words), pytest.warns(UserWarning, match=r"num_groups=2 \(the weights"):
        create_image_model("maxim_s3", pretrained=True, num_groups=2)


def test_a_warning_names_arguments_that_changed_since_training():
    with pytest.warns(UserWarning, match=r"wavemixsr_nano.x2.* residual=False \(the weights were trained with True\)"):
        create_image_model("wavemixsr_nano.x2", pretrained=True, residual=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        create_image_model("wavemixsr_nano.x2", pretrained=True, residual=True, proj_drop=0.1)
        create_image_model("maxim_nano.noise25", pretrained=True, block_size_hr=(8, 8), grid_size_hr=[8, 8])


def test_a_failed_download_says_what_to_do(published, tmp_path):
    published(npz({"a": np.zeros(3)})).unlink()
    with pytest.raises(OSError, match="could not be downloaded .*download the file yourself and give its path"):
        create_image_model("maxim_s3", pretrained=True)


def test_saved_files_hold_the_arguments_of_their_model(tmp_path):
    """The metadata of a run hold the model's name, its arguments and channels."""
    model = create_image_model("maxim_nano", in_chans=1, features=8, depth=2)
    about = dict(model="maxim_nano", model_args=dict(features=8, depth=2), in_chans=1)
    save_weights(tmp_path / "grey.safetensors", model.state_dict(), about)
    loaded = create_image_model("maxim_nano", checkpoint=tmp_path / "grey.safetensors")
    assert loaded.in_chans == 1 and same_weights(loaded, model)
    with pytest.raises(ValueError, match="has weights of maxim_nano, not of maxim_s1: use maxim_nano"):
        create_image_model("maxim_s1", checkpoint=tmp_path / "grey.safetensors")
    save_file(model.state_dict(), tmp_path / "plain.safetensors")
    assert same_weights(
        create_image_model("maxim_nano", checkpoint=tmp_path / "plain.safetensors", in_chans=1, features=8, depth=2),
        model,
    )
    with pytest.raises(ValueError, match=r"plain.safetensors does not fit the maxim_nano"):
        create_image_model("maxim_nano", checkpoint=tmp_path / "plain.safetensors")


def test_shipped_weights_come_before_published_weights(tmp_path, monkeypatch):
    model = create_image_model("maxim_nano", in_chans=1, features=8, depth=2)
    about = dict(model="maxim_nano", model_args=dict(features=8, depth=2), in_chans=1)
    save_weights(tmp_path / "maxim_nano.noise25.safetensors", model.state_dict(), about)
    cards = {"maxim_nano": {"noise25": {"file": str(tmp_path / "maxim_nano.noise25.safetensors")}}}
    monkeypatch.setattr(image_models, "local_weights", lambda: cards)
    assert next(iter(weights_of("maxim_nano"))) == "noise25"
    for name in ("maxim_nano", "maxim_nano.noise25"):
        assert same_weights(create_image_model(name, pretrained=True), model)


@pytest.mark.parametrize(
    "name, options, renames",
    [
        ("wavemixsr_144_4", {}, {"stem.0": "path1.1", "stem.1": "path1.2", "head": "final"}),
        ("wavemix_sisr_144_4", {}, {"stem": "conv", "head": "expand"}),
        ("wavemix_sisr_144_4", dict(level=2), {"stem": "conv", "head": "expand"}),
    ],
)
def test_state_dicts_of_the_authors_wavemix_are_loaded(tmp_path, name, options, renames):
    small = dict(dim=8, depth=2) | options
    model = create_image_model(name, **small)
    state = wavemix_state(model, renames)
    torch.save(state, tmp_path / "weights.pth")
    assert same_weights(create_image_model(name, checkpoint=tmp_path / "weights.pth", **small), model)
    key = next(key for key in state if key.endswith("reduction.bias"))
    torch.save({k: v for k, v in state.items() if k != key}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=f"weights.pth does .* lacks {key}"):
        create_image_model(name, checkpoint=tmp_path / "weights.pth", **small)
