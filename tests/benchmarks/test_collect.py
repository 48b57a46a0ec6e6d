"""Test how finished runs are collected in results/, which runs are refused, and the tables that show them."""

import json
from itertools import permutations

import pytest
import timm
import yaml
from PIL import Image

from benchmarks.measure import collect
from benchmarks.report import tasks
from metamix.models.minattn import ROWS, variant


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Return a function that writes a finished run to the folder `name` and returns it; results go to tmp_path."""
    for name in ("PICTURE", "DETECTION"):
        monkeypatch.setattr(collect, name, tmp_path / getattr(collect, name).name)

    def run(name, summary, recipe):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        return folder

    return run


@pytest.fixture
def detection(write):
    """Return a function that adds a detection run to results; it returns the height of the run's picture, or None."""

    def add(results, mixer, ap50, seed=0, data="bccd", **recipe):
        model = f"metaformer_{mixer}_nano"
        summary = dict.fromkeys(collect.DETECTION_KEYS, 0) | dict(
            model=model, data=data, AP=ap50 / 2, AP50=ap50, AP75=ap50 / 3, parameters=1_230_000, seconds=600, seed=seed,
            samples={"train": 3, "holdout": 2, "test": 1},
        )  # fmt: skip
        shared = dict(model=model, seed=seed, output=f"{mixer}{ap50}", lr=0.1, epochs=9, min_size=48, max_size=64)
        folder = write(f"{mixer}-{seed}", summary, shared | recipe)
        (folder / "test_scores.json").write_text(json.dumps({"classes": {"disc": {"AP": 1.0, "AP50": 12.34}}}))
        Image.new("RGB", (4, int(ap50))).save(folder / "test_images.png")
        picture = collect.add_detection(results, folder)
        return picture and picture.height

    return add


def test_detectors_are_sorted_and_the_best_run_gives_the_picture(detection, tmp_path):
    results = {}
    assert detection(results, "raft", 50) == 50
    assert detection(results, "raft", 60) == 60  # replaces the row of the run above
    assert detection(results, "nin", 80) == 80
    assert detection(results, "pooling", 70) is None
    assert [row["AP50"] for row in results["rows"]] == [80, 70, 60]
    lines = tasks.detection_table(results).split("\n")
    assert lines[2] == "| `metaformer_nin_nano` | 40.0 | 80.0 | 26.7 | 12.3 | 1.23 M | 1 |"
    assert [line.split("_")[1] for line in lines[2:5]] == ["nin", "pooling", "raft"]
    note = " ".join(lines[6:])
    assert "trained on 3 images for 9 epochs, and tested on 1 images, all of 48x64 pixels." in note
    runs = [str(tmp_path / f"{mixer}-0") for mixer in ("raft", "nin", "pooling")]
    with pytest.raises(SystemExit, match="error: .*cut has no summary.json"):
        collect.main(["detection", *runs, str(tmp_path / "cut")])
    assert not (collect.DETECTION.exists() or collect.PICTURE.exists())
    collect.main(["detection", *runs])
    assert json.loads(collect.DETECTION.read_text()) == results and Image.open(collect.PICTURE).height == 80


def test_seeds_of_a_detector_share_a_line(detection):
    results = {}
    for seed, ap50 in enumerate((60, 63, 66)):
        detection(results, "raft", ap50, seed)
    (line,) = (line for line in tasks.detection_table(results).split("\n") if "raft" in line)
    assert line == "| `metaformer_raft_nano` | 31.5 ± 1.5 | 63.0 ± 3.0 | 21.0 ± 1.0 | 12.3 ± 0.0 | 1.23 M | 3 |"


def test_detectors_of_another_recipe_and_unfinished_runs_are_refused(detection, tmp_path):
    results = {}
    detection(results, "raft", 60)
    with pytest.raises(ValueError, match="nin-0 differs from the recipe of the runs in detection.json: lr 0.2 and"):
        detection(results, "nin", 90, lr=0.2)
    with pytest.raises(ValueError, match="pool-0: the runs train on or score different images: bccd .*, cards "):
        detection(dict(results), "pool", 90, data="cards")
    with pytest.raises(ValueError, match="pretrained True: give both a tag and --pretrained"):
        detection(results, "nin", 90, seed=1, pretrained=True)
    with pytest.raises(ValueError, match="has no summary.json: give the folder of a finished run"):
        collect.add_detection(results, tmp_path)


@pytest.fixture
def segmentation(write):
    """Return a function that writes a segmentation run and returns its folder."""

    def run(name, miou, **recipe):
        recipe = dict(task="segmentation", model="resnet18", head="semantic_fpn", seed=0, output=name) | recipe
        summary = {key: recipe.get(key, 1) for key in collect.SEGMENTATION_KEYS} | {"miou": miou, "seconds": 120.0}
        return write(name, summary, recipe)

    return run


def test_segmenters_are_sorted_and_repeated_runs_replaced(segmentation, tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "SEGMENTATION", tmp_path / "segmentation.json")
    again = segmentation("c", 55.0)  # has the recipe of the first run, except for its output
    collect.main(["segmentation", *map(str, (segmentation("a", 50.0), segmentation("b", 60.0, epochs=2), again))])
    rows = json.loads(collect.SEGMENTATION.read_text())["rows"]
    assert [row["miou"] for row in rows] == [60.0, 55.0]
    assert rows[0]["recipe"]["epochs"] == 2 and "output" not in rows[0]["recipe"]
    *_, line = tasks.segmentation_table(rows).splitlines()
    assert line == "| `resnet18` | semantic_fpn | 55.0 | 1.0 | 1.0 | 1.0 | 0.00 M | 0.0 | 1 |"


def test_segmenters_that_score_other_images_are_refused(segmentation):
    results = {}
    collect.add_segmentation(results, segmentation("a", 50.0))
    with pytest.raises(ValueError, match="b: the runs train on or score different images"):
        collect.add_segmentation(results, segmentation("b", 60.0, samples={"test": 2}, epochs=2))


@pytest.fixture
def transfer(write):
    """Return a function that adds a fine-tuning run to results."""

    def add(results, top1, seed=0, samples=None, epochs=None, **recipe):
        summary = dict.fromkeys(collect.TRANSFER_KEYS) | dict(data="grocery", macs=128e6, seed=seed, top1=top1)
        recipe = dict(model="metaformer_nin_tiny", pretrained=False, checkpoint=None) | recipe
        collect.add_transfer(results, write("run", summary | dict(samples=samples, epochs=epochs), recipe))

    return add


def test_each_choice_of_initial_weights_has_a_line_with_the_mean_of_its_seeds(transfer):
    results, tagged = {}, {"model": "metaformer_nin_tiny.tag", "pretrained": True}
    transfer(results, 58.0)
    transfer(results, 60.0, **tagged)
    transfer(results, 70.0, **tagged)  # replaces the row of the run above
    transfer(results, 72.0, seed=1, **tagged)
    transfer(results, 50.0, linear_probe=True, **tagged)
    transfer(results, 66.0, checkpoint="lite0/imagenet.pth")
    assert tasks.transfer_table(results["rows"]).splitlines()[2:] == [
        "| `nin` | tag | 71.0 ± 1.4 |",
        "| `nin` | imagenet | 66.0 |",
        "| `nin` | none | 58.0 |",
        "| `nin` | tag, linear probe | 50.0 |",
        "| multiply-adds, millions |  | 128 |",
    ]


def test_a_pretrained_run_without_a_tag_starts_from_the_default_weights(transfer):
    results = {}
    for model in ("metaformer_nin_nano", "metaformer_nin_tiny"):
        transfer(results, 60.0, model=model, pretrained=True)
    transfer(results, 70.0, model="metaformer_nin_tiny.tiny_in200", pretrained=True)  # replaces the run without a tag
    assert [(row["start"], row["score"]) for row in results["rows"]] == [("tiny_in200", 70.0), ("cifar10", 60.0)]


def test_fine_tuning_runs_on_other_images_or_with_another_recipe_are_refused(transfer):
    results = {}
    transfer(results, 58.0, iterations=800)
    # This recipe lacks `iterations`, but both runs have the same number of epochs.
    transfer(results, 60.0, model="metaformer_raft_tiny")
    rows = list(results["rows"])
    for changes, said in (
        ({"img_size": 224}, "run differs from the recipe of the runs in transfer.json: img_size 224 and not None"),
        ({"epochs": 40}, "epochs 40 and not None"),
        ({"samples": {"test": 296}}, "train on or score different images: grocery None, grocery .*296"),
    ):
        with pytest.raises(ValueError, match=said):
            transfer({"rows": rows}, 75.0, seed=1, **changes)


def test_the_fine_tuning_runs_in_the_file_are_comparable():
    rows = collect.read_json(collect.TRANSFER)["rows"]
    for data in {row["data"] for row in rows}:
        first, *others = (row for row in rows if row["data"] == data)
        for other in others:
            recipes = [
                collect.without(row["recipe"] | {"epochs": row["epochs"]}, collect.STARTS) for row in (first, other)
            ]
            assert not collect.differences(*recipes) and first["samples"] == other["samples"], other["model"]


def test_an_option_that_an_earlier_recipe_lacks_has_its_default():
    assert collect.differences({}, {"model_args": {}, "epochs": 7}) == {"epochs": 7}
    for recipe, other in permutations(({"task": "segmentation"}, {})):
        assert "task" in collect.differences(recipe, other)


@pytest.fixture
def minattn(write):
    """Return a function that adds a run of minimal attention to results."""
    shared = dict(
        erase=0, auto_augment="none", data="folder", seed=0, epochs=3, optimizer="adamw", lr=1e-3, batch_size=128,
        flip=0, padding=0, cutmix=0, mixup=0, cutout=0,
    )  # fmt: skip

    def add(results, name, model, **recipe):
        summary = dict(model=model, top1=56.785, parameters=77_322, seconds=9.5, seed=0, commit="abc")
        collect.add_minattn(results, write(name, summary, shared | {"model": model} | recipe))

    return add


def test_every_variant_has_a_model_and_a_row_of_the_reproduction():
    assert set(tasks.REPRODUCTION) == set(ROWS)
    names = {variant(*row, data) for row in ROWS for data in collect.MINATTN_DATA}
    assert names == set(timm.list_models("minattn_*"))


def test_minimal_attention_is_shown_beside_the_reproduction(minattn):
    results = {}
    minattn(results, "a", "minattn_symmetric_nomlp_h1_cifar")
    text = tasks.minattn_table(results)
    assert "| symmetric | no | 1 |  | not trained | 82.02 | 77,322 | 56.78 | 9.84 |" in text
    assert "| collapsed | yes | 1 |  | not trained | 98.39 |  | not trained |  |" in text
    flat = " ".join(text.split())
    assert "they were trained for 3 epochs with adamw at 0.001, with batches of 128 and no augmentation." in flat


def test_minimal_attention_of_another_recipe_and_other_models_are_refused(minattn):
    results = {}
    minattn(results, "a", "minattn_full_mlp_h1_cifar")
    with pytest.raises(ValueError, match="the recipe of .*b differs .*: flip 0.5 and not 0, lr 0.1 and not 0.001"):
        minattn(results, "b", "minattn_full_mlp_h4_cifar", lr=0.1, flip=0.5)
    with pytest.raises(ValueError, match="c trained metaformer_minattn_nano: give runs of configs"):
        minattn(results, "c", "metaformer_minattn_nano")
    assert [*results["cifar"]["rows"]] == ["minattn_full_mlp_h1_cifar"]
