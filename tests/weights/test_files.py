"""Test that files are written atomically, and that checkpoints and weights of every kind are read."""

import os
import pickle
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from metamix.utils.files import atomic_write, write_text
from metamix.weights.files import load_checkpoint, load_metadata, load_weights, save_checkpoint, save_weights


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_a_checkpoint_is_read_as_it_was_saved(net, tmp_path):
    state = {"model": net.state_dict(), "history": [{"epoch": 1, "loss": 0.5}], "step": 3, "flag": None}
    save_checkpoint(tmp_path / "c.pt", state)
    loaded = load_checkpoint(tmp_path / "c.pt")
    assert loaded["history"] == state["history"] and loaded["step"] == 3 and loaded["flag"] is None
    assert all(torch.equal(loaded["model"][name], tensor) for name, tensor in net.state_dict().items())


def test_the_target_of_a_link_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    write_text(tmp_path / "disk" / "a", "old")
    (tmp_path / "a").symlink_to(tmp_path / "disk" / "a")
    write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").is_symlink() and (tmp_path / "disk" / "a").read_text() == "new"


def test_a_failure_while_writing_keeps_the_old_file(tmp_path):
    write_text(tmp_path / "a", "old")
    with pytest.raises(KeyError), atomic_write(tmp_path / "a") as file:
        file.write(b"half of the n")
        raise KeyError
    assert (tmp_path / "a").read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_error_about_another_file_keeps_its_message(tmp_path):
    """An input that cannot be read must not be reported as an output that cannot be written."""
    refused = pytest.raises(FileNotFoundError, match="No such file or directory: 'no such image'")
    with refused, atomic_write(tmp_path / "a"):
        Path("no such image").read_bytes()
    assert not list(tmp_path.iterdir())


def test_names_that_are_not_utf8_are_escaped(net, tmp_path):
    """Python decodes a Latin-1 file name to surrogates, which UTF-8 cannot encode."""
    write_text(tmp_path / "a", os.fsdecode(b"\xe9.png \xc3\xa9"))
    assert (tmp_path / "a").read_text(encoding="utf-8") == r"\udce9.png é"
    save_weights(tmp_path / "w.safetensors", net.state_dict(), {"data": "\udce9", "classes": ["\udce9"]})
    assert load_weights(tmp_path / "w.safetensors")[1] == {"data": r"\udce9", "classes": ["\udce9"]}


def test_a_pipe_or_device_is_written_to_and_not_replaced(tmp_path):
    """Replacing /dev/stdout or /dev/null would break other programs."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_text(tmp_path / "pipe", "text")
    assert os.read(reader, 10) == b"text" and (tmp_path / "pipe").is_fifo()
    os.close(reader)


@pytest.mark.parametrize("data", ["2012", "true", "1e5", '"quoted"', "digits", "ünïcode"])
def test_text_that_looks_like_a_number_or_json_stays_text(data, net, tmp_path):
    save_weights(tmp_path / "w.safetensors", net.state_dict(), {"data": data, "epochs": 3})
    assert load_weights(tmp_path / "w.safetensors")[1] == {"data": data, "epochs": 3}


def test_a_file_that_is_not_a_checkpoint_is_refused(net, tmp_path):
    path = tmp_path / "c.pt"
    for text, size in (("not a checkpoint at all", 23), ("{task: detection}", 17)):  # torch's message is left out
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"is truncated or not a PyTorch file \({size} bytes\)$"):
            load_checkpoint(path)
    torch.save(net.state_dict(), path)
    with pytest.raises(ValueError, match=r"is not a checkpoint .* of 9 entries \(0.weight.* run with --checkpoint"):
        load_checkpoint(path)
    with pytest.raises(FileNotFoundError, match="there is no file .*nothing.pt"):
        load_checkpoint(tmp_path / "nothing.pt")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.npz"])
def test_a_file_that_only_stands_for_weights_is_named(name, tmp_path):
    texts = {"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n": "git lfs pull"}
    for text, advice in (texts | {"\n<!DOCTYPE html>": "is a web page"}).items():
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=advice):
            load_weights(tmp_path / name)


def test_a_file_without_read_permission_is_not_called_missing(net, tmp_path, monkeypatch):
    save_weights(path := tmp_path / "w.safetensors", net.state_dict(), {})
    monkeypatch.setattr("builtins.open", Mock(side_effect=PermissionError(13, "Permission denied", str(path))))
    for load in load_weights, load_metadata:
        with pytest.raises(PermissionError, match="Permission denied: .*w.safetensors"):
            load(path)


def test_weights_are_saved_with_their_metadata(net, tmp_path):
    about = {"model": "net", "classes": ["a", "b"], "mean": [0.5], "img_size": 32, "top1": 97.25, "commit": None}
    save_weights(tmp_path / "model.safetensors", net.state_dict(), about)
    tensors, metadata = load_weights(tmp_path / "model.safetensors")
    assert metadata == about and all(torch.equal(tensors[name], tensor) for name, tensor in net.state_dict().items())
    assert load_file(tmp_path / "model.safetensors").keys() == net.state_dict().keys()
    assert load_weights(tmp_path)[1] == about  # a run folder
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-20])
    with pytest.raises(ValueError, match="is not a complete safetensors file"):
        load_weights(tmp_path)


def test_a_folder_of_runs_is_not_a_run(net, tmp_path):
    words = f"{tmp_path} has no model.safetensors or .* no export.json of an exported model; give a run folder or a wei"
    with pytest.raises(FileNotFoundError, match=words):
        load_weights(tmp_path)
    for run in ("b", "a"):
        (tmp_path / run).mkdir()
        save_weights(tmp_path / run / "model.safetensors", net.state_dict(), {})
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} has no .*; it holds the runs a, b: give one of them"):
        load_weights(tmp_path)
    (tmp_path / "model.xml").touch()
    with pytest.raises(FileNotFoundError, match="; if it is an export, copy the whole folder again, or export the mo"):
        load_weights(tmp_path)


def test_load_metadata_equals_the_metadata_of_load_weights(net, tmp_path):
    save_weights(tmp_path / "w.safetensors", net.state_dict(), {"model": "mine", "mean": [0.5], "note": "1"})
    assert load_metadata(tmp_path / "w.safetensors") == load_weights(tmp_path / "w.safetensors")[1]
    torch.save(net.state_dict(), tmp_path / "w.pth")
    assert load_metadata(tmp_path / "w.pth") == {}


def test_weights_are_read_from_every_kind_of_file(net, tmp_path):
    average = {name: tensor + 1 for name, tensor in net.state_dict().items()}
    about = {"model": "net"}
    for score, expected in (("last", net.state_dict()), ("ema", average)):
        save_checkpoint(
            tmp_path / "c.pt", {"recipe": {"score": score}, "about": about, "model": net.state_dict(), "ema": average}
        )
        tensors, metadata = load_weights(tmp_path / "c.pt")
        assert metadata == {"model": "net", "weights": score}
        assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    wrapped = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    for content in (net.state_dict(), {"state_dict": net.state_dict(), "epoch": 3}, {"model": wrapped}):
        torch.save(content, tmp_path / "w.pth")
        assert load_weights(tmp_path / "w.pth")[0].keys() == net.state_dict().keys()
    for content, said in (({"epoch": 3}, r"a dictionary of 1 entry \(epoch\)"), (3, "an object of type int")):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(ValueError, match=f"does not map names to tensors: it holds {said}"):
            load_weights(tmp_path / "w.pth")


def test_a_run_folder_loads_its_newest_weights(net, tmp_path, caplog, monkeypatch):
    """A finished run that was continued and then stopped must not be scored with its old weights."""
    read = Mock(wraps=torch.load)
    monkeypatch.setattr(torch, "load", read)

    def checkpoint(step):
        state = {"recipe": {"score": "last"}, "about": {"model": "net"}, "step": step}
        save_checkpoint(tmp_path / "checkpoint.pt", state | {"model": {"w": torch.full((2,), float(step))}})

    def weights():
        return load_weights(tmp_path)[0]["w"][0].item()

    checkpoint(step=5)  # stopped before it was finished
    assert weights() == 5
    read.assert_called_once()
    save_weights(tmp_path / "model.safetensors", {"w": torch.full((2,), 9.0)}, {"steps": 10})  # the best epoch
    write_text(tmp_path / "summary.json", "{}")
    checkpoint(step=10)
    assert weights() == 9
    (tmp_path / "summary.json").unlink()  # the run was continued
    assert weights() == 9
    caplog.clear()
    checkpoint(step=12)
    assert weights() == 12
    assert [record.message for record in caplog.records] == [
        f"the run in {tmp_path} is not finished: weights are read from checkpoint.pt, step 12, which is newer than "
        f"model.safetensors of step 10"
    ]


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_that_torch_cannot_read_safely_is_refused(protocol, tmp_path):
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps({"weight": [1.0, 2.0]}, protocol=protocol))
    for load in load_weights, load_checkpoint:
        with pytest.raises(ValueError, match="w.pkl is a Python pickle that torch cannot read safely"):
            load(path)
