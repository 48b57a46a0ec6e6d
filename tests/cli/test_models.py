"""Test `metamix models`: its table and its JSON list the models of `metamix.list_models`."""

import json

import metamix
from metamix_cli import main


def test_table_has_a_line_for_each_model_and_its_weights(capsys):
    main(["models", "metaformer_*_nano"])
    lines = capsys.readouterr().out.splitlines()
    models = metamix.list_models("metaformer_*_nano")
    assert len(lines) == 1 + len(models) + sum(len(model.weights) for model in models)
    pooling = lines.index(next(line for line in lines if line.startswith("metaformer_pooling_nano")))
    assert lines[pooling].split() == ["metaformer_pooling_nano", "1.51", "M", "73.6", "M", "3", "x", "32", "x", "32"]
    assert any(line.startswith("  .digits  digits: top1 99.72 %") for line in lines[pooling:])


def test_the_json_lists_the_same_models(capsys):
    main(["models", "*raft*", "--format", "json"])
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == [model.name for model in metamix.list_models("*raft*")]
    assert rows[0]["parameters"] == metamix.list_models("*raft*")[0].parameters


def test_image_models_have_a_table_of_their_own(capsys):
    main(["models", "raftmlp_s", "wavemixsr_*", "maxim_s3"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["model", "parameters", "MACs", "images"] and lines[1][0] == "raftmlp_s" and lines[2] == []
    assert lines[3] == ["model", "parameters", "MACs", "per", "pixel", "images"]
    assert lines[4] == ["maxim_s3", "22.2", "M", "2.28", "M", "3", "x", "H", "x", "W"] and lines[5][0] == ".sidd"
    assert " ".join(lines[-1]).endswith("180 x 180: PSNR 36.76 dB on Set5")
    main(["models", "maxim_nano", "--format", "json"])
    assert json.loads(capsys.readouterr().out)[0]["macs_per_pixel"] == 83_744


def test_a_users_models_are_imported(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models_of_a_test.py").write_text("print('imported')")
    main(["models", "maxim_nano", "--import", "models_of_a_test"])
    assert capsys.readouterr().out.startswith("imported\n")


def test_a_pattern_may_name_weights(capsys):
    main(["models", "metaformer_raft_nano.cifar10", "*pooling_nano.digits"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "model", "metaformer_pooling_nano", ".digits", "metaformer_raft_nano", ".cifar10"
    ]  # fmt: skip
