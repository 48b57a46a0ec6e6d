"""Test `metamix predict` for classification."""

import csv
import io
import json
import shutil

import pytest
from PIL import Image

from metamix.classification.load import Classifier
from metamix.classification.predict import choose_format
from metamix.data import open_data
from metamix.data.find import list_images, paths_inside
from tests.helpers.running import metamix_command

WEIGHTS = ["--checkpoint", "metaformer_pooling_nano.digits", "--device", "cpu"]


def main(words):
    return metamix_command("predict", *words)


@pytest.fixture
def digits(tmp_path):
    """Make a folder of four digits, a broken image and a text file; return it with the labels of the digits."""
    test = open_data("digits").test
    (tmp_path / "digits" / "deep").mkdir(parents=True)
    for i, name in enumerate(("0.png", "1.png", "10.png", "deep/2.png")):
        test.read(i)[0].save(tmp_path / "digits" / name)
    (tmp_path / "digits" / "3.png").write_bytes(b"no image")
    (tmp_path / "digits" / "notes.txt").write_text("no image either")
    return tmp_path / "digits", [str(int(test.labels[i])) for i in range(4)]


def test_labels_of_a_folder_are_printed_as_a_table(digits, capsys):
    folder, labels = digits
    assert main([str(folder), *WEIGHTS, "--top", "2"]) == 1
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        [str(folder / name), label] for name, label in zip(("0.png", "1.png", "10.png", "deep/2.png"), labels)
    ]
    assert all(line.count("%") == 2 for line in lines)
    assert f"left out: {folder}/3.png: not an image of a known format (" in said.err


def test_csv_and_json_hold_the_same_labels(digits, capsys, tmp_path):
    folder, labels = digits
    (folder / "3.png").unlink()
    assert main([str(folder), *WEIGHTS, "--format", "json", "--batch-size", "3"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [record["labels"][0]["label"] for record in records] == labels
    assert all(len(record["labels"]) == 5 and record["labels"][0]["probability"] > 0.5 for record in records)
    assert main([str(folder), *WEIGHTS, "--output", str(tmp_path / "p.csv")]) == 0  # the extension sets the format
    assert capsys.readouterr().out == f"written: {tmp_path / 'p.csv'}, 4 images\n"
    rows = list(csv.DictReader(io.StringIO((tmp_path / "p.csv").read_text())))
    assert [(row["image"], row["label"]) for row in rows] == [
        (record["image"], entry["label"]) for record in records for entry in record["labels"]
    ]
    assert [row["rank"] for row in rows[:5]] == ["1", "2", "3", "4", "5"]
    flat = [entry["probability"] for record in records for entry in record["labels"]]
    assert [float(row["probability"]) for row in rows] == pytest.approx(flat, abs=1e-4)


def test_nothing_is_written_if_no_image_can_be_read(digits, tmp_path):
    (tmp_path / "p.csv").write_text("earlier")
    with pytest.raises(SystemExit, match="^error: .*3.png: "):
        main([str(digits[0] / "3.png"), *WEIGHTS, "--output", str(tmp_path / "p.csv")])
    assert (tmp_path / "p.csv").read_text() == "earlier"


@pytest.mark.parametrize("made, rows", [(2, ["0.png", "1.png"]), (0, None)])
def test_labels_made_before_ctrl_c_are_written(made, rows, digits, tmp_path, monkeypatch):
    label, left = Classifier.label, [None] * made

    def stop(*words):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return label(*words)

    monkeypatch.setattr(Classifier, "label", stop)
    (tmp_path / "p.csv").write_text("earlier")
    words = [digits[0], *WEIGHTS, "--batch-size", 1, "--top", 1, "--output", tmp_path / "p.csv"]
    assert main(words) == 130
    text = (tmp_path / "p.csv").read_text()
    assert text == "earlier" if rows is None else [line.split(",")[0][-5:] for line in text.splitlines()[1:]] == rows


def test_the_output_is_checked_before_labelling(digits, tmp_path):
    folder, _ = digits
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"the folder .*file could not be made \(File exists\)"):
        main([str(folder), *WEIGHTS, "--output", str(tmp_path / "file" / "p.csv")])
    main([str(folder / "0.png"), *WEIGHTS, "--output", str(tmp_path / "new" / "p.csv")])
    assert (tmp_path / "new" / "p.csv").exists()


def test_an_image_or_a_file_of_a_run_is_never_overwritten(digits, tmp_path):
    folder, _ = digits
    image = folder / "0.png"
    shutil.copy(image, folder / "nameless")
    before = image.read_bytes()
    (run := tmp_path / "run").mkdir()
    (run / "recipe.yaml").touch()
    (run / "log.txt").write_text("epoch 1")
    (run / "test_scores.json").touch()
    for source, output, said in (
        (image, image, "0.png is an image and would be overwritten: give another --output"),
        (folder / "nameless", folder / ".." / "digits" / "nameless", "is an image and would be overwritten"),
        (image, folder / "1.png", "1.png is named like an image, but labels are text: give a .csv"),
        (image, tmp_path / "new.PNG", "new.PNG is named like an image"),
        (image, run / "log.txt", "log.txt belongs to a run or an export and would be overwritten"),
        (image, run / "recipe.yaml", "recipe.yaml belongs to a run"),
        (image, run / "test_scores.json", "test_scores.json belongs to a run"),
    ):
        with pytest.raises(SystemExit, match=f"^error: .*{said}"):
            main([str(source), *WEIGHTS, "--format", "csv", "--output", str(output)])
    assert image.read_bytes() == (folder / "nameless").read_bytes() == before
    assert (run / "log.txt").read_text() == "epoch 1"
    (run / "labels.csv").touch()
    assert choose_format(str(run / "labels.csv"), None, [image]) == "csv"
    assert not (tmp_path / "new.PNG").exists() and (folder / "1.png").read_bytes().startswith(b"\x89PNG")


def test_the_extension_of_the_output_sets_its_format(digits, tmp_path):
    image = str(digits[0] / "0.png")
    with pytest.raises(SystemExit, match="x.xlsx has no known extension: give a .csv, .*or add --format"):
        main([image, *WEIGHTS, "--output", str(tmp_path / "x.xlsx")])
    with pytest.raises(SystemExit, match=f"{tmp_path}/new/ is a folder: give a file"):
        main([image, *WEIGHTS, "--output", f"{tmp_path}/new/"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits"]
    for name, words, first in (("t.txt", [], image), ("T.CSV", [], "image,rank"), ("x.dat", ["--format", "json"], "[")):
        assert main([image, *WEIGHTS, *words, "--output", str(tmp_path / name)]) == 0
        assert (tmp_path / name).read_text().startswith(first)


def test_an_image_that_is_given_twice_is_read_once(digits):
    folder, _ = digits
    assert len(paths_inside([folder, folder / "0.png", folder])) == 5


def test_earlier_results_are_skipped_inside_a_folder(digits, tmp_path):
    folder, _ = digits
    for out in (folder / "out", tmp_path / "elsewhere"):
        out.mkdir()
        Image.new("L", (8, 8)).save(out / "result.png")
    (folder / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert len(paths_inside([folder])) == 7
    assert len(paths_inside([folder], without=[folder / "out", folder / "link"])) == 5
    assert len(paths_inside([folder], without=[folder])) == len(paths_inside([folder], without=[folder.parent])) == 7
    assert list(paths_inside([folder / "out"], without=[folder / "out"])) == [folder / "out" / "result.png"]
    shutil.copytree(folder / "out", tmp_path / "new" / "out")
    with pytest.raises(FileNotFoundError, match="new has images only in the output folder: give a folder of input"):
        paths_inside([tmp_path / "new"], without=[tmp_path / "new" / "out"])


def test_images_of_other_types_are_named(digits, caplog):
    folder, _ = digits
    Image.new("L", (8, 8)).save(folder / "a.gif")
    assert len(paths_inside([folder])) == len(list_images(folder)) == 5
    assert caplog.text.count(": images of other types are left out") == 1  # a command may list a folder twice
    assert f"{folder}: images of other types are left out: 1 .gif. Save them as .png or .jpg" in caplog.text


def test_wrong_images_and_options_are_refused_in_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    for words, said in (
        ([tmp_path / "none.png", *WEIGHTS], "there is no file or folder .*none.png"),
        ([tmp_path, *WEIGHTS, "--tile", "8"], "there is no option --tile for classification; it is an option of seg"),
        ([tmp_path / "empty", *WEIGHTS], "there is no image in .*empty; expected files such as .png and .jpg"),
    ):
        with pytest.raises(SystemExit, match=f"^error: {said}"):
            main([*map(str, words)])
