"""Test weights: local files and the hub, other authors' files, another head or image size, incomplete files."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models import adapt_input_conv, save_for_hf

import metamix
from metamix.models import registry
from metamix.models.checkpoint import layer_names
from metamix.weights import find
from metamix.weights.checksums import digest
from tests.helpers.goldens import read_golden

NANO = dict(depths=(1, 1, 1), dims=(24, 48, 96))
SMALL = {
    "metaformer_pooling_s12": dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32)),
    "metaformer_raft_nano": NANO,
    "metaformer_maxim_nano": NANO,
    "metaformer_wavemix_nano": NANO,
    "metaformer_nin_nano": NANO,
    "metaformer_minattn_nano": NANO,
    "raftmlp_s": dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), img_size=64),
    "wavemix_192_16": dict(dim=16, depth=2),
    "wavemixlite_8_5": {},
    "ninformer_cifar": dict(d_model=16, d_ffn=32, num_layers=2),
    "minattn_full_mlp_h4_cifar": dict(dim=16, depth=2),
}
EVERY_FAMILY = pytest.mark.parametrize("name", SMALL)


def create(name, file=None, **kwargs):
    """Build the small model of `name`, with the weights from `file` if it is given."""
    overlay = dict(pretrained_cfg_overlay=dict(file=str(file))) if file else {}
    return timm.create_model(name, pretrained=file is not None, **{**SMALL[name], **overlay, **kwargs}).eval()


@pytest.fixture
def saved(tmp_path):
    """Return a function that saves the small model of a name with random weights, and returns model and file."""

    def save(name):
        torch.manual_seed(0)
        model = create(name)
        for key, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                random_like = torch.rand_like if key.endswith("running_var") else torch.randn_like
                tensor += 0.1 * random_like(tensor)
        file = tmp_path / f"{name}.safetensors"
        save_file(model.state_dict(), file)
        return model, file

    return save


def same(a, b, without=()):
    a, b = a.state_dict(), b.state_dict()
    keys = [k for k in b if not k.startswith(tuple(without))]
    return all(torch.equal(a[k], b[k]) for k in keys)


def image(model, size=None):
    channels, h, w = model.default_cfg["input_size"]
    return torch.randn(2, channels, *(size or (min(h, 64), min(w, 64))))


# A different number of classes or channels, or another image size


@EVERY_FAMILY
def test_a_loaded_file_gives_the_saved_model(name, saved):
    model, file = saved(name)
    assert same(create(name, file), model)
    assert not same(create(name), model)


@EVERY_FAMILY
@pytest.mark.parametrize("num_classes", [0, 7])
def test_another_number_of_classes_keeps_the_features(name, num_classes, saved):
    model, file = saved(name)
    loaded = create(name, file, num_classes=num_classes)
    x = image(model)
    assert loaded(x).shape[1] == (num_classes or model.num_features)
    torch.testing.assert_close(loaded.forward_features(x), model.forward_features(x))


@EVERY_FAMILY
def test_features_only_loads_the_weights_of_a_file(name, saved):
    model, file = saved(name)
    features = create(name, file, features_only=True)
    x = image(model)
    expected = model.forward_intermediates(x, intermediates_only=True)
    for feature, i in zip(features(x), features.feature_info.out_indices, strict=True):
        torch.testing.assert_close(feature, expected[i])


@EVERY_FAMILY
def test_first_convolutions_are_adapted_to_other_channels(name, saved):
    """Test the outputs for one channel against three equal channels, and each first convolution against timm's adapter.

    All other tensors stay the same.
    """
    model, file = saved(name)
    first = layer_names(model.default_cfg, "first_conv")
    if model.in_chans == 3:
        x = image(model, (32, 32))[:, :1]
        torch.testing.assert_close(
            create(name, file, in_chans=1)(x), model(x.expand(-1, 3, -1, -1)), atol=1e-4, rtol=1e-4
        )
    for in_chans in {1, 3, 4} - {model.in_chans}:
        loaded = create(name, file, in_chans=in_chans)
        assert same(loaded, model, without=first)
        for conv in first:
            expected = adapt_input_conv(in_chans, model.get_submodule(conv).weight, base_chans=model.in_chans)
            assert torch.equal(loaded.get_submodule(conv).weight, expected)


@EVERY_FAMILY
@pytest.mark.parametrize("scale", [(2, 2), (1.5, 1)])
def test_loading_at_another_size_equals_set_input_size(name, scale, saved):
    model, file = saved(name)
    size = tuple(int(s * n) for s, n in zip(scale, image(model).shape[-2:]))
    model.set_input_size(size)
    for loaded in (create(name, file, img_size=size), create(name, img_size=size, checkpoint_path=file)):
        assert same(loaded, model)
    assert torch.isfinite(loaded(image(model, size))).all()


@pytest.mark.parametrize("name, key, grid", [
    ("metaformer_raft_nano", "stages.0.blocks.0.mixer.vertical.fc2.bias", (1, 2, 16, 1)),
    ("raftmlp_s", "stages.1.blocks.0.mixer.horizontal.fc2.bias", (1, 2, 1, 8)),
    ("ninformer_cifar", "stages.0.blocks.1.mixer.token_mlp.fc2.bias", (1, 1, 8, 8)),
    ("minattn_full_mlp_h4_cifar", "pos_embed", (1, 16, 4, 4)),
])  # fmt: skip
def test_spatial_weights_are_interpolated(name, key, grid, saved):
    """On a map with twice the side length, averages of neighbours are close to the old values."""
    model, file = saved(name)
    old = model.state_dict()[key].view(grid)
    double = [2 * n if n > 1 else n for n in grid[2:]]
    new = create(name, file, img_size=2 * image(model).shape[-1]).state_dict()[key].view(*grid[:2], *double)
    averages = F.interpolate(new, size=grid[2:], mode="area")
    assert torch.corrcoef(torch.stack([old.flatten(), averages.flatten()]))[0, 1] > 0.9


# Incomplete files

WAYS = (
    dict(), dict(num_classes=0), dict(num_classes=10), dict(features_only=True), dict(in_chans=1),
    dict(num_classes=7, in_chans=4),
)  # fmt: skip


@EVERY_FAMILY
def test_a_missing_stage_is_named(name, saved):
    model, file = saved(name)
    stage = "stages.0.blocks.1." if model.isotropic else "stages.1."
    save_file({k: v for k, v in model.state_dict().items() if not k.startswith(stage)}, file)
    for kwargs in WAYS:
        with pytest.raises(ValueError, match=f"does not fit {name}: it lacks {stage}.* and [0-9]+ more"):
            create(name, file, **kwargs)


@EVERY_FAMILY
@pytest.mark.parametrize("ways", [slice(0, None, 5), pytest.param(slice(1, 5), marks=pytest.mark.slow)])
def test_unknown_and_misshapen_tensors_are_named(name, ways, saved):
    model, file = saved(name)
    state = model.state_dict()
    key = [k for k in state if "mixer" not in k][-4]  # the next test covers the mixers' tensors
    for wrong, words in (
        ({**state, "stages.9.weight": torch.ones(1)}, "it has tensors that the model lacks: stages.9.weight"),
        ({**state, key: torch.ones(3, 5, 7)}, f"it has {key} of shape \\(3, 5, 7\\) where the model has"),
        ({k.replace("stages", "layers"): v for k, v in state.items()}, "it lacks stages.* the model lacks: layers"),
    ):
        save_file(wrong, file)
        for kwargs in WAYS[ways]:
            with pytest.raises(ValueError, match=words):
                create(name, file, **kwargs)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("metaformer_raft_nano", marks=pytest.mark.slow),
        pytest.param("metaformer_nin_nano", marks=pytest.mark.slow),
        "minattn_full_mlp_h4_cifar",
    ],
)
def test_misshapen_spatial_weights_are_named(name, saved):
    """Each spatial tensor in turn gets a wrong shape, and the error names that tensor."""
    model, file = saved(name)
    for key, tensor in model.state_dict().items():
        if ("mixer" in key or key == "pos_embed") and tensor.ndim:
            save_file({**model.state_dict(), key: torch.ones(5, *tensor.shape)}, file)
            last = key.rpartition("mixer.")[2]
            for kwargs in (dict(num_classes=7), dict(num_classes=7, img_size=64)):
                with pytest.raises(ValueError, match=f"safetensors does not fit.*{last} (of shape )?\\("):
                    create(name, file, **kwargs)


@pytest.mark.parametrize("option, value", [("raft_size", 4), ("raft_size", 1), ("expansion", 1)])
def test_weights_of_another_raft_size_or_expansion_are_not_resampled(option, value, saved):
    _, file = saved("metaformer_raft_nano")
    words = r"has stages.0.blocks.0.mixer.vertical.fc1.weight of shape \(64, 1, 2, 16\) where the model has \("
    for size in (32, 64):
        with pytest.raises(ValueError, match=words):
            create("metaformer_raft_nano", file, img_size=size, mixer_args={option: value})


def test_a_model_is_made_for_the_image_size_of_its_weights(saved):
    model, file = saved("metaformer_raft_nano")
    model.set_input_size(48)
    save_file(model.state_dict(), file)
    overlay = dict(file=str(file), input_size=(3, 48, 48))
    assert same(create("metaformer_raft_nano", file, pretrained_cfg_overlay=overlay), model)


def test_only_the_head_may_be_missing(saved):
    model, file = saved("metaformer_pooling_s12")
    save_file({k: v for k, v in model.state_dict().items() if not k.startswith("head.")}, file)
    assert same(create("metaformer_pooling_s12", file, num_classes=7), model, without=["head."])
    with pytest.raises(RuntimeError, match="head.weight"):  # without num_classes, the head must be in the file
        create("metaformer_pooling_s12", file)


# Files of the authors and of timm


@pytest.fixture(scope="module")
def timm_s12(tmp_path_factory):
    """Return timm's poolformer_s12 with random weights, and the file of its weights."""
    torch.manual_seed(0)
    model = timm.create_model("poolformer_s12").eval()
    for key, parameter in model.named_parameters():
        if "scale" in key:  # a scale of 1e-5 would hide the branch
            torch.nn.init.normal_(parameter, 0.5, 0.1)
    file = tmp_path_factory.mktemp("timm") / "model.safetensors"
    save_file(model.state_dict(), file)
    return model, file


@torch.no_grad()
@pytest.mark.parametrize("kwargs", [{}, dict(num_classes=10), dict(features_only=True), dict(in_chans=1)])
def test_weights_of_timms_poolformer_give_its_features(timm_s12, kwargs):
    theirs, file = timm_s12
    ours = timm.create_model(
        "metaformer_pooling_s12", pretrained=True, pretrained_cfg_overlay=dict(file=str(file)), **kwargs
    )
    x = torch.randn(1, 3, 64, 96)
    expected = theirs.forward_intermediates(x, intermediates_only=True)
    if kwargs.get("in_chans") == 1:
        x = x[:, :1]
        expected = theirs.forward_intermediates(x.expand(-1, 3, -1, -1), intermediates_only=True)
    features = (
        ours.eval()(x) if "features_only" in kwargs else ours.eval().forward_intermediates(x, intermediates_only=True)
    )
    for a, b in zip(features, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_a_stage_that_a_file_of_timms_poolformer_lacks_is_named(timm_s12, tmp_path):
    theirs, _ = timm_s12
    file = tmp_path / "model.safetensors"
    save_file({k: v for k, v in theirs.state_dict().items() if not k.startswith("stages.2.")}, file)
    source = dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(file)))
    for kwargs in WAYS:
        with pytest.raises(ValueError, match="it lacks stages.2.blocks.0.layer_scale1.scale"):
            timm.create_model("metaformer_pooling_s12", **source, **kwargs)


@torch.no_grad()
@pytest.mark.parametrize("name, file, kwargs", [
    ("metaformer_pooling_s12", "poolformer_tiny_40x72", dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))),
    ("wavemix_192_16", "wavemix_cls_level1_pachify_64x64", dict(dim=16, depth=2)),
    ("wavemix_192_16", "wavemix_cls_level2_pachify_64x64", dict(dim=16, depth=2, level=2)),
    ("wavemix_256_8", "wavemix_cls_level3_strided_s1_64x64", dict(dim=16, depth=2, level=3)),
    ("wavemix_256_16_l4", "wavemix_cls_level4_strided_s2_64x64", dict(dim=16, depth=2)),
])  # fmt: skip
def test_weights_of_the_authors_give_the_authors_outputs(name, file, kwargs, tmp_path):
    _, state, tensors = read_golden(file)
    path = tmp_path / "checkpoint.pth"
    torch.save({"state_dict": state, "epoch": 300}, path)
    source = dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(path), num_classes=10), **kwargs)
    model = timm.create_model(name, **source).eval()
    x = tensors["input"]
    torch.testing.assert_close(model(x), tensors["output"], atol=1e-4, rtol=1e-4)
    for classes in (0, 7):
        other = timm.create_model(name, num_classes=classes, **source).eval()
        torch.testing.assert_close(other.forward_features(x), model.forward_features(x))
    torch.save({k: v for k, v in state.items() if not k.startswith(("network.4.", "layers.1."))}, path)
    for way in WAYS:
        with pytest.raises(ValueError, match=r"it lacks (network\.4|layers\.1)\."):
            timm.create_model(name, **source, **way)


# Tags


def test_poolformer_sizes_have_timms_published_tags():
    for size, crop in (("s12", 0.9), ("s24", 0.9), ("s36", 0.9), ("m36", 0.95), ("m48", 0.95)):
        cfg = timm.get_pretrained_cfg(f"metaformer_pooling_{size}")  # the default
        assert (cfg.tag, cfg.hf_hub_id, cfg.crop_pct) == ("sail_in1k", f"timm/poolformer_{size}.sail_in1k", crop)
        assert timm.get_pretrained_cfg(f"poolformer_{size}").crop_pct == crop
        assert f"metaformer_pooling_{size}.sail_in1k" in timm.list_pretrained("metaformer_*")
    with pytest.raises(RuntimeError, match="Invalid pretrained tag"):
        timm.create_model("metaformer_pooling_s12.sail_in22k")


def test_tags_of_wavemix_have_the_authors_addresses_image_sizes_and_classes():
    folder = "https://huggingface.co/cloudwalker/wavemix/resolve/main/Saved_Models_Weights/"
    urls = {tag: timm.get_pretrained_cfg(tag).url or "" for tag in timm.list_pretrained("wavemix_*.*")}
    theirs = sorted((tag, url) for tag, url in urls.items() if url.startswith(folder))
    assert len(theirs) == 13 and digest(theirs) == "38f354d49a22d5acf184803e9a9ba84e"
    for tag, file, size, classes in (
        ("wavemix_192_16_l3.in1k", "ImageNet/wavemix_192_16_75.06.pth", 224, 1000),
        ("wavemix_192_16_l3.tiny_imagenet", "tinyimagenet/tiny_78.76.pth", 128, 200),
        ("wavemix_256_16_l4.in1k", "ImageNet/imagenet4level_70.42.pth", 256, 1000),
        ("wavemix_192_16.galaxy10", "galaxy10/galaxy_90.23.pth", 256, 10),
        ("wavemix_256_12_l2.places365", "Places365/places365_54.94.pth", 224, 365),
        ("wavemix_256_12.tiny_imagenet", "tinyimagenet/tinyimagenet_62.51.pth", 64, 200),
    ):
        cfg = timm.get_pretrained_cfg(tag)
        assert (cfg.url.removeprefix(folder), cfg.input_size, cfg.num_classes) == (file, (3, size, size), classes)


@torch.no_grad()
def test_weights_are_downloaded_from_timms_repository(timm_s12, monkeypatch):
    theirs, file = timm_s12
    asked = []

    def download(repo_id, filename, **_):
        asked.append((repo_id, filename))
        return str(file)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    monkeypatch.setattr("metamix.models.registry.require_reachable", lambda *_: None)
    ours = timm.create_model("metaformer_pooling_s12", pretrained=True).eval()
    assert asked == [("timm/poolformer_s12.sail_in1k", "model.safetensors")]
    x = torch.randn(1, 3, 64, 64)
    a, b = (m.forward_intermediates(x, intermediates_only=True)[-1] for m in (ours, theirs))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


CARD = dict(input_size=[3, 32, 32], num_classes=10, mean=[0.5, 0.5, 0.5], std=[0.2, 0.2, 0.2])


def put(folder, name, tag, state, **entries):
    save_file(state, folder / f"{name}.{tag}.safetensors")
    (folder / f"{name}.{tag}.json").write_text(json.dumps({"pretrained_cfg": CARD | entries, "accuracy": 0.9}))


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Replace the folder of trained weights by an empty one."""
    monkeypatch.setattr(find, "weights_dir", lambda: tmp_path)
    find.local_cards.cache_clear()
    yield tmp_path
    find.local_cards.cache_clear()


HUB = {"hub": dict(hf_hub_id="timm/some"), "hub_224": dict(hf_hub_id="timm/other", input_size=(3, 224, 224))}


def test_the_default_tag_fits_size_and_classes_and_local_files_come_first(weights):
    def order(tags):
        find.local_cards.cache_clear()
        return list(registry.tagged_cfgs("metaformer_pooling_nano", registry.CIFAR10, tags).tags)

    state = {"stem.weight": torch.ones(1)}
    assert order({}) == [""]
    assert order(HUB) == ["hub", "hub_224"]
    put(weights, "metaformer_pooling_nano", "a_cifar100", state, num_classes=100)
    assert order({}) == ["", "a_cifar100"]  # the number of classes differs
    assert order(HUB) == ["hub", "a_cifar100", "hub_224"]
    put(weights, "metaformer_pooling_nano", "cifar10", state)
    assert order(HUB) == ["cifar10", "a_cifar100", "hub", "hub_224"]  # local files first
    put(weights, "metaformer_pooling_s12", "cifar10_s12", state)
    (weights / "metaformer_pooling_nano.lost.json").write_text(json.dumps({"pretrained_cfg": CARD}))
    assert order(HUB) == ["cifar10", "a_cifar100", "hub", "hub_224"]


def test_a_local_file_is_used_for_a_tag_of_the_hub(weights):
    put(weights, "metaformer_pooling_nano", "hub", {"stem.weight": torch.ones(1)}, crop_pct=0.8)
    cfg = registry.tagged_cfgs("metaformer_pooling_nano", registry.CIFAR10, HUB).cfgs["hub"]
    assert cfg.file == str(weights / "metaformer_pooling_nano.hub.safetensors")  # timm prefers the file
    assert (cfg.hf_hub_id, cfg.crop_pct, cfg.mean, cfg.first_conv) == ("timm/some", 0.8, (0.5, 0.5, 0.5), "stem")


@pytest.mark.parametrize(
    "card, words",
    [
        ("{", "JSONDecodeError"),
        ("{}", "KeyError\\('pretrained_cfg'\\)"),
        (json.dumps({"pretrained_cfg": dict(input_sizes=[3, 32, 32])}), "unexpected keyword argument 'input_sizes'"),
    ],
)
def test_a_broken_card_is_named(card, words, weights):
    put(weights, "metaformer_pooling_nano", "cifar10", {"stem.weight": torch.ones(1)})
    (weights / "metaformer_pooling_nano.cifar10.json").write_text(card)
    with pytest.raises(ValueError, match=f"metaformer_pooling_nano.cifar10.json is not a card of weights: .*{words}"):
        find.local_weights()


@pytest.mark.slow
def test_a_clone_loads_its_weights_without_a_network(saved, tmp_path):
    """Run a copy of the package beside a weights folder, in a process without a network."""
    name = "minattn_minimal_nomlp_h1_mnist"
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    clone = tmp_path / "clone"
    (clone / "weights").mkdir(parents=True)
    shutil.copytree(Path(metamix.__file__).parent, clone / "metamix", ignore=shutil.ignore_patterns("__pycache__"))
    put(clone / "weights", name, "mnist", model.state_dict(), input_size=[1, 28, 28], mean=[0.1], std=[0.3])
    save_file(
        {"x": torch.ones(1, 1, 28, 28), "y": model(torch.ones(1, 1, 28, 28)).detach()}, clone / "expected.safetensors"
    )
    code = """
import socket

def closed(*_, **__):
    raise OSError("there is no network")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = closed

import metamix, timm, torch
from safetensors.torch import load_file
expected = load_file("expected.safetensors")
for name in ("NAME", "NAME.mnist"):
    model = timm.create_model(name, pretrained=True).eval()
    assert torch.equal(model(expected["x"]), expected["y"])
    assert model.pretrained_cfg["tag"] == "mnist" and model.pretrained_cfg["mean"] == (0.1,)
assert "NAME.mnist" in timm.list_pretrained("minattn_*")
try:
    timm.create_model("NAME".replace("minimal", "collapsed"), pretrained=True)
except RuntimeError as error:
    print(error)
""".replace("NAME", name)
    run = subprocess.run([sys.executable, "-c", code], cwd=clone, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "No pretrained weights exist for minattn_collapsed_nomlp_h1_mnist" in run.stdout


# Through timm's hub functions


@pytest.mark.parametrize("name, kwargs", [
    *((name, {}) for name in SMALL),
    ("metaformer_pooling_s12", dict(num_classes=7, in_chans=1)),
    ("metaformer_pooling_s12", dict(mixer=["pooling", "raft", "maxim", "nin"], img_size=[64, 96])),
    ("metaformer_maxim_nano", dict(mixer_args=dict(block_size=[2, 2]))),
    ("raftmlp_s", dict(embedding_kernels=[[4], [2], [2], [2]], num_classes=0)),
    ("wavemix_192_16", dict(level=2, global_pool="max")),
])  # fmt: skip
@pytest.mark.parametrize("source", ["local-dir:{}", pytest.param("hf-hub:someone/some_model", marks=pytest.mark.slow)])
def test_a_model_saved_for_the_hub_loads_with_its_weights(source, name, kwargs, tmp_path, monkeypatch):
    model = create(name, **kwargs)
    save_for_hf(model, tmp_path, safe_serialization=True)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", lambda repo_id, filename, **_: str(tmp_path / filename))
    monkeypatch.setattr("metamix.models.registry.require_reachable", lambda *_: None)
    x = torch.randn(1, model.in_chans, 64, 96)
    again = timm.create_model(source.format(tmp_path), pretrained=True).eval()
    assert same(again, model) and again.pretrained_cfg["architecture"] == name
    assert torch.equal(again(x), model(x))
    features = timm.create_model(source.format(tmp_path), pretrained=True, features_only=True).eval()
    assert torch.equal(features(x)[-1], model.forward_intermediates(x, intermediates_only=True)[-1])


def test_changed_classes_and_size_are_saved_for_the_hub(tmp_path):
    model = create("metaformer_raft_nano")
    model.reset_classifier(5)
    model.set_input_size((40, 48))
    save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert same(again, model) and again.num_classes == 5
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3, in_chans=1, img_size=32).eval()
    assert other(torch.randn(1, 1, 32, 32)).shape == (1, 3)
