"""benchmarks/minattn_results.py: the table says what runs reached, beside the reproduction, and of one recipe."""

import json

import pytest
import timm
import yaml

from benchmarks.measure import minattn as minattn_results
from metamix.models.minattn import variant

RECIPE = dict(
    erase=0,
    auto_augment="none",
    data="folder",
    seed=0,
    epochs=3,
    optimizer="adamw",
    lr=1e-3,
    batch_size=128,
    flip=0,
    padding=0,
    cutmix=0,
    mixup=0,
    cutout=0,
)


def run(folder, model, **recipe):
    folder.mkdir()
    summary = dict(model=model, top1=56.785, parameters=77_322, seconds=9.5, seed=0, commit="abc")
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"model": model} | recipe))
    return folder


def test_the_page_is_fresh():
    minattn_results.main(["--check"])


def test_every_variant_has_a_model_and_a_row_of_the_reproduction():
    assert set(minattn_results.REPRODUCTION) == set(minattn_results.ROWS)
    names = {variant(*row, data) for row in minattn_results.ROWS for data in minattn_results.DATA}
    assert names == set(timm.list_models("minattn_*"))


def test_the_table_has_ours_beside_theirs(tmp_path):
    results = {}
    minattn_results.add(results, run(tmp_path / "a", "minattn_symmetric_nomlp_h1_cifar"))
    text = minattn_results.text(results)
    assert "| symmetric | no | 1 |  | not trained yet | 82.02 | 77,322 | 56.78 | 9.84 |" in text
    assert "| collapsed | yes | 1 |  | not trained yet | 98.39 |  | not trained yet |  |" in text
    flat = " ".join(text.split())
    assert "Ours on CIFAR-10, as a JPEG copy,: " not in flat
    assert (
        "Ours on CIFAR-10, as a JPEG copy: a norm" in flat
        and "3 epochs of adamw at 0.001, batches of 128, no augm" in flat
    )


def test_other_models_and_recipes_are_refused(tmp_path):
    results = {}
    minattn_results.add(results, run(tmp_path / "a", "minattn_full_mlp_h1_cifar"))
    with pytest.raises(
        ValueError, match="b differs from the runs in minattn.json in flip, lr: the table is that of one recipe"
    ):
        minattn_results.add(results, run(tmp_path / "b", "minattn_full_mlp_h4_cifar", lr=0.1, flip=0.5))
    with pytest.raises(ValueError, match="c trained metaformer_minattn_nano: give runs of configs"):
        minattn_results.add(results, run(tmp_path / "c", "metaformer_minattn_nano"))
    assert [*results["cifar"]["rows"]] == ["minattn_full_mlp_h1_cifar"]
