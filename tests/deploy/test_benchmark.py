"""Test `metamix benchmark`: what it times, prints and refuses."""

import json
import subprocess
import sys
from importlib import import_module

import pytest
import timm
import torch

import metamix.tasks.benchmark
from metamix.deploy import benchmark
from metamix.deploy.benchmark import table
from metamix.deploy.formats import openvino

module = import_module("metamix.deploy.benchmark")  # `metamix.deploy.benchmark` is the function


@pytest.fixture(autouse=True)
def shallow(monkeypatch):
    """Replace `create_model`: build a shallow model with the mixer in the model's name, such as metaformer_raft_s12."""

    def create(name, img_size=16):
        arguments = dict(mixer=name.split("_")[1], img_size=img_size, depths=(1,), dims=(16,))
        model = timm.create_model("metaformer_pooling_nano", **arguments)
        model.pretrained_cfg["input_size"] = (3, 16, 16)
        return model

    monkeypatch.setattr(module, "create_model", create)


def test_every_engine_is_timed_in_each_of_its_precisions(capsys, tmp_path):
    file, threads = tmp_path / "new" / "speed.json", torch.get_num_threads()
    limit, seed = torch._dynamo.config.recompile_limit, torch.seed()
    words = ["metaformer_pooling_s12", "--engines", "eager,onnxruntime,openvino", "--batch-sizes", "2"]
    metamix.tasks.benchmark.main([*words, "--threads", "1", "--seconds", "0", "--json", str(file)])
    result, printed = json.loads(file.read_text()), capsys.readouterr().out
    cells = {(row["engine"], row["precision"]): row for row in result["rows"]}
    assert [*cells] == [
        *(("eager", "fp32"), ("eager", "bf16"), ("onnxruntime", "fp32"), ("onnxruntime", "int8")),
        *(("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "int8")),
    ]
    row = cells["openvino", "int8"]
    assert row["ms"] > 0 and row["img_per_s"] == pytest.approx(2000 / row["ms"], rel=0.1)
    assert row["speedup"] == pytest.approx(cells["eager", "fp32"]["ms"] / row["ms"], rel=0.1)
    assert result["threads"] == 1 and {"openvino", "onnxruntime", "torch"} <= result["versions"].keys()
    assert result["machine"]["cpu"] in printed and f"1 thread, {result['measured']}; " in printed
    assert "metaformer_pooling_s12  openvino     int8           16      2  " in printed
    assert torch.get_num_threads() == threads and torch._dynamo.config.recompile_limit == limit
    assert torch.initial_seed() == seed


def test_runs_with_similar_names_are_not_confused(tmp_path):
    images = torch.rand(2, 3, 16, 16)
    for name, classes in (("runs/a", 3), ("runs-a", 5)):
        net = timm.create_model("metaformer_pooling_nano", depths=(1,), dims=(16,), num_classes=classes)
        (outputs,) = module.BenchmarkedModel(name, net, images).step("openvino", "fp32", 1, tmp_path)()
        assert outputs.shape == (1, classes)


def test_models_are_compared_with_the_reference(monkeypatch):
    times = {"pooling": 0.004, "raft": 0.002, "nin": 0.001}
    monkeypatch.setattr(
        module, "interleaved", lambda steps, seconds: {key: times[key[0].name.split("_")[1]] for key in steps}
    )
    names = ["metaformer_raft_s12", "metaformer_nin_s12"]
    engines = ["eager", "onnxruntime"]  # onnxruntime has no bf16, and is not needed here
    result = benchmark(names, engines=engines, precisions=["bf16"], batch_sizes=[1, 4], img_size=24)
    assert "torch" in result["versions"] and "onnxruntime" not in result["versions"]
    assert [(row["model"], row["batch"], row["speedup"]) for row in result["rows"]] == [
        *(("metaformer_raft_s12", 1, 1.0), ("metaformer_raft_s12", 1, 1.0), ("metaformer_nin_s12", 1, 2.0)),
        *(("metaformer_raft_s12", 4, 1.0), ("metaformer_raft_s12", 4, 1.0), ("metaformer_nin_s12", 4, 2.0)),
    ]
    assert {row["img_size"] for row in result["rows"]} == {24} and result["rows"][-1]["img_per_s"] == 4000
    result = benchmark(
        names, engines=["eager"], precisions=["fp32"], batch_sizes=[1], reference="metaformer_pooling_s12"
    )
    assert [row["speedup"] for row in result["rows"]] == [1.0, 2.0, 4.0]
    assert "speedup: how many times as fast as metaformer_pooling_s12 in eager fp32" in table(result)


def test_runs_are_merged_by_their_medians(monkeypatch):
    runs = iter([(0.1, 0.1), (0.3, 0.1), (0.2, 0.05)])
    monkeypatch.setattr(module, "interleaved", lambda steps, seconds: dict(zip(steps, next(runs))))
    result = benchmark(["metaformer_nin_s12"], engines=["eager"], batch_sizes=[8], runs=3)
    fp32, bf16 = result["rows"]
    assert (fp32["ms"], fp32["speedup"], fp32["from"], fp32["to"], fp32["img_per_s"]) == (200, 1, 1, 1, 40)
    assert (bf16["ms"], bf16["speedup"], bf16["from"], bf16["to"], bf16["img_per_s"]) == (100, 3, 1, 4, 80)
    assert result["runs"] == 3


def test_openvino_and_nncf_send_no_statistics():
    """Both report their use to Google Analytics if they can import openvino_telemetry."""
    code = """
import sys
sys.addaudithook(lambda event, args: event == "socket.getaddrinfo" and print("reaches for", args[0], flush=True))
from metamix_cli import main
words = "benchmark metaformer_pooling_nano.digits --engines openvino --precisions int8 --batch-sizes 1 --seconds 0"
main(words.split())
"""
    process = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True)
    assert process.returncode == 0 and "int8" in process.stdout, process.stderr
    assert "reaches for" not in process.stdout


def test_converted_models_are_reused(monkeypatch, tmp_path):
    options = dict(engines=["openvino"], precisions=["fp32"], batch_sizes=[1], seconds=0, folder=tmp_path)
    assert benchmark(["metaformer_nin_s12"], **options)["failed"] == {}
    assert {file.name for file in tmp_path.iterdir()} == {f"metaformer_nin_s12-16-fp32.{s}" for s in ("xml", "bin")}
    monkeypatch.setattr(openvino, "to_program", lambda *graph: pytest.fail("converted again"))
    assert benchmark(["metaformer_nin_s12"], **options)["failed"] == {}


def test_an_engine_that_is_installed_under_another_name_is_timed(monkeypatch):
    """The module onnxruntime may come from the package onnxruntime-gpu."""
    monkeypatch.setattr(module, "packages", lambda engine, precision: ("engine_of_another_name",))
    monkeypatch.setattr(module, "need", lambda package: None)
    result = benchmark(["metaformer_nin_s12"], engines=["eager"], precisions=["fp32"], batch_sizes=[1], seconds=0)
    assert len(result["rows"]) == 1 and "engine_of_another_name" not in result["versions"]


def test_a_model_that_an_engine_cannot_run_is_named(monkeypatch):
    def fail(*arguments):
        raise ValueError("OpenVINO cannot convert the model: no such op\nand more")

    monkeypatch.setattr(openvino, "to_program", fail)
    options = dict(engines=["eager", "openvino"], precisions=["fp32"], batch_sizes=[1], seconds=0)
    result = benchmark(["metaformer_nin_s12"], **options)
    assert [row["engine"] for row in result["rows"]] == ["eager"]
    assert table(result).endswith("openvino fp32 failed: OpenVINO cannot convert the model: no such op")


def test_an_error_without_a_message_is_named_by_its_type():
    def forward(images):
        raise NotImplementedError

    model = torch.nn.Identity()
    model.forward = forward
    subject = module.BenchmarkedModel("bad", model, torch.rand(2, 3, 16, 16))
    result = benchmark([subject], engines=["eager"], precisions=["fp32"], batch_sizes=[1], seconds=0)
    assert result["failed"] == {"bad eager fp32": "NotImplementedError"}


def test_wrong_options_and_missing_packages_are_refused(monkeypatch):
    twins = [module.BenchmarkedModel("net", torch.nn.Identity(), torch.rand(1, 3, 8, 8)) for _ in range(2)]
    for models, options, words in (
        (twins, {}, "several models have the name net: give each model a different name"),
        (["metaformer_nin_s12"], dict(engines=["openvin"]), "engine is 'openvin'; did you mean 'openvino'"),
        (["metaformer_nin_s12"], dict(precisions=["int4"]), "precision is 'int4'; did you mean 'int8'"),
        (["metaformer_nin_s12"], dict(engines=["compile"], precisions=["int8"]), "compile cannot compute in int8: "),
        ([], dict(batch_sizes=[1]), r"models are \[\], batch sizes \[1\], runs 1: give at least one model"),
    ):
        with pytest.raises(ValueError, match=words):
            benchmark(models, **dict(engines=["eager"]) | options)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"openvino is missing: pip install 'metamix\[deploy\]', or just openvino"):
        benchmark(["metaformer_nin_s12"], engines=["openvino"])
    exported = module.BenchmarkedModel("out", torch.nn.Identity(), twins[0].images, cell=("onnxruntime", "fp32"))
    result = benchmark([exported], batch_sizes=[1], seconds=0)
    assert result["rows"] and "onnxruntime" in result["versions"] and "openvino" not in result["versions"]
