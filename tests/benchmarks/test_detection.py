"""Test how detection runs are collected and shown."""

import json

import pytest
import yaml
from PIL import Image

from benchmarks.measure import collect
from benchmarks.report.tasks import detection_table


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a function that makes finished run folders."""
    monkeypatch.setattr(collect, "PICTURE", tmp_path / "best.jpg")

    def make(mixer, ap50, seed=0, data="bccd", **recipe):
        folder = tmp_path / f"{mixer}-{seed}"
        folder.mkdir()
        summary = dict.fromkeys(collect.DETECTION_KEYS, 0) | dict(
            model=f"metaformer_{mixer}_nano",
            data=data,
            AP=ap50 / 2,
            AP50=ap50,
            AP75=ap50 / 3,
            parameters=1_230_000,
            seconds=600,
            seed=seed,
            samples={"train": 3, "holdout": 2, "test": 1},
        )
        recipe = (
            dict(model=summary["model"], seed=seed, output=str(folder), lr=0.1, epochs=9, min_size=48, max_size=64)
            | recipe
        )
        classes = {"disc": {"AP": 1.0, "AP50": 12.34}}
        (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "test_scores.json").write_text(json.dumps({"classes": classes}))
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        Image.new("RGB", (4, int(ap50))).save(folder / "test_images.png")
        return folder

    return make


def picture_height():
    return Image.open(collect.PICTURE).height


def test_rows_are_sorted_and_the_best_run_gives_the_picture(run):
    results = {}
    collect.add_detection(results, run("raft", 60))
    collect.add_detection(results, run("nin", 80))
    assert picture_height() == 80
    collect.add_detection(results, run("pooling", 70))
    assert picture_height() == 80
    lines = detection_table(results).split("\n")
    assert lines[2] == "| `metaformer_nin_nano` | 40.0 | 80.0 | 26.7 | 12.3 | 1.23 M | 1 |"
    assert [line.split("_")[1] for line in lines[2:5]] == ["nin", "pooling", "raft"]
    note = " ".join(lines[6:])
    assert "Trained on 3 images and tested on 1: 9 epochs, images of 48x64 pixels." in note


def test_seeds_of_a_model_share_a_line(run):
    results = {}
    for seed, ap50 in enumerate((60, 63, 66)):
        collect.add_detection(results, run("raft", ap50, seed))
    (line,) = (line for line in detection_table(results).split("\n") if "raft" in line)
    assert line == "| `metaformer_raft_nano` | 31.5 ± 1.5 | 63.0 ± 3.0 | 21.0 ± 1.0 | 12.3 ± 0.0 | 1.23 M | 3 |"


def test_a_repeated_run_replaces_its_row(run, tmp_path):
    results = {}
    folder = run("raft", 60)
    collect.add_detection(results, folder)
    folder.rename(tmp_path / "old")
    collect.add_detection(results, run("raft", 50))
    assert [row["AP50"] for row in results["rows"]] == [50]


def test_runs_of_another_recipe_and_unfinished_runs_are_refused(run, tmp_path):
    results = {}
    collect.add_detection(results, run("raft", 60))
    with pytest.raises(ValueError, match="nin-0 differs from the runs in detection.json: lr 0.2 and"):
        collect.add_detection(results, run("nin", 90, lr=0.2))
    with pytest.raises(ValueError, match="pool-0: the runs train on or score different images: bccd .*, cards "):
        collect.add_detection(dict(results), run("pool", 90, data="cards"))
    with pytest.raises(ValueError, match="pretrained True: give both a tag and --pretrained"):
        collect.add_detection(results, run("nin", 90, seed=1, pretrained=True))
    with pytest.raises(ValueError, match="has no summary.json: give the folder of a finished run"):
        collect.add_detection(results, tmp_path)
