"""Compare the parameters and multiply-adds of the papers' models with the counts of the original code."""

import pytest
import timm

import metamix  # noqa: F401  registers the models
from metamix.models import ShortcutClassifier, count_macs
from tests.helpers.counting import count_macs_of_equal_blocks


def create(name, **kwargs):
    return timm.create_model(name, device="meta", **kwargs)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


# name: parameters, multiply-adds of the authors' code at the model's image size (None where unknown)
RAFTMLP = {
    "raftmlp_s": (9_868_768, 2_087_030_784),
    "raftmlp_m": (21_413_632, 4_267_333_632),
    "raftmlp_l": (36_184_672, 6_543_974_400),
}
WAVEMIX = {
    "wavemix_192_16": (12_494_536, 12_781_825_536),  # without the DWT: we use sums, the authors use convolutions
    "wavemix_192_16_l3": (27_857_608, 15_093_935_616),
    "wavemix_256_16_l3": (49_416_808, 26_804_676_608),
    "wavemix_256_12_l2": (28_449_261, None),
    "wavemix_256_16_l4": (62_764_776, 29_450_561_536),
    "wavemix_144_7": (3_042_550, None),
    "wavemix_320_8": (17_073_610, None),
    "wavemix_256_8": (10_954_084, None),
    "wavemix_256_10": (13_611_492, None),
    "wavemix_256_12": (16_294_600, None),
    "wavemixlite_8_10": (3_566, None),
    "wavemixlite_8_5": (7_156, None),
    "wavemixlite_32_7": (37_058, None),
    "wavemixlite_32_4": (45_962, None),
    "wavemixlite_64_6": (520_106, None),
}
NINFORMER = {"ninformer_cifar": (2_652_170, 218_892_800)}
# Parameters of the models in a third party's code, without a norm that the code never uses. These models have a class
# token with a position embedding; our models have a final norm with the same number of parameters instead.
MINATTN = {
    "minattn_full_mlp_h1_mnist": 156_298,
    "minattn_full_mlp_h4_mnist": 156_298,
    "minattn_collapsed_mlp_h1_mnist": 131_338,
    "minattn_minimal_mlp_h1_mnist": 81_418,
    "minattn_full_nomlp_h1_mnist": 105_610,
    "minattn_full_nomlp_h4_mnist": 105_610,
    "minattn_symmetric_nomlp_h1_mnist": 68_170,
    "minattn_symmetric_nomlp_h4_mnist": 58_954,
    "minattn_collapsed_nomlp_h1_mnist": 80_650,
    "minattn_minimal_nomlp_h1_mnist": 30_730,
    "minattn_full_mlp_h1_cifar": 165_450,
    "minattn_full_mlp_h4_cifar": 165_450,
    # This count is not published. Each CIFAR model has 9,152 parameters more than its MNIST model.
    "minattn_collapsed_mlp_h1_cifar": 140_490,
    "minattn_minimal_mlp_h1_cifar": 90_570,
    "minattn_full_nomlp_h1_cifar": 114_762,
    "minattn_full_nomlp_h4_cifar": 114_762,
    "minattn_symmetric_nomlp_h1_cifar": 77_322,
    "minattn_symmetric_nomlp_h4_cifar": 68_106,
    "minattn_collapsed_nomlp_h1_cifar": 89_802,
    "minattn_minimal_nomlp_h1_cifar": 39_882,
}
SAME_WORK = WAVEMIX | NINFORMER


def test_the_tables_hold_every_model_of_the_papers():
    patterns = ["raftmlp_*", "wavemix*", "ninformer_*", "minattn_*"]
    assert set(timm.list_models(patterns)) == {*RAFTMLP, *WAVEMIX, *NINFORMER, *MINATTN}


COUNTS = MINATTN | {name: count for name, (count, _) in (SAME_WORK | RAFTMLP).items()}


@pytest.mark.parametrize("name, count", COUNTS.items())
def test_parameter_counts_equal_the_counts_of_the_original_code(name, count):
    assert parameters(create(name)) == count


@pytest.mark.parametrize("name, macs", [(name, macs) for name, (_, macs) in SAME_WORK.items() if macs])
def test_multiply_adds_equal_the_counts_of_the_authors(name, macs):
    model = create(name)
    assert count_macs_of_equal_blocks(model, model.default_cfg["input_size"]) == macs


@pytest.mark.parametrize("name, macs", [(name, macs) for name, (_, macs) in RAFTMLP.items()])
def test_raftmlp_saves_the_multiply_adds_of_summed_kernels(name, macs):
    """The authors convolve with both kernels of a pair; our models add the smaller kernel to the larger one."""
    model = create(name)
    saved, side, in_chans = 0, 224, 3
    for stage, (kernels, stride) in zip(model.stages, (((4, 8), 4), ((2, 4), 2), ((2, 4), 2), ((2,), 2))):
        side, dim = side // stride, stage.blocks[0].norm2.weight.numel()
        saved += sum(in_chans * k * k * dim * side**2 for k in kernels[:-1])
        in_chans = dim
    assert count_macs_of_equal_blocks(model, (3, 224, 224)) == macs - saved


@pytest.mark.parametrize(
    "name, linear_maps, macs",
    [
        ("minattn_full_mlp_h4_cifar", 6, 2_925_952),
        ("minattn_minimal_mlp_h1_cifar", 3, 1_672_576),
        ("minattn_full_nomlp_h1_cifar", 4, 2_090_368),
        ("minattn_collapsed_nomlp_h1_cifar", 3, 1_672_576),
        ("minattn_minimal_nomlp_h1_cifar", 1, 836_992),
        ("minattn_full_mlp_h1_mnist", 6, 2_779_520),
    ],
)
def test_minimal_attention_saves_the_multiply_adds_of_a_class_token(name, linear_maps, macs):
    """Our six layers of 64 channels have 16 tokens; the third party's have 17.

    Symmetric models are left out, since the third party's code also multiplies the Cholesky factor by its transpose.
    """
    class_token = 6 * (linear_maps * 64 * 64 + 2 * (17**2 - 16**2) * 64)
    model = create(name)
    assert count_macs_of_equal_blocks(model, model.default_cfg["input_size"]) == macs - class_token


# Options that build further variants from the papers


@pytest.mark.parametrize(
    "name, options, count",
    [
        ("ninformer_cifar", dict(num_classes=100), 2_675_300),
        ("wavemix_192_16_l3", dict(dim=256), 49_416_808),
        ("minattn_full_mlp_h4_cifar", dict(depth=12), 316_746),
        ("minattn_symmetric_nomlp_h4_cifar", dict(depth=12), 122_058),
        ("minattn_minimal_nomlp_h1_cifar", dict(depth=12), 65_610),
    ],
)
def test_variants_have_the_parameters_of_the_original_code(name, options, count):
    assert parameters(create(name, **options)) == count


@pytest.mark.parametrize(
    "name, count", [("raftmlp_s", 10_331_488), ("raftmlp_m", 22_451_776), ("raftmlp_l", 37_896_416)]
)
def test_raftmlp_with_heads_on_all_levels_has_the_authors_parameters(name, count):
    assert parameters(ShortcutClassifier(create(name))) == count


def test_raftmlp_with_plain_patch_embedding_has_the_authors_costs():
    model = create("raftmlp_m", embedding_kernels=((4,), (2,), (2,), (2,)))
    assert parameters(model) == 19_920_640
    assert count_macs(model, (3, 224, 224)) == 3_747_108_864


@pytest.mark.parametrize("raft_size", [1, 4])
def test_raft_size_sets_the_widths_of_the_token_mlps(raft_size):
    """A raft of r groups on a map of side n has MLPs of widths r n, 2 r n and r n, vertically and horizontally."""

    def token_mlps(r):
        sides_and_depths = ((56, 2), (28, 2), (14, 6), (7, 2))
        return sum(2 * depth * (2 * (r * n) * (2 * r * n) + 3 * r * n) for n, depth in sides_and_depths)

    change = token_mlps(raft_size) - token_mlps(2)
    assert parameters(create("raftmlp_s", raft_size=raft_size)) == RAFTMLP["raftmlp_s"][0] + change


@pytest.mark.parametrize(
    "name, changed",
    [("wavemix_192_16_l3", dict(norm="group")), ("minattn_symmetric_nomlp_h4_cifar", dict(attn_drop=0.0))],
)
def test_changing_one_option_of_the_mixer_keeps_the_others(name, changed):
    assert parameters(create(name, mixer_args=changed)) == parameters(create(name))


@pytest.mark.parametrize("name", ["raftmlp_s", "wavemixlite_8_10", "ninformer_cifar", "minattn_full_mlp_h4_cifar"])
def test_another_mixer_does_not_get_the_options_of_the_family(name):
    model = create(name, mixer="pooling", mixer_args=dict(pool_size=5))
    assert {type(block.mixer).__name__ for stage in model.stages for block in stage.blocks} == {"Pooling"}


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("metaformer_minattn_nano", dict(size="s18"), "size is 's18'; did you mean 's12'[?] Accepted: nano, tiny, s12"),
        ("minattn_full_mlp_h1_cifar", dict(similarity="fulll"), "similarity is 'fulll'; did you mean 'full'"),
        ("wavemix_144_7", dict(patch_size=4), "stride is 1 and patch_size is 4: each chooses a stem, so set exactly"),
        ("wavemix_192_16", dict(patch_size=-1), "patch_size is -1: give a whole number of at least 0"),
        ("raftmlp_s", dict(patch_sizes=(0, 2, 2, 2)), "patch_size is 0: give a whole number of at least 1"),
        ("raftmlp_s", dict(embedding_kernels=(4, 2, 2, 2)), "embedding kernels are 4: give each level a tuple"),
        ("raftmlp_s", dict(embedding_kernels=((), (2,), (2,), (2,))), r"embedding kernels are \(\): give each level a"),
        ("raftmlp_s", dict(depths=(2, 2, 6), dims=(8, 16, 24)), "has 4 values, but needs 3"),
        ("minattn_full_mlp_h1_cifar", dict(patch_size=0), "patch_size is 0: give a whole number of at least 1"),
        ("ninformer_cifar", dict(d_model=0), "d_model is 0: give a whole number of at least 1"),
        ("ninformer_cifar", dict(num_layers=0), "num_layers is 0: give a whole number of at least 1"),
    ],
)
def test_wrong_options_are_refused(name, options, words):
    with pytest.raises(ValueError, match=words):
        timm.create_model(name, **options)


def test_a_patch_size_replaces_the_stride():
    assert timm.create_model("wavemix_144_7", patch_size=4, stride=0, depth=1).stem.reduction == 4


WRONG = [dict(mixer={}), dict(mixer_args="num_heads=2"), dict(num_classes="10"), dict(depths=3), dict(in_chans=0)]


@pytest.mark.parametrize("kwargs", WRONG)
def test_wrong_values_are_refused_through_timm(kwargs):
    """tests/models/test_metaformer.py checks the messages."""
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        timm.create_model("metaformer_minattn_nano", **kwargs)
