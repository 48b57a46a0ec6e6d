"""Test the shipped restoration weights on pictures from scikit-image, their cards, and how a run is shipped."""

import json

import pytest
import torch
from PIL import Image
from skimage import data

import metamix_cli
from benchmarks import ship_weights, weight_cards
from benchmarks.report.cards import page
from benchmarks.weight_cards import load_cards
from metamix.models.image_models import create_image_model, weights_of
from metamix.restoration.degradations import parse_degradations
from metamix.restoration.inference import enlarge
from metamix.restoration.load import load_restorer
from metamix.restoration.metric import Measure
from metamix.weights.files import load_weights
from metamix.weights.find import weights_dir

CARDS = {card["name"]: card for card in load_cards(task="restoration")}
PICTURES = {  # picture, degradation, least gain in dB
    "noise": (data.camera, "noise:25", 7),
    "downscale": (data.camera, "downscale:2", 1.5),
    "jpeg": (data.immunohistochemistry, "jpeg:10", 0.3),
}


@pytest.mark.parametrize("name", CARDS)
def test_weights_loaded_by_name_restore_an_unseen_picture(name):
    card, trained = CARDS[name], load_restorer(None, model=name, pretrained=True)
    model, _, tag = name.partition(".")
    assert tag in weights_of(model) and trained.spec.degradation == card["degradation"]
    picture, degradation, gain = PICTURES[card["degradation"].partition(":")[0]]
    pixels = torch.from_numpy(picture()[100:292, 100:292])
    clean = pixels.view(192, 192, -1).permute(2, 0, 1).float() / 255
    degraded = parse_degradations(degradation)(clean, torch.Generator().manual_seed(0))
    with torch.no_grad():
        restored = trained.model(enlarge(degraded[None], card["enlarge"]))[0]
    before, after = (Measure().score(x, clean)[0] for x in (enlarge(degraded, card["scale"]), restored))
    assert after > before + gain


@pytest.mark.parametrize("name", CARDS)
def test_a_card_describes_its_weights(name):
    card, model = CARDS[name], create_image_model(name, pretrained=True)
    assert card["parameters"] == sum(p.numel() for p in model.parameters()) and card["psnr"] > card["input_psnr"]
    assert (weights_dir() / f"{name}.safetensors").stat().st_size < 8e6
    text = (weights_dir() / f"{name}.md").read_text()
    assert f"| PSNR | {card['psnr']:.2f} dB, mean over {card['test_data']}, " in text
    assert f"      name: {card['test_data']}\n" in text  # tells Hugging Face which data set was scored


def test_a_run_becomes_a_weight_file_and_a_card(tmp_path, monkeypatch, capsys):
    folder, run = tmp_path / "photos", tmp_path / "run"
    folder.mkdir()
    for i in range(4):
        Image.fromarray(data.astronaut()[200 + 32 * i : 232 + 32 * i, 200:232]).save(folder / f"{i}.png")
    words = "train --task restoration --model wavemixsr_nano --degradation downscale:2 --channels y --crop 16"
    where = ["--data-dir", str(folder), "--output", str(run), "--epochs", "1", "--batch-size", "2", "--device", "cpu"]
    metamix_cli.main([*words.split(), *where])
    for module in (ship_weights, weight_cards):
        monkeypatch.setattr(module, "weights_dir", lambda: tmp_path)
    names = ["--data-name", "astronauts", "--test-name", "an astronaut"]
    ship_weights.main([str(run), "--tag", "few", *names, "--limit", "It is a test."])
    weights = tmp_path / "wavemixsr_nano.few.safetensors"
    shipped = json.loads(weights.with_suffix(".json").read_text())
    assert capsys.readouterr().out.endswith(f"{weights.name}: float16, 0.39 MB, psnr {shipped['psnr']:.2f}\n")
    assert (shipped["task"], shipped["degradation"], shipped["crop"]) == ("restoration", "downscale:2", 16)
    assert {tensor.dtype for tensor in load_weights(weights)[0].values()} <= {torch.float16, torch.int64}
    text = page(shipped)
    assert "- It is a test.\n" in text and "It was trained on astronauts." in text
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("pretrained: false", "pretrained: true"))
    ship_weights.main([str(run), "--tag", "tuned", *names])  # as if the run had started from published weights
    assert json.loads((tmp_path / "wavemixsr_nano.tuned.json").read_text())["psnr"] == shipped["psnr"]
    with pytest.raises(SystemExit, match="was trained on folders: give --data-name and --test-name"):
        ship_weights.main([str(run), "--tag", "few"])
