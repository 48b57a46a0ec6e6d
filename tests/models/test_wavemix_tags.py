"""Test tags of the authors' classifiers: addresses, image sizes, and a download."""

import pytest
import timm
import torch

import metamix  # noqa: F401 - registers the models
from tests.helpers.goldens import read_golden

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
def test_tags_have_the_authors_addresses_and_image_sizes(name):
    cfg = timm.get_pretrained_cfg(name)
    assert (cfg.url.removeprefix(BASE), cfg.input_size, cfg.num_classes) == TAGS[name]
    assert name in timm.list_pretrained("wavemix_*")


@pytest.mark.filterwarnings("ignore:The checkpoint of wavemix")  # the tag names a larger model
@pytest.mark.parametrize("level", [1, 2])
@torch.no_grad()
def test_weights_of_the_authors_are_downloaded_and_checked(level, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    theirs, state, tensors = read_golden(f"wavemix_cls_level{level}_pachify_64x64")
    file = tmp_path / "weights.pth"
    torch.save(state, file)
    arguments = dict(
        dim=theirs["final_dim"], depth=theirs["depth"], mult=theirs["mult"], ff_channel=theirs["ff_channel"],
        patch_size=theirs["patch_size"], level=level, num_classes=theirs["num_classes"],
        pretrained_cfg_overlay=dict(url=file.as_uri(), num_classes=theirs["num_classes"]),
    )  # fmt: skip
    model = timm.create_model("wavemix_192_16.in1k", pretrained=True, **arguments).eval()
    torch.testing.assert_close(model(tensors["input"]), tensors["output"], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="does not fit wavemix_192_16"):
        timm.create_model("wavemix_192_16.in1k", pretrained=True, **arguments | dict(depth=theirs["depth"] + 1))
