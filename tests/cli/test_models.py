"""`metamix models`: the table and the JSON say the same as `metamix.list_models`."""

import json

import pytest

import metamix
from metamix.cli.main import main


def test_table_has_a_line_for_each_model_and_its_weights(capsys):
    main(["models", "metaformer_*_nano"])
    lines = capsys.readouterr().out.splitlines()
    models = metamix.list_models("metaformer_*_nano")
    assert len(lines) == 1 + len(models) + sum(len(model.weights) for model in models)
    pooling = lines.index(next(line for line in lines if line.startswith("metaformer_pooling_nano")))
    assert lines[pooling].split() == ["metaformer_pooling_nano", "1.07", "M", "41.6", "M", "3", "x", "32", "x", "32"]
    assert any(line.startswith("  .digits  digits: top1 99.72 %") for line in lines[pooling:])


def test_json(capsys):
    main(["models", "*raft*", "--format", "json"])
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == [model.name for model in metamix.list_models("*raft*")]
    assert rows[0]["parameters"] == metamix.list_models("*raft*")[0].parameters


def test_pattern_without_a_model_is_refused():
    with pytest.raises(
        SystemExit, match="error: No model matches 'metaformer_raff_nano'; did you mean 'metaformer_raft"
    ):
        main(["models", "metaformer_raff_nano"])
