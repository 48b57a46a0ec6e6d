"""Test how minimal attention runs are collected and shown beside the reproduction."""

import json

import pytest
import timm
import yaml

from benchmarks.measure import collect
from benchmarks.report import tasks
from metamix.models.minattn import ROWS, variant

RECIPE = dict(
    erase=0, auto_augment="none", data="folder", seed=0, epochs=3, optimizer="adamw", lr=1e-3, batch_size=128, flip=0,
    padding=0, cutmix=0, mixup=0, cutout=0,
)  # fmt: skip


def run(folder, model, **recipe):
    folder.mkdir()
    summary = dict(model=model, top1=56.785, parameters=77_322, seconds=9.5, seed=0, commit="abc")
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"model": model} | recipe))
    return folder


def test_every_variant_has_a_model_and_a_row_of_the_reproduction():
    assert set(tasks.REPRODUCTION) == set(ROWS)
    names = {variant(*row, data) for row in ROWS for data in collect.MINATTN_DATA}
    assert names == set(timm.list_models("minattn_*"))


def test_the_table_shows_our_accuracy_beside_the_reproduction(tmp_path):
    results = {}
    collect.add_minattn(results, run(tmp_path / "a", "minattn_symmetric_nomlp_h1_cifar"))
    text = tasks.minattn_table(results)
    assert "| symmetric | no | 1 |  | not trained | 82.02 | 77,322 | 56.78 | 9.84 |" in text
    assert "| collapsed | yes | 1 |  | not trained | 98.39 |  | not trained |  |" in text
    flat = " ".join(text.split())
    assert "CIFAR-10 (JPEG copy): 3 epochs of adamw at 0.001, batches of 128, no augmentation." in flat


def test_other_models_and_recipes_are_refused(tmp_path):
    results = {}
    collect.add_minattn(results, run(tmp_path / "a", "minattn_full_mlp_h1_cifar"))
    with pytest.raises(ValueError, match="the recipe of .*b differs .*: flip 0.5 and not 0, lr 0.1 and not 0.001"):
        collect.add_minattn(results, run(tmp_path / "b", "minattn_full_mlp_h4_cifar", lr=0.1, flip=0.5))
    with pytest.raises(ValueError, match="c trained metaformer_minattn_nano: give runs of configs"):
        collect.add_minattn(results, run(tmp_path / "c", "metaformer_minattn_nano"))
    assert [*results["cifar"]["rows"]] == ["minattn_full_mlp_h1_cifar"]
