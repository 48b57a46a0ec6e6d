"""Weights that others publish on the network."""

import os
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import HfHubHTTPError
from timm.models import PretrainedCfg


@dataclass(frozen=True)
class Published:
    """Weights on the network: their address, and the size of the file in bytes if it is known."""

    url: str
    size: int | None = None


def download(published: Published, name: str, folder: str | Path | None = None) -> Path:
    """Download published weights, and check their size if it is known.

    Args:
        published: the weights.
        name: name of the file without its suffix.
        folder: where to put it; None is torch's cache of checkpoints.

    Raises:
        ValueError: the file has another size than it should.
        OSError: the download fails.
    """
    folder = Path(folder or Path(torch.hub.get_dir()) / "checkpoints")
    path = folder / f"{name}{Path(published.url).suffix}"
    if not path.is_file() or published.size not in (None, path.stat().st_size):
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            torch.hub.download_url_to_file(published.url, str(part), progress=False)
        except OSError as error:
            raise OSError(
                f"{published.url} could not be downloaded ({error}): fetch it yourself and give it as checkpoint=FILE."
            ) from error
        if published.size not in (None, part.stat().st_size):
            size = part.stat().st_size
            part.unlink()
            raise ValueError(f"{published.url} has {size:,} bytes where {published.size:,} were published: it changed.")
        part.replace(path)
    return path


def check_hub(name: str, cfg: PretrainedCfg | None = None, cache_dir: str | Path | None = None) -> None:
    """Check that a model's weights on the Hugging Face Hub are cached or can be reached.

    Without a network, huggingface_hub 2.4 retries for 45 seconds, and its error does not name the weights.

    Args:
        name: a model of timm, or hf-hub:REPOSITORY.
        cfg: the model's configuration, if it is not the registered one.
        cache_dir: of timm, if it is not the hub's own.

    Raises:
        OSError: they are not cached, and the hub cannot be reached.
    """
    where: str | None = None
    if name.startswith(("hf-hub:", "hf_hub:")):
        where = name.partition(":")[2]
    elif (found := cfg or timm.get_pretrained_cfg(name)) and not found.file:
        where = found.hf_hub_id
    if not where:
        return
    repository, _, revision = where.partition("@")
    folder = Path(cache_dir or HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")
    if any(folder.glob("snapshots/*/*")):
        return
    try:
        get_hf_file_metadata(hf_hub_url(repository, "config.json", revision=revision or None))
    except HfHubHTTPError:
        return  # the hub answers; timm says what it refuses
    except Exception as error:  # the HTTP libraries of huggingface_hub's versions have errors of their own
        raise OSError(
            f"the weights of {name} are not in the cache, and the Hugging Face Hub ({repository}) cannot be reached "
            f"({error}): connect to the network, or give a file of weights as checkpoint"
        ) from None
