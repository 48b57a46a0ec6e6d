"""Test that huge or endless content in files is refused with a short message, before anything is built."""

import io
import tarfile
import time
import zipfile
from argparse import Namespace
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import metamix
from metamix.data import open_data, tables
from metamix.detection.coco import find_splits, open_split
from metamix.detection.yolo import class_names
from metamix.tasks.load import load
from metamix.utils.options import read_yaml
from metamix.weights.files import load_checkpoint, load_metadata, load_weights, save_weights
from metamix.weights.fit import TooLarge, limited_size, load_into
from tests.helpers import shapes
from tests.helpers.fuzzing import peak_memory
from tests.helpers.image_fixtures import write_tar
from tests.helpers.limits import seconds
from tests.helpers.running import train

DEEP = "[" * 100_000 + "]" * 100_000
MODEL = "metaformer_pooling_nano"


@pytest.mark.parametrize("read", [load_weights, load_metadata, load])
def test_deeply_nested_metadata_of_weights_is_refused(read, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"w": torch.zeros(1)}, path, {"model": MODEL, "model_args": DEEP})
    with pytest.raises(ValueError, match="w.safetensors: an entry of its metadata is nested deeper than 64 levels"):
        read(path)


def test_a_string_of_brackets_is_kept_in_metadata(tmp_path):
    save_weights(tmp_path / "w.safetensors", {"w": torch.zeros(1)}, {"data": DEEP})
    assert load_weights(tmp_path / "w.safetensors")[1] == {"data": DEEP}


DEEP_LIST, SHARED_LIST, ENDLESS_LIST = [], [], []
for _ in range(65):
    DEEP_LIST = [DEEP_LIST]
for _ in range(40):
    SHARED_LIST = [SHARED_LIST, SHARED_LIST]  # a trillion lists, in a file of less than 2 kB
ENDLESS_LIST.append(ENDLESS_LIST)


@pytest.mark.parametrize(
    "value",
    [
        DEEP_LIST,
        SHARED_LIST,
        ENDLESS_LIST,
        torch.zeros(1).expand(10**11),  # a file stores only one of the numbers
        [torch.zeros(10**4)] * 10**3,
        torch.eye(3).to_sparse(),
        torch.eye(3, device="meta"),
    ],
    ids=["deep", "shared lists", "endless", "expanded", "shared tensors", "sparse", "meta"],
)
def test_values_that_are_larger_than_their_file_or_not_plain_are_refused(value, tmp_path):
    words = "c.pt is nested deeper than 64 levels, or repeats its values without end"
    for state in {"w": value}, {"format": "metamix-checkpoint-1", "model": {}, "about": value, "checksums": {}}:
        torch.save(state, tmp_path / "c.pt")
        assert (tmp_path / "c.pt").stat().st_size < 10**5
        for read in load_weights, load_checkpoint:
            with pytest.raises(ValueError, match=words):
                read(tmp_path / "c.pt")


def call(module, name, *args, by=b"R"):
    """Return pickle code that calls a function with pieces of pickle code as arguments."""
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(args) + b"t" + by


def text(word):
    return b"X" + len(word).to_bytes(4, "little") + word.encode()


LISTS = b"(]q\0" + b"](h\0h\0eq\0" * 25 + b"t"
OURS = text("format") + text("metamix-checkpoint-1") + text("checksums") + b"}"
ENCODE, NAMESPACE = ("_codecs", "encode"), call("argparse", "Namespace", by=b"\x81")
ORDERED, ENCODE, NAMESPACE = ("collections", "OrderedDict"), ("_codecs", "encode"), ("argparse", "Namespace")
ENDLESS = "c.pt is nested deeper than 64 levels, or repeats its values without end.* Use another file"
OPTIONS = b"}(" + OURS + text("options") + call(*NAMESPACE, by=b"\x81") + b"q\1}" + text("a")
BOMBS = {  # pickle code of a dictionary, and what the message says
    "deep key": (b"})" + b"\x85" * 10**6 + b"K\1s", ENDLESS),
    "slow key": (b"})q\0" + b"h\0\x86q\0" * 45 + b"K\1s", ENDLESS),
    "slow key in a list": (call(*ORDERED, b"]](()q\0" + b"h\0\x86q\0" * 45 + b"K\1ea"), ENDLESS),
    "bytearray": (call("builtins", "bytearray", b"J\0\0\0\x70"), r"calls builtins.bytearray, .* save only the tensors"),
    "hex": (call(*ENCODE, call(*ENCODE, text("ab"), text("latin1")), text("hex")), r"calls _codecs.encode, "),
    "nested lists": (call("torch", "FloatTensor", LISTS), r"calls torch.FloatTensor, "),
    "lists in options": (OPTIONS + LISTS + b"sbu", ENDLESS),
    "options in themselves": (OPTIONS + b"h\1sbu", ENDLESS),
    "values": (call(*ORDERED) + b"}" + text("values") + b"Nsb" + text("w") + b"K\1s", "replaces methods"),
    "get": (call(*ORDERED) + b"}" + text("get") + b"Nsb" + text("w") + b"K\1s", "replaces methods"),
}


@pytest.mark.parametrize("code, words", BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize("old", [False, True])
def test_a_small_pickle_that_needs_much_time_or_memory_is_refused(old, code, words, tmp_path):
    if old:
        torch.save({}, tmp_path / "c.pt", _use_new_zipfile_serialization=False)
        content = (tmp_path / "c.pt").read_bytes()
        assert b"}q\0." in content
        (tmp_path / "c.pt").write_bytes(content.replace(b"}q\0.", code + b"."))
    else:
        with zipfile.ZipFile(tmp_path / "c.pt", "w") as archive:
            archive.writestr("c/data.pkl", b"\x80\2" + code + b".")
            archive.writestr("c/version", "3")
            archive.writestr("c/byteorder", "little")
    with seconds(2), pytest.raises(ValueError, match=words):
        load_weights(tmp_path / "c.pt")


@pytest.mark.parametrize("old", [False, True])
def test_a_pickle_with_many_plain_values_is_read(old, tmp_path):
    options = Namespace(
        classes=tuple(map(str, range(22_000))), sizes=[((1, 2), (3, 4))] * 2, milestones=Counter([5, 5])
    )
    weights = {f"w{i}": torch.ones(2, 3, i) for i in range(500)}
    content = {"state_dict": weights, "args": options, "done": {1, 2}, "history": [{"loss": 0.5}] * 100}
    torch.save(content, tmp_path / "c.pt", _use_new_zipfile_serialization=not old)
    assert load_weights(tmp_path / "c.pt")[0].keys() == weights.keys()


@pytest.mark.parametrize("name", ["w.npz", "w.pt"])
def test_a_zip_file_that_expands_to_over_100_times_its_size_is_refused(name, tmp_path):
    file = tmp_path / name
    np.savez(file, a=np.ones(3)) if name == "w.npz" else torch.save({"a": torch.ones(3)}, file)
    load_weights(file)
    with (
        zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("b.npy", "w") as zeros,
    ):
        np.lib.format.write_array_header_1_0(zeros, {"descr": "<f4", "fortran_order": False, "shape": (2**26,)})
        for _ in range(256):
            zeros.write(bytes(2**20))
    with pytest.raises(ValueError, match=rf"{name} .*it expands to 268,\d+,\d+ bytes, over 100 times its size"):
        load_weights(file)


def test_a_tensor_of_an_impossible_size_is_reported(tmp_path):
    torch.save({"w": torch.zeros(7)}, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "w.pt").read_bytes().replace(b"K\7Nt", b"\x8a\7" + (10**15).to_bytes(7, "little") + b"Nt")
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(OSError, match=r"w.pt \(\d+ bytes\) needs more memory than is free, or it is damaged"):
        load_weights(tmp_path / "w.pt")


def test_weights_of_8_bits_are_read():
    model = torch.nn.Linear(2, 2)
    load_into(model, {name: tensor.to(torch.float8_e4m3fn) for name, tensor in model.state_dict().items()}, "f")
    with pytest.raises(ValueError, match="its tensor bias holds NaN"):
        load_into(model, model.state_dict() | {"bias": torch.full((2,), torch.nan).to(torch.float8_e4m3fn)}, "f")


@pytest.mark.parametrize(
    "text, problem",
    [
        (f"model_args: {DEEP}", "it is nested deeper than 64 levels"),
        ("\n".join(" " * i + "a:" for i in range(1000)), "it is nested deeper than 64 levels"),
        ("model_args: {a: &a [1], b: *a}", r"line 1 has an anchor or an alias \(& or \*\); write the value itself"),
        ("seed: 1\nlr: *b", "line 2 has an anchor or an alias"),
        ("a: !!int ''", "is not valid YAML"),
        ("a: !!timestamp x", "is not valid YAML"),
        ("!!python/object/apply:os.system ['touch evil']", "is not valid YAML"),
        ("a: !!python/name:os.system", "is not valid YAML"),
        ("\x00", "is not valid YAML"),
        ("a: " + ":".join(["1"] * 300) + ".5", "is not valid YAML"),
        ("x" * 3_000, "must hold lines 'option: value'"),
        ("seed: 1\na: 1" + ":1" * 400_000, "line 2 has over 3,500 characters in one value; put text in quotes"),
        ("a: !!int '1" + ":1" * 400_000 + "'", "line 1 has over 3,500 characters"),
        ("a: 0x" + "f" * 5000, "line 1 has over 3,500 characters"),
        (f"{'x' * 900}: 1\n{'x' * 900}: 2", "repeats the key"),
    ],
    ids=range(15),
)
def test_malformed_hostile_and_huge_recipes_are_refused_briefly(text, problem, tmp_path):
    (tmp_path / "recipe.yaml").write_text(text)
    with seconds(10), pytest.raises(ValueError, match=problem) as refused:
        read_yaml(tmp_path / "recipe.yaml")
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize(
    "words, problem",
    [
        (["--iterations", 10**15], "--iterations is '1000000000000000', but .* a whole number from 0 to 1,000,0"),
        (["--batch-size", 10**12], "a whole number from 1 to 1,000,000"),
        (["--img-size", 10**6], "a whole number from 1 to 4,096"),
        (["--crop-pct", "1e-9"], "--crop-pct is '1e-9', but it must be a number from 0.25 to 1"),
        (["--model-args", "{depths: &a [1, 1], dims: *a}"], "--model-args .* has an anchor or an alias"),
        (["--model-args", "{a: '" + "x" * 10**6 + "', a: 2}"], "--model-args .* repeats the key 'a'"),
        (["--model-args", "{a: " + "x" * 10**6 + "}"], "--model-args .* over 3,500 characters in one value"),
        (["--model", "x" * 10**6], "There is no model"),
    ],
)
def test_huge_values_of_flags_are_refused_briefly(words, problem):
    with pytest.raises(SystemExit, match=problem) as refused:
        train(*words)
    assert len(str(refused.value)) <= 2100


METADATA = {"task": "classification", "model": MODEL, "num_classes": 2, "in_chans": 3, "classes": ["a", "b"]}
METADATA |= {"img_size": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "crop_pct": 1.0}


@pytest.mark.parametrize(
    "entries, problem",
    [
        ({"model_args": {"depths": [256] * 4}}, r"model_args\['depths'\] .* numbers whose sum is at most 256"),
        ({"model": "resnet18", "model_args": {"layers": [65536] * 4}}, r"model_args\['layers'\] in the metadata is"),
        ({"model_args": {"dims": [65536] * 3}}, "describe a model of more than 1,000,000,000 parameters"),
        ({"model": "vit_tiny_patch16_224", "model_args": {"embed_dim": 49152, "num_heads": 3}}, "1,000,000,000 para"),
        (
            {"model": "swin_tiny_patch4_window7_224", "img_size": 2048, "model_args": {"window_size": 128}},
            "describe a model of more than 1,000,000,000 values in buffers",
        ),
        ({"task": "x" * 10**6}, "task in the metadata is .*, but it must be a string of at most 1,000 characters"),
        ({"model": "y" * 10**6}, "it must be the name of a registered model"),
    ],
    ids=range(7),
)
def test_metadata_that_describe_a_huge_model_are_refused(entries, problem, tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, {"w": torch.zeros(1)}, METADATA | entries)
    start = time.monotonic()
    with pytest.raises(ValueError, match=problem):
        metamix.load_classifier(path)
    assert time.monotonic() - start < 10


def test_more_modules_than_any_model_has_are_refused():
    with pytest.raises(TooLarge, match="f: .* a model of more than 10,000 modules"), limited_size("f"):
        torch.nn.Sequential(*(torch.nn.Identity() for _ in range(10_001)))
    torch.nn.Sequential(*(torch.nn.Identity() for _ in range(10_001)))  # outside the block there is no limit


@pytest.mark.slow
def test_a_restorer_of_too_many_modules_is_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    arguments = {"num_stages": 200, "num_groups": 200}
    save_weights(path, {"w": torch.zeros(1)}, {"task": "restoration", "model": "maxim_nano", "model_args": arguments})
    with pytest.raises(ValueError, match="w.safetensors: its metadata describe a model of more than 10,000 modules"):
        metamix.load_restorer(path)


def tar(path, members):
    write_tar(path, members.items())
    return path.read_bytes()


def picture():
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "png")
    return file.getvalue()


def chained_headers(content):
    """Put 2,000 long-name headers, each for the next header, in front of a tar file."""
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1
    return (header.tobuf(tarfile.GNU_FORMAT) + b"a".ljust(512, b"\0")) * 2000 + content


def nested_tars(content, tmp_path):
    for _ in range(66):
        content = tar(tmp_path / "inner", {"a.tar": content})
    (tmp_path / "inner").unlink()
    return content


@pytest.mark.parametrize("attack", ["headers", "tars"])
@pytest.mark.parametrize("kind", ["folder", "wds"])
def test_chained_headers_and_nested_files_in_tar_files_are_refused(kind, attack, tmp_path):
    members = {"cat/0.png": picture(), "dog/0.png": picture(), "0.cls": b"0", "0.png": picture()}
    for split in ("train", "val"):
        content = tar(tmp_path / f"{split}.tar", members)
        content = chained_headers(content) if attack == "headers" else nested_tars(content, tmp_path)
        (tmp_path / f"{split}.tar").write_bytes(content)
    root = tmp_path if kind == "folder" else tmp_path.parent
    problem = "no sample found" if (kind, attack) == ("wds", "tars") else "tar (holds tar files nested|has too long)"
    with pytest.raises(ValueError, match=problem):
        open_data("folder" if kind == "folder" else f"wds/{tmp_path.name}", root=str(root))


@pytest.mark.parametrize("kind", ["folder", "inner", "wds"])
@pytest.mark.parametrize(
    "type, size, said",
    [
        (tarfile.GNUTYPE_LONGNAME, 2**40, "a header has 1,099,511,627,776 bytes"),
        (tarfile.GNUTYPE_LONGLINK, 2**40, "a header has 1,099,511,627,776 bytes"),
        (tarfile.XHDTYPE, 2**40, "a header has 1,099,511,627,776 bytes"),
        (tarfile.XGLTYPE, 2**40, "a header has 1,099,511,627,776 bytes"),
        (tarfile.REGTYPE, -512, "a file has -512 bytes"),  # the next header would be this one, forever
    ],
)
def test_impossible_sizes_in_the_headers_of_a_tar_file_are_refused(kind, type, size, said, tmp_path):
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = type, size
    content = header.tobuf(tarfile.GNU_FORMAT).ljust(2048, b"\0")
    for split in ("train", "val"):
        (tmp_path / f"{split}.tar").write_bytes(content)
        if kind == "inner":
            tar(tmp_path / f"{split}.tar", {"cat.tar": content})
    with seconds(10), pytest.raises(ValueError, match=f"tar is not a readable tar file, .*: {said}"):
        open_data("wds/" if kind == "wds" else "folder", root=str(tmp_path))


def test_labels_of_a_table_are_limited(tmp_path, monkeypatch):
    """Each pair of an image and a label takes the memory of one number, not of a Python object."""

    def write(count):
        rows = [f"{i}.png,{'|'.join(map(str, range(i, count, 40)))}" for i in range(40)]
        (tmp_path / "labels.csv").write_text("\n".join(["file,labels", *rows]))

    for i in range(40):
        Image.new("RGB", (2, 2)).save(tmp_path / f"{i}.png")
    write(100_000)
    before = peak_memory(reset=True)
    splits = open_data("folder", root=tmp_path, test_share=1)
    assert splits.test.labels.sum(1).tolist() == [2500] * 40 and splits.digest
    assert peak_memory() - before < 120  # MB; lists of floats would take 130 for the labels alone
    monkeypatch.setattr(tables, "MAX_ENTRIES", 40 * 99_999)
    with pytest.raises(ValueError, match="labels.csv has 100,000 labels: 40 images may have 99,999 at"):
        open_data("folder", root=tmp_path)
    monkeypatch.undo()
    write(100_001)
    with pytest.raises(ValueError, match="has 100,001 labels: 40 images may have 100,000 at most"):
        open_data("folder", root=tmp_path)


def test_more_categories_than_can_be_scored_are_refused(tmp_path):
    def change(split, data):
        data["categories"] += [{"id": i, "name": str(i)} for i in range(100, 25_100)]

    shapes.write(tmp_path, change=change, train=2, val=1)
    with pytest.raises(ValueError, match="instances_val.json is .*: it has 25,002 categories, but at most 25,000"):
        open_split(find_splits(tmp_path), "val")


def test_many_names_in_a_data_yaml_are_read_fast():
    names = [str(i) for i in range(50_000)]
    with seconds(10):
        assert class_names("data.yaml", {"names": names}) == dict(enumerate(names))


def test_a_deeply_nested_info_json_of_shards_is_refused(tmp_path):
    (tmp_path / "info.json").write_text('{"splits": ' + DEEP + "}")
    with pytest.raises(ValueError, match="info.json is not valid JSON .it is nested deeper than 64 levels"):
        open_data(f"wds/{tmp_path.name}", root=str(tmp_path.parent))
