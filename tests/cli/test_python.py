"""Test `metamix.train` and `metamix.evaluate`, which do in Python what the commands do."""

import json
import shlex
import signal

import numpy as np
import pytest
import torch
from torch import nn

import metamix
import metamix.cli.train
from metamix.training.processes import Stopped
from metamix.training.step import TrainStep
from metamix.utils.options import read_yaml
from metamix.weights.files import load_weights
from tests.helpers.running import MODEL

ARGS = {"depths": [1, 1, 1], "dims": [8, 8, 16]}
TINY = dict(model=MODEL, model_args=ARGS, device="cpu", epochs=1, batch_size=256)


def test_a_call_trains_and_scores_as_the_commands_do(tmp_path):
    folder = metamix.train("digits/demo", **TINY, output=tmp_path / "call")
    words = f"--config digits/demo --model {MODEL} --model-args '{ARGS}' --device cpu --epochs 1 --batch-size 256"
    metamix.cli.train.main([*shlex.split(words), "--output", str(tmp_path / "command")])
    assert folder == tmp_path / "call"
    tensors, others = (load_weights(tmp_path / name / "model.safetensors")[0] for name in ("call", "command"))
    assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())

    result = metamix.evaluate(checkpoint=folder, data="digits", output=tmp_path / "result", device="cpu")
    assert json.loads((tmp_path / "result/result.json").read_text()) == result
    assert result["top1"] == json.loads((folder / "summary.json").read_text())["top1"]
    assert result["by_class"].keys() == set("0123456789")


def test_a_call_takes_tuples_and_numbers_of_numpy(tmp_path):
    call = dict(TINY, epochs=np.int64(1), opt_args={"betas": (0.9, np.float64(0.99))}, ema=np.True_, output=tmp_path)
    metamix.train("digits/demo", **call)
    assert metamix.train("digits/demo", **call) == tmp_path
    recipe = read_yaml(tmp_path / "recipe.yaml")
    assert (recipe["epochs"], recipe["opt_args"], recipe["ema"]) == (1, {"betas": [0.9, 0.99]}, True)


@pytest.mark.parametrize(
    "options, said",
    [
        (dict(bach_size=8), "there is no option 'bach_size'; did you mean 'batch_size'"),
        (dict(batch_size="8"), "batch_size is '8', but it must be a whole number"),
        (dict(model="metaformer_raft_nano,metaformer_nin_nano"), "metamix.train trains one model: call it for each"),
        (dict(task="detecton"), "task is 'detecton'"),
        (dict(config="digits/dem"), "there is no config digits/dem; did you mean 'digits/demo'"),
        (dict(model_args={"act_layer": nn.GELU}), "model_args holds <class 'torch.nn.modules.activation.GELU'>, but a"),
        (dict(device=torch.device("cpu")), "device holds device(type='cpu'), but a recipe holds only text, numbers"),
        (dict(power=2.0), "--power has no effect without --schedule poly"),
    ],
)
def test_a_wrong_argument_is_refused(options, said, tmp_path):
    with pytest.raises(ValueError) as refused:
        metamix.train(**options, data="digits", output=tmp_path / "run")
    assert said in str(refused.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("launched, code", [(False, 143), (True, 0)])
def test_a_stopped_call_is_resumed_by_the_same_call(launched, code, tmp_path, monkeypatch):
    """Under torchrun, the call ends the process with 0, since torchrun would restart it after any other code."""
    if launched:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    step = TrainStep.__call__

    def interrupted(*args):
        monkeypatch.setattr(TrainStep, "__call__", step)  # only the first step is interrupted
        signal.raise_signal(signal.SIGTERM)
        return step(*args)

    monkeypatch.setattr(TrainStep, "__call__", interrupted)
    with pytest.raises(Stopped) as stopped:
        metamix.train("digits/demo", **TINY, output=tmp_path)
    assert stopped.value.code == code
    assert not (tmp_path / "summary.json").exists()
    assert metamix.train("digits/demo", **TINY, output=tmp_path) == tmp_path
    assert (tmp_path / "summary.json").exists()
