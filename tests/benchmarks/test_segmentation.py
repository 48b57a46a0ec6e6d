"""Test the collection of segmentation runs and their table."""

import json

import pytest
import yaml

from benchmarks.measure import collect
from benchmarks.report.tasks import segmentation_table


def write_run(folder, miou, **recipe):
    folder.mkdir(exist_ok=True)
    recipe = {"task": "segmentation", "model": "resnet18", "head": "semantic_fpn", "seed": 0, "output": "x"} | recipe
    summary = {key: recipe.get(key, 1) for key in collect.SEGMENTATION_KEYS} | {"miou": miou, "seconds": 120.0}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def test_runs_are_sorted_and_repeated_runs_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "SEGMENTATION", tmp_path / "segmentation.json")
    first, second = write_run(tmp_path / "a", 50.0), write_run(tmp_path / "b", 60.0, epochs=2)
    again = write_run(tmp_path / "c", 55.0, output="elsewhere")  # same recipe as the first run
    collect.main(["segmentation", str(first), str(second), str(again)])
    rows = json.loads(collect.SEGMENTATION.read_text())["rows"]
    assert [row["miou"] for row in rows] == [60.0, 55.0]
    assert rows[0]["recipe"]["epochs"] == 2 and "output" not in rows[0]["recipe"]
    *_, line = segmentation_table(rows).splitlines()
    assert line == "| `resnet18` | semantic_fpn | 55.0 | 1.0 | 1.0 | 1.0 | 0.00 M | 0.0 | 1 |"


def test_runs_that_score_other_images_are_refused(tmp_path):
    results = {}
    collect.add_segmentation(results, write_run(tmp_path / "a", 50.0))
    with pytest.raises(ValueError, match="b: the runs train on or score different images"):
        collect.add_segmentation(results, write_run(tmp_path / "b", 60.0, samples={"test": 2}, epochs=2))


def test_unfinished_runs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="give the folder of a finished run"):
        collect.add_segmentation({}, tmp_path)
