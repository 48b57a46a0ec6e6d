"""Tags of the authors' classifiers: addresses, images, and a download of a file as they publish them."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from metamix.models import registry

GOLDENS = Path(__file__).parents[1] / "goldens"
BASE = "https://huggingface.co/cloudwalker/wavemix/resolve/main/Saved_Models_Weights/"
TAGS = {
    "wavemix_192_16.in1k": ("ImageNet/wavemixlite_71.18.pth", (3, 224, 224), 1000),
    "wavemix_192_16.galaxy10": ("galaxy10/galaxy_90.23.pth", (3, 256, 256), 10),
    "wavemix_192_16_l3.in1k": ("ImageNet/wavemix_192_16_75.06.pth", (3, 224, 224), 1000),
    "wavemix_192_16_l3.tiny_imagenet": ("tinyimagenet/tiny_78.76.pth", (3, 128, 128), 200),
    "wavemix_192_16_l3.galaxy10": ("galaxy10/galaxy_95.42.pth", (3, 256, 256), 10),
    "wavemix_256_16_l3.in1k": ("ImageNet/ImageNet73.03.pth", (3, 224, 224), 1000),
    "wavemix_256_16_l4.in1k": ("ImageNet/imagenet4level_70.42.pth", (3, 256, 256), 1000),
    "wavemix_256_12_l2.places365": ("Places365/places365_54.94.pth", (3, 224, 224), 365),
    "wavemix_144_7.cifar10": ("cifar10/cifar10_94.58.pth", (3, 32, 32), 10),
    "wavemix_320_8.cifar10": ("cifar10/cifar10_95.37.pth", (3, 32, 32), 10),
    "wavemix_256_8.cifar100": ("cifar100/cifar100_77.82.pth", (3, 32, 32), 100),
    "wavemix_256_10.cifar100": ("cifar100/cifar100_78.81.pth", (3, 32, 32), 100),
    "wavemix_256_12.tiny_imagenet": ("tinyimagenet/tinyimagenet_62.51.pth", (3, 64, 64), 200),
}


@pytest.mark.parametrize("name", TAGS)
def test_addresses(name):
    cfg = timm.get_pretrained_cfg(name)
    assert (cfg.url.removeprefix(BASE), cfg.input_size, cfg.num_classes) == TAGS[name]
    assert name in timm.list_pretrained("wavemix_*")


@pytest.mark.filterwarnings("ignore:The checkpoint of wavemix")  # a tiny model is not what the tag stands for
@pytest.mark.parametrize("level", [1, 2])
@torch.no_grad()
def test_download(level, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    golden = f"wavemix_cls_level{level}_pachify_64x64"
    tensors = load_file(GOLDENS / f"{golden}.safetensors")
    theirs = json.loads((GOLDENS / f"{golden}.json").read_text())["constructor"]
    file = tmp_path / "weights.pth"
    torch.save({k.removeprefix("param/"): v for k, v in tensors.items() if k.startswith("param/")}, file)
    arguments = dict(
        dim=theirs["final_dim"], depth=theirs["depth"], mult=theirs["mult"], ff_channel=theirs["ff_channel"],
        patch_size=theirs["patch_size"], level=level, num_classes=theirs["num_classes"],
        pretrained_cfg_overlay=dict(url=file.as_uri(), num_classes=theirs["num_classes"]),
    )  # fmt: skip
    model = timm.create_model("wavemix_192_16.in1k", pretrained=True, **arguments).eval()
    torch.testing.assert_close(model(tensors["input"]), tensors["output"], rtol=1e-4, atol=1e-4)
    monkeypatch.setitem(registry.file_sizes, file.as_uri(), file.stat().st_size)
    again = timm.create_model("wavemix_192_16.in1k", pretrained=True, cache_dir=tmp_path / "mine", **arguments).eval()
    assert (tmp_path / "mine" / "weights.pth").is_file() and torch.equal(again.head.weight, model.head.weight)
    with pytest.raises(ValueError, match="does not fit wavemix_192_16"):
        timm.create_model("wavemix_192_16.in1k", pretrained=True, **arguments | dict(depth=theirs["depth"] + 1))


def test_a_file_of_another_size_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    file = tmp_path / "weights.pth"
    file.write_bytes(b"half a file")
    monkeypatch.setitem(registry.file_sizes, file.as_uri(), 111_681_543)
    with pytest.raises(ValueError, match=r"weights.pth has 11 bytes where 111,681,543 were published: it changed"):
        timm.create_model("wavemix_192_16_l3", pretrained=True, pretrained_cfg_overlay=dict(url=file.as_uri()))
    assert not list((tmp_path / "cache").rglob("*.p*"))


def test_file_sizes():
    assert registry.file_sizes == {f"{BASE}ImageNet/wavemix_192_16_75.06.pth": 111_681_543}
