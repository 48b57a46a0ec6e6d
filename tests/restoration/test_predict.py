"""Test restoring files: formats, alpha, rounding, tiles, and files that are left out."""

import json
import struct
import sys
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from torch import nn

import metamix
import metamix_cli
from metamix.restoration import load
from metamix.restoration.files import read_picture, write_picture
from metamix.restoration.inference import Restorer, restore_colours, restore_picture
from metamix.restoration.load import RestorationSpec, TrainedRestorer, load_restorer
from metamix.restoration.pixels import resize_bicubic, to_ycbcr
from metamix.tasks.predict import main as predict
from metamix.weights.files import load_weights, save_weights
from metamix.weights.find import find_weights
from metamix.weights.metadata import ModelMetadata
from tests.helpers.advice import exit_code


class Shift(nn.Module):
    """Add 0.6 of a grey level, and repeat pixels `scale` times."""

    def __init__(self, scale=1):
        super().__init__()
        self.scale, self.seen = scale, []
        self.shift = nn.Parameter(torch.tensor(0.6 / 255))

    def forward(self, x):
        self.seen.append(tuple(x.shape))
        return (x + self.shift).repeat_interleave(self.scale, -1).repeat_interleave(self.scale, -2)


def shifter(scale=1, channels="rgb"):
    return TrainedRestorer("shift", Shift(scale).eval(), RestorationSpec(channels, 1, ""), None)


@pytest.fixture
def run(monkeypatch):
    """Return a function that runs `metamix predict` with a model that adds 0.6 of a grey level."""

    def call(*words, channels="rgb", scale=1):
        trained = shifter(scale, channels)
        monkeypatch.setattr(load, "load_restorer", lambda *args, **options: trained)
        try:
            predict(["--task", "restoration", "--checkpoint", "shift", *map(str, words), "--device", "cpu"])
        except SystemExit as end:
            if end.code not in (0, 1):
                raise
            return end.code, trained.model

    return call


def pixels(path):
    return np.array(Image.open(path)).astype(int)


@pytest.mark.parametrize("kind", ["png", "tif", "webp", "jpg", "bmp"])
def test_formats_except_bmp_are_kept_and_values_are_rounded(kind, clean, tmp_path, run):
    photos, out = clean(count=1, kind=kind), tmp_path / "out"
    assert run(photos, "--output", out)[0] == 0
    written = out / f"0.{'png' if kind == 'bmp' else kind}"
    difference = pixels(written) - np.minimum(pixels(photos / f"0.{kind}") + 1, 255)
    exact = kind in ("png", "tif", "bmp")
    assert Image.open(written).format == {"jpg": "JPEG", "bmp": "PNG", "tif": "TIFF"}.get(kind, kind.upper())
    assert (difference == 0).all() if exact else np.abs(difference).mean() < 4


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("scale", [1, 2])
def test_mode_and_alpha_are_kept(mode, scale, tmp_path, run):
    source, out = tmp_path / "a.png", tmp_path / "out"
    values = np.random.default_rng(0).integers(0, 255, (20, 30, len(mode)), dtype=np.uint8).squeeze()
    Image.fromarray(values).save(source)
    assert run(source, "--output", out, scale=scale)[0] == 0
    restored = Image.open(out / "a.png")
    assert restored.mode == mode and restored.size == (30 * scale, 20 * scale)
    if scale == 1:
        expected = values.astype(int) + 1
        if mode.endswith("A"):
            expected[..., -1] -= 1
        assert (np.array(restored) == expected).all()


def test_luminance_models_restore_y_and_enlarge_colours(tmp_path):
    image = torch.rand(3, 12, 10)
    same = restore_colours(Shift(1).eval(), image, "y", Restorer())
    assert torch.allclose(same - image, torch.full_like(image, 0.6 / 255 * 255 / 219), atol=1e-5)
    large = restore_colours(Shift(2).eval(), image, "y", Restorer())
    assert torch.allclose(to_ycbcr(large)[1:], resize_bicubic(to_ycbcr(image)[1:], 2), atol=1e-5)


def test_luminance_models_restore_grey_files_without_converting_them(clean, tmp_path, run):
    """The model adds 0.6 to grey values, as in scoring. Converting them to Y and back would add 0.6 * 255 / 219."""
    photos = clean(count=1, mode="L")
    assert run(photos, "--output", tmp_path / "out", channels="y")[0] == 0
    assert (pixels(tmp_path / "out" / "0.png") == np.minimum(pixels(photos / "0.png") + 1, 255)).all()
    image = torch.rand(1, 12, 10)
    assert torch.allclose(restore_colours(Shift(1).eval(), image, "y", Restorer()), image + 0.6 / 255)


def test_values_that_are_not_finite_are_refused(clean):
    model = Shift().eval()
    model.shift.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="0.png: the model returns NaN or infinity: use other weights"):
        restore_picture(model, read_picture(clean(count=1) / "0.png"), "rgb", Restorer())


def test_the_task_follows_from_the_name_of_an_image_model(clean, tmp_path):
    words = ["--model", "wavemixsr_nano.x2", "--pretrained", "--output", tmp_path / "out"]
    assert exit_code(metamix_cli.main, "predict", clean(count=1, size=(16, 12)), *words) == 0
    assert Image.open(tmp_path / "out" / "0.png").size == (32, 24)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_restorers_take_files_and_images_of_pillow(mode, tmp_path):
    values = np.random.default_rng(0).integers(0, 255, (20, 30, len(mode)), dtype=np.uint8).squeeze()
    image = Image.fromarray(values)
    image.save(tmp_path / "a.png", icc_profile=b"profile")
    for source in image, tmp_path / "a.png", str(tmp_path / "a.png"):
        (restored,) = shifter().predict([source])
        added = np.ones(len(mode), int)
        added[1:] -= mode == "LA"
        added[3:] = 0
        assert restored.mode == mode and (np.array(restored) == values.astype(int) + added.squeeze()).all()
        assert restored.info.get("icc_profile") == (None if source is image else b"profile")


def test_shipped_weights_are_loaded_by_name():
    small = Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8))
    restorer = metamix.load("wavemixsr_nano.x2")
    assert restorer.name == "wavemixsr_nano.x2" and restorer.spec.channels == "y" and restorer.graph_size is None
    assert restorer.predict([small])[0].size == (32, 24)
    assert metamix.load_restorer(None, model="wavemixsr_nano.x2", pretrained=True).metadata == restorer.metadata


def test_weights_load_without_the_weights_that_training_started_from(tmp_path):
    tensors, metadata = load_weights(find_weights("wavemixsr_nano.x2"))
    save_weights(tmp_path / "w.safetensors", tensors, metadata | {"model": "wavemixsr_nano.elsewhere"})
    assert metamix.load(tmp_path / "w.safetensors").spec.channels == "y"


def test_tiles_and_ensembles_in_the_command_and_in_python(clean, tmp_path, run):
    photos = clean(count=1, size=(100, 70))
    code, model = run(photos, "--output", tmp_path / "out", "--tile", 32, "--overlap", 8)
    assert code == 0 and len(model.seen) == 12 and max(max(shape[2:]) for shape in model.seen) == 32
    difference = pixels(tmp_path / "out" / "0.png") - np.minimum(pixels(photos / "0.png") + 1, 255)
    assert (difference == 0).all()
    assert len(run(photos, "--output", tmp_path / "whole", "--tile", 0)[1].seen) == 1
    assert max(shape[0] for shape in run(photos, "--output", tmp_path / "e", "--ensemble")[1].seen) == 4
    restorer = shifter()
    restorer.predict([photos / "0.png"], tile=32, overlap=8)
    assert len(restorer.model.seen) == 12
    restorer.predict([photos / "0.png"], tile=0, ensemble=True)
    assert max(shape[0] for shape in restorer.model.seen) == 4
    with pytest.raises(SystemExit, match="tile is 8 and overlap is 8: give 0 <= overlap < tile"):
        run(photos, "--output", tmp_path / "out", "--tile", 8, "--overlap", 8)
    with pytest.raises(SystemExit, match="--overlap has no effect without --tile"):
        run(photos, "--output", tmp_path / "out", "--tile", 0, "--overlap", 8)


def test_restored_json_names_the_written_files(clean, tmp_path, run):
    photos = clean(count=2)
    (photos / "0.png").write_bytes(b"")
    assert run(photos, "--output", tmp_path / "out")[0] == 1
    records = json.loads((tmp_path / "out" / "restored.json").read_text())
    assert records == [{"image": str(photos / "1.png"), "file": "1.png"}]


def test_folders_keep_their_layout_and_colour_profiles(tmp_path, run):
    place = tmp_path / "photos" / "deep"
    place.mkdir(parents=True)
    Image.new("RGB", (16, 16), (10, 20, 30)).save(place / "a.png", icc_profile=b"profile")
    assert run(tmp_path / "photos", "--output", tmp_path / "photos" / "out")[0] == 0
    assert run(tmp_path / "photos", "--output", tmp_path / "photos" / "out")[0] == 0  # earlier output is left out
    written = [path.relative_to(tmp_path / "photos" / "out") for path in (tmp_path / "photos" / "out").rglob("*.*")]
    assert sorted(map(str, written)) == ["deep/a.png", "restored.json"]
    assert Image.open(tmp_path / "photos" / "out" / "deep" / "a.png").info["icc_profile"] == b"profile"


def test_images_that_do_not_fit_are_left_out_and_named(clean, tmp_path, run, capsys):
    photos = clean(count=2)
    (photos / "broken.png").write_bytes(b"no image")
    assert run(photos, "--output", tmp_path / "out")[0] == 1
    said = capsys.readouterr()
    assert "written: 2 images to" in said.out and "left out: " in said.err and "broken.png: not an image" in said.err
    assert run(photos / "0.png", "--output", tmp_path / "out", channels="grey")[0] == 1
    assert "trained on grey images: save it in grey, or give a model trained with --" in capsys.readouterr().err
    Image.new("RGBA", (8, 8)).save(photos / "alpha.png")
    assert run(photos / "alpha.png", "--output", tmp_path / "out", "--format", "jpg")[0] == 1
    assert "alpha channel, which JPEG cannot hold: give --format png" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["CMYK", "LAB"])
def test_cmyk_and_lab_become_rgb_without_their_profile(mode, tmp_path, run, capsys):
    Image.new(mode, (8, 6), (9, 99, 40, 3)[: len(mode)]).save(tmp_path / "a.tif", icc_profile=b"of other colours")
    assert run(tmp_path / "a.tif", "--output", tmp_path / "out")[0] == 0
    written = Image.open(tmp_path / "out" / "a.tif")
    assert written.mode == "RGB" and "icc_profile" not in written.info
    assert f"a.tif: the colour profile of {mode} is dropped" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_the_first_of_several_images_in_a_file_is_restored(dtype, tmp_path, run, capsys):
    if dtype == "uint16":
        pytest.importorskip("cv2", reason="16-bit images need the extra `restoration`")
    pages = [Image.fromarray(np.full((6, 8), value, dtype)) for value in (20, 40)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert run(tmp_path / "a.tif", "--output", tmp_path / "out")[0] == 0
    assert "a.tif: only the first of 2 images is kept" in capsys.readouterr().err


def write_png(path, values, kind=2, exif=b""):
    """Write (H, W, C) uint16 values as a 16-bit PNG, which Pillow cannot do.

    Kind 2 is RGB, and kind 4 is grey with alpha.
    """
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)),
        *([(b"eXIf", exif)] if exif else []),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    content = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


@pytest.mark.parametrize("kind", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_are_kept(kind, channels, tmp_path, run):
    cv2 = pytest.importorskip("cv2")
    values = np.random.default_rng(0).integers(0, 60000, (12, 14, channels), dtype=np.uint16).squeeze()
    cv2.imwrite(str(tmp_path / f"a.{kind}"), values)
    assert run(tmp_path / f"a.{kind}", "--output", tmp_path / "out")[0] == 0
    restored = cv2.imread(str(tmp_path / "out" / f"a.{kind}"), cv2.IMREAD_UNCHANGED)
    added = np.full(channels, 154)  # 0.6 / 255 of 65535 is 154.2
    added[3:] = 0  # alpha
    assert restored.dtype == np.uint16 and (restored.astype(int) - values == added.squeeze()).all()
    assert run(tmp_path / f"a.{kind}", "--output", tmp_path / "webp", "--format", "webp")[0] == 0
    assert Image.open(tmp_path / "webp" / "a.webp").size == (14, 12)


def test_images_of_16_bits_are_turned_upright_and_keep_profile_and_alpha(tmp_path, capsys):
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(coarse).save(tmp_path / "8.png", exif=exif)
        write_png(tmp_path / "16.png", coarse.astype(np.uint16) * 257, exif=exif.tobytes()[6:])
        upright = read_picture(tmp_path / "8.png").colours
        assert torch.equal(read_picture(tmp_path / "16.png").colours, upright)
        Image.fromarray(coarse[..., 0].astype(np.uint16) * 257).save(tmp_path / "16.tif", exif=exif)
        assert torch.equal(read_picture(tmp_path / "16.tif").colours, upright[:1])
    Image.fromarray(coarse[..., 0].astype(np.uint16)).save(tmp_path / "level.png", transparency=5)
    assert read_picture(tmp_path / "level.png").lost == ("the transparency of one grey level is dropped",)
    write_png(tmp_path / "la.png", rng.integers(0, 65536, (5, 7, 2), dtype=np.uint16), kind=4)
    grey = read_picture(tmp_path / "la.png")
    assert (len(grey.colours), len(grey.alpha), grey.bits) == (1, 1, 16)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    write_picture(replace(grey, profile=profile), tmp_path / "la.tif")
    write_picture(replace(grey, profile=b"bad"), tmp_path / "bad.png")
    assert capsys.readouterr().err.count("has no colour profile: OpenCV cannot write it") == 2
    write_picture(replace(grey, profile=profile), tmp_path / "out.png")
    again = read_picture(tmp_path / "out.png")
    assert read_picture(tmp_path / "bad.png").profile is None
    if hasattr(cv2, "imencodeWithMetadata"):
        assert again.profile == profile
    assert torch.equal(again.alpha, grey.alpha)
    assert torch.equal(again.colours, grey.colours.expand(3, -1, -1))


def test_images_of_16_bits_are_left_out_without_opencv(tmp_path, run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cv2", None)
    write_png(tmp_path / "a.png", np.zeros((12, 14, 3), np.uint16))
    assert run(tmp_path / "a.png", "--output", tmp_path / "out")[0] == 1
    assert "a.png: it has 16 bits per channel, which need OpenCV: pip install 'metamix[resto" in capsys.readouterr().err


def test_a_file_of_the_user_is_not_overwritten(clean, tmp_path, run):
    photos = clean(count=1)
    Image.open(photos / "0.png").save(tmp_path / "0.png")
    with pytest.raises(SystemExit, match="0.png exists, and no earlier run wrote it: there is no "):
        run(photos / "0.png", "--output", tmp_path)


def test_turned_photographs_are_written_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    restored = restore_picture(Shift().eval(), read_picture(tmp_path / "a.jpg"), "rgb", Restorer())
    write_picture(restored, tmp_path / "out.jpg")
    assert Image.open(tmp_path / "out.jpg").size == (20, 30)


def test_missing_weights_are_refused():
    with pytest.raises(ValueError, match="there are no weights: give --checkpoint FILE or --model NAME --pretrained"):
        load_restorer(None)


@pytest.mark.parametrize(
    "entries, words",
    [
        ({"channels": "cmyk"}, "channels in the metadata is 'cmyk', but it must be one of rgb, grey, y"),
        ({"enlarge": 99}, "enlarge in the metadata is 99, but it must be a whole number from 1 to 16"),
        ({"degradation": 25}, "degradation in the metadata is 25, but it must be pairs, or a chain of degradations"),
        ({"degradation": "noise:25," * 200}, "degradation in .*, but it must be .* of at most 1,000 characters"),
        ({"degradation": "explode:1"}, "degradation in the metadata is 'explode:1', but it must be pairs, or a chain"),
    ],
)
def test_untrusted_metadata_are_checked(entries, words):
    valid = {"task": "restoration", "channels": "rgb", "enlarge": 1, "degradation": "noise:25"}
    metadata = ModelMetadata.from_dict(valid | entries)
    with pytest.raises(ValueError, match=f"^FILE: {words}"):
        RestorationSpec.from_metadata(metadata, "FILE")
