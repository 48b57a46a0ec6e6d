"""Test what the speed benchmarks save, compute and refuse, and the tables that are made from their results."""

import argparse
import sys
from pathlib import Path

import pytest
import timm
import torch

from benchmarks.measure import reference_models, roofline, timing
from benchmarks.measure.speed import PUBLISHED, Bench, compare, main
from benchmarks.measure.timing import list_of
from benchmarks.paths import read_json
from benchmarks.report import speed
from metamix.models import count_macs

MACHINE = {"cpu": "one"}


def rows(**times):
    return [dict(model=model, ms=ms, commit="now", date="2026-11-26") for model, ms in times.items()]


def test_new_rows_replace_old_ones_and_rows_of_another_machine_are_dropped(tmp_path, monkeypatch, capsys):
    path = tmp_path / "speed.json"
    monkeypatch.setattr(timing, "commit", lambda: "now")
    monkeypatch.setattr(timing, "today", lambda: "2026-11-26")
    timing.save(path, MACHINE, rows(a=1, b=2), ("model",))
    timing.save(path, MACHINE, rows(b=3, c=4), ("model",))
    assert read_json(path)["rows"] == rows(a=1, b=3, c=4)
    assert capsys.readouterr().out == ""
    timing.save(path, {"cpu": "another"}, rows(c=5), ("model",))
    assert read_json(path)["rows"] == rows(c=5)
    assert "dropped 3 rows of a different machine or of different versions" in capsys.readouterr().out


@pytest.mark.parametrize("family", ["25", "26"])
def test_processors_of_equal_name_are_told_apart_by_family(monkeypatch, family):
    told = f"processor\t: 0\nmodel name\t: AMD EPYC\ncpu family\t: {family}\nmodel\t\t: 17\npower management:\n"
    monkeypatch.setattr(timing.Path, "exists", lambda path: True)
    monkeypatch.setattr(timing.Path, "read_text", lambda path: told)
    machine = timing.machine()
    assert [machine[key] for key in ("cpu", "cpu_family", "cpu_model")] == ["AMD EPYC", family, "17"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc/self/status")
@pytest.mark.slow
def test_peak_memory_of_a_fresh_process_excludes_its_parent():
    torch.ones(2**27)  # raises the peak of this process by 512 MiB
    assert timing.in_fresh_process(timing.memory_mib) < timing.memory_mib() - 400


def test_the_ratio_is_the_authors_time_divided_by_our_time(monkeypatch):
    authors, *_ = PUBLISHED["raftmlp_s"]
    times = {"raftmlp_s": {"format": "channels_last", "ms": 50.0}, authors: {"format": "contiguous", "ms": 75.0}}
    monkeypatch.setattr(Bench, "measure", lambda self, models, *_: {n: times[n] for n, _, _ in models if n in times})
    bench = Bench("cpu", None)
    row = compare(bench, "raftmlp_s", "infer", "fp32", 1.0, False)
    assert (row["ms"], row["authors_ms"], row["ratio"]) == (50.0, 75.0, 1.5)
    del times[authors]  # as if the authors' code had failed
    for mode in ("infer", "train"):
        assert "ratio" not in compare(bench, "raftmlp_s", mode, "fp32", 1.0, False)


def test_a_model_is_timed(monkeypatch, tmp_path):
    words = ["--models", "test_resnet", "--reference", "test_resnet", "--mode", "infer", "--precision", "fp32"]
    words += ["--batch", "1", "--size", "32", "--seconds", "0", "--output", str(tmp_path / "speed.json")]
    monkeypatch.setattr(sys, "argv", ["speed", *words])
    main()
    (row,) = read_json(tmp_path / "speed.json")["rows"]
    assert (row["model"], row["ratio"]) == ("test_resnet", 1) and row["ms"] > 0


def test_options_that_published_models_do_not_take_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["speed", "--published", "--batch", "2", "--reference", "test_resnet"])
    with pytest.raises(SystemExit):
        main()
    assert "size and reference for each model: leave --batch, --reference out" in capsys.readouterr().err


def test_reference_models_of_a_size_have_nearly_equal_macs():
    names = "vit_xsmall_patch16_clip_224", "poolformer_s12"
    macs = [count_macs(reference_models.create(name, 224), (3, 224, 224)) for name in names]
    assert macs[0] == pytest.approx(macs[1], rel=0.03)


def test_the_exponent_relates_time_to_pixels_without_the_smallest_size():
    sizes = [32, 224, 512, 1024]
    assert speed.exponent(sizes, [9e9, *(n**2 for n in sizes[1:])]) == pytest.approx(1)
    assert speed.exponent(sizes, [9e9, *(n**4 for n in sizes[1:])]) == pytest.approx(2)


def test_the_authors_table_has_no_memory_of_a_model_whose_authors_code_failed(monkeypatch):
    cells = {("train", "fp32"): {"ms": 50.0}}
    monkeypatch.setattr(speed, "load", lambda name: ("here", {"raftmlp_s": cells}))
    assert speed.authors_table().endswith("| `raftmlp_s` | 50.0 ms | - |")


def test_tables_name_machine_torch_and_dates():
    machine = dict(cpu="AMD EPYC Processor", cores=2, torch="2.13.0+cpu")
    rows = [dict(date="2026-11-26"), {}, dict(date="2026-11-28")]
    assert speed.where(machine) == "on 2 AMD EPYC cores with torch 2.13.0"
    assert speed.where(machine, rows) == "on 2 AMD EPYC cores with torch 2.13.0, 2026-11-26 to 2026-11-28"
    assert speed.where(machine, rows[:2]).endswith(", 2026-11-26")


def test_ops_are_sorted_by_the_time_they_lose_against_the_limits():
    """The limits are 1 GFLOP/s and 1 GB/s. If an op has two shapes, `slowest` names the shape that loses more time."""
    op = dict(part="mixer", calls=1)
    ops = [
        dict(op, op="add", shapes="small", ms=2, flop=0, bytes=1e6),
        dict(op, op="add", shapes="large", ms=6, flop=0, bytes=3e6),
        dict(op, op="convolution 1x1", shapes="any", ms=12, flop=10e6, bytes=1e6),
    ]
    add, convolution = roofline.against_roof(ops, 1e9, 1e9)
    assert (add["op"], add["ms"], add["lost_ms"], add["of_roof"], add["slowest"]) == ("add", 8, 4, 0.5, "large")
    assert (convolution["lost_ms"], convolution["gflops"], convolution["share"]) == (2, 0.8, 0.6)


@pytest.mark.parametrize("mode", timing.MODES)
def test_ops_of_a_step_are_counted_by_part_of_the_model(mode):
    """All multiplications of the forward and backward pass are counted, each in its part of the model."""
    model = timm.create_model("metaformer_nin_nano", depths=(1, 1, 1), dims=(8, 16, 24))
    macs = 2 * count_macs(model, (3, 32, 32))
    ops = roofline.time_ops(timing.Subject(model, 2, 32, "channels_last"), mode, "fp32")
    assert {op["part"] for op in ops} == {*roofline.PARTS, "rest"} | ({"optimizer"} if mode == "train" else set())
    flop = sum(op["flop"] for op in ops)
    first = 2 * 2 * 32 * 32 * 3 * 4 * 9  # the first 3x3 convolution, from 3 channels to 4, needs no image gradient
    assert flop == (2 * macs if mode == "infer" else 6 * macs - first)
    backward = [op for op in ops if op["op"].startswith("convolution_backward 1x1") and " 12x8x" in op["shapes"]]
    assert {op["part"] for op in backward} == ({"channel MLP"} if mode == "train" else set())


def test_unknown_names_are_refused():
    with pytest.raises(SystemExit, match="Unknown model 'poolformer_s13'; did you mean 'poolformer_s"):
        reference_models.check_names(["poolformer_s13"], None)
    with pytest.raises(argparse.ArgumentTypeError, match="unknown name 'fp16'; did you mean 'bf16'. Accepted: fp32"):
        list_of(timing.PRECISIONS)("fp32,fp16")


def test_missing_packages_and_checkouts_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reference_models.importlib.util, "find_spec", lambda name: None)
    for name, authors, words in (
        ("authors_wavemix_144_7", None, "needs the package wavemix: pip install wavemix"),
        ("authors_raftmlp_s", None, "needs a clone of okojoalg/raft-mlp: give the parent folder of the"),
        ("authors_raftmlp_s", tmp_path, "raft-mlp/libs/models.py, which is not there: clone okojoalg/raft-mlp into"),
    ):
        with pytest.raises(SystemExit, match=words):
            reference_models.check_names([name], authors)


SCRIPT = """
from torch import nn

class NiNformerImageClassification(nn.Linear):
    def __init__(self, image_size, d_model, **options):
        super().__init__({inputs}, 1, bias=False)

raise SystemExit("this trains")
"""


def test_a_checkout_is_imported_without_running_its_training(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    name, path = "authors_ninformer_cifar", tmp_path / "NiNformer" / "train.py"
    path.parent.mkdir()
    path.write_text(SCRIPT.format(inputs=2_652_170))
    assert reference_models.create(name, 32, tmp_path).in_features == 2_652_170
    path.write_text(SCRIPT.format(inputs=3))
    with pytest.raises(SystemExit, match="builds a model of 3 parameters, but authors_ninformer_cifar has 2652170"):
        reference_models.create(name, 32, tmp_path)
    path.write_text("import nowhere")
    with pytest.raises(SystemExit, match="needs a package that is not installed: No module named 'nowhere'"):
        reference_models.create(name, 32, tmp_path)
