"""Test how deployed models are timed, converted and profiled, and how their tables and picture are made."""

import json

import pytest
from PIL import Image

from benchmarks.measure import deploy
from benchmarks.report import deploy as report
from benchmarks.report import figures


def row(engine, precision, ms, speedup, batch=8, model="metaformer_nin_s12"):
    return dict(model=model, engine=engine, precision=precision, batch=batch, ms=ms, speedup=speedup)


def result(rows, machine="here", **more):
    about = dict(machine=machine, threads=2, versions={}, runs=3, reference="poolformer_s12", failed={})
    return about | dict(rows=rows) | more


def test_speeds_are_merged_if_machine_and_engine_versions_are_equal():
    reference = row("eager", "fp32", 120.0, 1.0, model="poolformer_s12")
    nin, raft = row("openvino", "int8", 40.0, 3.0), row("eager", "fp32", 60.0, 2.0, model="metaformer_raft_s12")
    failed = {"metaformer_nin_s12 eager bf16": "no"}
    first = deploy.add_speeds({}, [nin["model"]], result([reference, nin], failed=failed))
    nin |= {"reference": "poolformer_s12", "reference_ms": 120.0}
    assert first["rows"] == [nin] and first["failed"] == failed
    both = deploy.add_speeds(first, [raft["model"]], result([reference, raft]))
    raft |= {"reference": "poolformer_s12", "reference_ms": 120.0}
    assert both["rows"] == [nin, raft] and both["failed"] == first["failed"]
    again = deploy.add_speeds(both, [nin["model"]], result([reference, nin | {"ms": 30.0}]))
    assert [r["ms"] for r in again["rows"]] == [60, 30] and again["failed"] == {}
    assert deploy.add_speeds(both, [nin["model"]], result([reference, nin], machine="there"))["rows"] == [nin]
    for versions, kept in ({"metamix": "9"}, 2), ({"openvino": "9"}, 1):
        assert len(deploy.add_speeds(both, [nin["model"]], result([reference, nin], versions=versions))["rows"]) == kept


def test_the_reference_of_a_model_has_the_same_size():
    assert deploy.reference_of("metaformer_nin_nano") == "metaformer_identity_nano"
    assert deploy.reference_of("metaformer_nin_s12") == "poolformer_s12"
    assert deploy.reference_of("tf_efficientnet_lite0") == deploy.reference_of("metaformer_nin_tiny")
    base = [row("eager", "fp32", ms, 1.0, batch, "metaformer_identity_nano") for batch, ms in ((1, 5.0), (8, 40.0))]
    nin = [row("eager", "fp32", ms, 0.5, batch, "metaformer_nin_nano") for batch, ms in ((1, 10.0), (8, 80.0))]
    both = ["metaformer_identity_nano", "metaformer_nin_nano"]
    speeds = deploy.add_speeds({}, both, result(base + nin, reference="metaformer_identity_nano"))
    assert [r["reference_ms"] for r in speeds["rows"]] == [5, 40, 5, 40]


def test_models_of_one_size_are_timed_together_and_saved(tmp_path, monkeypatch, capsys):
    calls = []

    def measure(names, reference, **options):
        calls.append(names)
        if reference == "metaformer_identity_nano":
            raise KeyboardInterrupt
        ms = dict(reference=reference) | {"from": 1, "to": 1}
        return result([row("eager", "fp32", 9.0, 1.0, model=name) | ms for name in dict.fromkeys([reference, *names])])

    monkeypatch.setattr(deploy, "FILE", tmp_path / "deploy.json")
    monkeypatch.setattr(deploy, "benchmark", measure)
    models = ["metaformer_identity_s12", "metaformer_nin_nano", "metaformer_pooling_s12"]
    with pytest.raises(KeyboardInterrupt):
        deploy.main(["speed", "--models", ",".join(models)])
    assert calls == [[models[0], models[2]], [models[1]]]
    assert [r["model"] for r in deploy.load("speed")["rows"]] == calls[0]
    assert capsys.readouterr().out.splitlines() == [f"{name} eager fp32 8 9.0 1.0 1 1" for name in calls[0]]


def test_models_are_converted_and_profiled(tmp_path, monkeypatch, capsys):
    pytest.importorskip("openvino", reason="openvino is not installed: pip install 'metamix[deploy]'")
    monkeypatch.setattr(deploy, "FILE", tmp_path / "deploy.json")
    model, folder = "metaformer_identity_nano", tmp_path / "converted"
    convert = f"convert --models {model} --folder {folder} --engines openvino --precisions fp32"
    deploy.main(convert.split())
    assert sorted(file.name for file in folder.iterdir()) == [f"{model}-32-fp32.bin", f"{model}-32-fp32.xml"]
    assert capsys.readouterr().out.startswith(f"{model}: ")
    for _ in range(2):  # the second profile replaces the first one
        deploy.main(f"profile --models {model} --batch-size 4 --threads 1 --folder {folder}".split())
    (row,) = deploy.load("profile")["rows"]
    assert (row["model"], row["batch"]) == (model, 4)
    assert next(iter(row["shares"])) == "Convolution" and sum(row["shares"].values()) == pytest.approx(1, abs=0.01)
    assert capsys.readouterr().out.startswith(f"{model} Convolution ")


def exported(format, precision, top1, **more):
    about = dict(model="metaformer_nin_nano.cifar10", format=format, precision=precision, limit=0.2, quantization=None)
    about["weights"] = "shipped"
    return about | dict(eager_top1=88.0, top1=top1, bytes=35_000, fp32_bytes=100_000) | more


ROWS = [
    exported("onnx", "int8", 87.85, quantization={"kept": ["a"], "layers": 20}),
    exported("openvino", "bf16", 88.01, bytes=100_000),
]
OLD_ROWS = [exported("onnx", "int8", 87.5, quantization={"kept": [], "layers": 20})]


def test_accuracy_measured_on_other_machines_is_kept():
    new, old = (dict(tag="cifar10", machine=machine, measured="today") for machine in ("new", "old"))
    accuracy = deploy.add_accuracy({}, old, OLD_ROWS)
    accuracy = deploy.add_accuracy(accuracy, new, ROWS)
    accuracy = deploy.add_accuracy(accuracy, new, [exported("onnx", "int8", 87.9)])
    assert [part["machine"] for part in accuracy["parts"]] == ["old", "new"]
    assert [[row["top1"] for row in part["rows"]] for part in accuracy["parts"]] == [[87.5], [88.01, 87.9]]
    assert len(deploy.add_accuracy(accuracy, new | {"tag": "digits"}, ROWS)["parts"]) == 1


MACHINE = dict(cpu="AMD EPYC", cores=2, instructions=["avx2", "avx512_vnni", "avx512_bf16"])


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Put a result file in place of results/deploy.json."""

    def line(model, engine, precision, ms, speedup, batch=1, size=32, **more):
        return row(engine, precision, ms, speedup, batch, model) | dict(img_size=size) | more

    def s12(mixer, *cell, reference=127.0, batch=8):
        beside = dict(reference="poolformer_s12", reference_ms=reference, size=224)
        return line(f"metaformer_{mixer}_s12", *cell, batch, **beside)

    rows = [
        line("metaformer_nin_nano", "eager", "fp32", 4.0, 1.0),
        line("metaformer_nin_nano", "onnxruntime", "int8", 1.234, 3.24),
        line("metaformer_nin_nano", "openvino", "int8", 1.0, 4.0),  # its accuracy has not been measured
        s12("nin", "eager", "fp32", 1127.0, 1.0, reference=131.0),
        s12("pooling", "eager", "fp32", 126.4, 1.0),
        s12("pooling", "openvino", "int8", 34.56, 3.7),
    ]
    about = dict(machine=MACHINE, measured="2026-11-26", threads=2, runs=3, versions={"torch": "2", "openvino": "3"})
    old = about | {"tag": "cifar10", "machine": MACHINE | {"instructions": ["avx2"]}, "rows": OLD_ROWS}
    results = {"speed": about | {"rows": rows}, "accuracy": {"parts": [about | {"tag": "cifar10", "rows": ROWS}, old]}}
    monkeypatch.setattr(deploy, "FILE", tmp_path / "deploy.json")
    deploy.FILE.write_text(json.dumps(results))


def test_speed_tables_show_machine_times_and_relative_speeds(measured):
    text = report.speed_table("s12", 8).replace("\n", " ")
    assert (
        "8 images of 224 x 224 pixels, and the speed relative to timm's `poolformer_s12` in eager fp32 (127 to 131 ms)"
        in text
    )
    assert "Times and relative speeds are medians of 3 interleaved runs with 2 threads on 2 AMD EPYC cores" in text
    assert "cores (avx512_vnni, avx512_bf16), torch 2, " in text
    assert report.speed_table("s12", 8).splitlines()[-4:] == [
        "| mixer of the s12 model | torch eager fp32 | OpenVINO int8 |",
        "| --- | --- | --- |",
        "| `pooling` | 126, 1.00 | 34.6, 3.70 |",
        "| `nin` | 1127, 1.00 |  |",
    ]
    assert report.speed_table("s12", 1) == "Not measured yet."
    assert report.speed_table("nano", 1).splitlines()[-1] == "| `nin` | 4.00, 1.00 | 1.23, 3.24 | 1.00, 4.00 |"


def test_the_accuracy_table_shows_only_the_shipped_weights(measured, monkeypatch):
    assert report.accuracy_table() == "Not measured yet."  # the weights have been replaced
    monkeypatch.setattr(report, "weights_digest", lambda card: "shipped")
    new, _, old = report.accuracy_table().partition("1 of 20 |\n\n")
    assert new.splitlines()[-1] == "| `nin` | 88.00 | 0.15 | -0.01 | 35 kB, 35% | "
    assert "2 AMD EPYC cores (no instructions for 8 or 16 bits), 2026-11-26" in old.replace("\n", " ")
    assert old.splitlines()[-1] == "| `nin` | 88.00 | 0.50 | 35 kB, 35% | 0 of 20 |"


@pytest.mark.usefixtures("rendered_figures")
def test_the_picture_of_engines_shows_only_the_shipped_weights(measured, tmp_path, monkeypatch):
    assert report.points() == {}  # the weights have been replaced
    monkeypatch.setattr(report, "weights_digest", lambda card: "shipped")
    points = report.points()
    assert points == {("eager", "fp32"): {"nin": (4, 88)}, ("onnxruntime", "int8"): {"nin": (1.234, 87.85)}}
    figures.draw_engines(tmp_path / "engines.png", points)
    assert min(Image.open(tmp_path / "engines.png").size) > 700
    assert figures.apart({"a": 90.0, "b": 89.99, "c": 80.0}, (80.0, 90.0)) == {"c": 80, "b": 89.99, "a": 90.44}


def test_tables_without_results_say_not_measured_yet(tmp_path, monkeypatch):
    monkeypatch.setattr(deploy, "FILE", tmp_path / "none.json")
    pages = report.speed_table("s12", 8), report.speed_table("nano", 1), report.accuracy_table()
    assert set(pages) == {"Not measured yet."} and report.points() == {}
