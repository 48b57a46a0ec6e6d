"""Test `metamix.list_models`, timm's listing of our models, docstrings of registered names, and `help(metamix)`."""

import importlib
import sys
import warnings

import pytest
import timm

import metamix
from metamix.models import count_macs, list_all_models, listing
from metamix.models.image_models import image_model_names
from metamix.models.registry import CIFAR10, default_cfgs, register
from tests.helpers.running import in_a_process


def test_all_models_are_listed_in_the_order_of_registration():
    assert [model.name for model in metamix.list_models()] == list(default_cfgs)
    assert {model.name for model in metamix.list_models()} >= {"raftmlp_s", "wavemix_144_7", "ninformer_cifar"}


def test_patterns_choose_models_by_name():
    names = [model.name for model in metamix.list_models("*raft*")]
    assert names == [f"metaformer_raft_{size}" for size in ("nano", "tiny", "s12", "s24", "s36", "m36", "m48")] + [
        "raftmlp_s", "raftmlp_m", "raftmlp_l",
    ]  # fmt: skip
    several = metamix.list_models(["raftmlp_[sm]", "ninformer_*"])
    assert {model.name for model in several} == {"raftmlp_s", "raftmlp_m", "ninformer_cifar"}
    with pytest.raises(ValueError, match=r"matches 'metaformer_rat_s12'; did you mean 'metaformer_raft_s12'\?"):
        metamix.list_models("metaformer_rat_s12")


@pytest.mark.parametrize("pattern, meant", [("raft", r"\*raft\*"), ("raft_n*", r"\*raft_n\*")])
def test_a_part_of_a_name_needs_wildcards(pattern, meant):
    with pytest.raises(ValueError, match=rf"No model matches .*; did you mean '{meant}'\? metamix.list_models\(\)"):
        metamix.list_models(pattern)


def test_models_that_return_images_are_not_listed_with_classifiers():
    with pytest.raises(ValueError, match=r"matches 'maxim_s3'.* metamix.list_image_models\(\) lists models that ret"):
        metamix.list_models("maxim_s3")


@pytest.mark.parametrize("name", ["maxim_nano", "wavemixsr_nano", "wavemix_restore_nano"])
def test_recorded_sizes_match_the_image_models(name):
    assert listing.count_size(name) == listing.known_sizes()[name], "run listing.write_sizes()"


def test_every_name_has_a_recorded_size():
    ours = {name for name in default_cfgs if timm.model_entrypoint(name).registered_in.startswith("metamix.")}
    assert listing.known_sizes().keys() == {*ours, *image_model_names()}


def test_image_models_come_after_the_classifiers():
    raft, maxim = list_all_models(["maxim_s3", "raftmlp_s"])
    assert raft == metamix.list_models("raftmlp_s")[0]
    assert (maxim.name, maxim.parameters, maxim.in_chans, maxim.scale) == ("maxim_s3", 22_212_795, 3, 1)
    sidd = maxim.weights[0]
    assert sidd.source.endswith("maxim/ckpt/Denoising/SIDD/checkpoint.npz") and sidd.psnr is None
    names = [model.name for model in list_all_models()]
    assert names == [*default_cfgs, *image_model_names()]
    assert "maxim_s1" not in {model.name for model in list_all_models(pretrained=True)}


def test_shipped_weights_of_image_models_have_their_score():
    (model,) = list_all_models(["wavemixsr_nano"])
    (weights,) = model.weights
    assert (weights.tag, weights.test_data, round(weights.psnr, 2)) == ("x2", "Set5", 36.76)
    assert weights.source.endswith("wavemixsr_nano.x2.safetensors") and model.macs_per_pixel == 64_752


def test_a_model_is_listed_with_its_weights():
    (model,) = metamix.list_models("wavemixlite_8_10")
    assert (model.parameters, model.input_size, model.num_classes) == (3_566, (1, 28, 28), 10)
    assert model.macs == 881_296
    (weights,) = model.weights
    assert (weights.tag, weights.top1, weights.input_size, weights.num_classes) == ("mnist", 99.07, (1, 28, 28), 10)
    assert weights.source.endswith("wavemixlite_8_10.mnist.safetensors")
    assert timm.create_model(f"{model.name}.{weights.tag}", pretrained=True).num_classes == 10


def test_weights_on_the_hub_are_listed_with_their_repository():
    (model,) = metamix.list_models("metaformer_pooling_s12")
    (weights,) = model.weights
    assert (weights.tag, weights.top1, weights.source) == ("sail_in1k", None, "timm/poolformer_s12.sail_in1k")


def test_pretrained_lists_only_models_with_weights():
    names = {model.name for model in metamix.list_models("*_nano", pretrained=True)}
    assert {"metaformer_identity_nano", "metaformer_minattn_nano"} <= names <= {*timm.list_models("metaformer_*_nano")}
    assert metamix.list_models("raftmlp_*", pretrained=True) == []


def test_parameters_and_macs_of_a_users_model_are_counted(forget_models):
    register("listed_here", cfg=CIFAR10, depths=(1,), dims=(8,), mixer="identity")
    (model,) = metamix.list_models("listed_here")
    built = timm.create_model("listed_here")
    assert model.parameters == sum(p.numel() for p in built.parameters())
    assert model.macs == count_macs(built, (3, 32, 32))
    assert model.weights == ()


def test_a_name_that_is_registered_again_is_counted_again(forget_models):
    register("changed_here", cfg=CIFAR10, depths=(1,), dims=(8,), mixer="identity")
    (before,) = metamix.list_models("changed_here")
    register("changed_here", cfg=CIFAR10, depths=(2,), dims=(8,), mixer="identity")
    (after,) = metamix.list_models("changed_here")
    assert after.parameters > before.parameters and after.macs > before.macs


def test_a_model_with_wrong_arguments_is_named(forget_models):
    register("broken_here", cfg=CIFAR10, mixer="raft", depths=2)
    with pytest.raises(ValueError, match="broken_here is registered with wrong arguments: depths is 2"):
        metamix.list_models("broken_here")


def test_a_users_model_has_the_default_depths_of_the_skeleton(forget_models):
    register("deep_as_usual", cfg=CIFAR10, dims=(8, 8, 8, 8), mixer="identity")
    assert [len(stage.blocks) for stage in timm.create_model("deep_as_usual").stages] == [2, 2, 6, 2]


def test_a_users_model_has_the_default_mixer_of_the_skeleton(forget_models):
    options = {"pooling": dict(pool_size=5)}
    register("mixed_as_usual", cfg=CIFAR10, depths=(1,), dims=(8,), default_mixer_args=options)
    assert timm.create_model("mixed_as_usual").stages[0].blocks[0].mixer.pool.kernel_size == 5


def test_timm_lists_our_models_by_module():
    assert set(timm.list_models(module="metamix")) >= set(default_cfgs)
    assert timm.models.is_model_in_modules("raftmlp_s", ["metamix"])


def test_registered_names_have_the_docstring_of_their_family():
    assert timm.model_entrypoint("raftmlp_s").__doc__.startswith("Build a RaftMLP.")


def import_again():
    warnings.filterwarnings("error", message="Overwriting")
    first = timm.model_entrypoint("raftmlp_s")
    for name in [n for n in sys.modules if n.partition(".")[0] == "metamix"]:
        del sys.modules[name]
    again = importlib.import_module("metamix")
    assert timm.model_entrypoint("raftmlp_s") is not first
    model = timm.create_model("metaformer_raft_nano", pretrained=True)
    assert isinstance(model, again.models.MetaFormer)
    timm.create_model("metaformer_raft_nano", checkpoint_path=model.pretrained_cfg["file"])
    assert len(again.list_models()) == len(set(timm.list_models(module="metamix")))


def test_importing_again_does_not_conflict():
    assert in_a_process(import_again) == 0


def test_help_is_a_short_guide():
    assert "list_models" in metamix.__doc__ and len(metamix.__doc__.splitlines()) < 25
    assert all(hasattr(metamix, name) for name in metamix.__all__)
    assert not set(metamix.__all__) & set(default_cfgs)
