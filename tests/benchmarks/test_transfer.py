"""Test how fine-tuning runs are collected by initial weights and seed, and averaged over seeds in a table."""

from pathlib import Path

import pytest

from benchmarks.measure import collect
from benchmarks.report import tasks


def run(top1, seed=0, **recipe):
    summary = dict.fromkeys(collect.TRANSFER_KEYS) | {"data": "grocery", "macs": 128e6, "seed": seed, "top1": top1}
    recipe = {"model": "metaformer_nin_tiny", "pretrained": False, "checkpoint": None} | recipe
    return summary, recipe


def test_each_choice_of_initial_weights_has_a_line_with_the_mean_of_its_seeds(monkeypatch):
    tagged = {"model": "metaformer_nin_tiny.tag", "pretrained": True}
    runs = [
        run(58.0),
        run(60.0, **tagged),
        run(70.0, **tagged),  # replaces the row of the run above
        run(72.0, seed=1, **tagged),
        run(50.0, linear_probe=True, **tagged),
        run(66.0, checkpoint="lite0/imagenet.pth"),
    ]
    monkeypatch.setattr(collect, "read_run", lambda path: runs[int(path.name)])
    results = {}
    for number in range(len(runs)):
        collect.add_transfer(results, Path(str(number)))
    assert tasks.transfer_table(results["rows"]).splitlines()[2:] == [
        "| `nin` | tag | 71.0 ± 1.4 |",
        "| `nin` | imagenet | 66.0 |",
        "| `nin` | none | 58.0 |",
        "| `nin` | tag, linear probe | 50.0 |",
        "| multiply-adds, millions |  | 128 |",
    ]


def test_runs_that_score_other_images_do_not_share_a_column(monkeypatch):
    runs = [run(58.0), run(60.0, model="metaformer_raft_tiny")]
    runs[0][0]["samples"], runs[1][0]["samples"] = {"test": 2485}, {"test": 296}
    monkeypatch.setattr(collect, "read_run", lambda path: runs[int(path.name)])
    results = {}
    collect.add_transfer(results, Path("0"))
    with pytest.raises(ValueError, match="train on or score different images: grocery .*2485.*, grocery .*296"):
        collect.add_transfer(results, Path("1"))


def test_runs_of_another_recipe_do_not_share_a_column(monkeypatch):
    runs = [run(58.0, iterations=800), run(60.0, model="metaformer_raft_tiny"), run(75.0, seed=1, img_size=224)]
    monkeypatch.setattr(collect, "read_run", lambda path: runs[int(path.name)])
    results = {}
    collect.add_transfer(results, Path("0"))
    collect.add_transfer(results, Path("1"))  # its recipe has no iterations, but the numbers of epochs are equal
    with pytest.raises(ValueError, match="2 differs from the runs in transfer.json: img_size 224 and not None"):
        collect.add_transfer(results, Path("2"))
    runs[2] = run(75.0, seed=1)
    runs[2][0]["epochs"] = 40
    with pytest.raises(ValueError, match="epochs 40 and not None"):
        collect.add_transfer(results, Path("2"))


def test_the_runs_in_the_file_are_comparable():
    rows = collect.read_json(collect.TRANSFER)["rows"]
    for data in {row["data"] for row in rows}:
        first, *others = (row for row in rows if row["data"] == data)
        for other in others:
            recipes = [
                collect.without(row["recipe"] | {"epochs": row["epochs"]}, collect.STARTS) for row in (first, other)
            ]
            assert not collect.differences(*recipes) and first["samples"] == other["samples"], other["model"]


def test_an_option_that_an_earlier_recipe_lacks_has_its_default():
    assert collect.differences({}, {"model_args": {}, "epochs": 7}) == {"epochs": 7}
