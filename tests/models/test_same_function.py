"""Test that weights of another mixer, norm or activation are refused, or give a warning if they are published."""

import copy
import warnings
from functools import partial

import pytest
import timm
import torch
from torch import nn

import metamix
from metamix.mixers.registry import describe_mixer
from metamix.models.checkpoint import (
    adapt_checkpoint,
    build_described,
    check_described_size,
    check_same_function,
    describe,
)
from metamix.weights.files import save_weights
from metamix.weights.find import local_weights, read_weights
from metamix.weights.metadata import ModelMetadata

TINY = {"depths": (1, 1, 1), "dims": (16, 16, 32)}


def create(name, **kwargs):
    return timm.create_model(name, **TINY | kwargs)


@pytest.fixture
def saved(tmp_path):
    """Return a function that saves the model (name, model_args) with its metadata, and returns the file."""

    def save(name, **model_args):
        file = tmp_path / f"{name}.safetensors"
        arguments = {key: list(value) for key, value in TINY.items()} | model_args
        metadata = {"model": name, "model_args": arguments, "num_classes": 10, "in_chans": 3, "img_size": 32}
        save_weights(file, create(name, num_classes=10, img_size=32, **model_args).state_dict(), metadata)
        return file

    return save


OTHERS = [
    ("metaformer_pooling_nano", {}, "metaformer_identity_nano", {}, r"pooling\(.*identity\(\)"),
    ("metaformer_identity_nano", {}, "metaformer_pooling_nano", {}, r"identity\(\), but .*pooling\(pool_size=3"),
    ("metaformer_pooling_nano", {"mixer_args": {"pool_size": 7}}, "metaformer_pooling_nano", {}, "pool_size=7.*size=3"),
    ("metaformer_pooling_nano", {}, "metaformer_pooling_nano", {"mixer": "identity"}, r"pooling\(.*identity\(\)"),
    ("metaformer_minattn_s12", {}, "metaformer_minattn_s12", {"mixer_args": {"num_heads": 4}}, "heads=1.*heads=4"),
    ("metaformer_pooling_nano", {"act_layer": "relu"}, "metaformer_pooling_nano", {}, r"mlp.act ReLU\(.*GELU\("),
    ("metaformer_pooling_s12", {"norm2": "layernorm2d"}, "metaformer_pooling_s12", {}, "norm2 LayerN.*GroupNorm1"),
]  # fmt: skip


@pytest.mark.parametrize("name, args, other, other_args, words", OTHERS)
def test_weights_of_another_function_are_refused(name, args, other, other_args, words, saved):
    file = saved(name, **args)
    words = rf"{file.name} holds weights of {name} with .*{words}.*Build the model of the weights: timm.create_model\("
    for way in ({"checkpoint_path": file}, {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}}):
        with pytest.raises(ValueError, match=words):
            create(other, num_classes=10, **way, **other_args)
    tensors, metadata = read_weights(file)
    with pytest.raises(ValueError, match=words):
        adapt_checkpoint(create(other, num_classes=10, **other_args), tensors, file, metadata)


@pytest.mark.parametrize("name, args, other, other_args", [
    ("metaformer_pooling_nano", {}, "metaformer_pooling_nano", {}),
    ("metaformer_pooling_nano", {"mixer": "raft"}, "metaformer_raft_nano", {}),  # the same model by another name
    ("metaformer_pooling_nano", {"proj_drop_rate": 0.5}, "metaformer_pooling_nano", {"drop_path_rate": 0.3}),
    ("metaformer_minattn_s12", {"mixer_args": {"context": [14, 14]}}, "metaformer_minattn_s12", {}),
    ("metaformer_nin_s12", {"mixer_args": {"grid": 14}}, "metaformer_nin_s12", {"img_size": 32, "in_chans": 3}),
])  # fmt: skip
def test_weights_of_the_same_function_load_without_a_warning(name, args, other, other_args, saved):
    file = saved(name, **args)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for way in ({"checkpoint_path": file}, {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}}):
            create(other, num_classes=10, **way, **other_args)


@pytest.mark.parametrize("name, other, mixer_args, words", [
    ("metaformer_pooling_nano", "metaformer_identity_nano", {}, r"stages.0 .*mixer pooling.*the mixer identity.*dict"),
    ("metaformer_pooling_nano", "metaformer_pooling_nano", {"pool_size": 7}, "has the mixer pooling.*pool_size=7"),
    ("metaformer_minattn_s12", "metaformer_minattn_s12", {"num_heads": 4}, "has the mixer minattn.*num_heads=4"),
])  # fmt: skip
def test_load_state_dict_refuses_another_mixer(name, other, mixer_args, words, tmp_path):
    torch.save(create(name).state_dict(), tmp_path / "w.pt")
    state = torch.load(tmp_path / "w.pt", weights_only=True)
    copy.deepcopy(create(name, drop_path_rate=0.1, proj_drop_rate=0.1)).load_state_dict(state)
    model = create(other, mixer_args=mixer_args)
    with pytest.raises(RuntimeError, match=words):
        model.load_state_dict(state)
    model.load_state_dict(dict(state))


def test_a_saved_state_dict_of_another_mixer_is_refused(tmp_path):
    file = tmp_path / "w.pt"
    torch.save(create("metaformer_pooling_nano", num_classes=10).state_dict(), file)
    words = r"weights of stages.0 with the mixer pooling\(\), but this model has the mixer identity\(\)"
    for way in ({"checkpoint_path": file}, {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}}):
        create("metaformer_pooling_nano", num_classes=10, **way)
        with pytest.raises(ValueError, match=words):
            create("metaformer_identity_nano", num_classes=10, **way)
    tensors, metadata = read_weights(file)
    with pytest.raises(ValueError, match=words):
        adapt_checkpoint(create("metaformer_identity_nano", num_classes=10), tensors, file, metadata)
    for prefix in ("module", "_orig_mod"):  # of DistributedDataParallel and torch.compile
        wrapped = nn.Module()
        wrapped.add_module(prefix, create("metaformer_pooling_nano", num_classes=10))
        torch.save(wrapped.state_dict(), file)
        create("metaformer_pooling_nano", num_classes=10, checkpoint_path=file)
        with pytest.raises(ValueError, match=words):
            create("metaformer_identity_nano", num_classes=10, checkpoint_path=file)


@pytest.mark.parametrize("noted", [None, ["stages.0"], {"stages.0": None}, {"stages.0": {"version": 1}}])
def test_a_state_dict_may_have_any_metadata(noted, tmp_path):
    state = create("metaformer_pooling_nano", num_classes=10).state_dict()
    state._metadata = noted
    torch.save(state, tmp_path / "w.pt")
    create("metaformer_identity_nano", num_classes=10, checkpoint_path=tmp_path / "w.pt")


def test_options_that_are_functions_are_compared_by_name():
    def halve(x):
        return x / 2

    (first, second) = (describe_mixer("raft", {"expansion": value}, defaults=False) for value in (halve, abs))
    assert first.endswith("halve')") and " at 0x" not in first + second and first != second
    texts = [describe_mixer("raft", {"expansion": partial(torch.clamp, min=value)}) for value in (0, 1)]
    assert " at 0x" not in "".join(texts) and texts[0] != texts[1]  # an address would differ in another process


def test_a_description_without_defaults_leaves_out_default_options():
    assert describe_mixer("pooling", {"pool_size": [3, 3], "proj_drop": 0.1}, defaults=False) == "pooling()"
    assert describe_mixer("pooling", {}).startswith("pooling(pool_size=3")


def test_published_weights_with_another_mixer_give_a_warning():
    with pytest.warns(UserWarning, match=r"pooling\(pool_size=3.*identity\(\).*loaded as a starting point"):
        timm.create_model("metaformer_pooling_nano", pretrained=True, mixer="identity")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        timm.create_model("metaformer_pooling_nano", pretrained=True, num_classes=3, in_chans=1, drop_path_rate=0.1)


def test_weights_of_the_hub_with_another_mixer_give_a_warning(tmp_path, monkeypatch):
    file = tmp_path / "model.safetensors"
    save_weights(file, timm.create_model("metaformer_pooling_s12").state_dict(), {})
    monkeypatch.setattr("timm.models._hub.hf_hub_download", lambda *_, **__: str(file))
    monkeypatch.setattr("metamix.models.registry.require_reachable", lambda *_: None)
    with pytest.warns(UserWarning, match="The checkpoint of metaformer_pooling_s12 holds .*pool_size=3.*pool_size=5"):
        timm.create_model("metaformer_pooling_s12", pretrained=True, mixer_args={"pool_size": 5})


def test_metadata_of_a_model_that_cannot_be_built_are_refused():
    model = create("metaformer_pooling_nano")
    with pytest.raises(ValueError, match=r"mine, the model of .*a.pt, is not registered: import the module that"):
        check_same_function(model, ModelMetadata(model="mine.v1"), "a.pt")
    with pytest.raises(ValueError, match="a.pt: resnet18 cannot be built with the arguments in its metadata"):
        check_same_function(model, ModelMetadata(model="resnet18", model_args={"mixer": "raft"}), "a.pt")


def test_files_that_do_not_name_their_model_are_not_compared(tmp_path):
    save_weights(tmp_path / "plain.safetensors", create("metaformer_identity_nano").state_dict(), {})
    create("metaformer_pooling_nano", num_classes=10, checkpoint_path=tmp_path / "plain.safetensors")


def test_the_description_takes_no_memory_and_ignores_head_and_dropout():
    like = timm.create_model("metaformer_raft_s12", device="meta", in_chans=1, output_stride=16)
    same = build_described(ModelMetadata(model="metaformer_raft_s12"), "x", in_chans=1, output_stride=16)
    assert describe(same) == describe(like)
    model = build_described(ModelMetadata(model="metaformer_raft_s12"), "x")
    assert all(p.is_meta for p in model.parameters())
    assert describe(model) == describe(
        timm.create_model("metaformer_raft_s12", device="meta", num_classes=0, global_pool="", drop_path_rate=0.2)
    )
    assert not any("drop" in part or "head" in part for part in describe(model))


@pytest.mark.slow  # tests/benchmarks load them too, with metamix's own warnings as errors
def test_shipped_weights_load_without_a_warning(caplog):
    for name, tags in local_weights().items():
        for tag in tags:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)
                create_any = timm.create_model if timm.is_model(name) else metamix.create_image_model
                model = create_any(f"{name}.{tag}", pretrained=True)
            assert isinstance(model, torch.nn.Module)
    assert caplog.text == ""


def test_metadata_of_a_much_larger_model_are_refused_before_it_is_built():
    tensors = create("metaformer_raft_nano").state_dict()
    args = {key: list(value) for key, value in TINY.items()}
    check_described_size(ModelMetadata(model="metaformer_raft_nano", model_args=args), tensors, "a.safetensors")
    # The size of a timm model is not compared with the file.
    check_described_size(ModelMetadata(model="vit_huge_patch14_224"), tensors, "a.safetensors")
    large = ModelMetadata(model="metaformer_raft_nano", model_args=args, img_size=2048)
    with pytest.raises(ValueError, match=r"a.safetensors: its metadata describe a metaformer_raft_nano of [0-9,]{9,}"):
        check_described_size(large, tensors, "a.safetensors")
