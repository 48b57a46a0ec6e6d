"""benchmarks/compare.py: docs/results.md says what cards and results.json say, and its pictures show what they name."""

import pytest
import timm
import torch
from einops import rearrange
from PIL import Image
from torch import nn

import metamix  # noqa: F401 - registers the models with timm
from benchmarks.report import comparison as compare
from benchmarks.report import views
from metamix.mixers import create_mixer

CARDS = compare.by_mixer(compare.load_cards("digits"))


def test_results_are_fresh():
    assert compare.stale() == [], "run: python benchmarks/compare.py --tag TAG"


def test_results_name_pictures_that_there_are():
    text = compare.PAGE.read_text()
    named = {part.split(")")[0] for part in text.split("](images/")[1:]}
    assert named and named <= {path.name for path in compare.PICTURES.iterdir()}


def test_a_person_s_text_stays():
    text = f"# Results\n\nmine, above\n\n{compare.marker('a')}\n\nold\n\n<!-- /a -->\n\nmine, below\n"
    assert compare.fill(text, "a", "new") == text.replace("old", "new")
    both = compare.fill(text, "b", "other")
    assert both.startswith(text.rstrip()) and both.endswith(f"{compare.marker('b')}\n\nother\n\n<!-- /b -->\n")
    assert compare.fill(both, "b", "other") == both


@pytest.mark.parametrize("tag", compare.tags())
def test_speeds_of_a_tag_are_of_one_measurement(tag):
    where = ("cpu", "threads", "precision", "batch_size", "commit")
    assert len({tuple(card["cost"].get(key) for key in where) for card in compare.load_cards(tag)}) == 1


def test_what_is_missing_is_said():
    cards = [{key: value for key, value in CARDS["identity"].items() if key != "cost"}]
    text = compare.section("absent", cards, {})
    assert "| raft | not trained yet |" in text and "| raft | 9" not in text
    assert "not measured yet" in text and "| identity | not scored yet |" in text
    assert "![" not in text


def test_unequal_recipes_are_said():
    other = CARDS["raft"] | {"recipe": CARDS["raft"]["recipe"] | {"lr": 0.5}}
    assert "Not one recipe: `lr` differ" in compare.notes([CARDS["identity"], other], True)
    assert "One recipe for all" in compare.notes([CARDS["identity"], CARDS["raft"]], True)


@pytest.mark.parametrize(
    "changed, said", [({"epochs": 3}, "71.00 ± 0.20 (2, 3 epochs)"), ({}, "71.00 ± 0.20 (2)"), (None, "one seed")]
)
def test_a_spread_of_shorter_runs_says_so(changed, said):
    spread = {"seeds": [1, 2], "epochs": 3, "changed": changed}
    spread |= {} if changed is None else {"mean": 71.0, "std": 0.2}
    assert compare.over_seeds({"spread": spread}) == said


def test_a_paper_s_own_model_has_a_table_of_its_own():
    card = CARDS["raft"] | {
        "name": "wavemixlite_8_10.mnist",
        "recipe": CARDS["raft"]["recipe"] | {"model": "wavemixlite_8_10"},
    }
    text = compare.section("absent", [card], {})
    assert "[`wavemixlite_8_10`](../weights/wavemixlite_8_10.mnist.md)" in text and "not trained yet" not in text


def test_front():
    points = [(3, 90), (1, 80), (2, 85), (2, 70), (4, 88)]
    assert compare.front(points, 1) == [(1, 80), (2, 80), (2, 85), (3, 85), (3, 90)]  # smaller is better
    assert compare.front(points, -1) == [(4, 88), (3, 88), (3, 90)]  # larger is better


def test_a_card_whose_accuracy_is_not_found_again_is_refused(monkeypatch):
    card = CARDS["identity"] | {"top1": 12.34}
    monkeypatch.setattr(compare, "read_results", dict)
    monkeypatch.setattr(compare, "SIZES", (32,))
    with pytest.raises(ValueError, match=r"scores 99.72 % on these data and its card says 12.34: give --data-dir"):
        compare.score_sizes("digits", {"identity": card}, None)


@pytest.mark.parametrize(
    "words, said",
    [
        (["--tag", "digitz"], "--tag is 'digitz', and weights/ has cards of "),
        ([], "--tag is None, and weights/ has cards of "),
    ],
)
def test_mistakes_end_in_one_sentence(words, said):
    with pytest.raises(SystemExit) as error:
        compare.main(words)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_curves(tmp_path):
    curve = {"train_loss": [2.0, 1.0, 0.5], "holdout_top1": [50.0, 60.0, None]}
    unscored = {"train_loss": [2.0, 1.0], "holdout_top1": [None, None]}
    cards = {mixer: {key: value for key, value in CARDS[mixer].items() if key != "curve"} for mixer in CARDS}
    family = cards | {"identity": cards["identity"] | {"curve": curve}, "raft": cards["raft"] | {"curve": unscored}}
    picture = tmp_path / "curves.png"
    compare.draw_curves(picture, family)
    assert min(Image.open(picture).size) > 700
    compare.draw_curves(picture, cards)  # of weights that ship now, and of no others
    assert not picture.exists()


@pytest.mark.parametrize(
    "changed, said",
    [
        ([{"epochs": 3}, {"epochs": 3}], "number of runs, of the same recipe but for `epochs` 3."),
        ([{}, {}], "number of runs, of the same recipe."),
        ([{"epochs": 3}, {"epochs": 3, "lr": CARDS["identity"]["recipe"]["lr"]}], "of one recipe, 3 epochs."),
        ([{"epochs": 3}, {"epochs": 3, "lr": 0.5}], "of recipes that differ too."),
    ],
)
def test_what_the_runs_of_a_spread_were(changed, said):
    cards = [
        CARDS["identity"] | {"spread": {"epochs": 3, "mean": 71.0, "std": 0.2, "changed": each}} for each in changed
    ]
    assert said in compare.notes(cards, True).replace("\n", " ")


def test_attention_is_that_of_the_mixer():
    for options in (
        dict(qk="shared", num_heads=2, context=(4, 4)),
        dict(qk="separate", num_heads=1),
        dict(qk="cholesky"),
    ):
        mixer = create_mixer("minattn", 8, size=(8, 8), **options).eval()
        x = torch.randn(2, 8, 8, 8)
        share = views.attention(mixer, x)
        context = x if mixer.context is None else nn.functional.adaptive_avg_pool2d(x, mixer.context)
        value = rearrange(mixer.value(context), "b (n d) h w -> b n (h w) d", n=mixer.heads)
        y = mixer.proj(rearrange(share @ value, "b n (h w) d -> b (n d) h w", h=8))
        torch.testing.assert_close(y, mixer(x), atol=1e-5, rtol=1e-4)


def test_the_gate_is_that_of_the_mixer():
    mixer = create_mixer("nin", 8, size=(8, 8), grid=(4, 4)).eval()
    nn.init.zeros_(mixer.value.weight), nn.init.ones_(mixer.value.bias)  # then the output is the gate
    x = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(views.gate(mixer, x), mixer(x).square().mean(1).sqrt())


def test_bands_hold_what_the_map_holds():
    """Haar's transform keeps the sum of squares; a map that is flat across its columns has no HL and no HH."""
    mixer = create_mixer("wavemix", 8, size=(8, 8)).eval()
    x = torch.randn(2, 8, 8, 1).expand(2, 8, 8, 8)
    found = views.bands(mixer, x)
    total = sum(band.square().sum((1, 2)) * 2 for band in found.values())
    torch.testing.assert_close(total, mixer.reduce(x).square().sum((1, 2, 3)))
    assert found["HL"].max() < 1e-6 < found["LH"].max() and found["HH"].max() < 1e-6 < found["LL"].max()


def test_matrices_are_those_of_the_mixer():
    """Without GELU and biases the vertical raft MLP is its matrix on each column."""
    mixer = create_mixer("raft", 4, size=(4, 6), raft_size=2)
    vertical = mixer.vertical
    vertical.act, vertical.norm = nn.Identity(), nn.Identity()
    nn.init.zeros_(vertical.fc1.bias), nn.init.zeros_(vertical.fc2.bias)
    x = torch.randn(1, 4, 4, 6)
    columns = rearrange(x, "b (r c) h w -> (r h) (b w c)", r=2)
    y = rearrange(vertical(x), "b (r c) h w -> (r h) (b w c)", r=2)
    torch.testing.assert_close(views.raft_matrices(mixer)["vertical"] @ columns, y, atol=1e-5, rtol=1e-4)


def test_receptive_field_of_a_model_that_is_known():
    """No mixer and no norms: what the middle token sees are the 17 pixels of a stem and two downsamplings of 3x3."""
    torch.manual_seed(0)
    model = timm.create_model("metaformer_identity_nano", norm1="none", norm2="none", norm="none", layer_scale=0).eval()
    model.stem[1] = nn.Identity()
    field = views.receptive_field(model, torch.randn(4, 3, 32, 32))
    seen = field.nonzero()
    assert (seen.amin(0).tolist(), seen.amax(0).tolist()) == ([8, 8], [24, 24])
    assert field.max() == 1 and 1 <= views.half_side(field, (16, 16)) < 17


def test_half_side():
    field = torch.zeros(9, 9)
    field[3:6, 3:6] = 1
    assert views.half_side(field, (4, 4)) == 3
    assert views.half_side(field, (0, 0)) == 11  # a distance of 5, as 4 reaches 4 of the 9
