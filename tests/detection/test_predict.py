"""Test `metamix predict` and `metamix.load` for detection."""

import json
from pathlib import Path
from threading import Event, Thread, current_thread
from types import SimpleNamespace

import pytest
import torch
from PIL import ExifTags, Image

import metamix
from metamix.detection.load import TrainedDetector
from metamix.detection.predict import FindObjects
from metamix.detection.task import Detection, DetectionOptions
from metamix.tasks.predict import main
from metamix.utils.checks import DoesNotFit
from metamix.weights.files import save_weights
from tests.helpers import shapes
from tests.helpers.advice import exit_code
from tests.helpers.detectors import SMALL


@pytest.fixture
def weights(few, tmp_path):
    """Write a detector that finds many objects with low scores, and return its file."""
    task = Detection(DetectionOptions(**SMALL, data_dir=str(few)))
    torch.manual_seed(0)
    model = task.model.build()
    save_weights(tmp_path / "d.safetensors", model.state_dict(), task.model.describe(model))
    return tmp_path / "d.safetensors"


def predict(*words):
    """Run `metamix predict` without --task; the metadata of the weights name the task."""
    return exit_code(main, *words, "--device", "cpu")


@pytest.mark.parametrize("detector, option", [("retinanet", "score_thresh"), ("faster_rcnn", "box_score_thresh")])
def test_predict_takes_a_threshold_below_the_score_thresh_of_the_detector(few, tmp_path, detector, option):
    options = SMALL | dict(data_dir=str(few), detector=detector, detector_args={option: 0.99})
    task = Detection(DetectionOptions(**options))
    trained = TrainedDetector(task.model.build().eval(), task.model.spec(), {})
    image = few / "images" / "test_0.png"
    assert FindObjects((image,), threshold=0.001, output=tmp_path).run(trained) == 0
    (record,) = json.loads((tmp_path / "predictions.json").read_text())
    assert record["objects"] and all(entry["score"] < 0.99 for entry in record["objects"])
    assert len(trained.predict([image], threshold=0.001)[0]["scores"]) == len(record["objects"])
    assert getattr(trained.model, "roi_heads", trained.model).score_thresh == 0.99
    with pytest.raises(OSError, match=r"the folder .*_0.png could not be made \(File exists\); give another folder"):
        FindObjects((image,), output=tmp_path / "test_0.png").run(trained)


def test_threads_that_share_a_detector_keep_its_threshold(few):
    """Without a lock, a thread could save the threshold that another thread has set, and restore it at the end."""
    model = Detection(DetectionOptions(**SMALL, data_dir=str(few))).model.build().eval()
    trained, image = TrainedDetector(model, None, {}), few / "images" / "test_0.png"
    second = Thread(target=trained.predict, args=([image],))
    inside, first_ended = Event(), Event()

    def meet(*_):
        if current_thread() is second:
            inside.set()
            assert first_ended.wait(10)
        else:
            second.start()
            inside.wait(0.5)

    model.register_forward_pre_hook(meet)
    trained.predict([image], threshold=0)
    first_ended.set()
    second.join()
    assert inside.is_set() and model.score_thresh == 0.05


def test_predict_finds_the_images_in_folders(weights, tmp_path):
    """Pictures keep the subfolders of their images; earlier pictures and other files are not used as input."""
    folder = tmp_path / "photos"
    (folder / "trip").mkdir(parents=True)
    for name in ("1.png", "1.jpg", "2.png", "trip/1.png"):
        shapes.draw([(shapes.SQUARE, 5, 6, 20)]).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    for _ in range(2):
        assert predict(folder, "--checkpoint", weights, "--output", folder / "found") == 0
        records = json.loads((folder / "found" / "predictions.json").read_text())
        assert {Path(record["image"]).relative_to(folder).as_posix() for record in records} == {
            "1.jpg", "1.png", "2.png", "trip/1.png",
        }  # fmt: skip
        pictures = {path.relative_to(folder / "found").as_posix() for path in (folder / "found").rglob("*.png")}
        assert pictures == {"1.jpg.png", "1.png.png", "2.png", "trip/1.png"}
    (folder / "trip" / "1.png").unlink()
    said = predict(folder / "trip", "--checkpoint", weights)
    assert said.startswith(f"error: there is no image in {folder / 'trip'}; expected files such as")


def test_predict_leaves_out_images_that_the_model_does_not_take(tmp_path, capsys):
    class Picky(torch.nn.Linear):
        score_thresh = 0.0

        def forward(self, images):
            if images[0].shape[-1] == 30:
                raise DoesNotFit("the model takes no images of 20 x 30")
            if images[0].shape[-1] == 40:
                raise KeyboardInterrupt
            return [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0), "scores": torch.zeros(0)}]

    paths = [tmp_path / f"{width}.png" for width in (20, 30, 25, 40)]
    for path in paths:
        shapes.draw([], (int(path.stem), 20)).save(path)
    trained = TrainedDetector(Picky(1, 1), SimpleNamespace(classes=("disc", "square")), {})
    for end, images in (("returns", paths[:3]), ("is stopped", paths)):
        options = FindObjects(tuple(images), output=tmp_path / end)
        if end == "returns":
            assert options.run(trained) == 1
            assert f"left out: {paths[1]}: the model takes no images of 20 x 30" in capsys.readouterr().err
        else:
            with pytest.raises(KeyboardInterrupt):
                options.run(trained)
        records = json.loads((tmp_path / end / "predictions.json").read_text())
        assert [record["image"] for record in records] == [str(paths[0]), str(paths[2])]


def test_load_returns_a_detector_that_turns_images_upright(weights, few, tmp_path):
    """Boxes are in pixels of the upright image, for files and PIL images, of any EXIF orientation and mode."""
    detector = metamix.load(weights)
    assert detector.classes == detector.spec.classes == ("disc", "square") and not detector.model.training
    assert detector.metadata.task == "detection" and detector.metadata.classes == detector.classes
    assert detector.predict([]) == []
    with pytest.raises(ValueError, match="threshold is 50: give a number from 0 to 1"):
        detector.predict([], threshold=50)
    image = Image.open(few / "images" / "test_0.png")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # shown after a quarter turn to the right
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    turned = Image.open(tmp_path / "turned.png")
    assert turned.size == image.size[::-1]
    upright, *others = detector.predict(
        [few / "images" / "test_0.png", tmp_path / "turned.png", turned, image.convert("RGBA")], threshold=0.001
    )
    assert len(upright["boxes"]) and set(upright) == {"boxes", "scores", "labels"}
    for objects in others:
        assert all(torch.equal(objects[name], values) for name, values in upright.items())
    middle = upright["scores"].median().item()
    (sure,) = detector.predict([image], threshold=middle)
    assert torch.equal(sure["scores"], upright["scores"][upright["scores"] > middle])
    assert torch.equal(metamix.load_detector(weights).predict([image], middle)[0]["boxes"], sure["boxes"])
    assert len(detector.predict([image])[0]["boxes"]) == 0  # 0.5 is the default
