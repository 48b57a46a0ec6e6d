"""Test that files with flipped bits, a missing end, the wrong format or code in them are refused and named."""

import json
import logging
import pickle
import zipfile
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from benchmarks.weight_cards import SUMS
from metamix.training.checkpoints import Checkpoints
from metamix.training.processes import ProcessGroup
from metamix.training.recipe import EngineOptions, Recipe
from metamix.training.reports import compare_runs, read_metrics, read_summary
from metamix.training.train import is_finished
from metamix.weights import files as tensor_files
from metamix.weights.checksums import sha256
from metamix.weights.files import load_checkpoint, load_metadata, load_weights, save_checkpoint, save_weights
from metamix.weights.find import weights_dir
from metamix.weights.fit import load_into
from tests.helpers.attack import Attack
from tests.helpers.running import train


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 2))


def checkpoint(net):
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.randn(4, 64)).sum().backward()
    optimizer.step()
    return {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "step": 3, "history": [{"loss": 0.5}]}


def flip(path, position, bit=0):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def find(path, tensor):
    """Return the position of a tensor's bytes in a file that is not compressed."""
    return path.read_bytes().index(tensor.numpy().tobytes())


def test_a_flipped_bit_in_a_checkpoint_is_refused_and_the_tensor_is_named(net, tmp_path):
    state = checkpoint(net)
    save_checkpoint(tmp_path / "c.pt", state)
    load_checkpoint(tmp_path / "c.pt")
    flip(tmp_path / "c.pt", find(tmp_path / "c.pt", state["model"]["2.weight"]) + 5)
    with pytest.raises(ValueError, match=r"c.pt is damaged: the checksum of its tensor model.2.weight is wrong"):
        load_checkpoint(tmp_path / "c.pt")
    save_checkpoint(tmp_path / "c.pt", state)
    moment = state["optimizer"]["state"][0]["exp_avg"]
    flip(tmp_path / "c.pt", find(tmp_path / "c.pt", moment) + 7, bit=4)
    with pytest.raises(ValueError, match="the checksum of its tensor optimizer.state.0.exp_avg is wrong"):
        load_checkpoint(tmp_path / "c.pt")


def test_a_flipped_bit_in_weights_is_refused(net, tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, net.state_dict(), {"model": "net", "mean": [0.25]})
    flip(path, find(path, net[0].bias.detach()))
    with pytest.raises(ValueError, match=r"w.safetensors is damaged: the checksum of its tensor 0.bias is wrong"):
        load_weights(path)
    save_weights(path, net.state_dict(), {"model": "net", "mean": [0.25]})
    assert load_metadata(path) == {"model": "net", "mean": [0.25]}
    flip(path, path.read_bytes().index(b"0.25") + 2)
    for read in load_weights, load_metadata:
        with pytest.raises(ValueError, match=r"w.safetensors is damaged: the checksum of its metadata is wrong"):
            read(path)


def test_every_shipped_file_is_listed_with_its_sha256():
    files = {path.name: sha256(path) for path in weights_dir().glob("*.safetensors")}
    lines = "".join(f"{files[name]}  {name}\n" for name in sorted(files))
    assert (weights_dir() / SUMS).read_text() == lines, "run in weights/: LC_ALL=C sha256sum *.safetensors > SHA256SUMS"


def test_every_shipped_file_has_checksums():
    for path in weights_dir().glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            assert "checksums" in file.metadata(), path.name


def test_damaged_weights_are_refused_through_timm_too(tmp_path):
    name = "minattn_minimal_nomlp_h1_mnist"
    model, path = timm.create_model(name), tmp_path / "w.safetensors"
    save_weights(path, model.state_dict(), {"model": name})
    flip(path, find(path, model.head.weight.detach()))
    with pytest.raises(ValueError, match="the checksum of its tensor head.weight is wrong"):
        timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(path)})


def test_a_file_of_another_program_has_no_checksums_and_is_read_with_one_warning(net, tmp_path, caplog):
    path = tmp_path / "other.safetensors"
    save_file(net.state_dict(), path, {"model": "net"})
    with caplog.at_level(logging.WARNING, "metamix"):
        for _ in range(2):
            load_weights(path)
    assert caplog.messages == [f"{path} has no checksums, so damage to it would go unnoticed"]


@pytest.mark.parametrize("bit", range(8))
@pytest.mark.parametrize("kind", ["weights", "weights of a run", "checkpoint"])
def test_a_flipped_bit_in_the_word_checksums_is_refused(kind, bit, net, tmp_path):
    """Without checksums the file would be read as a file of another program."""
    path = tmp_path / ("c.pt" if kind == "checkpoint" else "w.safetensors")
    if kind == "checkpoint":
        save_checkpoint(path, checkpoint(net))
    else:
        save_weights(path, net.state_dict(), {"versions": {}} if "run" in kind else {"task": "classification"})
    flip(path, path.read_bytes().index(b"checksums") + 4, bit)
    with pytest.raises(ValueError, match=f"{path.name} is (damaged: metamix wrote it, but it has no|not a|trunc)"):
        load_checkpoint(path) if kind == "checkpoint" else load_weights(path)


def test_a_flipped_bit_in_the_format_of_a_checkpoint_is_refused(net, tmp_path):
    """If the checkpoint were read as a file of another program, its EMA weights would be ignored."""
    save_checkpoint(tmp_path / "c.pt", checkpoint(net))
    flip(tmp_path / "c.pt", (tmp_path / "c.pt").read_bytes().index(b"metamix-checkpoint"))
    with pytest.raises(ValueError, match="c.pt is damaged: the checksum of its metadata is wrong"):
        load_weights(tmp_path / "c.pt")


def test_a_run_does_not_resume_from_a_damaged_checkpoint(tmp_path):
    words = ["--batch-size", 512, "--warmup-epochs", 0, "--output", tmp_path]
    train(*words, "--epochs", 1)
    path = tmp_path / "checkpoint.pt"
    flip(path, find(path, load_checkpoint(path)["model"]["head.weight"]) + 2, bit=3)
    with pytest.raises(SystemExit, match=r"checkpoint.pt is damaged: the checksum of its tensor model.head.weight is"):
        train(*words, "--epochs", 2)


def test_damaged_weights_of_a_finished_run_are_named_and_can_be_written_again(tmp_path):
    words = ["--batch-size", 512, "--warmup-epochs", 0, "--output", tmp_path, "--epochs", 1]
    train(*words)
    weights = tmp_path / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_weights(weights)[0].items()}  # the file changes below
    flip(weights, find(weights, tensors["head.weight"]) + 2)
    with pytest.raises(SystemExit, match="is finished, but .*safetensors is damaged: .*, or delete it and repeat"):
        train(*words)
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(SystemExit, match="is finished, but .* is not a complete safetensors file"):
        train(*words)
    (tmp_path / "summary.json").unlink()
    train(*words)
    again, _ = load_weights(weights)
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
    (tmp_path / "checkpoint.pt").unlink()
    weights.write_bytes(b"")
    with pytest.raises(SystemExit, match=r"or give another --output to train again, since there is no checkpoint.pt"):
        train(*words)


def test_a_checkpoint_without_some_entries_is_refused(net, tmp_path):
    save_checkpoint(tmp_path / "checkpoint.pt", {"model": net.state_dict(), "recipe": {}})
    with pytest.raises(ValueError, match=r"checkpoint.pt is incomplete: it has no about. Use another checkpoint"):
        load_weights(tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint.pt is incomplete: it has no about, step, steps_per"):
        Checkpoints(tmp_path, 10).find("", ProcessGroup(0, 1, torch.device("cpu")))
    with pytest.raises(ValueError, match="checkpoint.pt is incomplete: it has no step"):
        load_weights(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_a_summary_that_cannot_be_read_is_named(text, tmp_path):
    """`is_finished` reads the summary before a run starts or resumes."""
    recipe = Recipe("task", EngineOptions(), NoOptions())
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(ValueError, match=r"summary.json (is not valid JSON|holds .*list, not an object).*\. Delete it"):
        is_finished(tmp_path, recipe, {})


def test_entries_of_a_summary_and_rows_of_a_history_are_checked(tmp_path):
    summary = dict(model="a", data="b", weights="ema", pictures=[], epochs=1, parameters=1, macs=1, seconds=1, top1=9.5)
    entries = summary | {"img_per_s": 1, "scores": ["top1"], "psnr": float("inf")}
    for change, problem in (
        ({}, ""),
        ({"scores": ["psnr"]}, ""),
        ({"scores": ["top5"]}, "top5 is missing. Delete it to score the run again"),
        ({"top1": "9"}, "top1 is '9', but it must be a number"),
        ({"epochs": None}, "epochs is None, but it must be a whole number of at least 0"),
    ):
        (tmp_path / "summary.json").write_text(json.dumps(entries | change))
        with pytest.raises(ValueError, match=f"summary.json: {problem}") if problem else nullcontext():
            read_summary(tmp_path)
    history = tmp_path / "metrics.csv"
    history.write_text("epoch,train_loss,holdout_top1\n1,0.5,\n2,0.25,90\n")
    assert read_metrics(history) == [
        {"epoch": 1, "train_loss": 0.5},
        {"epoch": 2, "train_loss": 0.25, "holdout_top1": 90},
    ]
    for text in ("epoch,lr\n1,x\n", "epoch\n1,2\n", 'epoch\n"1\n'):
        history.write_text(text)
        with pytest.raises(ValueError, match="metrics.csv is damaged .*; repair it, or train again"):
            read_metrics(history)
    history.write_text("train_lass\n1\n")  # without the columns that are drawn
    (tmp_path / "summary.json").write_text(json.dumps(entries))
    assert "compared-b.png" in compare_runs([tmp_path])


def test_an_npy_file_that_is_named_npz_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(3))
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="a.npz is not a complete .npz file of arrays"):
        load_weights(tmp_path / "a.npz")


def test_code_in_an_npz_file_is_not_run(tmp_path):
    evil = tmp_path / "evil"
    np.savez(tmp_path / "a.npz", a=np.array([Attack(evil)], dtype=object))
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Attack(evil)))
    for name, problem in (("a", "Object arrays cannot be .*"), ("b", ".* pickled .*")):
        with pytest.raises(ValueError, match=rf"{name}.npz is not a complete .npz file of arrays \({problem}\): dow"):
            load_weights(tmp_path / f"{name}.npz")
    assert not evil.exists()


def test_a_zip_file_in_several_parts_is_refused(net, tmp_path):
    """Python's `zipfile.is_zipfile` raises an error for such a file instead of returning False."""
    torch.save(net.state_dict(), tmp_path / "w.pt")
    content = bytearray((tmp_path / "w.pt").read_bytes())
    content[content.rindex(b"PK\x06\x07") + 16] = 9  # number of parts in zip64's locator
    content[content.index(b"\x80\x02")] = 0  # start of the pickle, so that torch fails
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(ValueError, match="w.pt is truncated or not a PyTorch file"):
        load_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(share, net, tmp_path):
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"model": net.state_dict()})
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"c\.pt is truncated or not a PyTorch file \([\d,]+ bytes"):
        load_checkpoint(path)


def test_an_infinite_mask_is_not_damage(net):
    net.register_buffer("mask", torch.full((2,), -torch.inf))
    load_into(net, net.state_dict(), "f")


@dataclass
class NoOptions:
    """The options of a task without options."""


def write_zip(path, attack, net):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps(attack, protocol=2))
        archive.writestr("x/version", "3")


CODE = r"holds code, .* would run (getattr|torch\.nn\.[\w.]+), which metamix never does. Delete it if you do not"
PICKLE = "(holds code|is a Python pickle)"
ATTACKS = [
    (CODE, lambda path, attack, net: torch.save(attack, path)),
    (CODE, lambda path, attack, net: torch.save({"format": tensor_files.FORMAT, "model": attack}, path)),
    (CODE, lambda path, attack, net: torch.save({"state_dict": net.state_dict() | {"x": attack}}, path)),
    (CODE, lambda path, attack, net: torch.save(attack, path, _use_new_zipfile_serialization=False)),
    (CODE, lambda path, attack, net: path.write_bytes(pickle.dumps(attack, protocol=2))),
    (CODE, lambda path, attack, net: torch.save(net, path)),
    # Protocols and archives that torch does not read
    (PICKLE, lambda path, attack, net: path.write_bytes(pickle.dumps(attack))),
    (PICKLE, lambda path, attack, net: path.write_bytes(pickle.dumps(attack, protocol=0))),
    (PICKLE, lambda path, attack, net: torch.save({"w": attack}, path, pickle_protocol=0)),
    (PICKLE, lambda path, attack, net: torch.save({"w": attack}, path, pickle_protocol=4)),
    (PICKLE, write_zip),
    (
        "is truncated or not",
        lambda path, attack, net: torch.save(attack, path, pickle_protocol=0, _use_new_zipfile_serialization=False),
    ),
]


@pytest.mark.parametrize("words, write", ATTACKS, ids=range(len(ATTACKS)))
@pytest.mark.parametrize("load", [load_checkpoint, load_weights])
def test_no_code_in_a_file_runs(words, write, load, net, tmp_path):
    """A plain unpickler would run the code."""
    evil, path = tmp_path / "evil", tmp_path / "attack.pt"
    write(path, Attack(evil), net)
    with pytest.raises(ValueError, match=f"attack.pt {words}"):
        load(path)
    assert not evil.exists()


def test_a_truncated_file_of_tensors_is_not_reported_as_code(net, tmp_path):
    for old in (True, False):
        torch.save(net.state_dict(), tmp_path / "w.pt", _use_new_zipfile_serialization=not old)
        (tmp_path / "w.pt").write_bytes((tmp_path / "w.pt").read_bytes()[:-400])
        with pytest.raises(ValueError, match="w.pt is truncated or not a PyTorch file"):
            load_weights(tmp_path / "w.pt")
