"""Test how the tables of deployed models are made from runs and reports."""

import pytest

from benchmarks.measure import deploy


def row(engine, precision, ms, speedup, batch=8, model="metaformer_nin_s12"):
    return dict(model=model, engine=engine, precision=precision, batch=batch, ms=ms, speedup=speedup)


def result(rows, machine="here", **more):
    about = dict(machine=machine, threads=2, versions={}, runs=3, reference="poolformer_s12", failed={})
    return about | dict(rows=rows) | more


def test_results_of_models_are_put_together():
    reference = row("eager", "fp32", 120.0, 1.0, model="poolformer_s12")
    nin, raft = row("openvino", "int8", 40.0, 3.0), row("eager", "fp32", 60.0, 2.0, model="metaformer_raft_s12")
    failed = {"metaformer_nin_s12 eager bf16": "no"}
    found = deploy.add_speeds({}, nin["model"], result([reference, nin], failed=failed))
    nin |= {"reference": "poolformer_s12", "reference_ms": 120.0}
    assert found["rows"] == [nin] and found["failed"] == failed
    both = deploy.add_speeds(found, raft["model"], result([reference, raft]))
    raft |= {"reference": "poolformer_s12", "reference_ms": 120.0}
    assert both["rows"] == [nin, raft] and both["failed"] == found["failed"]
    again = deploy.add_speeds(both, nin["model"], result([reference, nin | {"ms": 30.0}]))
    assert [r["ms"] for r in again["rows"]] == [60, 30] and again["failed"] == {}
    assert deploy.add_speeds(both, nin["model"], result([reference, nin], machine="there"))["rows"] == [nin]


def test_a_nano_is_compared_with_itself():
    own = [row("eager", "fp32", ms, 1.0, batch, "metaformer_nin_nano") for batch, ms in ((1, 5.0), (8, 40.0))]
    found = deploy.add_speeds({}, "metaformer_nin_nano", result(own, reference="metaformer_nin_nano"))
    assert [r["reference_ms"] for r in found["rows"]] == [5, 40]
    assert deploy.reference_of("metaformer_nin_nano") == "metaformer_nin_nano"
    assert deploy.reference_of("metaformer_nin_s12") == "poolformer_s12"


def test_each_model_is_saved_when_it_is_measured(tmp_path, monkeypatch, capsys):
    def measure(names, reference, **options):
        if names == ["metaformer_pooling_s12"]:
            raise KeyboardInterrupt
        ms = dict(reference=reference) | {"from": 1, "to": 1}
        return result([row("eager", "fp32", 9.0, 1.0, model=name) | ms for name in dict.fromkeys([reference, *names])])

    monkeypatch.setattr(deploy, "FILE", tmp_path / "deploy.json")
    monkeypatch.setattr(deploy, "benchmark", measure)
    with pytest.raises(KeyboardInterrupt):
        deploy.main(["speed", "--models", "metaformer_identity_s12,metaformer_pooling_s12"])
    assert [r["model"] for r in deploy.load("speed")["rows"]] == ["metaformer_identity_s12"]
    assert capsys.readouterr().out == "metaformer_identity_s12 eager fp32 8 9.0 1.0 1 1\n"


def test_the_int8_table_says_what_is_lost():
    found = dict(model="nin.cifar10", format="onnx", eager_top1=88.0, top1=87.85, bytes=35, fp32_bytes=100)
    line = deploy.int8_table({"rows": [found | {"quantization": {"kept": ["a"], "layers": 20}}]}).splitlines()[-1]
    assert line == "| `nin.cifar10` | onnx | 88.00 | 87.85 | +0.15 | 35% | 1 of 20 |"
