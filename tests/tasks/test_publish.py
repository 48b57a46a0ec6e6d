"""Test `metamix publish`: what it writes, which libraries can load the result, and what it refuses."""

import json
import shutil
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors import safe_open

import metamix
from metamix.detection.load import DetectorSpec
from metamix.tasks import publish
from metamix.tasks.registry import find_task
from metamix.weights.files import save_weights
from tests.helpers.detectors import GOOD
from tests.helpers.running import metamix_command, train

ARGUMENTS = "{mixer: raft, mixer_args: {raft_size: 2}, depths: [1, 1, 1], dims: [8, 8, 16]}"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Train on digits of 40 x 40 pixels. The shapes of the mixer's weights depend on this size."""
    folder = tmp_path_factory.mktemp("run") / "run"
    train(*["--data", "digits", "--img-size", 40, "--epochs", 1, "--batch-size", 256, "--workers", 0],
          "--model-args", ARGUMENTS, "--crop-pct", 0.9, "--memory", "no", "--output", folder)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def published(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "folder"
    for source in run, run / "model.safetensors":  # the second replaces the files of the first
        words = ["publish", source, "me/small-digits", "--license", "mit", "--dry-run", folder]
        assert metamix_command(*words) == 0
    return folder


def digit():
    image = Image.new("L", (32, 48))
    image.paste(255, (10, 5, 14, 40))
    return image


def test_the_folder_holds_only_the_published_files_in_a_format_that_transformers_reads(published):
    assert {path.name for path in published.iterdir()} == publish.FILES
    with safe_open(published / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"  # without it, transformers 4 refuses the file


def test_the_card_ignores_entries_of_the_summary_that_contradict_the_weights(run, published, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    summary = json.loads((run / "summary.json").read_text())
    (copy / "summary.json").write_text(json.dumps(summary | {"versions": 5, "parameters": 7}))
    words = ["publish", copy, "me/small-digits", "--license", "mit", "--dry-run", tmp_path / "out"]
    assert metamix_command(*words) == 0
    assert (tmp_path / "out" / "README.md").read_text() == (published / "README.md").read_text()


@pytest.mark.parametrize("source", ["local-dir", "hf-hub"])
def test_timm_loads_the_published_folder(source, run, published, monkeypatch):
    monkeypatch.setattr("timm.models._hub.hf_hub_download", lambda repo_id, filename, **_: str(published / filename))
    monkeypatch.setattr("metamix.models.registry.require_reachable", lambda *_: None)
    model = timm.create_model(f"{source}:{published}", pretrained=True).eval()
    assert model.pretrained_cfg["label_names"] == [*"0123456789"]
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    scores = model(transform(digit())[None]).softmax(1)[0]
    (expected,) = metamix.load(run).predict([digit()], top=10)
    assert scores[[int(label) for label, _ in expected]].tolist() == pytest.approx([score for _, score in expected])


def test_transformers_loads_the_published_folder(published):
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'metamix[transformers]'")
    images = torch.rand(2, 1, 40, 40)
    model = transformers.AutoModelForImageClassification.from_pretrained(published).eval()
    assert [*model.config.id2label.values()] == [*"0123456789"]
    assert torch.equal(model(images).logits, metamix.load(published).model(images))


def test_metamix_loads_the_published_folder(run, published, tmp_path, capsys):
    for place in published, f"local-dir:{published}":
        assert metamix.load(place).predict([digit()]) == metamix.load(run).predict([digit()])
    digit().save(tmp_path / "digit.png")
    printed = []
    for checkpoint in (run, published):
        assert metamix_command("predict", tmp_path / "digit.png", "--checkpoint", checkpoint, "--device", "cpu") == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def test_metamix_loads_the_published_files_from_the_hub(run, published, monkeypatch):
    asked = []

    def download(name, file, revision):
        asked.append((name, file, revision))
        return str(published / file)

    monkeypatch.setattr("metamix.weights.download.hf_hub_download", download)
    monkeypatch.setattr("metamix.weights.download.require_reachable", lambda name: None)
    assert metamix.load("hf-hub:me/small-digits@v2").predict([digit()]) == metamix.load(run).predict([digit()])
    assert set(asked) == {("me/small-digits", "model.safetensors", "v2")}


def test_a_failed_download_from_the_hub_is_reported(monkeypatch):
    def download(*_, **__):
        raise RuntimeError("404")

    monkeypatch.setattr("metamix.weights.download.hf_hub_download", download)
    monkeypatch.setattr("metamix.weights.download.require_reachable", lambda name: None)
    with pytest.raises(OSError, match=r"of me/x could not be downloaded from the Hugging Face Hub \(404\): check the"):
        metamix.load("hf-hub:me/x")


def test_the_card_shows_the_scores_data_and_classes_of_the_run(run, published):
    card, summary = ModelCard.load(published / "README.md"), json.loads((run / "summary.json").read_text())
    assert (card.data.license, card.data.library_name) == ("mit", "timm")
    scores = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert scores == {name: summary[name] for name in summary["scores"]}
    for words in (
        "A `metaformer_identity_tiny` that metamix trained on digits to label images",
        f"| top1 on test | {summary['top1']:.4g} |",
        "| images | 1,437 train, 360 test |",
        "metamix predict photo.jpg --checkpoint hf-hub:me/small-digits",
        'timm.create_model("hf-hub:me/small-digits", pretrained=True)',
        "metamix train --config recipe.yaml --output run\n",
        "0, 1, 2, 3, 4, 5, 6, 7, 8, 9",
    ):
        assert words in card.text


def test_class_names_are_escaped_on_the_card(tmp_path):
    model = timm.create_model("resnet10t.c3_in1k", num_classes=2)
    classes = ["__background__", "<b>\n\n# [x](http://y) `z` | \\"]
    metamix.save_classifier(model, tmp_path / "w.safetensors", classes=classes)
    assert metamix_command("publish", tmp_path / "w.safetensors", "me/x", "--dry-run", tmp_path / "x") == 0
    card = (tmp_path / "x/README.md").read_text()
    assert card.endswith(r"\_\_background\_\_, \<b\>\\n\\n\# \[x\]\(http://y\) \`z\` \| \\" + "\n")


ATTACK = "<img src=x onerror=alert(1)>"


def test_names_in_the_metadata_are_escaped_on_the_card(tmp_path):
    names = {ATTACK: 1.0, "scores": [ATTACK], "samples": {ATTACK: 2}, "versions": {ATTACK: ATTACK}, "seconds": 5}
    model = DetectorSpec.from_dict(GOOD, "x").build()
    save_weights(tmp_path / "w.safetensors", model.state_dict(), GOOD | names)
    assert metamix_command("publish", tmp_path / "w.safetensors", "me/x", "--dry-run", tmp_path / "x") == 0
    card = (tmp_path / "x/README.md").read_text()
    assert card.count(r"\<img src=x onerror=alert\(1\)\>") == 4 and ATTACK not in card.partition("\n---\n")[2]


@pytest.mark.parametrize(
    "entries, said",
    [
        ({"samples": [1]}, "samples in the metadata is .1.*, but it must be a mapping {key: value} of whole numbers"),
        ({"samples": {"train": "many"}}, "samples in the metadata is {'train': 'many'}, but"),
        ({"versions": "x"}, "versions in the metadata is 'x', but it must be a mapping {key: value} of strings"),
        ({"seconds": "x"}, "seconds in the metadata is 'x', but it must be a finite number of at least 0"),
        ({"epochs": 1.5}, "epochs in the metadata is 1.5, but it must be a whole number"),
        ({"parameters": "x"}, "parameters in the metadata is 'x', but it must be a whole number"),
        ({"macs": "x"}, "macs in the metadata is 'x', but it must be a finite number"),
        ({"seed": [1]}, "seed in the metadata is .*, but it must be a whole number"),
        ({"scores": "x"}, "scores in the metadata is 'x', but it must be a list"),
        ({"scores": ["top1"]}, "top1 is missing in the metadata"),
    ],
)
def test_wrong_entries_of_the_metadata_are_refused(entries, said, tmp_path):
    save_weights(tmp_path / "w.safetensors", DetectorSpec.from_dict(GOOD, "x").build().state_dict(), GOOD | entries)
    with pytest.raises(SystemExit, match=f"w.safetensors: {said}"):
        metamix_command("publish", tmp_path / "w.safetensors", "me/x", "--dry-run", tmp_path / "x")


@pytest.mark.slow
def test_training_with_the_published_recipe_gives_the_same_weights(run, published, tmp_path):
    metamix.cli.train.main(["--config", str(published / "recipe.yaml"), "--output", str(tmp_path / "again")])
    again, first = (metamix.load(folder).model.state_dict() for folder in (tmp_path / "again", run))
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())


def test_the_recipe_and_the_card_name_no_folder_of_this_machine():
    recipe = {"output": "/home/me/run", "data_dir": "/data/x", "checkpoint": "/home/me/a.pt", "lr": 1}
    assert publish.shareable(recipe) == {"checkpoint": "a.pt", "lr": 1}
    options = publish.PublishOptions(source="run", repo="me/x")
    card = publish.make_card(options, find_task("classification"), {"model": "m"}, recipe, "", ())
    assert (
        "the run. It starts from the weights `a.pt`, which are not in this repository.\n" in card
        and "/home/me" not in card
    )


def test_weights_of_a_timm_model_without_a_run_are_published(tmp_path, capsys):
    model = timm.create_model("resnet10t.c3_in1k", num_classes=2, in_chans=1)
    metamix.save_classifier(model, tmp_path / "w.safetensors", classes=["cat", "dog"], model_args={"in_chans": 1})
    assert metamix_command("publish", tmp_path / "w.safetensors", "me/x", "--dry-run", tmp_path / "x") == 0
    said = capsys.readouterr().out
    assert "w.safetensors is not a finished run" in said
    assert "note: the card names no license" in said
    text = (tmp_path / "x" / "README.md").read_text()
    assert "## Train it again" not in text and "import timm\n" in text
    config = timm.create_model(f"local-dir:{tmp_path / 'x'}", pretrained=True).pretrained_cfg
    assert config["label_names"] == ["cat", "dog"] and not {"license", "tag", "origin_url"} & config.keys()


@pytest.fixture
def own_mixer(tmp_path, monkeypatch, forget_mixers):
    """Write a module with a mixer, and weights of a model that uses it, into the working folder."""
    (tmp_path / "mixers_of_mine.py").write_text(
        "import metamix\nfrom torch import nn\n\n@metamix.register_mixer('mine')\nclass Mine(nn.Conv2d):\n"
        "    def __init__(self, dim, *, size):\n        super().__init__(dim, dim, 1)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    import_module("mixers_of_mine")
    arguments = dict(mixer="mine", depths=[1, 1, 1], dims=[8, 8, 16])
    model = timm.create_model("metaformer_identity_nano", num_classes=1, **arguments)
    metamix.save_classifier(model, tmp_path / "w.safetensors", classes=["x"], model_args=arguments)
    yield tmp_path
    del sys.modules["mixers_of_mine"]


def test_the_card_tells_readers_to_import_a_users_mixer(own_mixer, capsys):
    words = ["w.safetensors", "me/x", "--dry-run", "x", "--import", "mixers_of_mine"]
    assert metamix_command("publish", *words) == 0
    said = "users of the model must import mixers_of_mine first; that code is not in the repository"
    assert said in capsys.readouterr().out
    text = (own_mixer / "x" / "README.md").read_text()
    assert text.count("import mixers_of_mine\n") == 3 and "--checkpoint hf-hub:me/x --import mixers_of_mine" in text
    assert timm.create_model("local-dir:x", pretrained=True).stages[0].blocks[0].mixer.__module__ == "mixers_of_mine"


def test_metamix_loads_a_published_detector(tmp_path):
    model = DetectorSpec.from_dict(GOOD, "x").build()
    save_weights(tmp_path / "w.safetensors", model.state_dict(), GOOD)
    assert metamix_command("publish", tmp_path / "w.safetensors", "me/discs", "--dry-run", tmp_path / "x") == 0
    assert {path.name for path in (tmp_path / "x").iterdir()} == {"README.md", "model.safetensors"}
    text = (tmp_path / "x" / "README.md").read_text()
    assert "pipeline_tag: object-detection" in text and "timm.create_model" not in text and "disc, square" in text
    again = metamix.load(tmp_path / "x")
    assert again.classes == ("disc", "square")
    assert all(torch.equal(again.model.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


# The upload


class Hub:
    """Record the calls that would go to the Hugging Face Hub."""

    def __init__(self):
        self.calls = []

    def create_repo(self, repo, **options):
        self.calls.append((repo, options))
        return SimpleNamespace(repo_id=repo)

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.calls.append((repo_id, {path.name for path in folder_path.iterdir()}))


def test_publish_creates_a_repository_and_uploads_the_files(run, monkeypatch, capsys):
    hub = Hub()
    monkeypatch.setattr(publish, "HfApi", lambda **_: hub)
    assert metamix_command("publish", run, "me/digits", "--private") == 0
    assert hub.calls == [("me/digits", {"private": True, "exist_ok": True}), ("me/digits", publish.FILES)]
    assert "uploaded: " in capsys.readouterr().out


def test_an_upload_without_a_login_is_refused(run, monkeypatch):
    class Refusing(Hub):
        def create_repo(self, repo, **_):
            raise RuntimeError("401 unauthorized")

    monkeypatch.setattr(publish, "HfApi", lambda **_: Refusing())
    with pytest.raises(SystemExit, match=r"me/x could not be uploaded \(401 unauthorized\): log in with `hf auth"):
        metamix_command("publish", run, "me/x")


# Errors


@pytest.mark.parametrize("repo", ["digits", "a/b/c", "me/bad name"])
def test_wrong_repository_names_are_refused(repo):
    with pytest.raises(SystemExit, match=f"the repository is '{repo}', but it must be USER/NAME"):
        metamix_command("publish", "metaformer_pooling_nano.digits", repo)


@pytest.mark.parametrize("name", ["MIT", "mit\ntags: [x]", "cc by"])
def test_wrong_names_of_licenses_are_refused(name):
    publish.PublishOptions("run", "me/x", license="openrail++")
    with pytest.raises(ValueError, match="license is .*: give a name that the hub knows, such as mit, or give other"):
        publish.PublishOptions("run", "me/x", license=name)


def test_folders_with_other_files_are_refused(run, tmp_path):
    (tmp_path / "README.md").touch()
    for folder, file in ((tmp_path, "README.md"), (run, ".lock, checkpoint.pt")):
        with pytest.raises(SystemExit, match=rf"holds other files \({file}.*\): give a new folder"):
            metamix_command("publish", run, "me/x", "--dry-run", folder)


def test_a_dry_run_without_a_folder_is_refused_and_uploads_nothing(run, monkeypatch):
    monkeypatch.setattr(publish, "HfApi", lambda **_: pytest.fail("a dry run starts an upload"))
    with pytest.raises(SystemExit, match="--dry-run is empty: give a folder to write to"):
        metamix_command("publish", run, "me/x", "--dry-run", "")


def test_weights_that_do_not_name_their_model_are_refused(tmp_path):
    save_weights(tmp_path / "w.safetensors", {"x": torch.zeros(1)}, {})
    with pytest.raises(SystemExit, match=r"does not name its model: write it with"):
        metamix_command("publish", tmp_path / "w.safetensors", "me/x")


def test_a_model_that_timm_would_load_differently_is_refused(run, tmp_path, monkeypatch):
    build = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, **options: build(name, **options | {"pretrained": False})
    )  # as if timm read other weights
    with pytest.raises(SystemExit, match="that timm loads from the hub format differs from metaformer_identity_tiny"):
        metamix_command("publish", run, "me/x", "--dry-run", tmp_path / "x")
    assert not (tmp_path / "x").exists()
