"""Test how a run becomes a weight file and a card, and what is refused."""

import csv
import json
import re
import shutil
import tempfile
from pathlib import Path

import pytest
import timm
import yaml
from safetensors import safe_open

from benchmarks import ship_weights, weight_cards
from benchmarks.weight_cards import SUMS
from metamix.weights.checksums import sha256
from metamix.weights.files import load_weights, save_weights
from tests.helpers.running import train

MODEL = "minattn_minimal_nomlp_h1_mnist"  # it is small without any arguments, so a step takes milliseconds
RUN = ["--model", MODEL, "--model-args", "{}", "--epochs", 1, "--batch-size", 256, "--amp", "none", "--lr", "1e-2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Make a run of two epochs, and a run of one epoch with another seed."""
    folder = tmp_path_factory.mktemp("runs")
    train(*RUN, "--epochs", 2, "--warmup-epochs", 0, "--output", folder / "long")
    train(*RUN, "--seed", 1, "--warmup-epochs", 0, "--output", folder / "short")
    return folder


@pytest.fixture
def weights(tmp_path, monkeypatch):
    for module in (ship_weights, weight_cards):
        monkeypatch.setattr(module, "weights_dir", lambda: tmp_path)
    return tmp_path


def run(*words):
    ship_weights.main([str(word) for word in words])


def changed(source: Path, **recipe) -> Path:
    """Copy a run folder to a new place, change options of its recipe, and return the copy."""
    target = shutil.copytree(source, Path(tempfile.mkdtemp(dir=source.parent), "run"))
    options = yaml.safe_load((source / "recipe.yaml").read_text()) | recipe
    (target / "recipe.yaml").write_text(yaml.safe_dump(options))
    return target


def with_args(source: Path, **model_args) -> Path:
    """Copy a run folder to a new place, give it a new model with these arguments, and return the copy."""
    target, about = changed(source), load_weights(source)[1]
    shape = {key: about[key] for key in ("num_classes", "in_chans", "img_size")}
    model = timm.create_model(MODEL, **shape, **model_args)
    save_weights(target / "model.safetensors", model.state_dict(), about | {"model_args": model_args})
    return target


def test_a_run_becomes_a_weight_file_and_a_card(runs, weights, capsys):
    names = ["--tag", "few", "--data-name", "scikit-learn's digits"]
    run(runs / "long", *names)
    card = json.loads((weights / f"{MODEL}.few.json").read_text())
    summary = json.loads((runs / "long" / "summary.json").read_text())
    assert capsys.readouterr().out.startswith(
        f"{MODEL}.few.safetensors: {card['stored_as']}, 0.07 MB, top1 {card['top1']:.2f}"
    )
    assert card["top1"] == pytest.approx(summary["top1"], abs=0.3) and card["data"] == "scikit-learn's digits"
    assert (card["samples"], card["weights"]) == ({"train": 1437, "test": 360}, "last")
    assert card["seeds"] == {"0": summary["top1"]}
    assert not {"output", "data_dir", "device"} & card["recipe"].keys() and card["recipe"]["epochs"] == 2
    with open(runs / "long" / "metrics.csv", newline="") as file:
        losses = [float(row["train_loss"]) for row in csv.DictReader(file)]
    assert card["curve"] == {"train_loss": losses, "holdout_top1": [None, None]} and len(losses) == 2
    cfg = timm.models.PretrainedCfg(**card["pretrained_cfg"])
    assert cfg.crop_pct == 1.0  # the run scored uncropped images from memory
    with safe_open(weights / f"{MODEL}.few.safetensors", "pt") as file:
        assert float(file.metadata()["top1"]) == card["top1"]
        types = {str(file.get_tensor(name).dtype) for name in file.keys()}  # noqa: SIM118 - not a dict
        assert types == {f"torch.{card['stored_as']}"}


def test_the_measured_speed_is_kept_when_weights_are_shipped_again(runs, weights):
    words = (runs / "short", "--tag", "few", "--data-name", "scikit-learn's digits")
    run(*words)
    page = weights / f"{MODEL}.few.json"
    page.write_text(json.dumps(json.loads(page.read_text()) | {"cost": {"train_img_per_s": 7}}))
    run(*words)
    assert json.loads(page.read_text())["cost"] == {"train_img_per_s": 7}
    path = page.with_suffix(".safetensors")
    assert (weights / SUMS).read_text() == f"{sha256(path)}  {path.name}\n"


BY_NAME = "weights must load by the model's name alone"


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda long: ["none"], "none has no summary.json: give the folder of a finished run"),
        (lambda long: [changed(long, data="folder")], "was trained on a folder, 'digits': give --data-name"),
        (lambda long: [with_args(long, depth=1)], BY_NAME),
        (lambda long: [with_args(long, norm1="none")], BY_NAME),
        (lambda long: [with_args(long, global_pool="max")], BY_NAME),
        (lambda long: [changed(long, task="detection")], "is a run of --task detection: give a classification or"),
    ],
)
def test_runs_that_cannot_be_shipped_are_refused(make, said, runs, weights):
    with pytest.raises(SystemExit, match=f".*{re.escape(said)}.*$"):
        run(*make(runs / "long"), "--tag", "few")
    assert not list(weights.glob("*.json"))
