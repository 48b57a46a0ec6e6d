"""Test loading published weights without a network."""

import socket
import time

import pytest
import timm
import torch
from safetensors.torch import save_file

import metamix
from metamix.models.backbone import build_backbone
from metamix.models.registry import create_model
from metamix.weights import download
from metamix.weights.download import require_reachable


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Make the lookup of every host name fail, and use empty caches."""

    def fail(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(download, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize(
    "load",
    [
        lambda: timm.create_model("metaformer_pooling_s12", pretrained=True),
        lambda: create_model("resnet18", pretrained=True),
        lambda: create_model("hf-hub:timm/resnet18.a1_in1k"),
        lambda: metamix.load("hf-hub:someone/resnet18"),
        lambda: build_backbone("resnet18", pretrained=True),
        lambda: timm.create_model("wavemix_144_7", pretrained=True),
        lambda: create_model("wavemix_144_7", pretrained=True),
        lambda: metamix.create_image_model("maxim_s3.sidd", pretrained=True),
    ],
)
def test_without_a_network_the_error_comes_at_once_and_names_the_weights(load, no_network):
    start = time.monotonic()
    with pytest.raises(
        OSError,
        match=r"(pooling_s12|resnet18|maxim/ckpt|cifar10_94.58.pth).* (cannot be reached|could not be down).*connect",
    ):
        load()
    assert time.monotonic() - start < 20  # huggingface_hub alone takes 45 s


def test_cached_weights_need_no_network(no_network, tmp_path):
    with pytest.raises(OSError, match="are not in the cache"):
        require_reachable("resnet18.a1_in1k")
    path = tmp_path / "models--timm--resnet18.a1_in1k" / "snapshots" / "0" / "model.safetensors"
    path.parent.mkdir(parents=True)
    save_file({}, path)
    require_reachable("resnet18.a1_in1k")


@pytest.mark.parametrize("cache_dir", [None, "other"])
def test_weights_from_a_url_are_cached_where_timm_looks(cache_dir, no_network, tmp_path, monkeypatch):
    weights = timm.create_model("wavemix_144_7").state_dict()
    urls = []

    def fetch(url, path, **_):
        urls.append(url)
        torch.save(weights, path)

    monkeypatch.setattr("torch.hub.download_url_to_file", fetch)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        model = timm.create_model("wavemix_144_7", pretrained=True, cache_dir=cache_dir)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert [url.rpartition("/")[2] for url in urls] == ["cifar10_94.58.pth"]
    assert (tmp_path / (cache_dir or "checkpoints") / "cifar10_94.58.pth").is_file()


def test_weights_in_local_files_need_no_network(no_network):
    require_reachable("metaformer_pooling_nano.digits")
    require_reachable("local-dir:weights")
