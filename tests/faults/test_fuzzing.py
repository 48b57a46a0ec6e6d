"""Damage every kind of file that a command reads, at random.

A damaged file with checksums must be refused, or read as if it were whole. Any other damaged file may be read, with
another result. A refusal must name the file, its folder or an option. Each read has limits on time and memory. The
damage is the same in each run. `pytest -m slow` runs 10 times as many rounds.
"""

import io
import json
import mmap
import os
import time
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import metamix
from metamix.data import CorruptImage, decode_file, open_data
from metamix.data.files import read_header
from metamix.deploy import export
from metamix.detection.coco import find_splits, open_split
from metamix.detection.verify import VerifyAnnotations
from metamix.restoration.files import read_picture
from metamix.segmentation.data import SegmentationData
from metamix.segmentation.options import SegmentationOptions
from metamix.segmentation.sources import open_set
from metamix.segmentation.verify import VerifyMasks
from metamix.tasks.convert import read_labels
from metamix.training.recipe import EngineOptions, Recipe
from metamix.training.reports import compare_runs, write_metrics
from metamix.training.train import is_finished, result_lines
from metamix.weights.files import load_checkpoint, load_weights, save_checkpoint, save_weights
from tests.helpers import fuzzing, shapes
from tests.helpers.fuzzing import REFUSED, Kind, fuzz, read_within_limits
from tests.helpers.image_fixtures import write_tar
from tests.helpers.recipes import parse_recipe

MODEL = dict(model="metaformer_identity_nano", model_args=dict(depths=[1], dims=[8]))
METADATA = MODEL | dict(
    task="classification", num_classes=2, in_chans=3, img_size=16, mean=[0.5] * 3, std=[0.25] * 3, crop_pct=1.0,
    interpolation="bicubic", classes=["cat", "dog"],
)  # fmt: skip


def picture(size=(16, 12), mode="RGB"):
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], len(mode)), dtype=np.uint8)
    return Image.fromarray(values.squeeze())


def encoded(kind="PNG"):
    file = io.BytesIO()
    picture().save(file, kind)
    return file.getvalue()


def tensors():
    torch.manual_seed(0)
    arguments = dict(num_classes=2, in_chans=3, img_size=16, **MODEL["model_args"])
    return timm.create_model(MODEL["model"], **arguments).state_dict()


# Weights


def make_weights(folder):
    save_weights(folder / "w.safetensors", tensors(), METADATA)
    sort_header(folder / "w.safetensors")


def make_weights_of_others(folder):
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in METADATA.items()}
    del texts["task"]  # only metamix writes it, and always with checksums
    save_file(tensors(), folder / "w.safetensors", texts)
    sort_header(folder / "w.safetensors")


def sort_header(file):
    """Sort the metadata of a safetensors file, whose order differs from run to run, so that the damage is the same."""
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:start]), sort_keys=True).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[start:])


def load_model(folder):
    return metamix.load(folder / "w.safetensors").model.state_dict()


def make_checkpoint(folder):
    state = {"model": tensors(), "optimizer": {"step": torch.ones(3)}, "step": 3, "history": [{"loss": 0.5}]}
    save_checkpoint(folder / "c.pt", state)


def make_export(folder):
    make_weights(folder)
    export(str(folder / "w.safetensors"), output=folder / "exported", format="torch", seconds=0)
    (folder / "exported" / ".lock").unlink()


def run_export(folder):
    with torch.no_grad():
        return metamix.load(folder / "exported", trust=True).model(torch.ones(1, 3, 16, 16))


def make_torch_file(folder, old=False):
    torch.save(tensors(), folder / "w.pth", _use_new_zipfile_serialization=not old)


def load_torch_file(folder):
    return metamix.load(folder / "w.pth", model=MODEL["model"], model_args=MODEL["model_args"] | {"img_size": 16})


def make_arrays(folder):
    np.savez(folder / "w.npz", a=np.ones(9), b=np.zeros((2, 3), np.float16))


# Images and masks

IMAGES = {
    "a.png": {}, "b.jpg": {}, "c.webp": {}, "d.tif": {"compression": "tiff_lzw"}, "e.tiff": {"compression": "jpeg"},
    "f.bmp": {}, "g.ppm": {}, "h.gif": {"save_all": True, "append_images": [picture().rotate(90)]},
}  # fmt: skip


def make_images(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, options in IMAGES.items():
        picture().save(folder / name, **options)
    picture().save(folder / "i.jpg", exif=exif, icc_profile=b"profile" * 9)
    picture().quantize(8).save(folder / "j.png", transparency=b"\0\x80")
    picture(mode="RGBA").save(folder / "k.png", exif=exif)
    for name in ("l.png", "m.tif") if find_spec("cv2") else ():  # restoration reads 16-bit images with OpenCV
        Image.fromarray(np.arange(192, dtype=np.uint16).reshape(12, 16) * 300).save(folder / name)


def read_images(folder):
    errors = []
    for path in folder.iterdir():
        for read in decode_file, read_header, read_picture:
            try:
                read(path)
            except (CorruptImage, ValueError) as error:
                errors.append(error)
    if errors:
        raise errors[-1]


def make_masks(folder):
    for split in "train", "val":
        for place in "images", "masks":
            (folder / split / place).mkdir(parents=True)
        for i in range(2):
            picture((32, 32)).save(folder / split / "images" / f"{i}.png")
        indices = Image.fromarray(np.arange(1024, dtype=np.uint8).reshape(32, 32) % 3)
        indices.save(folder / split / "masks" / "0.png")
        indices.putpalette([0, 0, 0, 9, 9, 9, 200, 0, 0])
        indices.save(folder / split / "masks" / "1.png")
    (folder / "classes.txt").write_text("sky\nground\ntree\n")
    (folder / "palette.txt").write_text("0 0 0\n9 9 9\n200 0 0\n")


def read_masks(folder):
    check = VerifyMasks(str(folder))
    check.summary(len(list(check.problems())))
    SegmentationData(SegmentationOptions(data_dir=str(folder), crop=(16,), workers=0))


def make_instances(folder):
    for place in "images", "masks":
        (folder / place).mkdir()
    picture().save(folder / "images" / "a.png")
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(12, 16) // 70).save(folder / "masks" / "a.png")


def read_instances(folder):
    read_labels("instances", folder)


def make_ade20k(folder):
    for place in "images", "annotations":
        for split in "training", "validation":
            (folder / place / split).mkdir(parents=True)
            picture().convert("L" if place == "annotations" else "RGB").save(folder / place / split / "a.png")
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName", "1\t0.1\t1\t1\t1\twall", "2\t0.1\t1\t1\t1\tbuilding, edifice"]
    (folder / "objectInfo150.txt").write_text("\n".join(lines))


def read_ade20k(folder):
    options = SegmentationOptions(data="ade20k", data_dir=str(folder), crop=(8,), workers=0)
    return open_set(options).labels


# Boxes


def make_coco(folder):
    def change(split, data):
        first = data["annotations"][0]
        first["segmentation"] = {"size": [64, 96], "counts": [10, 100, 6034]}

    shapes.write(folder, change=change, train=3, val=2)


def read_coco(folder):
    for file in folder.glob("annotations/*.json"):
        check = VerifyAnnotations(str(file), images=folder / "images")
        check.summary(len(list(check.problems())))
    for split in "train", "val":
        data = open_split(find_splits(folder), split, masks=True)
        data.digest()
        for i in range(len(data)):
            try:
                data.read(i)
            except CorruptImage:  # a few images may be missing
                continue


def make_voc(folder):
    for place in "Annotations", "JPEGImages", "ImageSets/Main":
        (folder / place).mkdir(parents=True)
    corners = "".join(f"<{side}>{i + 1}</{side}>" for i, side in enumerate(("xmin", "ymin", "xmax", "ymax")))
    for stem in "ab":
        picture().save(folder / "JPEGImages" / f"{stem}.jpg")
        (folder / "Annotations" / f"{stem}.xml").write_text(
            f"<?xml version='1.0' encoding='UTF-8'?>\n<annotation><filename>{stem}.jpg</filename><size><width>16"
            f"</width><height>12</height></size>\n<object><name>dog</name><difficult>0</difficult><bndbox>{corners}"
            f"</bndbox></object></annotation>"
        )
    (folder / "ImageSets/Main/train.txt").write_text("a 1\n")
    (folder / "ImageSets/Main/val.txt").write_text("b\n")


def make_yolo(folder):
    for split in "train", "val":
        for place in "images", "labels":
            (folder / place / split).mkdir(parents=True)
        picture().save(folder / "images" / split / "a.png")
        (folder / "labels" / split / "a.txt").write_text("0 0.5 0.5 0.25 0.25\n1 0.2 0.2 0.1 0.1\n")
    (folder / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnc: 2\nnames: {0: cat, 1: dog}\n")


def make_table(folder, columns, *cells):
    for name in "a.png", "b.png":
        picture().save(folder / name)
    lines = [columns, *(f"{name},{rest}" for name in ("a.png", "b.png") for rest in cells)]
    (folder / "labels.csv").write_text("\n".join(lines))


def make_boxes(folder):
    make_table(folder, "file,class,split,xmin,ymin,xmax,ymax", '"dog",train,1,2,9,8', "cat,train,2,2,4.5,4")


def make_classes(folder):
    make_table(folder, "file,label,split", "{},train")
    file = folder / "labels.csv"
    file.write_text(file.read_text().replace("{}", "dog", 1).replace("{}", "cat"))


def make_labels(folder):
    make_table(folder, "file,labels,split", "cat|dog,{}")
    file = folder / "labels.csv"
    file.write_text(file.read_text().replace("{}", "train", 1).replace("{}", "val"))


def make_flags(folder):
    make_table(folder, "file,cat,dog", "1,0")


# Data sets of classes


def make_shards(folder):
    for split in "train", "val":
        images = [(f"{i}.png", encoded()) for i in range(2)]
        labels = [(f"{i}.cls", b"%d\n" % i) for i in range(2)]
        write_tar(folder / f"{split}-0.tar", images + labels, comment="a")
    splits = {split: {"name": split, "num_samples": 2, "filenames": [f"{split}-0.tar"]} for split in ("train", "val")}
    (folder / "info.json").write_text(json.dumps({"splits": splits}))


def make_tars(folder):
    for split in "train", "val":
        write_tar(folder / "inner.tar", [(f"{i}.png", encoded()) for i in range(2)], comment="a")
        inner = (folder / "inner.tar").read_bytes()
        write_tar(folder / f"{split}.tar", [("cat.tar", inner), ("dog/0.png", encoded("JPEG"))], comment="a")
    (folder / "inner.tar").unlink()


def make_tiny_imagenet(folder):
    for number in "n1", "n2":
        (folder / "train" / number / "images").mkdir(parents=True)
        picture((64, 64)).save(folder / "train" / number / "images" / f"{number}_0.JPEG")
    (folder / "val" / "images").mkdir(parents=True)
    picture((64, 64)).save(folder / "val" / "images" / "val_0.JPEG")
    (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn2\t0\t0\t9\t9\n")
    (folder / "wnids.txt").write_text("n1\nn2\n")
    (folder / "words.txt").write_text("n0\tentity\nn1\tgoldfish, Carassius auratus\nn2\tEgyptian cat\n")


def read_set(name, folder):
    for source in open_data(name, root=folder).sources().values():
        for i in range(len(source)):
            source.images.content(i), source.images.fingerprint(i)
            try:
                source.read(i)
            except CorruptImage as error:  # a few images may be broken
                assert str(folder) in str(error)


# Runs


@dataclass
class NoOptions:
    """The options of a task without options."""


RECIPE = Recipe("task", EngineOptions(), NoOptions())


def make_run(folder):
    make_weights(folder)
    (folder / "w.safetensors").rename(folder / "model.safetensors")
    history = [{"epoch": epoch, "train_loss": 1 / epoch, "holdout_top1": 50.0 + epoch, "lr": 0.1} for epoch in (1, 2)]
    write_metrics(folder / "metrics.csv", history)
    summary = dict(model="raft", data="digits", scores=["top1"], top1=90.5, weights="ema", epochs=2, seconds=3.5)
    summary |= dict(img_per_s=20.1, pictures=["curves.png"], parameters=1000, macs=10_000, digest={"train": "0a"})
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "recipe.yaml").write_text(RECIPE.to_yaml())
    (folder / "state.txt").write_text("finished\n")


def read_run(folder):
    is_finished(folder, RECIPE, {"digest": {"train": "0a"}})
    result_lines(folder)
    compare_runs([folder, folder])


def make_recipe(folder):
    arguments = "{depths: [1], dims: [8]}"
    recipe = parse_recipe("--model", MODEL["model"], "--model-args", arguments, "--seed", 3, "--lr", "1e-3")
    (folder / "recipe.yaml").write_text(recipe.to_yaml())


def read_recipe(folder):
    return parse_recipe("--config", folder / "recipe.yaml")


KINDS = [
    Kind("weights", make_weights, "*", lambda folder: load_weights(folder / "w.safetensors"), has_checksums=True),
    Kind("weights of a model", make_weights, "*", load_model, 30, has_checksums=True),
    Kind("checkpoint", make_checkpoint, "*", lambda folder: load_checkpoint(folder / "c.pt"), has_checksums=True),
    Kind("export", make_export, "exported/*", run_export, has_checksums=True),
    Kind("weights of others", make_weights_of_others, "*", load_model, 30),
    Kind("PyTorch file", make_torch_file, "*", load_torch_file, 30),
    Kind("old PyTorch file", partial(make_torch_file, old=True), "*", load_torch_file, 30),
    Kind("arrays", make_arrays, "*", lambda folder: load_weights(folder / "w.npz")),
    Kind("images", make_images, "*", read_images),
    Kind("masks", make_masks, "*/masks/*", read_masks, 30),
    Kind("classes and colours", make_masks, "*.txt", read_masks, 30),
    Kind("masks of instances", make_instances, "masks/*", read_instances),
    Kind("classes of ADE20K", make_ade20k, "*.txt", read_ade20k),
    Kind("COCO", make_coco, "annotations/*", read_coco),
    Kind("VOC", make_voc, "Annotations/*", partial(read_labels, "voc")),
    Kind("splits of VOC", make_voc, "ImageSets/Main/*", partial(read_labels, "voc")),
    Kind("YOLO", make_yolo, "labels/*/*", partial(read_labels, "yolo")),
    Kind("classes of YOLO", make_yolo, "*.yaml", partial(read_labels, "yolo")),
    Kind("table of boxes", make_boxes, "*.csv", partial(read_labels, "csv")),
    Kind("table of classes", make_classes, "*.csv", partial(read_labels, "csv")),
    Kind("table of labels", make_labels, "*.csv", partial(read_set, "folder"), names=("test_share",)),
    Kind("table of 0 and 1", make_flags, "*.csv", partial(read_set, "folder"), names=("test_share",)),
    Kind("shards", make_shards, "*.tar", partial(read_set, "wds/")),
    Kind("info of shards", make_shards, "*.json", partial(read_set, "wds/")),
    Kind("tar files of folders", make_tars, "*.tar", partial(read_set, "folder")),
    Kind("tables of Tiny-ImageNet", make_tiny_imagenet, "**/*.txt", partial(read_set, "tiny_imagenet")),
    Kind("result of a run", make_run, "[ms]*.[cjt]*", read_run, 20),
    Kind("recipe", make_recipe, "*", read_recipe, names=("task", "_lr", "teacher")),
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_damaged_files_are_refused_or_read_within_limits(kind, tmp_path):
    assert fuzz(kind, tmp_path, kind.rounds) > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_more_damaged_files_are_refused_or_read_within_limits(kind, tmp_path):
    assert fuzz(replace(kind, name=f"{kind.name}, more"), tmp_path, 10 * kind.rounds) > 0


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_pipe_in_place_of_a_file_is_refused(kind, tmp_path):
    kind.make(tmp_path)
    file = min(tmp_path.glob(kind.files))
    file.unlink()
    os.mkfifo(file)
    assert read_within_limits(kind, tmp_path, file, kind.name) is REFUSED


# Faulty readers that the fuzzer must find

MISTAKES = {
    "damage is ignored": (lambda content: content, "round 0: a.txt, flip"),
    "an error that is not a refusal": (lambda content: {}["a"], "KeyError.'a'. is not a refusal"),
    "no file is named": (lambda content: int("a"), "no file is named in ValueError"),
    "a hang": (lambda content: time.sleep(10), "still waiting after 1 s"),
    # mmap takes new memory; numpy and torch may reuse memory that the process has kept.
    "much memory": (lambda content: mmap.mmap(-1, 2**25).write(bytes(2**25)), r"it took [3-6]\d MiB"),
}


@pytest.mark.parametrize("mistake, words", MISTAKES.values(), ids=MISTAKES)
def test_the_fuzzer_finds_readers_with_mistakes(mistake, words, tmp_path, monkeypatch):
    whole = b"whole " * 9

    def read(folder):
        content = (folder / "a.txt").read_bytes()
        return content if content == whole else mistake(content)

    kind = Kind("mistake", lambda folder: (folder / "a.txt").write_bytes(whole), "*", read, has_checksums=True)
    if "waiting" in words:  # on a busy machine, the other readers may need more than a second
        monkeypatch.setattr(fuzzing, "SECONDS", 1)
    monkeypatch.setattr(fuzzing, "MEGABYTES", 20)
    with pytest.raises((AssertionError, pytest.fail.Exception), match=words):
        fuzz(kind, tmp_path, 1)
