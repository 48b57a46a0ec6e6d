"""Test images with several labels, from reading their files and training to export and publication."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageDraw
from sklearn.metrics import average_precision_score, f1_score
from timm.loss import AsymmetricLossMultiLabel
from torch.nn import functional as F

import metamix
from metamix.classification.loss import ClassificationLoss
from metamix.classification.metric import MultiLabelMetric
from metamix.classification.options import ClassificationOptions
from metamix.data import open_data
from metamix.data.sources import strata
from metamix.weights.files import load_metadata, save_weights
from tests.helpers.classifiers import NO_TEACHER, small_task
from tests.helpers.running import assert_same_run, metamix_command, stopped_at, train

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
CLASSES = ("blue", "green", "red")
WORDS = ["--data", "folder", "--batch-size", 16, "--workers", 0, "--warmup-epochs", 0, "--amp", "none", "--padding", 0]
WORDS += ["--model", "metaformer_identity_nano"]  # its maps are fine enough to show the squares


def draw(path, colours, random):
    image = Image.new("RGB", (24, 24), (90, 90, 90))
    for i, colour in enumerate(colours):
        x, y = random.integers(0, 16), 8 * i
        ImageDraw.Draw(image).rectangle((x, y, x + 7, y + 7), COLOURS[colour])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Make a folder of 96 images, each with squares of up to three colours, and a labels.csv without splits."""
    root, random, lines = tmp_path_factory.mktemp("shapes") / "shapes", np.random.default_rng(0), ["file,labels"]
    for i in range(96):
        colours = [name for k, name in enumerate(COLOURS) if i >> k & 1]
        draw(root / f"images/{i}.png", colours, random)
        lines.append(f"{i}.png,{'|'.join(colours)}")
    (root / "labels.csv").write_text("\n".join(lines))
    return root


@pytest.fixture
def table(shapes, tmp_path):
    """Return a function that writes a labels.csv with the given lines beside the images, and returns their folder."""

    def make(*lines):
        (tmp_path / "set").mkdir(exist_ok=True)
        if not (tmp_path / "set/images").exists():
            (tmp_path / "set/images").symlink_to(shapes / "images")
        (tmp_path / "set/labels.csv").write_text("\n".join(lines))
        return tmp_path / "set"

    return make


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory):
    """Train on the shapes and return the run folder."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(*WORDS, "--data-dir", shapes, "--holdout", 0.2, "--epochs", 12, "--lr", 1e-2, "--output", folder)
    return folder


def test_the_limit_of_the_confusion_matrix_does_not_apply_to_multi_label_data(shapes, monkeypatch):
    monkeypatch.setattr("metamix.classification.metric.MAX_SCORED_CLASSES", 2)
    assert small_task(data="folder", data_dir=str(shapes)).metric.classes == CLASSES
    with pytest.raises(ValueError, match="there are 10 classes, but at most 2 can be scored"):
        small_task()


def test_training_chooses_loss_scores_and_threshold(run):
    summary, log = json.loads((run / "summary.json").read_text()), (run / "log.txt").read_text()
    assert summary["scores"] == ["mAP", "F1", "F1_at_0.5", "loss"] and summary["mAP"] > 95 and summary["F1"] > 90
    assert "loss: bce" in (run / "recipe.yaml").read_text()
    thresholds = load_metadata(run / "model.safetensors")["threshold"]
    assert len(thresholds) == 3 and all(0 < threshold < 1 for threshold in thresholds)
    assert re.search(rf"labels are predicted if their probability is at least {min(thresholds):g}\s", log)
    assert summary["pictures"] == ["curves.png", "test_classes.png"] and (run / "test_classes.png").exists()
    assert "holdout mAP" in log and "holdout_mAP" in (run / "metrics.csv").read_text()


def test_thresholds_are_chosen_on_held_out_images(shapes, tmp_path, monkeypatch):
    counts = []

    def choose(metric, states):
        counts.append(sum(len(part) for state in states for part in state["logits_and_labels"]))
        metric.threshold = 0.99
        return {}

    monkeypatch.setattr(MultiLabelMetric, "choose", choose)
    streamed = ["--memory", "no", "--cutmix", 1, "--class-weights", "balanced", "--loss", "asymmetric"]
    train(*WORDS, *streamed, "--data-dir", shapes, "--epochs", 1, "--output", tmp_path / "without")
    assert load_metadata(tmp_path / "without/model.safetensors")["threshold"] == 0.5
    train(*WORDS, "--data-dir", shapes, "--epochs", 1, "--holdout", 0.2, "--output", tmp_path / "with")
    assert "if their probability is at least 0.99" in (tmp_path / "with/log.txt").read_text()
    samples = load_metadata(tmp_path / "with/model.safetensors")["samples"]
    assert counts == [samples["holdout"]] != [samples["test"]]


def test_eval_gives_the_scores_of_the_training_run(run, shapes, tmp_path, capsys):
    words = ["eval", "--checkpoint", run, "--data-dir", shapes, "--output", tmp_path / "out"]
    assert metamix_command(*words, "--device", "cpu") == 0
    summary, result = (json.loads(path.read_text()) for path in (run / "summary.json", tmp_path / "out/result.json"))
    assert result["samples"] == summary["samples"]
    same = ("mAP", "F1", "F1_at_0.5", "loss")
    assert [result[name] for name in same] == pytest.approx([summary[name] for name in same], abs=1e-3)
    assert result["by_class"].keys() == {*CLASSES}
    assert result["by_class"]["red"].keys() == {"AP", "F1", "images", "threshold"}
    assert [result["by_class"][name]["threshold"] for name in CLASSES] == summary["threshold"]
    said = capsys.readouterr().out
    assert f"mAP {summary['mAP']:.4g}, F1 {summary['F1']:.4g}, F1_at_0.5 {summary['F1_at_0.5']:.4g}" in said
    assert re.search(rf"labels are predicted if their probability is at least {min(summary['threshold']):g}\s", said)


def test_predictions_are_all_labels_that_reach_their_thresholds(run, shapes, capsys, tmp_path):
    images = [shapes / f"images/{i}.png" for i in (7, 0, 5)]
    trained = metamix.load(run)
    labelled = trained.predict(images)
    assert [{name for name, _ in labels} for labels in labelled] == [{*COLOURS}, set(), {"red", "blue"}]
    thresholds = dict(zip(CLASSES, trained.metadata.threshold))
    assert all(p >= thresholds[name] for labels in labelled for name, p in labels)
    assert [p for _, p in labelled[0]] == sorted((p for _, p in labelled[0]), reverse=True)
    tensors = torch.stack([trained.transform(Image.open(image)) for image in images])
    scores = trained.model(tensors).sigmoid().detach()
    assert dict(labelled[0]) == pytest.approx(dict(zip(CLASSES, scores[0].tolist())))
    assert [len(labels) for labels in trained.predict(images, threshold=0.0)] == [3, 3, 3]
    assert trained.predict(images, threshold=1.0) == [[], [], []]
    lowest = labelled[0][-1][1]
    assert trained.predict(images, threshold=lowest)[0] == labelled[0]  # a label that equals the threshold reaches it
    assert [len(labels) for labels in trained.predict(images, top=1)] == [1, 1, 1]
    assert [len(labels) for labels in trained.predict(images, top=2, threshold=0.5)] == [2, 0, 2]

    assert metamix_command("predict", *images, "--checkpoint", run) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.count("%") for line in lines] == [3, 0, 2] and lines[1].split() == [str(images[1]), "-"]
    words = ["predict", *images, "--checkpoint", run, "--format"]
    assert metamix_command(*words, "json") == 0
    assert [len(record["labels"]) for record in json.loads(capsys.readouterr().out)] == [3, 0, 2]
    assert metamix_command(*words, "csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    expected = [(images[0], True)] * 3 + [(images[1], False)] + [(images[2], True)] * 2
    assert [(Path(row["image"]), bool(row["label"])) for row in rows] == expected
    assert metamix_command(*words, "json", "--threshold", 0) == 0
    assert [len(record["labels"]) for record in json.loads(capsys.readouterr().out)] == [3, 3, 3]


def test_each_label_has_its_own_threshold(run, shapes, tmp_path, capsys):
    file, images = tmp_path / "m.safetensors", [shapes / f"images/{i}.png" for i in (7, 0)]

    def predict_from(threshold, *words):
        metadata = load_metadata(run / "model.safetensors") | {"threshold": threshold}
        save_weights(file, metamix.load(run).model.state_dict(), metadata)
        assert metamix_command("predict", *images, "--checkpoint", file, "--format", "json", *words) == 0
        out, note = capsys.readouterr()
        return [{label["label"] for label in record["labels"]} for record in json.loads(out)], note

    one = "note: labels are predicted if their probability is at least 0.5\n"
    each = "note: labels are predicted if their probability is at least 0 to 1, depending on the label\n"
    assert predict_from(0.5) == ([{*CLASSES}, set()], one)  # a run without held-out images saves one threshold
    assert predict_from([1.0, 0.0, 0.5]) == ([{"green", "red"}, {"green"}], each)
    assert predict_from([1.0, 0.0, 0.5], "--threshold", 0.5) == ([{*CLASSES}, set()], "")
    assert predict_from([1.0, 0.0, 0.5], "--top", 3) == ([{*CLASSES}, {*CLASSES}], "")
    words = ["--checkpoint", file, "--data", "folder", "--data-dir", shapes, "--output", tmp_path / "out"]
    assert metamix_command("eval", *words, "--device", "cpu") == 0
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert result["F1_at_0.5"] > 90 > 80 > result["F1"] and result["threshold"] == [1.0, 0.0, 0.5]
    assert each.removeprefix("note: ") in capsys.readouterr().out
    with pytest.raises(SystemExit, match="nano has 2 thresholds for 3 classes: its weight file must have one for each"):
        predict_from([0.5, 0.5])
    with pytest.raises(SystemExit, match="threshold in the metadata is .* it must be a number from 0 to 1, or a list"):
        predict_from([0.5, 0.5, 2])


def test_a_stopped_run_resumes_exactly(shapes, tmp_path):
    words = [*WORDS, "--data-dir", shapes, "--holdout", 0.2, "--epochs", 3, "--early-stopping", 2, "--mixup", 0.2]
    train(*words, "--output", tmp_path / "whole")
    with stopped_at(6):
        train(*words, "--output", tmp_path / "stopped")
    train(*words, "--output", tmp_path / "stopped")
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    assert "has the best held-out mAP" in (tmp_path / "stopped/log.txt").read_text()
    a, b = (load_metadata(tmp_path / name / "model.safetensors") for name in ("stopped", "whole"))
    assert a["threshold"] == b["threshold"] and a["mAP"] == b["mAP"]


def test_a_changed_label_is_noticed(shapes, table, tmp_path):
    lines = (shapes / "labels.csv").read_text().splitlines()
    words = [*WORDS, "--data-dir", table(*lines), "--output", tmp_path / "run", "--epochs"]
    train(*words, 1)
    table(*lines[:-1], "95.png,red")
    with pytest.raises(SystemExit, match="was made with other data; these differ: files, labels or boxes"):
        train(*words, 2)


@pytest.mark.slow
def test_an_export_returns_probabilities(run, shapes, tmp_path, capsys):
    words = ["--format", "torch", "--data", "folder", "--data-dir", shapes, "--seconds", 0]
    assert metamix_command("export", run, *words, "--output", tmp_path / "out") == 0
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["scores"]["eager"]["mAP"] == report["scores"]["exported"]["mAP"] > 95
    assert report["scores"]["exported"]["loss"] == pytest.approx(
        json.loads((run / "summary.json").read_text())["loss"], rel=1e-3
    )
    assert "same_top1" not in report["parity"]
    trained, exported = metamix.load(run), metamix.load(tmp_path / "out", trust=True)
    artifact = exported.model.artifact
    assert artifact.outputs == ("probabilities",) and artifact.model.classes == CLASSES
    images = torch.stack([trained.transform(Image.open(shapes / f"images/{i}.png")) for i in range(9)])
    torch.testing.assert_close(exported.model(images), trained.model(images).sigmoid().detach(), rtol=1e-4, atol=1e-5)
    files = [shapes / f"images/{i}.png" for i in range(9)]
    for labels, expected in zip(exported.predict(files), trained.predict(files)):
        assert dict(labels) == pytest.approx(dict(expected), abs=1e-4)
    capsys.readouterr()
    assert metamix_command("predict", files[7], "--model", tmp_path / "out", "--trust") == 0
    assert capsys.readouterr().out.count("%") == 3


def test_the_score_of_an_image_for_int8_is_its_f1(run, shapes, monkeypatch):
    from metamix.classification.export import open_classifier
    from metamix.tasks.exportable import ExportOptions

    words = {"data": "folder", "data_dir": str(shapes), "format": "torch"}
    exportable = open_classifier(ExportOptions(str(run), shapes.parent / "out", **words))
    batches, seen = exportable.batches, []

    def record(source, size):
        seen.append(set(source.indices.tolist()))
        return batches(source, size)

    monkeypatch.setattr(exportable, "batches", record)
    assert exportable.held_out_scores(exportable.model, 40).mean() > 90
    assert sum(map(len, exportable.calibration(40))) == 40 and seen[0].isdisjoint(seen[1])

    monkeypatch.setattr(exportable, "batches", lambda *args: iter(()))
    with pytest.raises(ValueError, match="none of the .* training images that int8 is checked on can be read"):
        exportable.held_out_scores(exportable.model, 40)
    scores = torch.tensor([[0.9, 0.9, 0.1], [0.1, 0.1, 0.1], [0.9, 0.1, 0.1], [0.1, 0.9, 0.1]])
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 0, 0], [1, 0, 0]])
    assert exportable.image_scores(scores, labels).tolist() == [0.5, 1.0, 1.0, 0.0]


def test_verify_counts_the_labels(table, capsys):
    root = table(
        "file;tags;split", "1.png; red ;train", "3.png;red|green|red;Train", "0.png;;train", "5.png;red|blue;val"
    )
    assert metamix_command("verify", root) == 0
    assert capsys.readouterr().out.splitlines() == [
        "all 4 images can be read",
        "label       train  val",
        "blue            0    1",
        "green           1    0",
        "red             2    1",
        "(no label)      1    0",
        "note: 2 labels have at most one image in train: blue, green",
        "note: 1 label has no image in val: green",
    ]
    assert metamix_command("verify", table("file,labels", "1.png,red", "2.png,green", "4.png,'blue red'")) == 0
    said = capsys.readouterr().out
    assert "note: no image has two labels, such as cat|dog: metamix convert csv can make" in said
    assert metamix_command("verify", table("file;labels", "1.png;red", "2.png;green", "4.png;blue, red")) == 0
    assert "a label has a comma: separate labels by |, as in cat|dog" in capsys.readouterr().out
    assert "label       images\n" in said  # not "test", since training would score only a share of these images
    assert metamix_command("verify", table("file,split,labels", "1.png,val,red", "2.png,val,green")) == 0
    assert "label       val\n" in capsys.readouterr().out


def test_columns_of_0_and_1_are_read_as_labels(shapes, table, capsys):
    lines = [line.split(",") for line in (shapes / "labels.csv").read_text().splitlines()[1:]]
    expected = open_data("folder", root=table("file,labels", *map(",".join, lines)))
    for header, zero, one in (("file,red,green,blue", "0", "1"), ('"Image Name";red; green ;blue', "0.0", " 1.0")):
        delimiter = ";" if ";" in header else ","
        rows = [[file, *(one if name in labels.split("|") else zero for name in COLOURS)] for file, labels in lines]
        splits = open_data("folder", root=table(header, *map(delimiter.join, rows)))
        assert splits.classes == CLASSES and splits.digest == expected.digest
    pandas = [",file,Split,Cat,cat,a b,name of none"]  # an index without a name, and a label that no image has
    root = table(*pandas, "0,1.png,train,1,0,1,0", "1,2.png,train,1,1,0,0", "2,3.png,val,0,1,0,0")
    assert metamix_command("verify", root) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:3] == ["all 3 images can be read", "label         train  val", "a b               1    0"]
    assert {"Cat               2    0", "cat               1    1", "name of none      0    0"} < {*said}


def test_a_label_may_be_called_left_or_right(table):
    rows = [f"{i}.png,{i % 2},1" for i in range(20)]
    assert open_data("folder", root=table("file,left,right", *rows)).classes == ("left", "right")


def test_the_index_column_of_pandas_is_ignored(table):
    splits = open_data("folder", root=table(",file,labels", *(f"{i},{i}.png,red|green" for i in range(20))))
    assert len(splits.train) == 18 and splits.classes == ("green", "red")


@pytest.mark.parametrize("header", ["file,labels", "file,red,green"])
@pytest.mark.parametrize("changed, encoding", [("\n\r", "utf-8"), (",\t", "utf-16")])
def test_files_that_excel_can_write_are_read(header, changed, encoding, table):
    root = table(header, *(f"{i}.png,{'red|green' if 'labels' in header else '1,0'}" for i in range(20)))
    text = (root / "labels.csv").read_text().replace(*changed)
    (root / "labels.csv").write_bytes(text.encode(encoding))
    assert open_data("folder", root=root).multi_label


def test_a_csv_file_without_labels_beside_class_folders_is_ignored(folder):
    root = folder()
    for lines in ("file,width,height\n1.png,8,9", "file,label,fold\n1.png,cat,1", "file,fold\n1.png,1", "file,cat,dog"):
        (root / "labels.csv").write_text(lines)
        assert not open_data("folder", root=root).multi_label


def test_images_that_labels_csv_does_not_list_are_named(table, caplog):
    root = table("file,labels", "images/1.png,red", "images/3.png,green", "images/2.png,red")
    (root / "masks").mkdir()
    shutil.copy(root / "images/1.png", root / "masks/1.png")
    open_data("folder", root=root)
    assert "labels.csv does not list are left out: images/0.png, " in caplog.text and "masks" not in caplog.text


def test_the_splits_in_labels_csv_are_used(table):
    lines = ["file,labels,split", "1.png,red,train", "3.png,red|green,train", "2.png,green,val", "6.png,blue,test"]
    splits = open_data("folder", root=table(*lines))
    assert splits.classes == CLASSES and splits.multi_label
    assert splits.train.labels.tolist() == [[0, 0, 1], [0, 1, 1]] and splits.test.labels.tolist() == [[0, 1, 0]]
    test = open_data("folder", root=table(*lines), test_on="test").test
    assert test.path(0).endswith("6.png") and test.read(0)[1].tolist() == [1, 0, 0]
    only = open_data("folder", root=table(*lines[:1], *lines[3:]), train_required=False, classes=("red", *CLASSES[:2]))
    assert only.train is None and only.test.labels.tolist() == [[0, 0, 1]]  # in the order of the weights' classes


def test_splits_are_stratified_by_the_rarest_label_of_each_image(table):
    labels = torch.tensor([[1.0, 0, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 0, 1]])
    assert strata(labels).tolist() == [0, 0, -1, 1, 2]
    lines = [f"{i}.png,{'often' if i % 2 else ''}|{'rare' if i < 8 else ''}" for i in range(96)]
    splits = open_data("folder", root=table("file,labels", *lines), holdout=0.25, test_share=0.25)
    counts = [source.labels.sum(0).tolist() for source in splits.sources().values()]
    assert [rare for _, rare in counts] == [4, 2, 2] and [often for often, _ in counts] == pytest.approx(
        [27, 9, 12], abs=1
    )


LINE = "1.png,red|green"


@pytest.mark.parametrize(
    "lines, said",
    [
        (["file,labels", LINE, "no.png,red"], "csv:3: the image is neither in .*set nor in its subfolder images/$"),
        (["file,labels", LINE, LINE], "csv:3 names the image of .*csv:2 again: put all its labels on one line"),
        (["file,labels", "1.png,", "2.png,"], "must have at least two different labels; found none"),
        (["file,labels", "1.png,red", "2.png,"], "must have at least two different labels; found red"),
        (["file,labels,split", f"{LINE},train", "2.png,red,"], "csv:3 has no split, but other lines do: write train"),
        (["file,labels,split", f"{LINE},val"], "labels.csv has no image to train on: write train in the split column"),
        (["file,labels,split", f"{LINE},dev"], "labels.csv:2 has the split 'dev', but it must be train, val or test"),
        (["id,labels", LINE], "labels.csv:1 has the columns id, labels: the first line must name the columns"),
        (["file,labels,split", f"{LINE},train", "0.png,,val"], "no image of test has a label: give other data"),
        (["file,red,green", "1.png,1,0", "2.png,1,2"], "csv:3 has '2' in the column green, but it must be 0 or 1"),
        (["file,red,green", "1.png,1,"], "csv:2 has '' in the column green, .*: without a column labels, each column"),
        (["file,red,green", "1.png,True,False"], "csv:2 has 'True' in the column red, but it must be 0 or 1"),
        (["file,red,red", "1.png,1,0"], "labels.csv:1 has the label 'red': each label needs its own name"),
        (["file,red|green,blue", "1.png,1,0"], r"labels.csv:1 has the label 'red\|green': .* without \| and ;"),
        (["file,labels,red,green", "1.png,red,1,0"], "csv:1 has a column labels and columns of 0 and 1, .*: remove"),
        (
            ["file,labels,set", f"{LINE},Train"],
            "csv:1 has no column split, but the column set holds names of splits: rename it",
        ),
        (["file,label", "1.png,red"], "found only images. To make these folders from labels.csv: metamix convert csv"),
    ],
)
def test_wrong_label_files_are_refused(lines, said, table):
    with pytest.raises(SystemExit, match=said):
        train(*WORDS, "--data-dir", table(*lines), "--dry-run")


def test_options_for_the_other_kind_of_labels_are_refused(shapes, folder, table, tmp_path):
    labelled, classes = [*WORDS, "--data-dir", shapes, "--dry-run"], [*WORDS, "--data-dir", folder(), "--dry-run"]
    with pytest.raises(SystemExit, match="sampling is balanced, but images have several labels: give --class-weights"):
        train(*labelled, "--sampling", "balanced")
    with pytest.raises(SystemExit, match="loss is asymmetric, but each image has one class: leave --loss out"):
        train(*classes, "--loss", "asymmetric")
    with pytest.raises(SystemExit, match="test_on is 'val', but .*labels.csv has no splits to score: leave it out"):
        train(*labelled, "--test-on", "val")
    with pytest.raises(SystemExit, match="threshold is 0.3, but metaformer_pooling_nano is not multi-label: leave it"):
        words = ["--checkpoint", "metaformer_pooling_nano.digits", "--threshold", 0.3]
        metamix_command("predict", shapes / "images/1.png", *words)
    with pytest.raises(SystemExit, match=r"csv:2 has the class 'red\|green'; .* If images have several labels, they"):
        metamix_command("convert", "csv", table("file,labels", LINE), tmp_path / "out")


def test_single_label_and_multi_label_models_do_not_mix(run, shapes, tmp_path, capsys):
    words = [*WORDS, "--data-dir", shapes, "--teacher", "metaformer_identity_nano", "--teacher-checkpoint"]
    train(*words, run, "--distill", 1.0, "--epochs", 6, "--lr", 1e-2, "--output", tmp_path / "student")
    assert json.loads((tmp_path / "student/summary.json").read_text())["mAP"] > 80  # the student saw no labels
    lines = ["file,label", *(f"{i}.png,{CLASSES[i % 3]}" for i in range(12))]
    (tmp_path / "one").mkdir()
    shutil.copytree(shapes / "images", tmp_path / "one/images")
    (tmp_path / "one/any.csv").write_text("\n".join(lines))
    assert metamix_command("convert", "csv", tmp_path / "one", tmp_path / "classes") == 0
    train(*WORDS, "--data-dir", tmp_path / "classes", "--epochs", 1, "--output", tmp_path / "of-classes")
    with pytest.raises(SystemExit, match="the teacher .* predicts one class per image, unlike shapes; give another"):
        train(*words, tmp_path / "of-classes", "--output", tmp_path / "other")
    one, several = "one class per image", "several labels per image"
    cases = (run, tmp_path / "classes", several, one), (tmp_path / "of-classes", shapes, one, several)
    for trained, data, wanted, has in cases:
        with pytest.raises(SystemExit, match=f"was trained for {wanted}, but {data.name} has {has}; give other --data"):
            metamix_command("eval", "--checkpoint", trained, "--data", "folder", "--data-dir", data)


def loss_of(logits, labels, **options):
    loss = ClassificationLoss(ClassificationOptions(**options), NO_TEACHER, labels, labels.shape[1])
    value, logged = loss(lambda images: logits, {"image": None, "target": labels})
    assert not logged
    return value


def test_losses_equal_the_losses_of_torch_and_timm():
    torch.manual_seed(0)
    logits, labels = torch.randn(12, 3), (torch.rand(12, 3) < 0.3).float()
    bce = F.binary_cross_entropy_with_logits
    torch.testing.assert_close(loss_of(logits, labels), bce(logits, labels))
    smooth = loss_of(logits, labels, smoothing=0.2)
    torch.testing.assert_close(smooth, bce(logits, labels * 0.8 + 0.1))
    weights = (labels == 0).sum(0) / labels.sum(0)
    torch.testing.assert_close(
        loss_of(logits, labels, class_weights="balanced"), bce(logits, labels, pos_weight=weights)
    )
    asymmetric = loss_of(logits, labels, loss="asymmetric")
    torch.testing.assert_close(asymmetric, AsymmetricLossMultiLabel(reduction="sum")(logits, labels) / 36)
    both = loss_of(logits, labels, loss="asymmetric", class_weights="balanced")
    weighted = AsymmetricLossMultiLabel(pos_weight=weights, reduction="sum")
    torch.testing.assert_close(both, weighted(logits, labels) / 36)
    teacher, options = torch.randn(12, 3), ClassificationOptions(temperature=2.0)
    distilled = ClassificationLoss(options, NO_TEACHER, labels, 3).distillation(logits, teacher)
    torch.testing.assert_close(distilled, 4 * bce(logits / 2, (teacher / 2).sigmoid()))


def test_scores_are_means_over_the_labels_that_have_images():
    torch.manual_seed(0)
    metric = MultiLabelMetric((*CLASSES, "none"), lambda images: images, 0.4)
    labels = torch.cat([(torch.rand(40, 3) < 0.4).float(), torch.zeros(40, 1)], 1)
    scores = (0.3 * labels + torch.rand(40, 4)).clamp(0.001, 0.999)
    states = []
    for part in (slice(0, 25), slice(25, 40), slice(40, 40)):  # three ranks, one without images
        states.append(metric.start())
        if part.start < 40:
            metric.update(states[-1], scores[part].logit(), {"label": labels[part]})
    truth, values = labels[:, :3].numpy(), scores[:, :3].numpy()
    result = metric.result(states)
    assert result["mAP"] == pytest.approx(100 * average_precision_score(truth, values, average="macro"), abs=1e-3)
    assert result["F1"] == pytest.approx(100 * f1_score(truth, values >= 0.4, average="macro"), abs=1e-3)
    assert metric.by_class(states)["none"] == {"AP": None, "F1": None, "images": 0, "threshold": 0.4}
    assert metric.by_class(states)["red"]["images"] == truth[:, 2].sum()
    chosen = metric.choose(states)["threshold"]
    best = [max(f1_score(truth[:, k], values[:, k] >= i / 100) for i in range(1, 100)) for k in range(3)]
    assert metric.threshold == chosen and len({*chosen}) > 1 and chosen[3] == 0.5
    result = metric.result(states)
    assert result["F1"] == pytest.approx(100 * np.mean(best), abs=1e-3)
    assert result["F1_at_0.5"] == pytest.approx(100 * f1_score(truth, values >= 0.5, average="macro"), abs=1e-3)
    assert list(result) == ["mAP", "F1", "F1_at_0.5", "loss"]
    assert np.mean([metric.by_class(states)[name]["F1"] for name in CLASSES]) == pytest.approx(result["F1"], abs=0.01)
    with pytest.raises(ValueError, match="the model returns NaN or infinity"):
        metric.update(metric.start(), scores * torch.nan, {"label": labels, "index": torch.arange(40)})


def test_logits_that_round_to_probability_1_keep_their_rank_and_loss():
    metric = MultiLabelMetric(("a", "b"), lambda images: images, 0.5)
    state, labels = metric.start(), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    logits = torch.tensor([[30.0, 20.0], [25.0, 40.0]])
    outputs = metric.predict(lambda images: logits, {"image": logits})
    metric.update(state, outputs, {"label": labels, "index": torch.arange(2)})
    result = metric.result([state])
    assert result["mAP"] == 100 and result["loss"] == pytest.approx((25 + 20) / 4)
    state = metric.start()
    metric.update(state, torch.zeros(2, 2), {"label": labels, "index": torch.arange(2)})
    assert metric.result([state])["F1"] == pytest.approx(200 / 3)  # a probability of 0.5 reaches the threshold


def test_the_threshold_nearest_to_a_half_is_chosen_among_equally_good_ones():
    metric = MultiLabelMetric(("a", "b"), lambda images: images, 0.5)
    for high, low, threshold in ((0.3125, 0.125, 0.31), (0.875, 0.625, 0.63), (0.75, 0.25, 0.5)):
        state, labels = metric.start(), torch.eye(2)
        metric.update(state, (labels * (high - low) + low).logit(), {"label": labels, "index": torch.arange(2)})
        assert metric.choose([state]) == {"threshold": (threshold, threshold)}


def test_the_snippet_on_a_published_card_prints_the_labels(run, tmp_path, monkeypatch):
    assert metamix_command("publish", run, "me/colours", "--license", "mit", "--dry-run", tmp_path / "folder") == 0
    card = (tmp_path / "folder/README.md").read_text()
    (shown,) = re.findall(r"^print\((\[name for name.*)\)$", card, re.M)
    logits, thresholds = torch.tensor([[0.0, 5.0, -5.0]]), metamix.load(run).metadata.threshold
    assert eval(shown, {"names": CLASSES, "scores": logits}) == ["blue"] * (thresholds[0] <= 0.5) + ["green"]


def test_save_classifier_with_a_threshold_saves_a_multi_label_model(tmp_path):
    options = {"img_size": 32, "depths": (1,), "dims": (8,)}
    model = timm.create_model("metaformer_identity_nano", num_classes=2, **options)
    metamix.save_classifier(model, tmp_path / "m.safetensors", classes=["cat", "dog"], model_args=options, threshold=0)
    (labels,) = metamix.load(tmp_path / "m.safetensors").predict([Image.new("RGB", (32, 32))])
    assert {name for name, _ in labels} == {"cat", "dog"} and sum(p for _, p in labels) != pytest.approx(1, abs=1e-6)


def test_the_explained_label_is_the_most_probable_one(run, shapes, tmp_path):
    pytest.importorskip("pytorch_grad_cam")
    assert metamix_command("explain", shapes / "images/1.png", "--checkpoint", run, "--output", tmp_path / "out") == 0
    (record,) = json.loads((tmp_path / "out/explanations.json").read_text())
    assert record["label"] == "red" and record["score"] > 0.5
