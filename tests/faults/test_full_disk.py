"""Test that the last good checkpoint survives a full disk, and that errors name the file and the reason."""

import errno
import os
import resource
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from PIL import Image

from metamix.data import open_data
from metamix.utils import files
from metamix.utils.files import write_text
from metamix.weights.files import save_checkpoint, save_weights
from tests.helpers.running import metamix_command, metrics, train


@contextmanager
def files_of_at_most(size):
    """Make writing fail after `size` bytes of a file, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path):
    words = ["--epochs", 1, "--batch-size", 256, "--output", tmp_path]
    train(*words)
    whole = (tmp_path / "checkpoint.pt").read_bytes()
    stopped = pytest.raises(SystemExit, match=r"\(File too large\); stopped at step 10, .*, step 5\. Free some")
    with files_of_at_most(len(whole) // 2), stopped:
        train(*words, "--epochs", 2)
    assert (tmp_path / "checkpoint.pt").read_bytes() == whole
    assert not list(tmp_path.glob("*.tmp")) and (tmp_path / "state.txt").read_text() == "failed\n"
    train(*words, "--epochs", 2)
    assert [row["epoch"] for row in metrics(tmp_path)] == ["1", "2"]


@pytest.mark.parametrize(
    "write",
    [
        lambda path: save_checkpoint(path, {"model": {"w": torch.zeros(10**6)}}),
        lambda path: save_weights(path, {"w": torch.zeros(10**6)}, {}),
        lambda path: write_text(path, "text"),
    ],
    ids=["checkpoint", "weights", "text"],
)
def test_a_full_disk_is_called_a_full_disk(write, tmp_path, monkeypatch):
    """/dev/full refuses every byte, like a full disk."""
    monkeypatch.setattr(files, "open", lambda *_, **__: open("/dev/full", "wb"), raising=False)  # noqa: SIM115
    with pytest.raises(OSError, match=r"file could not be written \(the disk is full\)$"):
        write(tmp_path / "file")


def test_a_full_disk_ends_an_export(tmp_path, monkeypatch):
    def open_full(path, mode, opener=None):
        full = path.name.startswith("model.pt2")
        return open("/dev/full", "wb") if full else open(path, mode, opener=opener)

    monkeypatch.setattr(files, "open", open_full, raising=False)
    words = ["--format", "torch", "--seconds", 0, "--output", tmp_path / "out"]
    with pytest.raises(SystemExit, match=r"^error: \S+model.pt2 could not be written \(the disk is full\)$"):
        metamix_command("export", "metaformer_pooling_nano.digits", *words)


@pytest.mark.parametrize(
    "format, file, package", [("onnx", "model.onnx", "onnxscript"), ("openvino", "model.xml", "openvino")]
)
def test_an_engine_that_cannot_write_its_file_is_reported(format, file, package, tmp_path):
    """The engines write their files themselves, and OpenVINO raises a RuntimeError of its own."""
    pytest.importorskip(package, reason="needs the extra deploy")
    words = ["metaformer_pooling_nano.digits", "--format", format, "--seconds", 0, "--output", tmp_path / "out"]
    refused = pytest.raises(SystemExit, match=rf"^error: \S+{file} could not be written \(.*; [\d,.]+ MB are free")
    with files_of_at_most(10**5), refused:
        metamix_command("export", *words)
    assert not (tmp_path / "out" / "export.json").exists()


def test_publish_on_a_full_disk_leaves_no_truncated_file(tmp_path, monkeypatch):
    def open_full(path, mode, opener=None):
        full = path.parent == tmp_path / "out" and path.name.startswith("model.safetensors")
        return open("/dev/full", "wb") if full else open(path, mode, opener=opener)

    monkeypatch.setattr(files, "open", open_full, raising=False)
    with pytest.raises(SystemExit, match=r"out/model.safetensors could not be written \(the disk is full\)$"):
        metamix_command("publish", "metaformer_pooling_nano.digits", "me/digits", "--dry-run", tmp_path / "out")
    assert not list((tmp_path / "out").glob("model*"))


@pytest.fixture
def albums(tmp_path):
    """Make a folder of images for each of two labels."""
    for label, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        (tmp_path / "albums" / label).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (8, 8), colour).save(tmp_path / "albums" / label / f"{label}{i}.png")
    return tmp_path / "albums"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()], ids=repr)
def test_a_conversion_that_ends_early_leaves_nothing_that_looks_complete(error, albums, tmp_path, monkeypatch):
    def link_some(source, place, links=[]):  # noqa: B006
        links.append(place)
        if len(links) == 6:
            raise error
        link(source, place)

    link = os.link
    words = ["folders", albums, tmp_path / "out"]
    with monkeypatch.context() as patch:
        patch.setattr("metamix.tasks.convert.os.link", link_some)
        patch.setattr("metamix.tasks.convert.shutil.copy2", Mock(side_effect=error))
        if isinstance(error, OSError):
            with pytest.raises(SystemExit, match="^error: .*No space left on device"):
                metamix_command("convert", *words)
        else:
            assert metamix_command("convert", *words) == 130
    assert not list((tmp_path / "out").iterdir())
    metamix_command("convert", *words)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["labels.csv", "train", "val"]


@pytest.mark.parametrize("output", ["labels.csv", "restored"])
def test_predict_reports_a_read_only_disk(output, tmp_path, monkeypatch):
    """A read-only disk also refuses to delete files that do not exist."""

    def refuse(path, *options, **more):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    open_data("digits").test.read(0)[0].save(tmp_path / "digit.png")
    (tmp_path / "restored").mkdir()
    (tmp_path / "restored" / "restored.json").write_text("[]")
    monkeypatch.setattr(files, "open", refuse, raising=False)
    monkeypatch.setattr(Path, "unlink", refuse)
    weights = ["--checkpoint", "metaformer_pooling_nano.digits"]
    if output == "restored":
        weights = ["--model", "wavemixsr_nano.x2", "--pretrained"]
    with pytest.raises(SystemExit, match=rf"^error: {tmp_path}/\S+ could not be written \(Read-only file system\)$"):
        metamix_command("predict", tmp_path / "digit.png", *weights, "--output", tmp_path / output)


def test_an_output_that_cannot_be_written_is_refused_before_prediction(tmp_path, monkeypatch):
    open_data("digits").test.read(0)[0].save(tmp_path / "digit.png")
    monkeypatch.setattr(files, "open", Mock(side_effect=PermissionError(errno.EACCES, "no")), raising=False)
    monkeypatch.setattr("metamix.classification.predict.LabelImages.predict", Mock(side_effect=AssertionError("work")))
    words = ["--checkpoint", "metaformer_pooling_nano.digits", "--output", tmp_path / "labels.csv"]
    with pytest.raises(SystemExit, match=r"labels.csv could not be written"):
        metamix_command("predict", tmp_path / "digit.png", *words)


def test_a_folder_that_a_full_disk_refuses_is_reported(tmp_path, monkeypatch):
    def refuse(path, *options, **more):
        if path == tmp_path / "out" / "deep":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return mkdir(path, *options, **more)

    mkdir = Path.mkdir
    (tmp_path / "images" / "deep").mkdir(parents=True)
    open_data("digits").test.read(0)[0].save(tmp_path / "images" / "deep" / "digit.png")
    monkeypatch.setattr(Path, "mkdir", refuse)
    words = ["--model", "wavemixsr_nano.x2", "--pretrained", "--output", tmp_path / "out"]
    with pytest.raises(SystemExit, match=r"^error: the folder \S+deep could not be made \(the disk is full\)"):
        metamix_command("predict", tmp_path / "images", *words)


def test_a_used_up_quota_is_called_a_full_disk():
    assert files.reason(OSError(errno.EDQUOT, "Disk quota exceeded")) == "the disk is full"
    assert files.reason(OSError(errno.EACCES, "Permission denied")) == "Permission denied"
