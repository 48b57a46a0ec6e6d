"""Test the ablations: variants, budgets, the result file and its tables."""

import argparse
import json
from itertools import groupby

import pytest
import timm
import torch

from benchmarks import variants
from benchmarks.measure import ablate, timing
from benchmarks.paths import read_json
from benchmarks.report import ablations
from metamix.models import count_macs


def row(variant, parent, top1, **changes):
    return {
        "variant": variant, "parent": parent, "about": "a change", "mixer": "pooling", "seed": 0,
        "parameters": 1_234_567, "macs": 58_700_000, "epochs": 3.5, "minutes": 9.96, "cpu_minutes": 8.0,
        "holdout_top1": top1, "model_args": {},
    } | changes  # fmt: skip


def test_variant_overrides_its_ancestors():
    table = {
        "a": variants.Variant("first", model=dict(dims=1, depths=2), recipe=dict(lr=1)),
        "b": variants.Variant("second", "a", model=dict(dims=3), data=dict(cutout=8)),
        "c": variants.Variant("third", "b", recipe=dict(lr=2)),
    }
    variant = variants.resolve("c", table)
    assert variant.model == dict(dims=3, depths=2)
    assert variant.recipe == dict(lr=2)
    assert variant.data == dict(cutout=8)
    assert (variant.about, variant.parent) == ("third", "b")


def test_variant_inherits_the_size_of_its_parent():
    table = {"a": variants.Variant("first", size="s12"), "b": variants.Variant("second", "a")}
    assert variants.resolve("b", table).size == "s12"
    recipe = ablate.make_recipe(variants.resolve("b", table), "raft", 0, "data")
    assert recipe.options.model == "metaformer_raft_s12"


def test_a_larger_model_takes_fewer_steps_within_a_budget():
    assert ablate.steps_within(1e9, macs=1_000_000, batch_size=10) == 100
    assert ablate.steps_within(1e9, macs=2_000_000, batch_size=10) == 50
    assert ablate.steps_within(1.0, macs=2_000_000, batch_size=10) == 1


def build(name, mixer):
    variant = variants.resolve(name)
    json.dumps(variant.model)  # the result file stores it as JSON
    return timm.create_model(f"metaformer_{mixer}_nano", **variants.with_embeds(variant.model))


ROWS = [row for row in json.loads(ablate.FILE.read_text()) if row["variant"] in variants.VARIANTS]


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["variant"])
def test_variant_builds_the_model_that_was_measured(row):
    model = build(row["variant"], row["mixer"])
    assert sum(weight.numel() for weight in model.parameters()) == row["parameters"]
    assert count_macs(model, (3, 32, 32)) == row["macs"]
    assert variants.VARIANTS[row["variant"]].about == row["about"]


@pytest.mark.parametrize("name", variants.VARIANTS)
def test_every_variant_makes_a_valid_recipe(name):
    variant = variants.resolve(name)
    options = ablate.make_recipe(variant, "raft", 0, "data", teacher="teacher.safetensors").options
    assert options.smoothing == 0.1 and all(getattr(options, key) == value for key, value in variant.data.items())


@pytest.mark.parametrize("name", [name for name in variants.VARIANTS if name.count("-") == 3])
def test_hybrids_cost_as_much_as_the_other_models(name):
    assert abs(count_macs(build(name, "identity"), (3, 32, 32)) / 73.6e6 - 1) < 0.03


def test_nano_mlps_has_wider_mlps_than_nano():
    assert build("nano-mlps", "raft").stages[0].blocks[0].mlp.fc1.out_channels == 4 * 64
    assert build("nano", "raft").stages[0].blocks[0].mlp.fc1.out_channels == 2 * 64


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 1)])
@pytest.mark.parametrize("embed", variants.EMBEDS.values())
def test_out_size_predicts_the_output_size_of_an_embedding(embed, size):
    down = embed(3, 4).eval()
    assert down(torch.randn(2, 3, *size)).shape == (2, 4, *down.out_size(size))


def test_recipe_has_the_options_of_the_variant():
    recipe = ablate.make_recipe(variants.resolve("nano"), "raft", seed=3, data_dir="somewhere")
    assert (recipe.engine.seed, recipe.engine.lr, recipe.options.holdout) == (3, 0.01, 0.1)
    assert recipe.engine.opt_args["fallback_list"] == ["head.*", "stem.0.*"]


def test_variant_with_a_teacher_needs_its_weights():
    with pytest.raises(ValueError, match="needs a teacher: give --teacher FILE"):
        ablate.make_recipe(variants.resolve("nano-distill"), "raft", 0, "data")
    options = ablate.make_recipe(variants.resolve("nano-distill"), "raft", 0, "data", teacher="a.safetensors").options
    assert (options.teacher, options.teacher_checkpoint) == ("dense_conv_net", "a.safetensors")


def test_tiny_run_is_scored_on_the_holdout_and_written_once(dark_and_light, tmp_path, monkeypatch):
    monkeypatch.setitem(ablate.ENGINE, "batch_size", 10)
    file = tmp_path / "ablations.json"
    folder = dark_and_light(train=20, val=1)
    words = f"--runs nano-conv:pooling --data-dir {folder} --results {file} --budget 3.7e9".split()
    ablate.main(words)
    ablate.main(words)  # finds the finished run and adds no row
    (row,) = json.loads(file.read_text())
    assert (row["variant"], row["size"], row["images"]) == ("nano-conv", "nano", 50)
    assert row["epochs"] == pytest.approx(50 / 30, abs=0.01)  # 36 images make three full batches
    assert 0 <= row["holdout_top1"] <= 100 and row["model_args"]["stem"] == "conv-bn-act-conv stem"
    assert row["command"] == "python -m benchmarks.measure.ablate --budget 3.7e+09 --runs nano-conv:pooling:0"


def test_finished_runs_are_recognised(tmp_path):
    path = tmp_path / "results" / "ablations.json"
    assert read_json(path, []) == []
    timing.append_row(path, row("v0.1", None, 80.0))
    timing.append_row(path, row("wide", "v0.1", 81.0))
    rows = read_json(path)
    assert [r["variant"] for r in rows] == ["v0.1", "wide"]
    assert ablate.is_done(rows, "wide", "pooling", 0)
    assert not ablate.is_done(rows, "wide", "pooling", 1)
    assert not ablate.is_done(rows, "wide", "raft", 0)
    assert not ablate.is_done(rows, "wide", "pooling", 0, budget=8e12)


def test_run_is_given_as_variant_mixer_and_seed():
    assert ablate.parse_run("nano:raft:2") == ("nano", "raft", 2)
    assert ablate.parse_run("nano:raft") == ("nano", "raft", 0)


@pytest.mark.parametrize(
    "text, words",
    [
        ("nano", "give VARIANT:MIXER or VARIANT:MIXER:SEED"),
        ("nano:rafts:0", "no known mixer; did you mean 'raft'"),
        ("nana:raft:0", "no known variant; did you mean 'nano'"),
        ("nano:raft:one", "the seed 'one': give a whole number"),
    ],
)
def test_malformed_and_unknown_runs_are_refused(text, words):
    with pytest.raises(argparse.ArgumentTypeError, match=words):
        ablate.parse_run(text)


def test_gain_is_measured_against_the_parent_with_the_same_mixer_and_seed():
    rows = [row("v0.1", None, 80.0), row("wide", "v0.1", 81.5), row("wide", "v0.1", 70.0, mixer="raft")]
    assert ablations.gain(rows[1], rows) == pytest.approx(1.5)
    assert ablations.gain(rows[2], rows) is None
    assert ablations.gain(rows[0], rows) is None


def test_table_of_choices_has_a_line_for_each_run():
    rows = [row("v0.1", None, 80.04), row("wide", "v0.1", 81.5, seed=1), row("wide", "v0.1", 81.5)]
    rows += [row("nano", "wide", 82.0, mixer="raft"), row("nano-relu", "nano", 81.5, mixer="raft")]
    hybrid = row(
        "nano-pooling-raft-raft", "nano", 83.0, mixer="raft", model_args={"mixer": ["pooling", "raft", "raft"]}
    )
    first, second, third, relu, last = ablations.lay_out_choices([*rows, hybrid]).splitlines()[2:]
    assert first == "| `v0.1` | a change | pooling | 80.0 |  | 1.23 M | 58.7 | 3.50 |"
    assert second.startswith("| `wide` seed 1 |") and "| 81.5 |  | 1.23 M |" in second
    assert "| 81.5 | +1.5 over `v0.1` | 1.23 M |" in third
    assert "| raft | 81.5 | -0.5 over `nano` |" in relu
    assert "| pooling, raft, raft | 83.0 | +1.0 over `nano` with raft |" in last


def test_mixers_are_compared_with_identity_of_the_same_seed():
    rows = [
        row("nano", None, 77.0, mixer="identity"),
        row("nano", None, 82.25, mixer="raft"),
        row("nano", None, 83.0, mixer="raft", seed=1),
    ]
    other_seed, raft, identity = ablations.lay_out_mixers(rows).splitlines()[2:]
    assert identity == "| `identity` | 77.0 |  | 1.23 M | 58.7 | 3.50 |"
    assert raft.startswith("| `raft` | 82.2 | +5.2 |")
    assert other_seed.startswith("| `raft` seed 1 | 83.0 |  |")


def test_loaded_runs_are_grouped_by_variant():
    names = [row["variant"] for row in ablations.load_rows()]
    assert len([name for name, _ in groupby(names)]) == len(set(names))
