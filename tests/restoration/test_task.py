"""Test training, resuming, scoring and restoring from the command line, with a tiny model."""

import csv
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import metamix
import metamix.cli.evaluate
import metamix.cli.train
import metamix_cli
from metamix.models import image_models
from metamix.models.wavemix_restoration import WaveMixSisr
from metamix.restoration.data import RestorationData
from metamix.restoration.inference import Restorer
from metamix.restoration.load import fit_arguments
from metamix.restoration.metric import Measure
from metamix.restoration.options import RestorationEvalOptions, RestorationOptions
from metamix.restoration.task import Restoration
from metamix.weights.metadata import ModelMetadata
from tests.helpers.advice import exit_code
from tests.helpers.recipes import parse_recipe
from tests.helpers.running import assert_same_run, start_all, stopped_at

TINY = "{features: 4, depth: 1, channels_reduction: 2, high_res_stages: 0, block_size_lr: 4}"
WORDS = ["--task", "restoration", "--device", "cpu", "--workers", 0, "--batch-size", 2, "--amp", "none"]
WORDS += ["--optimizer", "adamw", "--crops", 1, "--no-ema"]
WORDS += ["--warmup-epochs", 0, "--epochs", 1, "--crop", 16]
MAXIM = ["--model", "maxim_nano", "--model-args", TINY]
WAVEMIX = ["--model", "wavemixsr_144_4", "--model-args", "{dim: 8, depth: 1}"]


def train(*words):
    metamix.cli.train.main(list(map(str, [*WORDS, *words])))


def evaluate(*words):
    words = ["--task", "restoration", "--device", "cpu", "--workers", 0, "--amp", "none", *words]
    metamix.cli.evaluate.main(list(map(str, words)))


def predict(*words):
    """Run `metamix predict` and return its exit code."""
    return exit_code(metamix_cli.main, "predict", *words, "--device", "cpu")


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_training_scoring_and_restoring_agree(clean, tmp_path, capsys, request):
    photos, run, out = clean(), tmp_path / "run", tmp_path / "out"
    train(*MAXIM, "--data-dir", photos, "--degradation", "noise:25", "--loss", "charbonnier+0.1*fft", "--output", run)
    said = capsys.readouterr().out
    assert "photos: 5 train, 1 test" in said and "1 of 6 images is scored and not trained on" in said
    assert "inputs: clean images degraded by noise:25" in said
    assert "on RGB, border 0, clipped and rounded to 8 bits" in said
    summary = json.loads((run / "summary.json").read_text())
    assert summary["scores"] == ["psnr", "ssim", "input_psnr", "input_ssim"]
    assert summary["input_psnr"] == pytest.approx(20.2, abs=0.5)  # sigma 25, some of it clipped

    request.getfixturevalue("rendered_figures")
    evaluate("--checkpoint", run, "--data-dir", photos, "--output", out)
    said = capsys.readouterr().out
    assert "1 of 6 images is scored and not trained on" in said
    result = json.loads((out / "result.json").read_text())
    assert result["psnr"] == summary["psnr"] and result["input_psnr"] == summary["input_psnr"]  # the noise is the same
    assert result["macs"] == summary["macs"]  # both are counted for a training crop
    assert "PSNR (peak 255) and SSIM (Gaussian 11 x 11, sigma 1.5) on RGB" in said
    assert "input_psnr and input_ssim are the scores of the images before restoration" in said
    rows = read_csv(out / "test_scores.csv")
    assert len(rows) == 1 and float(rows[0]["psnr"]) == pytest.approx(result["psnr"], abs=1e-3)
    assert Image.open(out / "test_images.png").size[0] > 500

    assert predict(photos, "--checkpoint", run, "--output", tmp_path / "new") == 0
    names = [f"{i}.png" for i in range(6)]
    assert sorted(path.name for path in (tmp_path / "new").glob("*.png")) == names
    restored = metamix.load(run).predict([photos / name for name in names])
    for name, image in zip(names, restored, strict=True):
        assert (np.array(image) == np.array(Image.open(tmp_path / "new" / name))).all()


def test_scored_images_that_may_have_been_trained_on_are_noted(clean, tmp_path, capsys):
    photos, run, out = clean(), tmp_path / "run", tmp_path / "out"
    words = ["--degradation", "noise:25", "--output", run]
    train(*MAXIM, "--data-dir", photos, "--test-dir", clean("others", count=2), *words)
    evaluate("--checkpoint", run, "--data-dir", photos, "--output", out)
    said = capsys.readouterr().out
    assert "; the model may have been trained on scored images" in said and "not trained on" not in said
    evaluate("--checkpoint", run, "--data-dir", photos, "--test-dir", photos.parent / "others", "--output", out)
    assert "on others, test (2 images" in capsys.readouterr().out  # the folder that is not scored is not named
    evaluate("--checkpoint", run, "--test-dir", photos, "--output", out)
    assert "the model was trained on the images that are scored: give other images" in capsys.readouterr().out
    options = RestorationOptions(data_dir=str(photos), degradation="noise:25")
    data = RestorationData(options, metadata=ModelMetadata())
    assert len(data.training_images()) == len(data.training_images()) == 5
    assert data.notes == ["1 of 6 images is scored (to score other images, give --test-dir FOLDER)"]


@pytest.mark.slow
def test_tiles_give_nearly_the_scores_of_whole_images(clean, tmp_path):
    photos, run = clean(size=(70, 60)), tmp_path / "run"
    train(*MAXIM, "--data-dir", photos, "--degradation", "noise:25", "--output", run)
    results = []
    for tile, overlap in ((0, []), (32, ["--overlap", 8])):
        evaluate("--checkpoint", run, "--data-dir", photos, "--output", tmp_path / f"{tile}", "--tile", tile, *overlap)
        results.append(json.loads((tmp_path / f"{tile}" / "result.json").read_text()))
    whole, tiles = results
    assert tiles["psnr"] != whole["psnr"] and tiles["psnr"] == pytest.approx(whole["psnr"], abs=1)


def test_an_interrupted_run_equals_an_uninterrupted_one(clean, tmp_path):
    words = ["--data-dir", clean(count=3), "--degradation", "blur:0-2,noise:0-50", "--crops", 2, "--epochs", 2]
    words = [*MAXIM, *words]
    train(*words, "--output", tmp_path / "whole")
    with stopped_at(3):
        train(*words, "--output", tmp_path / "parts")
    assert not (tmp_path / "parts" / "summary.json").exists()
    train(*words, "--output", tmp_path / "parts", "--workers", 1)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_two_processes_give_nearly_the_losses_and_scores_of_one(clean, tmp_path):
    words = [*WORDS, *MAXIM, "--data-dir", clean(), "--degradation", "noise:25", "--batch-size", 4, "--mixup", 1.2]
    words = list(map(str, [*words, "--crops", 3, "--epochs", 2]))
    train(*words, "--output", tmp_path / "one")
    for rank in start_all(2, *words, "--output", tmp_path / "two", logs=tmp_path):
        rank.output()
    one, two = (read_csv(tmp_path / name / "metrics.csv") for name in ("one", "two"))
    losses = [[float(row["train_loss"]) for row in rows] for rows in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    one, two = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two"))
    assert two["psnr"] == pytest.approx(one["psnr"], abs=1e-2) and two["input_psnr"] == one["input_psnr"]


def test_a_held_out_folder_is_scored_after_each_epoch(clean, tmp_path):
    photos = clean(count=4)
    clean("photos/test", count=1), clean("photos/val", count=1)
    train(*MAXIM, "--data-dir", photos, "--degradation", "noise:25", "--output", tmp_path / "run")
    assert "holdout_psnr" in read_csv(tmp_path / "run" / "metrics.csv")[0]
    evaluate("--checkpoint", tmp_path / "run", "--data-dir", photos, "--split", "holdout", "--output", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "result.json").read_text())["samples"] == {"test": 1, "holdout": 1}


def test_mixup_mixes_neighbours_and_their_targets_in_the_same_way(clean):
    options = RestorationOptions(data_dir=str(clean()), degradation="noise:25", crop=16, mixup=1.2, workers=0)
    data = Restoration(options, seed=1).data
    batch = next(iter(data.train_loader(4, 0, 1, seed=3).epoch(0)))
    mixed = data.augment(batch, 0, 5)
    assert not torch.equal(RestorationData(options).augment(batch, 0, 5)["image"], mixed["image"])
    other = batch["image"][[1, 0, 3, 2]] - batch["image"]
    share = ((mixed["image"] - batch["image"]) * other).sum() / other.square().sum()
    assert 0.01 < share < 0.99
    for key in "image", "target":
        expected = batch[key] + share * (batch[key][[1, 0, 3, 2]] - batch[key])
        torch.testing.assert_close(mixed[key], expected, rtol=0, atol=1e-5)
    assert torch.equal(data.augment(batch, 0, 5)["image"], mixed["image"])
    assert not torch.equal(data.augment(batch, 0, 6)["image"], mixed["image"])
    with pytest.raises(ValueError, match="batch_size is 6, but mixup mixes pairs of crops: give a multiple of 4"):
        data.train_loader(6, 0, 2, seed=3)


def test_options_reach_the_metric(clean):
    options = dict(data_dir=str(clean()), degradation="noise:25", crop=16, score_rounding=False, ensemble=True)
    metric = Restoration(RestorationOptions(**options, tile=32, overlap=8)).metric
    assert (metric.restorer, metric.measure) == (Restorer(1, 32, 8, True), Measure("rgb", 0, False))


@pytest.mark.slow
def test_ensemble_restores_images_in_eight_orientations(clean, tmp_path, capsys):
    photos, run, results = clean(), tmp_path / "run", []
    train(*MAXIM, "--data-dir", photos, "--degradation", "noise:25", "--output", run)
    for words in [], ["--ensemble"]:
        capsys.readouterr()
        evaluate("--checkpoint", run, "--data-dir", photos, "--output", tmp_path / "out", *words)
        assert ("8 bits, restored in eight orientations\n" in capsys.readouterr().out) == bool(words)
        results.append(json.loads((tmp_path / "out" / "result.json").read_text()))
    assert results[0]["psnr"] != results[1]["psnr"]
    assert results[1]["measured"].endswith("restored in eight orientations")


def test_unreadable_images_are_left_out(clean, break_image, tmp_path, capsys):
    photos, out = clean(count=3), tmp_path / "out"
    break_image(photos / "1.png")
    words = ["--test-dir", photos, "--model", "wavemix_restore_nano.noise25", "--pretrained", "--channels", "y"]
    words += ["--output", out]
    with pytest.raises(SystemExit, match="1 of 3 images cannot be read, more than corrupt_limit allows"):
        evaluate(*words)
    evaluate(*words, "--corrupt-limit", 0.5)
    assert " (3 images) without 1 unreadable image: psnr" in capsys.readouterr().out
    assert [row["image"] for row in read_csv(out / "test_scores.csv")] == ["0.png", "2.png"]
    words = ["--degradation", "noise:25", "--corrupt-limit", 0.5, "--output", tmp_path / "run"]
    train(*MAXIM, "--data-dir", clean("others"), "--test-dir", photos, *words)
    assert json.loads((tmp_path / "run/summary.json").read_text())["unreadable"] == 1
    assert ", test without 1 unreadable image: psnr" in capsys.readouterr().out


def test_scores_below_the_input_are_pointed_out(clean, tmp_path, capsys):
    photos, run = clean(), tmp_path / "run"
    words = [*MAXIM, "--data-dir", photos, "--degradation", "noise:5", "--schedule", "constant"]
    advice = r"the images score lower after restoration than before \(.* dB\): train longer"
    train(*words, "--output", tmp_path / "good", "--lr", 0)
    assert not re.search(advice, capsys.readouterr().out)
    train(*words, "--output", run, "--lr", 0.05)
    assert re.search(advice, capsys.readouterr().out)
    evaluate("--checkpoint", run, "--data-dir", photos, "--output", tmp_path / "out")
    assert re.search(advice, capsys.readouterr().out)


def test_the_default_options_suit_photographs(clean):
    recipe = parse_recipe("--task", "restoration", "--data-dir", "photos")
    engine = recipe.engine
    assert (engine.batch_size, engine.optimizer, engine.lr, engine.ema, recipe.options.crops) == (
        16, "muon", 3e-3, True, 8
    )  # fmt: skip


@pytest.mark.slow
def test_local_pooling_applies_only_where_the_option_is_given(clean, tmp_path):
    photos, run = clean(size=(70, 60)), tmp_path / "run"
    train(*MAXIM, "--data-dir", photos, "--degradation", "noise:25", "--output", run)
    results = {}
    for side in (0, 16, 128):
        evaluate("--checkpoint", run, "--data-dir", photos, "--output", tmp_path / "out", "--local-pooling", side)
        result = json.loads((tmp_path / "out" / "result.json").read_text())
        results[side] = result["psnr"]
    assert results[16] != results[0] and results[128] == pytest.approx(results[0], abs=1e-3)
    assert "by_class" not in result
    model = metamix.load(run).model
    image = torch.rand(1, 3, 40, 40)
    windows, whole = Restorer(pooling=16)(model, image), model(image)
    assert not torch.equal(windows, whole) and torch.equal(model(image), whole)
    for side in (0, 16):
        assert predict(photos, "--checkpoint", run, "--output", tmp_path / f"{side}", "--local-pooling", side) == 0
    assert (np.array(Image.open(tmp_path / "0" / "0.png")) != np.array(Image.open(tmp_path / "16" / "0.png"))).any()
    with pytest.raises(SystemExit, match="local_pooling is 16, but wavemixsr_144_4 has no channel attention"):
        train(*WAVEMIX, "--data-dir", photos, "--degradation", "downscale:2", "--channels", "y", "--local-pooling", 16)


def test_pairs_are_trained_on_and_scored(pairs, tmp_path, capsys):
    root, run = pairs(), tmp_path / "run"
    train(*MAXIM, "--data-dir", root, "--output", run)
    assert "pairs: 4 train, 2 test" in capsys.readouterr().out
    rows = read_csv(run / "test_scores.csv")
    clean, dark = (
        torch.from_numpy(np.array(Image.open(root / "test" / kind / "0.png"))).permute(2, 0, 1) / 255
        for kind in ("target", "input")
    )
    assert rows[0]["image"] == "0"
    assert float(rows[0]["input_psnr"]) == pytest.approx(Measure().score(dark, clean)[0], abs=1e-3)


@pytest.mark.parametrize("model", [MAXIM, WAVEMIX], ids=["enlarged before the model", "enlarged by the model"])
def test_super_resolution_is_trained_and_run_on_the_luminance(model, clean, tmp_path, capsys):
    photos, run = clean(size=(42, 45)), tmp_path / "run"
    words = ["--degradation", "downscale:2", "--channels", "y", "--output", run]
    train(*model, "--data-dir", photos, *words)
    said = capsys.readouterr().out
    assert ("images are enlarged 2 times (bicubic) before maxim_nano" in said) == (model is MAXIM)
    assert "border 2" in said
    small = tmp_path / "small.png"
    Image.open(photos / "0.png").convert("RGBA").save(small)
    assert predict(small, "--checkpoint", run, "--output", tmp_path / "new") == 0
    restored = Image.open(tmp_path / "new" / "small.png")
    assert restored.size == (84, 90) and restored.mode == "RGBA" and restored.getextrema()[3] == (255, 255)


def test_a_note_says_that_a_colour_model_is_scored_on_y_of_grey_images(clean):
    root = clean(size=(48, 48))
    clean("photos/test", count=2, size=(48, 48), mode="L")
    words = "grey files are compared as Y of 3 equal channels, 16 to 235, which adds 1.32 dB to PSNR (2 scored images)"

    def notes(**options):
        task = Restoration(RestorationOptions(data_dir=str(root), degradation="downscale:2", crop=16, **options))
        return [note for note in task.notes if "grey files" in note]

    assert notes(model="maxim_nano") == [words]
    assert notes(model="maxim_nano", score_channel="rgb") == []
    assert notes(model="maxim_nano", channels="y") == ["grey files are compared as stored, 0 to 255 (2 scored images)"]


@pytest.mark.slow
def test_a_dry_run_describes_both_models_of_a_comparison(clean, tmp_path, capsys):
    words = ["--data-dir", clean(size=(64, 64)), "--degradation", "downscale:2", "--channels", "y", "--crop", 64]
    train("--model", "maxim_nano,wavemixsr_144_4", *words, "--output", tmp_path / "runs", "--dry-run")
    said = capsys.readouterr().out
    assert "maxim_nano: " in said and "wavemixsr_144_4: " in said


MISTAKES = [
    (["--model", "maxim_nan"], "no image model 'maxim_nan'; did you mean 'maxim_nano'"),
    (["--crop", 64], "48 x 40 pixels, less than the crop of 64: give a smaller --crop, or take the image out"),
    (["--crop", 18], "crop is 18, but maxim_nano trains on multiples of 8 x 8 pixels: give a --crop that fits"),
    (["--channels", "grey"], "is in colour: give --channels rgb, or y for its luminance"),
    (["--degradation", "pairs"], "Pairs need .*input and .*target. To degrade clean images, give --degradation"),
    (["--degradation", "downscale:3"], "crop is 16, but .* multiples of 24 x 24 pixels at a scale of 3: .*such as 24"),
    (["--score-border", 20], "of 48 x 40 pixels has nothing inside a border of 20: give a smaller --score-border"),
    (["--model", "wavemix_sisr_144_4", "--model-args", "{dim: 8}"], "enlarges images 2 times, and the targets have"),
    (["--model", "wavemixsr_144_4", "--model-args", "{dim: 8}"], "takes images of 1 channel, and the data have 3"),
    (["--model-args", "{in_chans: 1}"], "model_args has in_chans, which comes from --channels"),
    (["--input-name", "{name}x2"], "--input-name {name}x2 is for pairs, but degradation is noise:25: omit one"),
    (["--test-dir", "nowhere"], "there is no folder nowhere"),
    (["--test-dir", ".", "--data-dir", ""], "no images to train on are given: give --data-dir FOLDER"),
]


@pytest.mark.parametrize("words, message", MISTAKES)
def test_wrong_options_are_refused(words, message, clean, tmp_path):
    command = [*MAXIM, "--data-dir", clean(), "--degradation", "noise:25", "--output", tmp_path / "run", *words]
    with pytest.raises(SystemExit, match=message):
        train(*command)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_a_function_that_builds_an_image_model_gets_only_its_own_arguments(monkeypatch):
    """The network that it builds may take more arguments, such as in_chans."""
    for registry in ("_MODELS", "_TAGS"):
        monkeypatch.setattr(image_models, registry, dict(getattr(image_models, registry)))
    image_models.register_image_model("mine", lambda dim=8: WaveMixSisr(dim=dim, depth=1))
    assert fit_arguments("mine", {"dim": 4}, in_chans=3, scale=2) == ({"dim": 4}, 1)


def test_the_channels_of_the_data_override_the_registered_channels(monkeypatch):
    for registry in ("_MODELS", "_TAGS"):
        monkeypatch.setattr(image_models, registry, dict(getattr(image_models, registry)))
    image_models.register_image_model("mine", WaveMixSisr, dim=4, depth=1, scale=2, in_chans=1)
    assert fit_arguments("mine", {}, in_chans=3, scale=2)[0] == {"in_chans": 3}


def test_channels_that_the_weights_do_not_take_are_refused(clean, tmp_path):
    photos, model = clean(), ["--model", "wavemix_restore_nano.noise25", "--pretrained"]
    message = r"takes images of 1 channel, and the data have 3: give --channels y \(the luminance\) or grey"
    with pytest.raises(SystemExit, match=message):
        evaluate("--test-dir", photos, *model, "--channels", "rgb")
    with pytest.raises(SystemExit, match=message):
        train("--data-dir", photos, *model, "--degradation", "noise:25", "--output", tmp_path / "run")


def test_advice_on_grey_fits_the_trained_model(clean):
    """A new model could take rgb or y, but trained weights take only the channels that they were trained on."""
    words = ["--test-dir", clean(), "--channels", "grey", "--pretrained"]
    for tag, channels in ("noise25", "y for its luminance"), ("jpeg_bccd", "rgb"):
        with pytest.raises(SystemExit, match=f"0.png is in colour: give --channels {channels}$"):
            evaluate(*words, "--model", f"wavemix_restore_nano.{tag}")


def test_models_without_published_weights_are_refused(clean):
    with pytest.raises(SystemExit, match="No weights are published for maxim_s1"):
        train("--model", "maxim_s1", "--data-dir", clean(), "--degradation", "noise:25", "--pretrained")


def test_published_weights_are_named_with_their_tag(clean):
    options = RestorationEvalOptions(test_dir=str(clean()), model="wavemix_restore_nano", pretrained=True)
    task, _, metadata = Restoration.for_evaluation(options)
    assert "published weights wavemix_restore_nano.jpeg_bccd" in task.notes
    assert metadata.model == "wavemix_restore_nano.jpeg_bccd"
