"""Test the tables that compare the mixers, and the scores at other image sizes."""

import json

import pytest

from benchmarks.measure import accuracy
from benchmarks.paths import read_json
from benchmarks.report import comparison
from benchmarks.weight_cards import by_mixer, load_cards, tags

CARDS = by_mixer(load_cards("cifar10"))


@pytest.mark.parametrize("tag", tags())
def test_speeds_of_a_tag_were_measured_under_equal_conditions(tag):
    where = ("cpu", "threads", "precision", "batch_size", "commit")
    costs = [card["cost"] for card in load_cards(tag) if "cost" in card]
    assert len({tuple(cost.get(key) for key in where) for cost in costs}) <= 1


def test_missing_models_and_speeds_are_marked(monkeypatch):
    card = {key: value for key, value in CARDS["identity"].items() if key != "cost"}
    monkeypatch.setattr(comparison, "load_cards", lambda tag: [card])
    text = comparison.family_table("absent")
    assert "| `raft` | not trained |  |  |" in text and "| `identity` | 88.11 | 1.51 M | 73.6 M |" in text
    assert "img/s" not in text and "Speed" not in text and "Each model was trained with one seed." in text


def test_unequal_recipes_are_noted():
    other = CARDS["raft"] | {"recipe": CARDS["raft"]["recipe"] | {"lr": 0.5}}
    assert "The recipes differ in `lr`" in comparison.notes([CARDS["identity"], other])
    said = comparison.notes([CARDS["identity"], CARDS["raft"]])
    assert "All models follow one recipe of 48 epochs" in said.replace("\n", " ")


def test_a_card_whose_accuracy_is_not_reproduced_is_refused(monkeypatch):
    (card,) = load_cards("digits")
    card["top1"] = 12.34
    monkeypatch.setattr(accuracy, "SIZES", {32: (32,)})
    with pytest.raises(ValueError, match=r"scores 99.72 % on these data, but its card says 12.34 %: give --data-dir"):
        accuracy.score_sizes({}, [card], None)


def test_known_weights_are_not_scored_again():
    scores = read_json(accuracy.IMAGE_SIZES)["digits"]["sizes"]
    assert accuracy.score_sizes(scores, load_cards("digits"), "no data needed") == scores


def finished_run(folder, **recipe):
    folder.mkdir()
    summary = {"img_size": 24, "top1": 85.94, "epochs": 2, "seed": 0, "seconds": 300.0, "commit": "abc"}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "recipe.yaml").write_text(json.dumps({"model": "a.digits", "pretrained": True, "lr": 0.002} | recipe))
    return folder


def test_the_sizes_table_shows_each_way_to_use_another_size(tmp_path, monkeypatch):
    sizes = {"24": 60.54, "32": 87.0, "40": 70.0}
    scores = {"top1": sizes, "made": sizes, "resized": {"24": 80.0, "40": 85.0}, "tuned": {"24": {"top1": 85.94}}}
    monkeypatch.setattr(comparison, "IMAGE_SIZES", tmp_path / "sizes.json")
    comparison.IMAGE_SIZES.write_text(json.dumps({"digits": {"sizes": {"metaformer_raft_nano.digits": scores}}}))
    (line,) = comparison.sizes_table("digits").splitlines()[2:]
    assert line == "| `raft` | 60.5 | 60.5 | 80.0 | 85.9 | 70.0 | 70.0 | 85.0 |"


def test_the_table_of_models_built_for_several_sizes_has_a_column_for_each_size(tmp_path, monkeypatch):
    sizes = {f"metaformer_{mixer}_tiny.tag": {"made": {"64": 40.5, "128": 50.0}} for mixer in ("raft", "pooling")}
    monkeypatch.setattr(comparison, "IMAGE_SIZES", tmp_path / "sizes.json")
    comparison.IMAGE_SIZES.write_text(json.dumps({"tag": {"sizes": sizes}}))
    header, _, *rows = comparison.made_for_sizes_table("tag").splitlines()
    assert header == "| mixer | 64 px, % | 128 px, % |"
    assert rows == ["| `pooling` | 40.5 | 50.0 |", "| `raft` | 40.5 | 50.0 |"]


def test_fine_tuning_runs_are_read(tmp_path):
    ((name, size, scores),) = accuracy.read_tuned([finished_run(tmp_path / "run")], ["a.digits"])
    assert (name, size, scores["top1"], scores["lr"]) == ("a.digits", "24", 85.94, 0.002)


@pytest.mark.parametrize("recipe", [{"pretrained": False}, {"model": "b.digits"}])
def test_runs_that_did_not_fine_tune_the_weights_are_refused(tmp_path, recipe):
    with pytest.raises(ValueError, match=r"give runs of `metamix train --pretrained --model NAME`, .* of a.digits"):
        accuracy.read_tuned([finished_run(tmp_path / "run", **recipe)], ["a.digits"])


@pytest.mark.parametrize("words, tag", [(["--tag", "digitz"], "'digitz'"), ([], "None")])
def test_an_unknown_tag_is_refused(words, tag):
    with pytest.raises(SystemExit, match=f"^error: --tag is {tag}, but the classifiers have the tags cifar10, "):
        accuracy.main(["sizes", *words])


def test_pairs_refuses_fine_tuned_runs(capsys):
    with pytest.raises(SystemExit):
        accuracy.main(["pairs", "--tag", "digits", "--tuned", "runs/raft-24"])
    assert "pairs does not take --tuned" in capsys.readouterr().err


def test_each_pair_shows_the_count_for_the_mixer_of_its_row_first(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "PAIRS", tmp_path / "paired.json")
    pairs = [
        {"first": "identity", "second": "pooling", "only_first": 30, "only_second": 50, "p": 0.034},
        {"first": "identity", "second": "raft", "only_first": 20, "only_second": 90, "p": 1.2e-9},
    ]
    top1 = {"identity": 80.0, "pooling": 82.0, "raft": 87.0}
    result = {"images": 1000, "top1": {m: {"one_view": v, "six_views": v + 1} for m, v in top1.items()}, "pairs": pairs}
    comparison.PAIRS.write_text(json.dumps({"digits": result}))
    with pytest.raises(ValueError, match="does not compare raft with pooling"):
        comparison.pairs_table("digits")
    pairs.append({"first": "raft", "second": "pooling", "only_first": 60, "only_second": 10, "p": 0.001})
    comparison.PAIRS.write_text(json.dumps({"digits": result}))
    text = comparison.pairs_table("digits")
    assert "| `raft` | 87.00 | 88.00 | 90 : 20, p 1e-09 | 60 : 10, p 0.001 |" in text
    assert "| `identity` | 80.00 | 81.00 |  | 30 : 50, p 0.03 |" in text
