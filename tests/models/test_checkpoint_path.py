"""Test `timm.create_model(checkpoint_path=...)`: metadata, files of other programs, errors."""

from argparse import Namespace
from collections import OrderedDict

import pytest
import timm
import torch
from timm.data import resolve_model_data_config

import metamix  # noqa: F401  registers the models
from metamix.models import checkpoint
from metamix.models.embed import ConvEmbed, SequentialEmbed
from metamix.weights.files import save_checkpoint, save_weights
from metamix.weights.find import cfg_of_file, weights_dir

TINY = {"depths": (1, 1, 1), "dims": (16, 16, 32)}
ABOUT = {
    "model": "metaformer_raft_nano",
    "model_args": {"depths": [1, 1, 1], "dims": [16, 16, 32]},
    "num_classes": 3,
    "in_chans": 1,
    "img_size": 32,
    "mean": [0.3],
    "std": [0.2],
    "interpolation": "bilinear",
    "crop_pct": 0.9,
    "classes": ["a", "b", "c"],
}


def create(**kwargs):
    return timm.create_model("metaformer_raft_nano", **{"in_chans": 1, "num_classes": 3} | TINY | kwargs).eval()


@pytest.fixture
def trained(tmp_path):
    torch.manual_seed(0)
    model = create()
    save_weights(tmp_path / "weights.safetensors", model.state_dict(), ABOUT)
    return model, tmp_path / "weights.safetensors"


def check_images_are_prepared_as_in_training(model):
    config = resolve_model_data_config(model)
    assert config["input_size"] == (1, 32, 32)
    assert (config["mean"], config["std"]) == ((0.3,), (0.2,))
    assert (config["interpolation"], config["crop_pct"]) == ("bilinear", 0.9)
    assert model.pretrained_cfg["label_names"] == ("a", "b", "c") and "tag" not in model.pretrained_cfg
    assert model.pretrained_cfg is model.default_cfg


def test_images_are_prepared_as_in_training(trained):
    model, file = trained
    loaded = create(checkpoint_path=file)
    check_images_are_prepared_as_in_training(loaded)
    assert loaded.pretrained_cfg["file"] == str(file)
    x = torch.randn(1, 1, 32, 32)
    assert torch.equal(loaded(x), model(x))
    assert create().pretrained_cfg["mean"] != (0.3,)  # the settings of other models stay the same


def test_a_run_folder_is_a_checkpoint_too(trained, tmp_path):
    _, file = trained
    file.rename(tmp_path / "model.safetensors")
    check_images_are_prepared_as_in_training(create(checkpoint_path=tmp_path))


def load_by_path(file, **kwargs):
    return create(checkpoint_path=file, **kwargs)


def load_by_overlay(file, **kwargs):
    return create(pretrained=True, pretrained_cfg_overlay={"file": str(file)}, **kwargs)


EITHER_WAY = pytest.mark.parametrize("load", [load_by_path, load_by_overlay])


@EITHER_WAY
@pytest.mark.parametrize("name", ["checkpoint.pt", "best.pt"])
def test_the_checkpoint_of_a_run_may_have_any_name(load, name, tmp_path):
    about = ABOUT | {"model": "metaformer_pooling_nano"}
    torch.manual_seed(1)
    last, average = (timm.create_model(about["model"], in_chans=1, num_classes=3, **TINY) for _ in range(2))
    state = {"recipe": {"score": "ema"}, "about": about, "model": last.state_dict(), "ema": average.state_dict()}
    save_checkpoint(tmp_path / name, state)
    with pytest.raises(ValueError, match=r"weights of metaformer_pooling_nano with the mixer of .* pooling.* identity"):
        load(tmp_path / name, mixer="identity")
    loaded = load(tmp_path / name, mixer="pooling", mlp_ratio=4.0)
    check_images_are_prepared_as_in_training(loaded)
    x = torch.randn(1, 1, 32, 32)
    assert torch.equal(loaded(x), average.eval()(x))


def lightning(state, prefix):
    state = {f"{prefix}{name}": value for name, value in state.items()}
    return {"pytorch-lightning_version": "2.5", "state_dict": state}


@EITHER_WAY
@pytest.mark.parametrize("wrap", [
    lambda state: {"params": state},
    lambda state: {"model": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 3},
    lambda state: {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()},
    lambda state: {f"module._orig_mod.{name}": tensor for name, tensor in state.items()},
    lambda state: lightning(state, "model."),
    lambda state: lightning(state, "model._orig_mod."),
    lambda state: lightning(state, "_orig_mod.model."),
    lambda state: {"state_dict": {"head.bias": torch.zeros(9)}, "state_dict_ema": state, "args": Namespace(lr=0.1)},
])  # fmt: skip
def test_state_dicts_of_other_programs_are_loaded(load, wrap, trained, tmp_path):
    model, _ = trained
    torch.save(wrap(model.state_dict()), tmp_path / "weights.pth")
    x = torch.randn(1, 1, 32, 32)
    assert torch.equal(load(tmp_path / "weights.pth").forward_features(x), model.forward_features(x))


def test_an_overlay_with_a_weight_file_uses_the_image_settings_of_the_file(trained):
    model, file = trained
    overlay = {"file": str(file)}
    loaded = timm.create_model("metaformer_raft_nano", pretrained=True, pretrained_cfg_overlay=overlay, **TINY).eval()
    check_images_are_prepared_as_in_training(loaded)
    x = torch.randn(1, 1, 32, 32)
    assert torch.equal(loaded(x), model(x))
    colour = create(in_chans=3, pretrained=True, pretrained_cfg_overlay=overlay)
    torch.testing.assert_close(colour(x.expand(-1, 3, -1, -1)), model(x))
    shifted = create(pretrained=True, pretrained_cfg_overlay=overlay | {"mean": (0.7,)})
    assert shifted.pretrained_cfg["mean"] == (0.7,) and shifted.pretrained_cfg["std"] == (0.2,)


def test_images_for_shipped_weights_are_prepared_as_the_card_says():
    """Small images are not cropped, so the card says crop_pct 1.0."""
    file = weights_dir() / "metaformer_pooling_nano.digits.safetensors"
    model = timm.create_model("metaformer_pooling_nano", checkpoint_path=str(file), in_chans=1, num_classes=10)
    config = resolve_model_data_config(model)
    assert config["input_size"] == (1, 32, 32) and config["crop_pct"] == 1.0
    assert config["mean"] == pytest.approx((0.3094,), abs=1e-4)
    assert cfg_of_file(file)["label_names"] == tuple("0123456789")


def test_tensors_that_do_not_fit_are_named(trained):
    _, file = trained
    with pytest.raises(ValueError, match=r"does not fit metaformer_raft_nano: it has head.bias of shape \(3,\)"):
        create(checkpoint_path=file, num_classes=7)
    with pytest.raises(ValueError, match=r"it has stem.0.weight of shape \(8, 1, 3, 3\) where the model has \(8, 3,"):
        create(checkpoint_path=file, in_chans=3)


def test_features_of_a_file_are_loaded_through_an_overlay(trained):
    model, file = trained
    with pytest.raises(ValueError, match=r"give pretrained=True and pretrained_cfg_overlay=dict\(file='"):
        create(features_only=True, checkpoint_path=file)
    features = create(features_only=True, pretrained=True, pretrained_cfg_overlay=dict(file=str(file)))
    x = torch.randn(1, 1, 32, 32)
    assert torch.equal(features(x)[-1], model.forward_intermediates(x, intermediates_only=True)[-1])


def test_a_users_stem_may_use_names_of_published_tensors(tmp_path):
    def stem(in_chans, dim):
        return SequentialEmbed(OrderedDict(conv=ConvEmbed(in_chans, dim, kernel_size=3, stride=2, padding=1)))

    model = create(stem=stem)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    loaded = create(stem=stem, checkpoint_path=tmp_path / "weights.pt")
    assert torch.equal(loaded.stem.conv.weight, model.stem.conv.weight)


def test_timm_loads_the_checkpoints_of_its_own_models(tmp_path):
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.pt")
    timm.create_model("test_resnet", checkpoint_path=tmp_path / "weights.pt")
    with pytest.raises(RuntimeError, match="size mismatch"):
        timm.create_model("test_resnet", num_classes=3, checkpoint_path=tmp_path / "weights.pt")


def test_timm_alone_ignores_the_metadata(trained, monkeypatch):
    """Reproduce the behaviour of timm that `metamix.models.checkpoint.load_checkpoint` works around."""
    _, file = trained
    factory = checkpoint.factory
    monkeypatch.setattr(factory, "load_checkpoint", factory.load_checkpoint.timms)
    assert create(checkpoint_path=file).pretrained_cfg["mean"] != (0.3,)
    with pytest.raises(RuntimeError, match="size mismatch"):
        create(checkpoint_path=file, img_size=64)
