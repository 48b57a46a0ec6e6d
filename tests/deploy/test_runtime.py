"""Test the settings of engines, and their errors."""

from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from time import sleep
from types import SimpleNamespace

import numpy as np
import pytest

from metamix.deploy import runtime
from metamix.deploy.formats import openvino
from metamix.utils.checks import DoesNotFit


@pytest.mark.parametrize(
    ("capabilities", "precision", "asked"),
    [(["FP32", "BF16"], "int8", "bf16"), (["FP32", "BF16"], "fp32", "f32"), (["FP32"], "int8", "f32")],
)
def test_openvino_computes_int8_graphs_in_bf16_if_the_processor_can(monkeypatch, capabilities, precision, asked):
    settings = {}
    core = SimpleNamespace(
        get_property=lambda device, name: capabilities,
        compile_model=lambda model, device, properties: settings.update(properties),
    )
    monkeypatch.setattr(openvino, "need", lambda package: SimpleNamespace(Core=lambda: core))
    openvino.open_openvino(object(), 1, precision)
    assert settings == {"INFERENCE_PRECISION_HINT": asked, "INFERENCE_NUM_THREADS": 1}


def test_threads_take_turns_in_an_openvino_model(monkeypatch):
    """A compiled OpenVINO model has one inference request, so two threads would overwrite each other's images."""
    busy = Lock()

    def compiled(inputs):
        assert busy.acquire(blocking=False), "two threads are in the model"
        sleep(0.05)
        busy.release()
        return {"logits": inputs[0]}

    monkeypatch.setattr(openvino, "compile_openvino", lambda *settings: compiled)
    run = openvino.open_openvino(object())
    with ThreadPoolExecutor(3) as pool:
        assert [output.item() for (output,) in pool.map(run, map(np.asarray, range(3)))] == [0, 1, 2]


def test_errors_of_an_engine_are_reported_but_a_lack_of_memory_is_not_blamed_on_the_image():
    def fail(images):
        raise error

    exported = runtime.ExportedModel(fail, SimpleNamespace(input_shape=(None, 3, 8, 8)))
    error = RuntimeError("Exception from core.cpp:84:\n  the shapes do not fit\n\n")
    with pytest.raises(DoesNotFit, match=r"fails on images of shape \(2, 3, 8, 8\) \(the shapes do not fit\)"):
        exported(np.zeros((2, 3, 8, 8)))
    with pytest.raises(DoesNotFit, match=r"\(0, 3, 8, 8\) are given, but the exported model takes \(n, 3, 8, 8\)"):
        exported(np.zeros((0, 3, 8, 8)))
    error = MemoryError()
    with pytest.raises(MemoryError):
        exported(np.zeros((2, 3, 8, 8)))


@pytest.mark.parametrize("threads", [0, "2"])
def test_a_wrong_number_of_threads_is_not_blamed_on_the_file(threads, tmp_path):
    with pytest.raises(ValueError, match=f"threads is {threads!r}: give a whole number of at least 1"):
        runtime.load_exported(tmp_path, threads=threads)
