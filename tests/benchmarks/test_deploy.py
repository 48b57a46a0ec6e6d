"""Test how the tables of deployed models are made from runs and reports."""

from benchmarks.measure import deploy


def row(engine, precision, ms, speedup, batch=8):
    return dict(model="metaformer_nin_s12", engine=engine, precision=precision, batch=batch, ms=ms, speedup=speedup)


def test_runs_are_merged_by_their_medians():
    runs = [
        [row("eager", "fp32", 100.0, s), row("openvino", "int8", ms, 4 * s)] for s, ms in ((1, 30), (3, 20), (2, 10))
    ]
    eager, int8 = deploy.merge(runs)
    assert (eager["ms"], eager["speedup"], eager["from"], eager["to"], eager["img_per_s"]) == (100, 2, 1, 3, 80)
    assert (int8["ms"], int8["speedup"], int8["img_per_s"]) == (20, 8, 400)


def test_the_speed_table_has_a_column_for_each_engine_and_precision():
    rows = [row("eager", "fp32", 100.0, 1.0), row("openvino", "int8", 25.04, 3.99), row("eager", "fp32", 9.0, 1.0, 1)]
    assert deploy.speed_table({"rows": rows}).splitlines() == [
        "| model | eager fp32 | openvino int8 |",
        "| --- | --- | --- |",
        "| `metaformer_nin_s12` | 100.0 (1.00) | 25.0 (3.99) |",
    ]


def test_the_int8_table_says_what_is_lost():
    found = dict(model="nin.cifar10", format="onnx", eager_top1=88.0, top1=87.85, bytes=35, fp32_bytes=100)
    line = deploy.int8_table({"rows": [found | {"quantization": {"kept": ["a"], "layers": 20}}]}).splitlines()[-1]
    assert line == "| `nin.cifar10` | onnx | 88.00 | 87.85 | +0.15 | 35% | 1 of 20 |"
