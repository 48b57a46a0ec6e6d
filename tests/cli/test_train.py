"""Test `metamix train`: what it prints, what it writes to the run folder, and what it refuses."""

import csv
import fcntl
import functools
import json
import os
import pty
import re
import select
import shlex
import struct
import sys
import termios
from unittest.mock import Mock

import pytest
import torch
from PIL import Image

import metamix.cli.evaluate
import metamix.cli.train
from metamix.models import metaformer
from metamix.training import run_folder
from metamix.training.engine import Engine
from metamix.weights.files import load_checkpoint, load_weights
from tests.helpers.running import MODEL, TINY, WITHOUT_BATCH_NORM, Process, metrics, train

QUICK = ["--epochs", 2, "--batch-size", 256]
SMALL = "{depths: [1, 1, 1], dims: [16, 32, 64]}"


def test_the_recorded_commit_is_the_commit_at_the_start(tmp_path, monkeypatch):
    head, fit = ["start"], Engine.fit

    def fit_and_commit(engine):
        fit(engine)
        head[0] = "end"

    monkeypatch.setattr(Engine, "fit", fit_and_commit)
    monkeypatch.setattr("metamix.training.train.commit", lambda: head[0])
    train(*QUICK, "--output", tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["commit"] == "start" != head[0]


@pytest.mark.usefixtures("rendered_figures")
def test_a_run_learns_and_leaves_everything_in_its_folder(tmp_path, capsys):
    words = f"--model metaformer_pooling_nano --model-args '{SMALL}' --device cpu --epochs 3 --batch-size 64 "
    words += f"--optimizer muon --lr 1e-2 --flip 0 --padding 2 --ema --holdout 0.1 --output {tmp_path}"
    metamix.cli.train.main(shlex.split(words))
    text = capsys.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["top1"] > 80, text
    assert {
        "model": "metaformer_pooling_nano",
        "data": "digits",
        "weights": "ema",
        "epochs": 3,
        "steps": 60,
        "seed": 0,
        "num_classes": 10,
        "in_chans": 1,
        "img_size": 32,
    }.items() <= summary.items()
    assert summary["versions"].keys() >= {"metamix", "torch", "timm", "python"}
    assert all(summary[name] > 0 for name in ("top5", "parameters", "macs", "seconds", "img_per_s"))
    line = rf"metaformer_pooling_nano on digits, test: top1 {summary['top1']:.4g}, .* \(ema weights\); 3 epochs in "
    names = ("curves.png", "test_confusion.png", "test_classes.png")
    pictures = f"pictures: {' '.join(str(tmp_path / name) for name in names)}"
    assert re.search(line, text.splitlines()[-2]) and text.splitlines()[-1] == pictures
    assert (tmp_path / "log.txt").read_text().splitlines()[-1] == pictures

    rows = metrics(tmp_path)
    assert [row["epoch"] for row in rows] == list("123") and float(rows[-1]["train_top1"]) > float(
        rows[0]["train_top1"]
    )
    assert {"train_loss", "holdout_top1", "holdout_ema_top1", "holdout_loss", "lr"} <= rows[0].keys()
    assert not any("test" in column for column in rows[0])  # tuning never sees the test split
    for name in names:
        assert min(Image.open(tmp_path / name).size) > 300

    tensors, about = load_weights(tmp_path / "model.safetensors")
    assert about["top1"] == summary["top1"] and about["weights"] == "ema" and about["classes"] == list("0123456789")
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    assert all(torch.equal(tensor, state["ema"][name]) for name, tensor in tensors.items())
    assert summary["img_per_s"] == pytest.approx(60 * 64 / state["seconds"], abs=0.1)

    metamix.cli.train.main(["--config", str(tmp_path / "recipe.yaml")])  # the saved recipe is a config
    assert "is finished (another --output or --seed makes a new run)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "option, used, top1, model",
    [
        pytest.param("--compile", (torch, "compile"), 0.08, WITHOUT_BATCH_NORM, marks=pytest.mark.slow),
        ("--grad-checkpointing", (metaformer, "checkpointed"), 0, []),
    ],
)
def test_compile_and_grad_checkpointing_do_not_change_training(option, used, top1, model, tmp_path, monkeypatch):
    """Dropout draws the same masks in both runs. The model is compiled without inductor, whose code rounds differently.

    GELU still rounds differently, so the prediction for one of 1280 samples, 0.08 %, may differ. Batch norms would
    amplify this.
    """
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    words = [*QUICK, *model, "--epochs", 1, "--drop-rate", 0.2, "--drop-path", 0.2, "--amp", "none"]
    spy = Mock(wraps=getattr(*used))
    monkeypatch.setattr(*used, spy)
    train(*words, "--output", tmp_path / "plain")
    assert not spy.called
    train(*words, option, "--output", tmp_path / "other")
    assert spy.called
    for plain, other in zip(metrics(tmp_path / "plain"), metrics(tmp_path / "other"), strict=True):
        assert float(plain.pop("train_top1")) == pytest.approx(float(other.pop("train_top1")), abs=top1, rel=0)
        assert plain == other
    plain, other = (load_weights(tmp_path / name)[0] for name in ("plain", "other"))
    assert plain.keys() == other.keys() and all(torch.allclose(plain[name], other[name]) for name in plain)


def test_score_last_keeps_the_last_weights_instead_of_the_average(tmp_path):
    train(*QUICK, "--ema", "--score", "last", "--output", tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["weights"] == "last"
    tensors, last = load_weights(tmp_path)[0], load_checkpoint(tmp_path / "checkpoint.pt")["model"]
    assert all(torch.equal(tensor, last[name]) for name, tensor in tensors.items())


def test_a_dry_run_prints_data_model_memory_and_time_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(*QUICK, "--dry-run", "--ema")
    text = capsys.readouterr().out
    for said in (
        r"data +digits: 1,437 train, 360 test",
        r"model +metaformer_identity_tiny: [\d,]+ parameters, [\d.]+ M multiply",
        r"steps +2 epochs of 5 steps of 256 samples",
        r"memory +[\d.]+ GiB at the peak of a step, including weights "
        r"[\d.]+ MiB, optimizer [\d.]+ MiB, averaged weights [\d.]+ MiB",
        r"time +[\d.]+ s for one step, [\d,]+ img/s, .* for all",
    ):
        assert re.search(said, text), said
    assert not list(tmp_path.iterdir()) and "repeated" not in text
    train(*QUICK[2:], "--iterations", 2, "--dry-run")
    text = capsys.readouterr().out
    assert "note: 2 iterations are rounded to 1 whole epoch, 5 steps" in text and "average" not in text
    train(*QUICK, "--dry-run", "--batch-size", 1440, "--warmup-epochs", 2, "--eval-every", 2)
    text = capsys.readouterr().out
    assert "note: 1,437 samples cannot fill a batch of 1440: samples are repeated" in text
    assert "note: the whole run is warm-up, so the learning rate only rises; give a lower --warmup-epochs" in text
    assert "note: --eval-every has no effect: no split is held out" in text


def test_the_folder_is_named_after_data_model_and_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(*QUICK, "--seed", 3)
    assert (tmp_path / "runs" / f"digits-{MODEL}-seed3" / "summary.json").exists()


def test_several_models_are_compared_and_finished_ones_skipped(tmp_path, capsys, request):
    words = [*QUICK, "--epochs", 1, "--warmup-epochs", 0, "--output", tmp_path, "--model"]
    train(*words, f"{MODEL},metaformer_pooling_tiny")
    capsys.readouterr()
    request.getfixturevalue("rendered_figures")  # for the picture of all models
    train(*words, f"{MODEL}, metaformer_pooling_tiny,metaformer_minattn_tiny")
    text = capsys.readouterr().out
    assert text.count("is finished") == 2 and text.count("epoch 1/1 ") == 1
    table = text[text.index("model        ") :].splitlines()
    assert [line.split()[0] for line in table[1:4]] == [MODEL, "metaformer_pooling_tiny", "metaformer_minattn_tiny"]
    assert table[-1] == f"written: {tmp_path / 'compared-digits.csv'} {tmp_path / 'compared-digits.png'}"
    with open(tmp_path / "compared-digits.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    summary = json.loads((tmp_path / MODEL / "summary.json").read_text())
    assert float(rows[0]["top1"]) == summary["top1"] and len(rows) == 3
    assert min(Image.open(tmp_path / "compared-digits.png").size) > 300


def test_a_linear_probe_from_a_run_changes_only_the_head(tmp_path, capsys):
    train(*QUICK, "--micro-batch", 64, "--output", tmp_path / "a")
    assert "batch norms. Each sees 64 samples at a time" in capsys.readouterr().out
    train(*QUICK, "--micro-batch", 64, "--checkpoint", tmp_path / "a", "--linear-probe", "--output", tmp_path / "b")
    said = capsys.readouterr().out
    assert f"weights from {tmp_path / 'a'}" in said and "batch norm" not in said  # batch norms are frozen
    before, after = (load_weights(tmp_path / name)[0] for name in "ab")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head.weight", "head.bias"}

    # A run resumes from its own checkpoint, without the weights that it started from.
    (tmp_path / "a").rename(tmp_path / "gone")
    words = ["--checkpoint", tmp_path / "a", "--linear-probe", "--output", tmp_path / "b"]
    train(*QUICK, *words, "--epochs", 3)
    assert "resumed" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="there is no file .*a"):
        train(*QUICK, *words[:-1], tmp_path / "c")


def test_progress_is_printed_as_lines_without_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run_folder, "PLAIN_SECONDS", 0)
    train(*QUICK, "--log-every", 2, "--output", tmp_path)
    progress = r"epoch 1/2  step 4/5  loss [\d.]+  top1 [\d.]+  lr [\d.e-]+  \d+ img/s  [\d.]+ GiB  [\d:]+ left\n"
    out, err = capsys.readouterr()
    assert re.search(progress, out) and re.search(progress, (tmp_path / "log.txt").read_text())
    assert re.search(r"epoch 2/2  train loss [\d.]+ top1 [\d.]+  lr [\d.e-]+  \d+ img/s  [\d:]+\n", out)
    assert "\r" not in out + err


@pytest.mark.slow
def test_a_progress_bar_is_shown_on_a_terminal(tmp_path):
    """The bar is drawn at most ten times a second, so the steps of the model must be slow enough to be seen."""
    terminal, log = pty.openpty()
    fcntl.ioctl(log, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    words = [*QUICK, "--model", "metaformer_identity_nano", "--log-every", 1, "--output", tmp_path]
    process = Process(*words, log=os.ttyname(log))
    shown = b""
    while process.running() or select.select([terminal], [], [], 0)[0]:
        if select.select([terminal], [], [], 0.05)[0]:
            shown += os.read(terminal, 4096)
    assert process.wait() == 0
    os.close(log), os.close(terminal)
    text = shown.decode()
    assert re.search(
        r"epoch 1/2 +\d+%\|.*\| [1-5]/5, loss [\d.]+  top1 [\d.]+  lr [\d.e-]+  \d+ img/s  [\d.]+ GiB  [\d:]+ left",
        text,
    )
    assert "%|" not in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("memory", ["yes", "no"])
def test_unreadable_images_are_counted_and_named_in_the_log(memory, tmp_path, capsys):
    for place in ("train/ant", "train/bee", "val/ant", "val/bee"):
        (tmp_path / place).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (32, 32)).save(tmp_path / place / f"{i}.png")
    for name in ("ant/1", "bee/3"):
        (tmp_path / "train" / f"{name}.png").write_bytes(b"no image")
    words = ["--epochs", 1, "--batch-size", 8, "--data", "folder", "--data-dir", tmp_path, "--corrupt-limit", 0.5]
    train(*words, "--memory", memory, "--workers", 0, "--img-size", 32, "--output", tmp_path / "run")
    line = r"warning: cannot read an image \((\d of 8) so far\), replaced: .*(ant/1|bee/3).png: "
    for text in (capsys.readouterr().out, (tmp_path / "run" / "log.txt").read_text()):
        counted, named = zip(*re.findall(line, text))
        assert counted == ("1 of 8", "2 of 8") and sorted(named) == ["ant/1", "bee/3"]


def test_odd_names_of_classes_and_files_do_not_end_training_or_evaluation(tmp_path, capsys, request):
    """One class name looks like a formula. The names of the set, a class and an unreadable image are not UTF-8."""
    data = tmp_path / os.fsdecode(b"\xe8")
    for split in ("train", "val"):
        for label in ("a$x_$b", os.fsdecode(b"\xe9")):
            (data / split / label).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (32, 32)).save(data / split / label / f"{i}.png")
    (data / "train" / "a$x_$b" / os.fsdecode(b"\xea.png")).write_bytes(b"no image")
    words = ["--batch-size", 4, "--data", "folder", "--data-dir", data, "--corrupt-limit", 0.5, "--warmup-epochs", 0]
    for epochs in (1, 2, 2):  # trained, resumed, finished
        if epochs == 2:
            # Figures of the first run would show the same names, so they are not rendered.
            request.getfixturevalue("rendered_figures")
        train(*words, "--epochs", epochs, "--output", tmp_path / "run")
        assert (tmp_path / "run" / "test_confusion.png").exists()
    assert "is finished" in capsys.readouterr().out
    assert r"a$x_$b/\udcea.png" in (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")
    metamix.cli.evaluate.main(
        [*TINY[:2], "--checkpoint", str(tmp_path / "run"), *map(str, words[:6]), "--output", str(tmp_path / "scored")]
    )
    assert rf"{MODEL} on \udce8, val (8 images" in capsys.readouterr().out


def test_results_are_kept_if_a_picture_cannot_be_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr("metamix.classification.pictures.draw_confusion", Mock(side_effect=RuntimeError("no colour")))
    with pytest.raises(RuntimeError, match="no colour"):
        train(*QUICK, "--output", tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["top1"] == load_weights(tmp_path)[1]["top1"]


def test_tensorboard_gets_the_scalars_of_each_epoch_once(tmp_path):
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs the extra tensorboard"
    )
    train(*QUICK, "--tensorboard", "--output", tmp_path)
    events = reader.EventAccumulator(str(tmp_path)).Reload()
    loss = events.Scalars("train/loss")
    assert [event.step for event in loss] == [5, 10]
    assert loss[1].value == pytest.approx(float(metrics(tmp_path)[1]["train_loss"]), rel=1e-5)

    with pytest.raises(SystemExit, match="cannot be continued"):
        train(*QUICK, "--seed", 1, "--tensorboard", "--output", tmp_path)
    assert len(reader.EventAccumulator(str(tmp_path)).Reload().Scalars("train/loss")) == 2
    train(*QUICK, "--epochs", 3, "--tensorboard", "--output", tmp_path)
    events = reader.EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [5, 10, 15]


def test_a_missing_tensorboard_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SystemExit, match=r"tensorboard is not installed; pip install 'metamix\[tensorboard\]'"):
        train("--tensorboard", "--output", tmp_path / "run")
    assert not (tmp_path / "run").exists()


class FakeWandb:
    """A stand-in for the package wandb that keeps the settings of a record, and its scalars by step."""

    class Error(Exception):
        pass

    def __init__(self, earlier_steps=0):
        self.settings, self.scalars, self.step = {}, {}, earlier_steps

    def init(self, **settings):
        self.settings = settings
        return self

    def log(self, scalars, step, commit):
        self.scalars[step] = scalars

    def finish(self, exit_code):
        self.exit_code = exit_code


def test_wandb_gets_the_scalars_of_each_epoch(tmp_path, monkeypatch):
    words = [*QUICK, "--wandb", "--output", tmp_path / "run"]
    monkeypatch.setitem(sys.modules, "wandb", first := FakeWandb())
    train(*words)
    assert first.settings["config"]["batch_size"] == 256 and first.settings["name"] == "run" and first.exit_code == 0
    assert [*first.scalars] == [5, 10]
    rows = metrics(tmp_path / "run")
    assert first.scalars[10]["train/loss"] == pytest.approx(float(rows[1]["train_loss"]))
    assert first.scalars[10].keys() >= {"epoch", "lr", "seconds", "train/top1"}

    monkeypatch.setitem(sys.modules, "wandb", second := FakeWandb(earlier_steps=11))
    train(*words, "--epochs", 3)
    assert second.settings["id"] == first.settings["id"] and second.settings["resume"] == "allow"
    assert [*second.scalars] == [15]  # a continued record already has the first two epochs


def test_an_offline_wandb_record_has_the_id_and_the_loss_of_the_run(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="needs the extra wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    summaries, finish = {}, wandb.Run.finish

    def summarise_and_finish(record, **settings):
        summaries[record.summary["epoch"]] = record.id, record.summary["train/loss"]
        finish(record, **settings)

    monkeypatch.setattr(wandb.Run, "finish", summarise_and_finish)
    for epochs in (1, 2):
        train(*QUICK, "--epochs", epochs, "--wandb", "--output", tmp_path)
        name = (tmp_path / "wandb/id.txt").read_text()
        assert summaries[epochs] == (name, pytest.approx(float(metrics(tmp_path)[-1]["train_loss"])))
    assert list((tmp_path / "wandb").glob(f"offline-run-*-{summaries[1][0]}/*.wandb"))


def test_a_wandb_that_does_not_start_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", fake := FakeWandb())
    monkeypatch.setattr(fake, "init", Mock(side_effect=FakeWandb.Error("no key")))
    with pytest.raises(SystemExit, match=r"Weights & Biases could not start \(no key\): run wandb login"):
        train(*QUICK, "--wandb", "--output", tmp_path)


@pytest.mark.parametrize("folder", [False, True], ids=["nothing", "a folder named wandb"])
def test_a_missing_wandb_leaves_no_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", type(sys)("wandb") if folder else None)
    with pytest.raises(SystemExit, match=r"wandb is not installed; pip install 'metamix\[wandb\]', or leave --wandb"):
        train("--wandb", "--output", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words, said",
    [
        (["--model", "maxim_nano"], "no images are given: give --data-dir FOLDER"),  # the model implies restoration
        (["--model", "maxim_nano,maxim_s1"], "no images are given: give --data-dir FOLDER"),
        (["--model", "maxim_nano", "--task", "classification"], "maxim_nano is a model for restoration, not a clas"),
        (["--model", f"{MODEL},metaformer_poling_nano"], "There is no model 'metaformer_poling_nano'"),
        (["--model", "hf-hub:a/b"], "model is hf-hub:a/b. Models from a hub cannot be trained"),
        (["--model", f"{MODEL},metaformer_pooling_nano", "--resume", "w"], "w has the weights of one model, but"),
        (["--linear-probe"], "linear_probe needs trained weights to freeze"),
        (
            ["--sampling", "balanced", "--class-weights", "balanced"],
            "rare classes twice: add --class-weights none or, for a new run, --s",
        ),
        (["--mix-prob", "0.3"], "--mix-prob has no effect without --mixup or --cutmix"),
        (["--resume", "nowhere"], "there is no file nowhere"),
        (["--output", "/dev/null/run"], "the folder /dev/null/run could not be made (Not a directory); give"),
    ],
)
def test_wrong_options_are_refused_in_one_line(words, said, tmp_path):
    with pytest.raises(SystemExit) as error:
        train("--output", tmp_path, *words)
    assert str(error.value).startswith("error: ") and said in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.rglob("checkpoint.pt"))


def test_an_exported_model_is_refused_before_other_options_are_checked(tmp_path):
    (tmp_path / "export.json").write_text("{}")
    with pytest.raises(SystemExit, match="is an exported model, which has no weights to load"):
        metamix.cli.train.main(["--checkpoint", str(tmp_path), "--data-dir", str(tmp_path)])


@pytest.mark.parametrize("line", ["model: [metaformer_pooling_nano, metaformer_raft_nano]", "checkpoint: [a, b]"])
def test_a_recipe_with_a_list_in_place_of_a_name_is_refused(line, tmp_path):
    (tmp_path / "recipe.yaml").write_text(line)
    with pytest.raises(SystemExit, match=r"recipe\.yaml: (model|checkpoint) is \[.*, but it must be a string"):
        metamix.cli.train.main(["--config", str(tmp_path / "recipe.yaml")])
