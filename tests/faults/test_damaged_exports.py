"""Test that damaged, edited and hostile exported models are refused, and that no code runs without trust."""

import json
import random
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import timm
import torch

import metamix
from metamix.data import open_data
from metamix.deploy import export, load_exported
from metamix.deploy.artifact import Artifact, load_artifact
from metamix.deploy.formats import FORMATS, torch_export
from metamix.detection.export import ExportedDetector
from metamix.weights.files import save_weights
from metamix.weights.metadata import ModelMetadata
from tests.helpers.attack import Attack
from tests.helpers.exports import edit
from tests.helpers.running import metamix_command

IMAGES = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
METADATA = dict(
    task="classification", model="metaformer_identity_nano", model_args=dict(depths=[1], dims=[8]), num_classes=3,
    in_chans=1, img_size=16, mean=[0.5], std=[0.35], interpolation="bicubic", crop_pct=1.0,
    classes=["cat", "dog", "eel"],
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Save a small classifier to a weight file, and export it in the torch format."""
    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    model = timm.create_model(METADATA["model"], img_size=16, num_classes=3, in_chans=1, **METADATA["model_args"])
    save_weights(folder / "small.safetensors", model.state_dict(), METADATA)
    export(str(folder / "small.safetensors"), output=folder / "exported", format="torch", seconds=0)
    return folder


@pytest.fixture
def exported(made, tmp_path):
    """Copy the exported model."""
    return Path(shutil.copytree(made / "exported", tmp_path / "exported"))


@pytest.fixture
def digit(tmp_path):
    """Write an image file."""
    open_data("digits").test.read(0)[0].save(tmp_path / "digit.png")
    return tmp_path / "digit.png"


def sign(folder):
    """Compute the checksums of a folder again, as an attacker could."""
    load_artifact(folder).save(folder)


def flip(path, chance):
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


# Damage


@pytest.mark.parametrize("format", FORMATS)
def test_damage_is_found_before_the_engine_opens_a_file(format, tmp_path):
    """This test needs no engine, since the checksums are compared first."""
    names = [FORMATS[format].file, *FORMATS[format].more_files, "report.json"]
    for name in names:
        (tmp_path / name).write_bytes(b"what metamix export wrote")
    metadata = ModelMetadata.from_dict(METADATA)
    Artifact(format, "fp32", metadata, (None, 1, 16, 16), ("logits",)).save(tmp_path)
    assert set(load_artifact(tmp_path).files) == set(names)
    for name in names:
        whole = (tmp_path / name).read_bytes()
        flip(tmp_path / name, random.Random(0))
        with pytest.raises(ValueError, match=rf"{name} is damaged: its SHA-256 is not .*. Copy the whole folder again"):
            load_exported(tmp_path, trust=True)
        (tmp_path / name).unlink()
        with pytest.raises(FileNotFoundError, match=rf"lacks {name}: copy the whole folder, or export the model again"):
            load_exported(tmp_path, trust=True)
        (tmp_path / name).write_bytes(whole)


def test_export_json_that_was_edited_is_refused(exported):
    file = exported / "export.json"
    file.write_text(file.read_text().replace("0.35", "8.35"))
    with pytest.raises(ValueError, match=r"export.json is damaged or edited: its SHA-256 is wrong. Copy the "):
        load_exported(exported, trust=True)


def test_an_export_of_an_older_version_is_refused(exported):
    entries = json.loads((exported / "export.json").read_text())
    older = {name: entries[name] for name in entries if name not in ("files", "sha256")} | {"version": 1}
    (exported / "export.json").write_text(json.dumps(older))
    with pytest.raises(ValueError, match=r"has version 1, but this metamix reads version 2: export again"):
        load_exported(exported, trust=True)


def test_a_file_that_is_not_listed_is_not_loaded(exported, monkeypatch):
    opened = []
    monkeypatch.setattr(torch_export, "load_compiled", lambda file: opened.append(file.name))
    (exported / "model.compiled.pt2").write_bytes(b"planted")
    load_exported(exported, trust=True)
    assert opened == []
    sign(exported)  # adds the file to export.json
    load_exported(exported, trust=True)
    assert opened == ["model.compiled.pt2"]


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"version": 2, "extra": ' + '{"a":' * 100_000, '{"a": ' + "[" * 65 + "]" * 65 + "}"]
)
def test_deep_nesting_is_refused_before_anything_is_built(text, exported):
    (exported / "export.json").write_text(text)
    with pytest.raises(ValueError, match=r"^\S+export.json .*nested deeper than 64 levels; [^\n]+$"):
        load_exported(exported, trust=True)


# Code


def plant(file, evil):
    """Put a pickle into a torch.export program; loading the program creates the file `evil`."""
    whole = zipfile.ZipFile(file)
    entries = {info: whole.read(info) for info in whole.infolist()}
    torch.save(Attack(evil), evil.with_name("attack.pt"))
    with zipfile.ZipFile(file, "w") as archive:
        for info, content in entries.items():
            hostile = info.filename.endswith("sample_inputs/model.pt")
            archive.writestr(info, evil.with_name("attack.pt").read_bytes() if hostile else content)


def test_code_in_an_export_runs_only_if_it_is_trusted(exported, digit, tmp_path):
    evil = tmp_path / "evil"
    plant(exported / "model.pt2", evil)
    sign(exported)
    words = "model.pt2 is not loaded: .*, which can run any code. .*give --trust, or in Python trust=True."
    for load in (metamix.load, load_exported):
        with pytest.raises(ValueError, match=words):
            load(exported)
    with pytest.raises(SystemExit, match=words):
        metamix_command("predict", digit, "--model", exported)
    assert not evil.exists()
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_exported(exported, trust=True)
    assert evil.exists()  # the control: the attack works


def test_a_trusted_export_predicts(exported, digit, made, capsys):
    assert metamix_command("predict", digit, "--model", exported, "--trust") == 0
    labels = capsys.readouterr().out
    assert metamix_command("predict", digit, "--checkpoint", made / "small.safetensors", "--device", "cpu") == 0
    assert capsys.readouterr().out == labels
    with pytest.raises(SystemExit, match="--trust is for exported models, and weight files run no code: leave it out"):
        metamix_command("predict", digit, "--checkpoint", made / "small.safetensors", "--trust")


# Classes that do not belong to the graph


@pytest.mark.parametrize("classes", [["cat", "dog"], ["cat", "dog", "eel", "fox"]])
def test_classes_that_do_not_match_the_graph_are_refused(classes, exported):
    model = load_artifact(exported).model.to_dict()
    edit(exported, model=model | {"classes": classes, "num_classes": len(classes)})
    words = rf"export.json has {len(classes)} classes, but the graph returns outputs of shape \(1, 3\)"
    with pytest.raises(ValueError, match=words):
        metamix.load(exported, trust=True)
    edit(exported, model=model | {"classes": classes})
    with pytest.raises(ValueError, match=r"classes in the metadata is .*, but it must be 3 names, as many as num"):
        metamix.load(exported, trust=True)


def test_a_class_without_a_name_is_refused():
    settings = dict(score_thresh=0.5, nms_thresh=0.5, detections_per_img=10)
    settings |= dict(min_size=8, max_size=8, multiple=8, least=1)
    metadata = ModelMetadata(task="detection", classes=("cat",), num_classes=1, mean=(0.5,) * 3, std=(0.2,) * 3)

    def graph(images):
        return [torch.tensor([[[1.0, 1, 4, 4]] * 2]), torch.tensor([[0.9, 0.1]]), torch.tensor([[label, 0]])]

    detector = ExportedDetector(graph, metadata, (8, 8), settings)
    label = 1
    assert detector([torch.rand(3, 8, 8)])[0]["labels"].tolist() == [1]
    label = 2
    with pytest.raises(ValueError, match="the graph finds class 2, but export.json has 1 class: export"):
        detector([torch.rand(3, 8, 8)])


def test_a_graph_for_huge_images_is_refused_before_it_is_probed(exported):
    edit(exported, input_shape=[None, 1, 10**5, 10**5])
    with pytest.raises(ValueError, match="input_shape is .*, but it must be a list of 4 whole numbers"):
        metamix.load(exported, trust=True)


# Two exports into one folder

HOLD = """
import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
input()
"""


def test_two_exports_into_one_folder_are_refused(made, exported):
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    source = str(made / "small.safetensors")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, exported / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"another process is writing into {exported}; wait, stop it, or"):
            export(source, output=exported, format="torch", seconds=0)
        other.communicate("\n")
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before
    export(source, output=exported, format="torch", seconds=0)
    load_exported(exported, trust=True)
