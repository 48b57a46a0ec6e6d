"""Test `metamix eval`: one result line, a JSON file and pictures, for weights of every kind."""

import json
import re
import shlex

import pytest
import timm
import torch
from PIL import Image

import metamix.cli.evaluate
from metamix.weights.files import save_weights
from tests.helpers.running import MODEL, ROOT, train

RUN = ["--epochs", 2, "--batch-size", 256, "--ema", "--amp", "none", "--lr", "1e-2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(*RUN, "--output", folder)
    return folder


def evaluate(*words):
    metamix.cli.evaluate.main(["--device", "cpu", "--amp", "none", *map(str, words)])


@pytest.mark.parametrize("file", ["", "model.safetensors", "checkpoint.pt"])
def test_the_score_equals_the_score_of_the_run(file, run, tmp_path, capsys, request):
    if not file:
        request.getfixturevalue("rendered_figures")
    evaluate("--model", MODEL, "--checkpoint", run / file, "--data", "digits", "--output", tmp_path)
    line, written = capsys.readouterr().out.splitlines()
    summary, result = (json.loads(path.read_text()) for path in (run / "summary.json", tmp_path / "result.json"))
    assert all(
        result[name] == pytest.approx(summary[name], abs=1e-3)
        for name in ("top1", "top5", "loss", "macs", "parameters")
    )
    assert re.fullmatch(
        rf"{MODEL} on digits, test \(360 images of 32 pixels\): top1 {summary['top1']:.4g}, top5 "
        rf"{summary['top5']:.4g}, loss [\d.]+; \d+ img/s",
        line,
    )
    files = ("result.json", "test_confusion.png", "test_classes.png")
    assert written == f"written: {' '.join(str(tmp_path / file) for file in files)}"
    assert {scores["images"] for scores in result["by_class"].values()} == {35, 36, 37}
    assert result["weights"] == "ema" and (min(Image.open(tmp_path / "test_confusion.png").size) > 300) == (not file)


def test_bf16_is_used_and_scores_like_float32(run, tmp_path):
    dtypes, results = {}, []
    for amp in ("none", "bf16"):

        def note_dtype(module, args, output, amp=amp):
            if isinstance(module, torch.nn.Conv2d):
                dtypes[amp] = output.dtype

        with torch.nn.modules.module.register_module_forward_hook(note_dtype):
            evaluate("--checkpoint", run, "--amp", amp, "--output", tmp_path)
        results.append(json.loads((tmp_path / "result.json").read_text()))
    assert dtypes == {"none": torch.float32, "bf16": torch.bfloat16}
    assert results[1]["loss"] == pytest.approx(results[0]["loss"], rel=0.02)
    assert results[1]["top1"] == pytest.approx(results[0]["top1"], abs=2)


def test_each_image_size_has_its_own_folder(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for words, size in (([], 32), (["--img-size", 32], 32), (["--img-size", 48], 48)):
        evaluate("--checkpoint", run, *words)
        assert f"360 images of {size} pixels" in capsys.readouterr().out
    results = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("runs/*/result.json")}
    sizes = {folder: (result["img_size"], result["trained_img_size"]) for folder, result in results.items()}
    assert sizes == {f"eval-digits-{MODEL}": (32, 32), f"eval-digits-{MODEL}-48px": (48, 32)}


def test_a_replaced_result_is_noted(run, tmp_path, capsys):
    last = run / "checkpoint.pt"
    for checkpoint, size, replaced in ((run, 32, None), (run, 32, None), (last, 32, run), (last, 24, last)):
        evaluate("--checkpoint", checkpoint, "--output", tmp_path, "--img-size", size)
        said = re.findall("note: the result of (.*) on digits in (.*) is replaced; to keep it", capsys.readouterr().out)
        assert said == ([(str(replaced), str(tmp_path))] if replaced else [])


def test_a_run_folder_is_refused_as_output(run):
    with pytest.raises(SystemExit, match="is a run folder, and its pictures would be replaced: give another --output"):
        evaluate("--checkpoint", run, "--output", run)


@pytest.mark.parametrize(
    "name, content",
    [*(("result.json", text) for text in ('{"mine": 1}', "[1]", "{", '"checkpoint"')), ("image.png", "")],
)
def test_a_folder_of_other_files_is_refused_as_output(name, content, run, tmp_path, monkeypatch):
    (tmp_path / name).write_text(content)
    (tmp_path / "notes.txt").touch()
    monkeypatch.setattr("metamix.data.loader.pixels", lambda *_: pytest.fail("images were decoded"))
    with pytest.raises(SystemExit, match=rf"{tmp_path} holds other files \(.*{name}.*\): give a new folder"):
        evaluate("--checkpoint", run, "--output", tmp_path)
    assert (tmp_path / name).read_text() == content


@pytest.mark.slow
def test_shipped_weights_score_as_their_card_says(tmp_path, capsys):
    name = "metaformer_pooling_nano.digits"
    card = json.loads((ROOT / "weights" / f"{name}.json").read_text())
    evaluate("--model", name, "--pretrained", "--data", "digits", "--output", tmp_path)
    assert f"top1 {card['top1']}, " in capsys.readouterr().out
    words = ["--model", "metaformer_pooling_nano", "--checkpoint", ROOT / "weights" / f"{name}.safetensors"]
    evaluate(*words, "--data", "digits", "--img-size", 40, "--output", tmp_path)
    at_40 = json.loads((ROOT / "results" / "image_sizes.json").read_text())["digits"]["sizes"][name]["top1"]["40"]
    assert f"(360 images of 40 pixels): top1 {at_40:.4g}, " in capsys.readouterr().out


@pytest.fixture
def folder_of_digits(run, tmp_path):
    """Return a function that makes class folders and weights for ten classes, and returns the options to score them."""

    def make(splits, classes, trained_for="0123456789"):
        for split in splits:
            for label in classes:
                (tmp_path / "set" / split / label).mkdir(parents=True)
                Image.new("L", (32, 32)).save(tmp_path / "set" / split / label / "0.png")
        model = timm.create_model(MODEL, in_chans=3, num_classes=10, depths=(1, 1, 1), dims=(8, 8, 16))
        about = {"in_chans": 3, "mean": [0.5] * 3, "std": [0.5] * 3, "classes": list(trained_for)}
        about = json.loads((run / "summary.json").read_text()) | about
        save_weights(tmp_path / "w.safetensors", model.state_dict(), about)
        words = ["--checkpoint", tmp_path / "w.safetensors", "--output", tmp_path / "out", "--workers", 0]
        return [*words, "--data", "folder", "--data-dir", tmp_path / "set"]

    return make


def test_renamed_classes_are_an_error(folder_of_digits, tmp_path):
    """Other class names are refused even if their number is right. Only names that are numbers are matched by order."""
    words = folder_of_digits(["train", "val"], [f"no {label}" for label in range(10)])
    advice = f"metamix train --data folder --data-dir {tmp_path}/set --model {MODEL} --checkpoint {tmp_path}/w.safet"
    with pytest.raises(SystemExit, match=f"set has the classes no 0, .*the model does not have; .* first: {advice}"):
        evaluate(*words)


@pytest.mark.parametrize("trained_for, by_order", [("abcdefghij", True), ("1234567890", False)])
def test_numbered_classes_are_matched_by_order_if_unknown(trained_for, by_order, folder_of_digits, capsys):
    evaluate(*folder_of_digits(["val"], "0123456789", trained_for=trained_for))
    note = "note: the classes of the data are numbers: they are matched to the model's classes by order\n"
    assert capsys.readouterr().out.startswith(note) == by_order


def test_a_numbered_class_that_the_model_lacks_is_refused(folder_of_digits):
    words = folder_of_digits(["val"], "0123456789", trained_for="123456789x")
    with pytest.raises(SystemExit, match="set has the classes 0, which"):
        evaluate(*words)


def test_a_folder_without_a_test_split_is_scored_as_in_training(tmp_path, capsys):
    for label, shade in (("dark", 0), ("light", 255)):
        (tmp_path / "set" / label).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (32, 32), (shade, shade, i)).save(tmp_path / "set" / label / f"{i}.png")
    data = ["--data", "folder", "--data-dir", tmp_path / "set"]
    run = tmp_path / "run"
    train(*data, "--epochs", 1, "--test-share", 0.3, "--output", run)
    assert "6 images are scored and not trained on (--test-share)" in capsys.readouterr().out
    evaluate("--checkpoint", run, *data, "--output", tmp_path / "same")
    assert "set, test (6 images of 32 pixels)" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="test_share is 0.5, but .* was trained with test_share 0.3, so it has seen"):
        evaluate("--checkpoint", run, *data, "--test-share", 0.5)
    (tmp_path / "set").rename(tmp_path / "other")
    other = [*data[:-1], tmp_path / "other"]
    with pytest.raises(SystemExit, match="holds the images that the weights were trained on: give --test-share 0.3"):
        evaluate("--checkpoint", run, *other, "--output", tmp_path / "all")
    evaluate("--checkpoint", run, *other, "--test-share", 0.3, "--output", tmp_path / "all")
    assert "6 images are scored and not trained on" in capsys.readouterr().out
    evaluate("--checkpoint", run, *other, "--test-share", 0.5, "--output", tmp_path / "all")
    assert "10 images are scored, and may have been trained on" in capsys.readouterr().out
    Image.new("RGB", (32, 32)).save(tmp_path / "other" / "dark" / "new.png")
    evaluate("--checkpoint", run, *other, "--test-share", 0.3, "--output", tmp_path / "all")
    assert "6 images are scored, and may have been trained on" in capsys.readouterr().out
    evaluate("--checkpoint", run, *other, "--output", tmp_path / "all")
    said = capsys.readouterr().out
    assert "other, test (21 images of 32 pixels)" in said and "result of" in said and "is replaced" in said
    with pytest.raises(SystemExit, match="test_share is 1, which leaves no image to train on: give a lower share"):
        train(*other, "--test-share", 1, "--output", tmp_path / "none")
    with pytest.raises(SystemExit, match="test_share is 0.3, but the data have a test split: leave --test-share out"):
        train("--data", "digits", "--test-share", 0.3, "--output", tmp_path / "none")


@pytest.mark.parametrize("split", ["test", "val"])
def test_a_folder_needs_no_training_split(folder_of_digits, split, tmp_path, capsys):
    """The folder does not need all classes of the model either: classes are matched by name."""
    evaluate(*folder_of_digits([split], ["a", "c"], trained_for="abcdefghij"))
    assert f"on set, {split} (2 images of 32 pixels)" in capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["classes"] == list("abcdefghij") and result["samples"] == {"test": 2}


def test_the_split_to_score_can_be_chosen(folder_of_digits, tmp_path, capsys):
    words = folder_of_digits(["train", "val"], "abcdefghij", trained_for="abcdefghij")
    for i in range(3):
        (tmp_path / "set" / "test" / "a").mkdir(parents=True, exist_ok=True)
        Image.new("L", (32, 32)).save(tmp_path / "set" / "test" / "a" / f"{i}.png")
    for choice, split, count in (("", "val", 10), ("--test-on test", "test", 3), ("--test-on val", "val", 10)):
        evaluate(*words, *choice.split())
        assert f"on set, {split} ({count} images" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="test_on is 'tset'; did you mean 'test'"):
        evaluate(*words, "--test-on", "tset")


def test_a_split_that_was_chosen_has_its_own_folder(folder_of_digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = folder_of_digits(["train", "val", "test"], "abcdefghij", trained_for="abcdefghij")
    for choice in ([], ["--test-on", "test"]):
        evaluate(*words, "--output", "", *choice)
    names = sorted(path.parent.name for path in tmp_path.glob("runs/*/result.json"))
    assert names == [f"eval-set-{MODEL}", f"eval-set-{MODEL}-test"]


def test_other_images_in_a_folder_of_the_same_name_are_no_training_data(tmp_path, capsys):
    for folder, images in ("a", 10), ("b", 12):
        for label, shade in (("dark", 0), ("light", 255)):
            (tmp_path / folder / "set" / label).mkdir(parents=True)
            for i in range(images):
                Image.new("RGB", (32, 32), (shade, shade, i)).save(tmp_path / folder / "set" / label / f"{i}.png")
    train("--data-dir", tmp_path / "a" / "set", "--data", "folder", "--epochs", 1, "--output", tmp_path / "run")
    for share in ((), ("--test-share", 1)):
        evaluate("--checkpoint", tmp_path / "run", "--data-dir", tmp_path / "b" / "set", *share)
        said = capsys.readouterr().out
        assert "test (24 images" in said
    evaluate("--checkpoint", tmp_path / "run", "--data-dir", tmp_path / "b" / "set", "--test-share", 0.5)
    assert "12 images are scored, and may have been trained on" in capsys.readouterr().out
    for label in ("dark", "light"):
        (tmp_path / "c" / "set" / label).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "c" / "set" / label / "0.png")
    evaluate("--checkpoint", tmp_path / "run", "--data-dir", tmp_path / "c" / "set")
    assert "test (2 images" in capsys.readouterr().out
    more = ["--data", "folder", "--epochs", 1, "--checkpoint", tmp_path / "run", "--output", tmp_path / "more"]
    train("--data-dir", tmp_path / "b" / "set", *more)
    assert "2 images are scored; " in (said := capsys.readouterr().out) and "may have been trained on some" in said


def test_unreadable_images_are_reported(folder_of_digits, tmp_path, capsys):
    words = folder_of_digits(["train", "val"], "0123456789")
    (tmp_path / "set" / "val" / "3" / "0.png").write_bytes(b"no image")
    evaluate(*words, "--corrupt-limit", 0.5)
    assert " without 1 unreadable image: top1" in capsys.readouterr().out


def test_a_holdout_that_training_did_not_hold_out_is_refused(run, tmp_path, capsys):
    with pytest.raises(SystemExit, match="split is 'holdout', but the data have only test: no images are held out"):
        evaluate("--model", MODEL, "--checkpoint", run, "--split", "holdout", "--output", tmp_path)
    with pytest.raises(SystemExit, match="holdout is 0.1, but .* was trained with holdout 0.0, so it has seen some"):
        evaluate("--model", MODEL, "--checkpoint", run, "--split", "holdout", "--holdout", 0.1, "--output", tmp_path)


def test_a_holdout_of_images_that_are_all_scored_is_refused(folder_of_digits):
    words = folder_of_digits(["."], "0123456789")
    with pytest.raises(SystemExit, match=r"only test: no images are left to hold out. .* --test-share below 1"):
        evaluate(*words, "--split", "holdout", "--holdout", 0.5)


def test_holdout_0_does_not_change_the_test_images(tmp_path, capsys):
    train(*RUN, "--holdout", 0.1, "--output", tmp_path)
    evaluate("--checkpoint", tmp_path, "--holdout", 0, "--output", tmp_path / "eval")
    assert f"{MODEL} on digits, test (360 images" in capsys.readouterr().out


def test_holdout_and_memory_of_training_are_kept(tmp_path, capsys, monkeypatch):
    for split, count in (("train", 20), ("test", 5)):
        for turn, label in ((0, "ant"), (90, "bee")):
            (tmp_path / "set" / split / label).mkdir(parents=True)
            for i in range(count):
                image = Image.linear_gradient("L").rotate(turn + 2 * i).resize((48, 36))
                image.save(tmp_path / "set" / split / label / f"{i}.png")
    data = ["--data", "folder", "--data-dir", tmp_path / "set", "--workers", 0]
    words = ["--epochs", 4, "--batch-size", 8, "--warmup-epochs", 0, "--holdout", 0.1, "--memory", "no", "--lr", 0.01]
    train(*RUN, *data, *words, "--img-size", 32, "--output", tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["samples"] == {"train": 36, "test": 10, "holdout": 4}
    monkeypatch.chdir(tmp_path)
    for split in ("holdout", "test"):
        evaluate("--checkpoint", tmp_path / "run", *data, "--split", split)
        assert f"{MODEL} on set, {split} ({summary['samples'][split]} images" in capsys.readouterr().out
    results = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("runs/*/result.json")}
    assert results.keys() == {f"eval-set-{MODEL}", f"eval-set-{MODEL}-holdout"}
    result = results[f"eval-set-{MODEL}"]
    assert all(result[name] == pytest.approx(summary[name], abs=1e-3) for name in ("top1", "loss"))
    evaluate("--checkpoint", tmp_path / "run", *data, "--memory", "yes", "--output", tmp_path / "control")
    control = json.loads((tmp_path / "control" / "result.json").read_text())
    assert abs(control["loss"] - summary["loss"]) > 0.01  # images in memory are not cropped


def test_a_folder_that_cannot_be_written_is_refused_before_scoring(run, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr("metamix.cli.evaluate.score_batches", lambda *_: pytest.fail("scored"))
    not_made = r"could not be made \(Not a directory\); give another folder"
    for folder, why in ((tmp_path / "file", "is a file: give a folder"), (tmp_path / "file" / "here", not_made)):
        with pytest.raises(SystemExit, match=f"{folder} {why}"):
            evaluate("--model", MODEL, "--checkpoint", run, "--output", folder)


def test_a_timm_model_is_scored_from_a_file_without_metadata(tmp_path, capsys):
    """Without metadata, the number of classes comes from the head, and mean and std come from timm."""
    for split in ("train", "val"):
        for label in ("ant", "bee", "cat"):
            (tmp_path / "set" / split / label).mkdir(parents=True)
            Image.new("RGB", (40, 30)).save(tmp_path / "set" / split / label / "0.png")
    torch.save(timm.create_model("test_resnet", num_classes=3).state_dict(), tmp_path / "r.pth")
    data = ["--data", "folder", "--data-dir", tmp_path / "set", "--workers", 0, "--output", tmp_path / "out"]
    evaluate("--model", "test_resnet", "--checkpoint", tmp_path / "r.pth", *data)
    size = timm.get_pretrained_cfg("test_resnet").input_size[-1]
    assert f"test_resnet on set, val (3 images of {size} pixels)" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "result.json").read_text())["mean"] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    "words, said",
    [
        ("--epochs 3", "there is no option --epochs"),
        ("--model-args '{img_size: 64}'", f"records the image size that {MODEL} was built for: leave it out"),
    ],
)
def test_wrong_options_are_refused_in_one_line(words, said, run, tmp_path):
    with pytest.raises(SystemExit, match=f"^error: .*{said}.*$"):
        evaluate("--model", MODEL, "--checkpoint", run, "--output", tmp_path, *shlex.split(words))
