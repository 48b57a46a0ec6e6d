"""Test how engines are asked to compute."""

from types import SimpleNamespace

import pytest

from metamix.deploy import runtime


@pytest.mark.parametrize(
    ("capabilities", "hints", "asked"),
    [
        (["FP32", "BF16"], runtime.HINTS["int8"], "bf16"),
        (["FP32", "BF16"], {}, "f32"),
        (["FP32"], runtime.HINTS["int8"], "f32"),
    ],
)
def test_openvino_computes_in_bf16_where_the_processor_can(monkeypatch, capabilities, hints, asked):
    given = {}
    core = SimpleNamespace(
        get_property=lambda device, name: capabilities,
        compile_model=lambda model, device, properties: given.update(properties),
    )
    monkeypatch.setattr(runtime, "need", lambda package: SimpleNamespace(Core=lambda: core))
    runtime.open_openvino(object(), 1, hints)
    assert given == {"INFERENCE_PRECISION_HINT": asked, "INFERENCE_NUM_THREADS": 1}
