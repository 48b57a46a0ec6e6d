"""Test the benchmark of the training loop: what it reads from timm's training script and what it refuses."""

import sys

import pytest

from benchmarks.measure import train_loop

# The output of timm's script with --log-interval 1. The evaluation line also has a time, which must not count.
PRINTED = """\
Training with a single process on 1 device (cpu).
Scheduled epochs: 1 (epochs + cooldown_epochs). Warmup within epochs when warmup_prefix=False. LR stepped per epoch.
Train: 0 [   0/390 (  0%)]  Loss: 2.35 (2.35)  Time: 1.250s,  102.40/s  (1.250s,  102.40/s)  LR: 1.000e-05
Train: 0 [   1/390 (  1%)]  Loss: 2.34 (2.35)  Time: 0.128s, 1000.00/s  (0.689s,  185.77/s)  LR: 1.000e-05
Test: [   0/78]  Time: 0.250 (0.250)  Loss:   2.311 ( 2.311)  Acc@1:  10.000 ( 10.000)  Acc@5:  50.000 ( 50.000)
Train: 1 [ 389/390 (100%)]  Loss: 1.20 (1.31)  Time: 0.160s,  800.00/s  (0.150s,  853.33/s)  LR: 9.000e-04
"""


def test_speeds_are_read_from_the_output_of_timms_script():
    lines = PRINTED.splitlines(keepends=True)
    assert train_loop.updates(lines, 3) == [102.4, 1000.0, 800.0]
    assert train_loop.updates(lines, 1) == [102.4]
    with pytest.raises(ValueError, match=r"reported 3 updates and 4 are needed; it ended with\n(.*\n)*Train: 1 \[ 389"):
        train_loop.updates(lines, 4)


SCRIPT = """
import argparse, logging, sys, time, timm
parser = argparse.ArgumentParser()
for name in "model data-dir batch-size num-classes opt lr weight-decay amp-dtype device workers".split():
    parser.add_argument("--" + name, required=True)
for name in "color-jitter smoothing train-interpolation epochs log-interval output".split():
    parser.add_argument("--" + name, required=True)
for name in "amp", "channels-last":
    parser.add_argument("--" + name, action="store_true", required=True)
given = parser.parse_args()
assert timm.is_model(given.model), "metamix was not imported"
logging.basicConfig(format="%(message)s", level=logging.INFO)  # to standard error, as timm's script does
for i, speed in enumerate([50, 60, 100, 300, 200, 200]):
    logging.info(f"Train: 0 [{i:>4d}/390 (  0%)]  Loss: 2.3 (2.3)  Time: 0.1s, {speed:>7.2f}/s  (0.1s, 1.00/s)  LR: 1")
time.sleep(1000)
"""


@pytest.mark.slow
def test_speed_is_measured_in_turns_and_the_script_is_stopped(tmp_path):
    """The first two updates do not count. The harmonic means are 150 (of 100 and 300) in turn 1 and 200 in turn 2."""
    (tmp_path / "train.py").write_text(SCRIPT)
    case = train_loop.Case("c", tmp_path, "metaformer_pooling_nano", 32, 128, (), settle=2, steps=2, turns=2)
    row = train_loop.run_script(tmp_path / "train.py", case)
    assert row["turns"] == [150, 200] and row["img_per_s"] == 175 and row["process_mib"] > 100


@pytest.mark.parametrize(
    "words, said",
    [
        ("--data-dir nowhere", "there is no nowhere/train: give CIFAR-10 as class folders"),
        ("--data-dir . --timm-script gone.py", "there is no gone.py: give CIFAR-10 as class folders"),
    ],
)
def test_missing_data_and_a_missing_script_are_refused(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
    monkeypatch.setattr(sys, "argv", ["train_loop.py", *words.split()])
    with pytest.raises(SystemExit, match="2"):
        train_loop.main()
    assert said in capsys.readouterr().err
