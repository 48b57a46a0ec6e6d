"""Test `metamix demo`: what the page shows for a model of each task, and for images that cannot be predicted."""

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import metamix
from metamix.deploy import export
from metamix.detection.load import DetectorSpec
from metamix.tasks import demo
from metamix.tasks.demo import Answer, DemoOptions, Models, as_html, in_words
from metamix.tasks.predict import PredictOptions
from metamix.weights.files import save_weights
from tests.helpers.running import free_port, metamix_command
from tests.tasks.test_benchmark import detector, restorer, segmenter
from tests.tasks.test_explain import digit, no_grad_cam

__all__ = ["digit", "no_grad_cam"]
DIGITS = "metaformer_pooling_nano.digits"


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.linear_gradient("L").resize((48, 40)).convert("RGB").save(path)
    return path


@pytest.fixture
def models(tmp_path):
    """Return a function that saves the model that `build` makes, and returns `Models` and the weight file's name."""

    def make(build):
        torch.manual_seed(0)
        model, about = build()
        save_weights(tmp_path / "w.safetensors", model.state_dict(), about)
        return Models(DemoOptions((f"{tmp_path}/w.safetensors",), device="cpu")), f"{tmp_path}/w.safetensors"

    return make


# The answer for each task


def test_shipped_weights_are_listed_and_are_loaded_when_first_used(digit, monkeypatch):
    loaded = []
    monkeypatch.setattr(demo, "load", lambda name, trust: loaded.append(name) or metamix.load(name))
    models = Models(DemoOptions(device="cpu"))
    assert {DIGITS, "maxim_nano.noise25"} <= models.specs.keys() and not loaded
    answers = [models.answer(DIGITS, digit, False) for _ in range(2)]
    assert loaded == [DIGITS]
    (labels,) = answers[0].tables.values()
    names, probabilities = zip(*metamix.load(DIGITS).predict([digit])[0])
    assert [row["label"] for row in labels] == [*names]
    assert [row["probability"] for row in labels] == pytest.approx(probabilities, abs=1e-6)
    assert not answers[0].pictures and not answers[0].notes


def sure_detector():
    model, about = detector()
    for name, bias in model.named_parameters():
        if name.endswith(("cls_logits.bias", "bbox_ctrness.bias")):
            torch.nn.init.constant_(bias, 5)
    return model, about


def test_a_detector_shows_a_table_of_objects_and_the_image_with_boxes(models, photo, rendered_figures):
    all_models, name = models(sure_detector)
    answer = all_models.answer(name, photo, False)
    assert [picture.size for picture in answer.pictures] == [(48, 40)]
    assert answer.pictures[0].tobytes() != Image.open(photo).tobytes()
    assert answer.tables["objects"][0].keys() == {"class", "score", "box"} and not answer.notes


def test_a_detector_that_finds_nothing_shows_an_empty_table(models, photo):
    all_models, name = models(detector)
    answer = all_models.answer(name, photo, False)
    assert (len(answer.pictures), answer.tables, answer.notes) == (1, {"objects": []}, [])


def test_a_segmenter_shows_a_mask_an_overlay_and_the_share_of_each_class(models, photo):
    all_models, name = models(segmenter)
    answer = all_models.answer(name, photo, False)
    mask, overlay = answer.pictures
    assert mask.size == overlay.size == (48, 40)
    rows = answer.tables["classes"]
    assert {row["class"] for row in rows} <= {"sky", "ground"}
    shares = {f"#{bytes(colour).hex()}": count / (48 * 40) for count, colour in mask.getcolors()}
    assert {row["colour"]: row["share"] for row in rows} == pytest.approx(shares, abs=1e-4)


def test_a_restorer_shows_the_restored_image(models, photo):
    all_models, name = models(restorer)
    answer = all_models.answer(name, photo, True)
    (picture,) = answer.pictures
    (expected,) = metamix.load(name).predict([photo])
    assert picture.tobytes() == expected.tobytes() and not answer.tables
    assert answer.notes == [
        f"{name} is a model for restoration, and only models for classification and detection can be explained"
    ]


def test_the_output_of_a_task_that_only_prints_becomes_a_note(photo):
    @dataclass
    class Predict(PredictOptions):
        def run(self, trained):
            print(f"{self.images[0]}: {trained.number}")
            return 0

    models = Models(DemoOptions((DIGITS,), device="cpu"))
    models.specs["own"] = SimpleNamespace(part=lambda role: Predict)
    models.load = lambda name: SimpleNamespace(number=7)
    assert models.answer("own", photo, False) == Answer(notes=["photo.png: 7"])


@pytest.mark.slow
def test_an_export_shows_the_same_tables_as_its_model(models, photo, tmp_path):
    all_models, name = models(segmenter)
    Image.open(photo).resize((32, 32)).save(photo)  # the only size that the exported model takes
    export(name, output=tmp_path / "street", format="torch", seconds=0)
    street = str(tmp_path / "street")
    exported = Models(DemoOptions((street,), device="cpu", trust=True)).answer(street, photo, True)
    assert exported.tables == all_models.answer(name, photo, False).tables
    assert exported.notes[0].startswith(f"{street} is a model for segmentation, and only models for ")
    (note,) = Models(DemoOptions((street,), device="cpu")).answer(street, photo, False).notes
    assert "model.pt2 is not loaded: " in note and "give --trust" in note


def test_an_explanation_is_shown_as_a_picture(digit, no_grad_cam, rendered_figures):
    answer = Models(DemoOptions((DIGITS,), device="cpu")).answer(DIGITS, digit, True)
    (picture,) = answer.pictures
    assert picture.width > 800 and answer.tables["labels"] and not answer.notes


def test_markup_in_class_names_is_escaped_in_tables():
    rows = [{"class": "<b>", "score": 0.12345, "box": [1.5, 2], "mask": {"counts": "x"}, "colour": "#ff0000"}]
    text = as_html("objects", rows)
    cells = "<td>&lt;b&gt;</td><td>0.123</td><td>[1.5, 2]</td><td style='background: #ff0000'>#ff0000</td>"
    assert f"<tr>{cells}</tr>" in text and "mask" not in text and text.startswith("objects<")
    assert "<th>none</th>" in as_html("objects", [])


# Latency


def test_latencies_of_models_are_shown_in_one_table(models):
    all_models, name = models(segmenter)
    answer = all_models.latency([DIGITS, name])
    ((title, rows),) = answer.tables.items()
    assert title.startswith("latency of one image on ")
    eager = [row for row in rows if row["engine"] == "eager"]
    assert [(row["model"], row["img_size"]) for row in eager] == [(DIGITS, 32), (name, 32)]
    assert all(row["ms"] > 0 and row["precision"] == "fp32" for row in rows)


def test_a_note_names_a_model_that_cannot_be_timed(models):
    def two_stages():
        _, about = detector()
        spec = DetectorSpec.from_dict(about | {"detector": "faster_rcnn", "extra": "pool"}, "x")
        return spec.build(), about | spec.to_dict()

    all_models, name = models(two_stages)
    answer = all_models.latency([name])
    assert answer == Answer(notes=[f"{name} is a FasterRCNN; only RetinaNet and FCOS can be exported or timed"])


@pytest.mark.parametrize("installed", [set(), {"onnxruntime", "onnx", "onnxscript"}, None])
def test_only_installed_engines_are_timed(installed, monkeypatch):
    def benchmark(models, engines, **settings):
        print("measure again", file=sys.stderr)
        timed.append(engines)
        return {"machine": {"cpu": "a CPU"}, "threads": 2, "rows": [], "failed": {"digits openvino fp32": "no kernel"}}

    timed = []
    monkeypatch.setattr(demo, "benchmark", benchmark)
    monkeypatch.setattr(demo, "find_spec", lambda name: installed is None or name in installed or None)
    answer = Models(DemoOptions((DIGITS,), device="cpu")).latency([DIGITS])
    expected = ["eager"] + ["onnxruntime"] * (installed != set()) + ["openvino"] * (installed is None)
    assert timed == [expected]
    assert answer.notes == ["digits openvino fp32 failed: no kernel", "measure again"]


# Images that cannot be predicted


@pytest.mark.parametrize(
    "content, said",
    [
        (b"no image", "odd.png: not an image of a known format (JPEG, PNG,"),
        (b"", "odd.png: not an image of a known format"),
        (None, "odd.png: it has more than 100 pixels, and decoding it may take gigabytes of memory"),
        (900, "odd.png: OSError: "),
    ],
    ids=["text", "empty", "huge", "truncated"],
)
@pytest.mark.parametrize("name", [DIGITS, "wavemixsr_nano.x2"])
def test_a_note_says_why_an_image_cannot_be_read(content, said, name, tmp_path, monkeypatch):
    odd = tmp_path / "odd.png"
    Image.effect_noise((64, 64), 50).save(odd)
    if content is None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    else:
        odd.write_bytes(odd.read_bytes()[:content] if isinstance(content, int) else content)
    (note,) = Models(DemoOptions((name,), device="cpu")).answer(name, odd, True).notes
    assert note.startswith(said)


def test_only_uploads_are_read(photo, tmp_path, monkeypatch):
    uploads = tmp_path / "uploads"
    (uploads / "of_another").mkdir(parents=True)
    monkeypatch.setenv(demo.UPLOADS, str(uploads))
    (uploads / "link.png").symlink_to(photo)
    upload = photo.rename(uploads / "of_another/photo.png")
    Image.new("RGB", (8, 8)).save(photo)
    assert demo.uploaded_file(SimpleNamespace(path=str(upload))) == str(upload)
    assert demo.uploaded_file(None) is None
    for path in (photo, uploads / "link.png", uploads / "../photo.png", upload.parent, uploads / "none.png"):
        with pytest.raises(ValueError, match="was not uploaded"):
            demo.uploaded_file(SimpleNamespace(path=str(path)))


def test_a_note_says_why_the_model_does_not_take_an_image(photo):
    (note,) = Models(DemoOptions(device="cpu")).answer("maxim_nano.noise25", photo, False).notes
    assert note.startswith("photo.png is in colour, and the model was trained on grey images")


def test_out_of_memory_becomes_a_note_and_other_errors_are_raised():
    notes = []
    with in_words(notes):
        raise MemoryError
    assert notes == ["the machine is out of memory; give a smaller image"]
    with pytest.raises(RuntimeError, match="a bug"), in_words(notes):
        raise RuntimeError("a bug")


# Errors before the page starts


@pytest.mark.parametrize(
    "words, said",
    [
        (["metaformer_pooling_nano.digit"], "did you mean 'metaformer_pooling_nano.digits'?"),
        (["metaformer_raft_s12"], "metaformer_raft_s12 is a model, not a weight file: train it first"),
        (["maxim_nano.wrong"], "there is no file maxim_nano.wrong"),
        (["--port", "70000"], "--port is '70000', but it must be a whole number from 1 to 65,535"),
        (["--host", "192.0.2.1"], "give another --port or --host"),
    ],
)
def test_wrong_arguments_are_refused(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        metamix_command("demo", *words, *(() if "--port" in words else ("--port", free_port())))
    assert said in str(ended.value.code)


@pytest.mark.slow
def test_a_signal_ends_the_page_while_a_model_computes(tmp_path):
    """Without `os._exit`, the thread would abort the process: "terminate called without an active exception"."""
    code = f"""
import threading, torch
from types import SimpleNamespace
from metamix_cli import main
from metamix.tasks import demo
def compute():
    while True:
        torch.randn(300, 300) @ torch.randn(300, 300)
start = threading.Thread(target=compute, daemon=True).start
demo.need, demo.make_page = lambda *names: None, lambda *parts: SimpleNamespace(launch=lambda **where: start())
main(["demo", "{DIGITS}", "--device", "cpu", "--port", "{free_port()}"])
"""
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, **streams) as process:
        assert "the page is at" in process.stdout.readline()
        process.terminate()
        assert (process.wait(60), process.stderr.read()) == (143, "")
    # The upload folder must be gone. wandb, if it is installed, leaves its own folders.
    assert not [path for path in tmp_path.iterdir() if "wandb" not in path.name]


def test_a_port_in_use_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match=rf"127.0.0.1:{port} cannot be used \(.* in use\): give another --port"):
            metamix_command("demo", "--port", port)


def test_the_error_says_how_to_install_a_missing_gradio(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit, match=r"gradio is missing: pip install 'metamix\[demo\]', or just gradio"):
        metamix_command("demo", DIGITS, "--port", free_port())
