"""Test the tables that compare the mixers, and the scores at other image sizes."""

import pytest

from benchmarks.measure import image_sizes
from benchmarks.report import comparison
from benchmarks.weight_cards import by_mixer, load_cards, tags

CARDS = by_mixer(load_cards("digits"))


@pytest.mark.parametrize("tag", tags())
def test_speeds_of_a_tag_are_of_one_measurement(tag):
    where = ("cpu", "threads", "precision", "batch_size", "commit")
    costs = [card["cost"] for card in load_cards(tag) if "cost" in card]
    assert len({tuple(cost.get(key) for key in where) for cost in costs}) == 1


def test_missing_models_and_speeds_are_marked(monkeypatch):
    card = {key: value for key, value in CARDS["identity"].items() if key != "cost"}
    monkeypatch.setattr(comparison, "load_cards", lambda tag: [card])
    text = comparison.family_table("absent")
    assert "| `raft` | not trained |" in text and "| `identity` | 99.72 | 15 |" in text
    assert "| not measured |" in text and "Speed" not in text
    assert "| `identity` | not scored | not scored |" in comparison.size_table("absent")


def test_unequal_recipes_are_noted():
    other = CARDS["raft"] | {"recipe": CARDS["raft"]["recipe"] | {"lr": 0.5}}
    assert "The recipes differ in `lr`" in comparison.notes([CARDS["identity"], other], relative=True)
    assert "All models follow one recipe of 15 epochs" in comparison.notes(
        [CARDS["identity"], CARDS["raft"]], relative=True
    )


@pytest.mark.parametrize(
    "changed, said",
    [({"epochs": 3}, "71.00 ± 0.20 (2 runs, 3 epochs)"), ({}, "71.00 ± 0.20 (2 runs)"), (None, "one seed")],
)
def test_a_spread_of_shorter_runs_says_so(changed, said):
    spread = {"seeds": [1, 2], "epochs": 3, "changed": changed}
    spread |= {} if changed is None else {"mean": 71.0, "std": 0.2}
    assert comparison.over_seeds({"spread": spread}) == said


@pytest.mark.parametrize(
    "changed, said",
    [
        ([{"epochs": 3}, {"epochs": 3}], "of runs of the same recipe with `epochs` 3."),
        ([{}, {}], "of runs of the same recipe."),
        ([{"epochs": 3}, {"epochs": 3, "lr": CARDS["identity"]["recipe"]["lr"]}], "of runs of one recipe of 3 epochs."),
        ([{"epochs": 3}, {"epochs": 3, "lr": 0.5}], "of runs of other recipes."),
    ],
)
def test_what_the_runs_of_a_spread_were(changed, said):
    cards = [
        CARDS["identity"] | {"spread": {"epochs": 3, "mean": 71.0, "std": 0.2, "changed": each}} for each in changed
    ]
    assert said in comparison.notes(cards, relative=True).replace("\n", " ")


def test_a_card_whose_accuracy_is_not_reproduced_is_refused(monkeypatch):
    card = CARDS["identity"] | {"top1": 12.34}
    monkeypatch.setattr(image_sizes, "SIZES", (32,))
    with pytest.raises(ValueError, match=r"scores 99.72 % on these data, but its card says 12.34 %: give --data-dir"):
        image_sizes.score_sizes({}, [card], None)


def test_known_weights_are_not_scored_again():
    known = image_sizes.json.loads(image_sizes.FILE.read_text())["digits"]["sizes"]
    assert image_sizes.score_sizes(known, list(CARDS.values()), "no data needed") == known


@pytest.mark.parametrize("words, tag", [(["--tag", "digitz"], "'digitz'"), ([], "None")])
def test_an_unknown_tag_is_refused(words, tag):
    with pytest.raises(SystemExit, match=f"^error: --tag is {tag}, and weights/ has cards of cifar10, digits, mnist"):
        image_sizes.main(words)
