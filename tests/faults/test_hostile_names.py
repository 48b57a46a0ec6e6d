"""Test that line breaks and control sequences in names neither forge lines of the log nor reach the terminal."""

import csv
import io
import logging
import re

import pytest
import torch
from PIL import Image

import metamix
from metamix.classification.predict import as_csv, as_table
from metamix.deploy.benchmark import table
from metamix.models.registry import create_model
from metamix.segmentation.labels import Labels
from metamix.segmentation.verify import table_of_shares
from metamix.training.run_folder import Run
from metamix.utils.text import aligned, csv_text, exit_with_message, message, package_logger, printable
from tests.helpers.running import metamix_command, train

EVIL = "\x1b[2J\x1b]0;owned\x07cat\r\nepoch 9/9  test top1 100\u2028\x9b31m\u202e"
SAFE = r"\x1b[2J\x1b]0;owned\x07cat\r\nepoch 9/9  test top1 100\u2028\x9b31m\u202e"
CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]")  # the newline is allowed


def test_control_characters_are_escaped_and_other_letters_are_kept():
    assert printable(EVIL) == SAFE
    for name in ("naïve café.png", "猫 1.jpg", "👩\u200d💻.png", "C:\\new\\table.png"):
        assert printable(name) == name


def test_long_messages_keep_their_start_and_their_end():
    text = message("f: there is no option " + "x" * 3_000_000 + "; use another file")
    assert len(text) <= 2000 and text.startswith("f: there is no option xxx") and text.endswith("xxx; use another file")


def test_error_messages_are_one_line():
    with pytest.raises(SystemExit) as end, exit_with_message(ValueError):
        raise ValueError(f"there is no file {EVIL}")
    assert end.value.code == f"error: there is no file {SAFE}"


def test_log_records_are_one_line_for_every_handler(caplog, tmp_path, capsys):
    run = Run(tmp_path)
    with caplog.at_level(logging.WARNING, "metamix"):
        package_logger("metamix.data.files").warning("%s: left out, 100 %%", EVIL)
        run.say(f"note: {EVIL}")
        run.log(f"error: {EVIL}")
    run.close()
    assert caplog.messages == [f"{SAFE}: left out, 100 %"]
    lines = [f"warning: {SAFE}: left out, 100 %", f"note: {SAFE}", f"error: {SAFE}"]
    assert (tmp_path / "log.txt").read_text().splitlines() == lines
    assert capsys.readouterr().out.splitlines() == lines[:2]


def test_every_logger_of_the_package_has_a_filter():
    loggers = {name: log for name, log in logging.root.manager.loggerDict.items() if name.startswith("metamix.")}
    used = {name: log for name, log in loggers.items() if isinstance(log, logging.Logger)}  # the rest are placeholders
    assert len(used) >= 5
    assert [name for name, log in used.items() if not log.filters] == []


def test_each_row_of_a_table_is_one_line():
    assert aligned([("name", "count"), (EVIL, 5), ("b", 10)], right=[1]) == [
        f"{'name':{len(SAFE)}}  count",
        f"{SAFE}      5",
        f"{'b':{len(SAFE)}}     10",
    ]
    predictions = [(EVIL, [(EVIL, 0.5), ("b", 0.25)])]
    assert as_table(predictions) == f"{SAFE}  {SAFE} 50.0 %   b 25.0 %\n"
    keys = ("engine", "precision", "img_size", "batch", "ms", "img_per_s", "speedup")
    result = {"reference": EVIL, "rows": [dict.fromkeys(keys, 1) | {"model": EVIL}], "failed": {EVIL: EVIL}}
    about = {"machine": {"cpu": "A CPU"}, "threads": 1, "measured": "today", "versions": {}}
    assert not CONTROL.search(speeds := table(result | about)) and speeds.count(SAFE) == 4
    shares = table_of_shares({"train": torch.ones(256, dtype=torch.int64)}, Labels((EVIL, "b"), {}))
    assert not CONTROL.search(shares) and len(shares.splitlines()) == 4


@pytest.mark.parametrize("name", ["=1+1", "+cmd|'/c calc'!A1", "-2+3", "@SUM(1)", "-"])
def test_csv_text_that_a_spreadsheet_would_take_for_a_formula_is_quoted(name):
    rows = list(csv.reader(io.StringIO(csv_text([(name, "a=b"), ("x", name)]))))
    assert rows == [[f"'{name}", "a=b"], ["x", f"'{name}"]]


def test_numbers_in_a_csv_stay_numbers():
    assert csv_text([(-1.5, -2, "-1.5", "-3e-05", "+inf", None)]) == "-1.5,-2,-1.5,-3e-05,+inf,\n"
    text = as_csv([(EVIL, [("=1+1", 0.5)])])
    assert text == f"image,rank,label,probability\n{SAFE},1,'=1+1,0.500000\n"


def images(folder):
    classes = EVIL.replace("/", ":"), "dog"
    for split in ("train", "val"):
        for i, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for k in range(4):
                Image.new("RGB", (16, 16), (90 * i, 20 * k, 0)).save(folder / split / name / f"{k}.png")
    (folder / "train" / classes[0] / f"{classes[0]}.png").write_bytes(b"broken")
    (folder / "train" / classes[0] / f"{classes[0]}.heic").write_bytes(b"")
    return folder


def test_nothing_that_training_prints_or_logs_holds_a_control_sequence(tmp_path, capfd):
    data, run = images(tmp_path / f"Bär {EVIL.replace('/', ':')}"), tmp_path / "run"
    words = ["--data", "folder", "--data-dir", data, "--batch-size", 4, "--warmup-epochs", 0, "--epochs", 1]
    train(*words, "--memory", "no", "--corrupt-limit", 1, "--workers", 0, "--output", run)
    said = capfd.readouterr()
    text = (run / "log.txt").read_text()
    assert "warning: cannot read an image (1 of 9 so far)" in text and r"\x1b[2J" in text
    assert "/Bär" in text.partition("download:")[0]  # in the recipe
    for part in (text, said.out, said.err):
        assert not CONTROL.search(part) and not re.search("^epoch 9", part, re.MULTILINE)


def test_nothing_that_predict_and_verify_print_holds_a_control_sequence(tmp_path, capfd):
    name = EVIL.replace("/", ":")
    data, file = images(tmp_path / name), tmp_path / f"{name}.safetensors"
    torch.manual_seed(0)
    metamix.save_classifier(create_model("test_resnet", num_classes=2), file, classes=[EVIL, "=1"])
    for words in (
        ["predict", data, "--checkpoint", file],
        ["predict", data, "--checkpoint", file, "--format", "csv"],
        ["verify", data],
    ):
        assert metamix_command(*words) == 1  # an image is broken
        said = capfd.readouterr()
        for part in (said.out, said.err):
            assert not CONTROL.search(part) and not re.search("^epoch 9", part, re.MULTILINE), words
            assert r"\x1b[2J" in part or not part
    with pytest.raises(SystemExit) as end:
        metamix_command("predict", data, "--checkpoint", tmp_path / f"no {EVIL}.safetensors")
    assert SAFE[:20] in end.value.code and not CONTROL.search(end.value.code)
