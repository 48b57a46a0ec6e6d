"""Test the task that docs/extend.md shows, by running the page's commands in another folder."""

import json
import pickle
import re
import shlex
import shutil
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits

import metamix
from metamix.data import normalize
from metamix.models.registry import create_model
from metamix.tasks import registry
from metamix.tasks.simple import MeanMetric, SimpleModel, SimpleOptions, SimpleTask, SimpleTrained
from metamix.weights.files import load_weights, save_weights
from metamix.weights.metadata import ModelMetadata
from tests.helpers.running import metamix_command

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "extend.md").read_text().partition("## A task")[2]
CODE = re.search(r"```py\n(.*?)```", PAGE, re.S)[1]
COMMANDS = re.search(r"```bash\n(.*?)```", PAGE, re.S)[1].splitlines()
SHIPPED = ROOT / "weights" / "metaformer_pooling_nano.cifar10.safetensors"
SHORT = ["--epochs", "2", "--batch-size", "20", "--workers", "0", "--device", "cpu"]
SMALL = [*SHORT, "--model-args", "{depths: [1, 1, 1], dims: [8, 16, 24]}"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make a folder with my_task.py, a photo, and a regression data set of 60 digits."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_task.py").write_text(CODE)
    (folder / "numbers").mkdir()
    digits = load_digits()
    for split, numbers in (("train", range(40)), ("test", range(40, 60))):
        rows = [f"{i}.png,{digits.target[i]}\n" for i in numbers]
        (folder / "numbers" / f"{split}.csv").write_text("".join(rows))
        for i in numbers:
            Image.fromarray((digits.images[i] * 15.9).astype("uint8")).save(folder / "numbers" / f"{i}.png")
    Image.open(folder / "numbers" / "0.png").save(folder / "photo.jpg")
    return folder


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """Return a function that runs a command line in the folder, and returns its exit code and output."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "my_task", raising=False)

    def run(line, *more):
        code = metamix_command(*shlex.split(line)[1:], *more)
        return code, capsys.readouterr().out

    with patch.dict(registry.TASKS):  # unregisters the task after the test
        yield run


def test_the_task_on_the_page_has_at_most_80_lines():
    assert len(CODE.splitlines()) <= 80


def test_the_arguments_of_loader_workers_can_be_pickled(folder, run):
    """Where workers are not forked (macOS, and Linux from Python 3.14 on), their arguments are pickled."""
    run(COMMANDS[3])  # imports my_task
    import my_task

    options = my_task.Task.Options(model="metaformer_identity_tiny", data_dir="numbers", workers=1)
    loader = my_task.Task(options).data.train_loader(20, 0, 1, 0).loader
    pickle.dumps((loader.dataset, loader.collate_fn, loader.worker_init_fn))


def test_every_command_on_the_page_works(folder, run):
    train, evaluate, predict, verify, export, predict_exported = COMMANDS
    assert "test: error " in run(train, *SMALL)[1]
    assert "test (20 images of 32 pixels): error " in run(evaluate, "--workers", "0")[1]
    predicted = run(predict)
    assert predicted[0] == 0 and re.fullmatch(r"photo.jpg: -?\d+\.\d\d\n", predicted[1])
    assert run(verify) == (0, "nothing is wrong\n")
    (folder / "numbers" / "41.png").write_bytes(b"no image")
    code, said = run(verify)
    assert code == 1 and "41.png: not an image" in said
    Image.open(folder / "numbers" / "0.png").save(folder / "numbers" / "41.png")
    assert "on 64 images (random images)" in run(export, "--seconds", "0")[1]
    assert run(predict_exported) == predicted
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("metamix.tasks.export.need", lambda package: None)
        with pytest.raises(SystemExit, match="run is a model for regression, which cannot be quantized: give another"):
            run(export.replace("torch", "onnx"), "--precision", "int8", "--data-dir", "numbers")
    assert "regression      predict a number from an image" in run("metamix predict --import my_task --help")[1]
    assert float(metamix.load("run").predict(["photo.jpg"])[0]) == pytest.approx(
        float(predicted[1].split()[1]), abs=0.01
    )


def test_a_task_that_is_not_imported_is_unknown(folder, run):
    run(COMMANDS[0].replace("--output run", "--output unknown"), *SMALL)
    registry.TASKS.pop("regression")
    with pytest.raises(SystemExit, match="task is 'regression'. Accepted: .* give --import MODULE"):
        run("metamix predict photo.jpg --checkpoint unknown")
    with pytest.raises(SystemExit, match="task is 'regression'. Accepted: .* give --import MODULE"):
        run("metamix eval --checkpoint unknown --data-dir numbers")


def test_images_are_normalised_as_for_the_initial_weights(folder, run):
    """Training, scoring and prediction agree. Without initial weights, and in earlier files, pixels become x / 255."""
    run(COMMANDS[3])  # imports my_task
    import my_task

    options = my_task.Task.Options(model="metaformer_pooling_nano.cifar10", data_dir="numbers", pretrained=True)
    task, image = my_task.Task(options), Image.open("photo.jpg").convert("RGB")
    images, model = my_task.prepare(image)[None], torch.nn.Conv2d(3, 3, 1)
    described = ModelMetadata.from_dict(task.model.describe(task.model.build()))
    assert described.mean == timm.models.get_pretrained_cfg(options.model).mean and described.std

    def check(expected, **tolerance):
        about = ModelMetadata(mean=task.data.mean, std=task.data.std)
        outputs = [
            task.data.augment({"image": images}, 0, 0)["image"],
            task.metric.predict(torch.clone, {"image": images}),
        ]
        for normalised in outputs:
            torch.testing.assert_close(normalised, expected, **tolerance)
        (predicted,) = SimpleTrained(model, about, my_task.prepare).predict([image])
        torch.testing.assert_close(predicted, model(expected)[0].detach(), **tolerance)

    check(normalize(images, described.mean, described.std))
    task.model.build({"mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3]})  # a run to resume
    check(normalize(images, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)))
    task.model.build({})  # a run that recorded no mean and std
    check(images / 255, rtol=0, atol=0)


@pytest.mark.slow
def test_training_uses_the_given_weights_and_model_arguments(folder, run):
    frozen = COMMANDS[0].replace("--output run", "--lr 0 --min-lr 0 --warmup-lr 0 --output")
    heads = {}
    starts = {"first": [], "second": ["--seed", "1", "--checkpoint", "first"], "random": ["--seed", "1"]}
    for name, start in starts.items():
        assert ("weights from first" in run(f"{frozen} {name}", *SMALL, *start)[1]) == (name == "second")
        heads[name] = load_weights(folder / name)[0]["head.weight"]
    assert torch.equal(heads["first"], heads["second"]) and not torch.equal(heads["first"], heads["random"])
    assert run("metamix predict --import my_task photo.jpg --checkpoint second")[0] == 0
    run(f"{frozen} tuned", *SHORT, "--pretrained", "--model", "metaformer_pooling_nano.cifar10")
    tuned, published = (load_weights(source)[0] for source in (folder / "tuned", SHIPPED))
    assert torch.equal(tuned["stem.0.weight"], published["stem.0.weight"].float())
    about = metamix.load("tuned").metadata
    assert about.mean == metamix.load(SHIPPED).metadata.mean and len(set(about.std)) == 3
    run(COMMANDS[1].replace("--checkpoint run", "--checkpoint tuned --output scored"), "--workers", "0")
    scored, summary = (json.loads(Path(name).read_text()) for name in ("scored/result.json", "tuned/summary.json"))
    assert scored["error"] == pytest.approx(summary["error"], abs=1e-3)
    with pytest.raises(SystemExit, match="pretrained and checkpoint"):
        run(f"{frozen} both", *SMALL, "--pretrained", "--checkpoint", "first")
    with pytest.raises(SystemExit, match="model_args has in_chans, which comes from the task"):
        run(f"{frozen} grey", *SMALL, "--model-args", "{in_chans: 1}")
    with pytest.raises(SystemExit, match="there is no option --pretrained for regression"):
        run(COMMANDS[1].replace("--checkpoint run", "--checkpoint second"), "--pretrained")
    with pytest.raises(SystemExit, match="there are no weights to evaluate: give --checkpoint RUN_OR_FILE"):
        run("metamix eval --import my_task --task regression --data-dir numbers")
    (folder / "first").rename(folder / "moved")
    assert run(f"{frozen} second", *SMALL, *starts["second"], "--epochs", "3")[0] == 0  # "first" is not needed


def test_a_run_resumes_exactly(folder, run):
    train = f"{COMMANDS[0]} --schedule constant"
    half = train.replace("--output run", "--output half")
    assert run(half, *SMALL, "--epochs", "1")[0] == 0
    assert "resumed" in run(half, *SMALL)[1]
    assert run(train.replace("--output run", "--output whole"), *SMALL)[0] == 0
    resumed, expected = (load_weights(folder / name)[0] for name in ("half", "whole"))
    assert resumed.keys() == expected.keys()
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


def test_a_run_is_not_continued_with_other_labels(folder, run):
    shutil.copytree(folder / "numbers", folder / "changing")
    train = COMMANDS[0].replace("numbers", "changing").replace("--output run", "--output labels")
    assert run(train, *SMALL, "--epochs", "1")[0] == 0
    table = folder / "changing" / "train.csv"
    table.write_text(table.read_text().replace("0.png,0\n", "0.png,9\n", 1))
    with pytest.raises(SystemExit, match="these differ: files, labels or boxes. Give the data of the run"):
        run(train, *SMALL)


def test_a_classifier_of_grey_images_is_adapted_to_a_task_of_colour_images_without_classes(tmp_path):
    name, small, file = (
        "metaformer_identity_nano",
        {"depths": [1, 1, 1], "dims": [8, 8, 16]},
        tmp_path / "w.safetensors",
    )
    old = create_model(name, in_chans=1, num_classes=1, **small)
    about = {"task": "classification", "model": name, "model_args": small, "in_chans": 1, "classes": ["cat"]}
    save_weights(file, old.state_dict(), about)
    task = SimpleTask("", None, SimpleModel(None, {}, None), None, None)
    options = SimpleOptions(model=name, model_args=small, checkpoint=str(file))
    new = task.create_model(options, True, in_chans=3, num_classes=1)
    changes = "new: head.weight, head.bias; adapted: stem.0.weight from 1 to 3 channels"
    assert task.notes == [f"weights from {file}; {changes}"]
    assert torch.equal(new.stages[0].blocks[0].mlp.fc1.weight, old.stages[0].blocks[0].mlp.fc1.weight)


def test_a_mean_needs_a_readable_image():
    metric = MeanMetric("error", torch.sub, torch.relu)
    state = metric.start()
    metric.update(state, torch.tensor([1.0, 2.0]), {"label": torch.zeros(2)})
    assert metric.result([state]) == {"error": 1.5}
    with pytest.raises(ValueError, match="no image is left to score: all images are unreadable"):
        metric.result([metric.start()])
