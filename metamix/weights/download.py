"""Download weights that others have published, or check that they can be reached."""

from pathlib import Path

import timm
import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import HfHubHTTPError
from timm.models import PretrainedCfg

from .files import WEIGHTS


def download(url: str, name: str, folder: str | Path | None = None) -> Path:
    """Download published weights to a folder unless they are there already, and return their path.

    `name` is the file's name without its suffix. The default folder is torch's checkpoint cache.
    """
    path = Path(folder or Path(torch.hub.get_dir()) / "checkpoints") / f"{name}{Path(url).suffix}"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except OSError as error:
            raise OSError(
                f"{url} could not be downloaded ({error}): connect to the network, or download the file yourself "
                f"and give its path as checkpoint"
            ) from error
    return path


def from_hub(repository: str) -> Path:
    """Download the weights that `metamix publish` uploaded to a repository USER/NAME[@REVISION]; return their path."""
    require_reachable(f"hf-hub:{repository}")
    name, _, revision = repository.partition("@")
    try:
        return Path(hf_hub_download(name, WEIGHTS, revision=revision or None))
    except Exception as error:  # the type of the error depends on huggingface_hub's version
        text = " ".join(str(error).split())
        raise OSError(
            f"{WEIGHTS} of {repository} could not be downloaded from the Hugging Face Hub ({text}): check the name, "
            f"log in if the repository is private, or give a folder that holds the file"
        ) from None


def require_reachable(name: str, cfg: PretrainedCfg | None = None, cache_dir: str | Path | None = None) -> None:
    """Raise OSError, with the model's name or the URL, if published weights are neither cached nor reachable.

    Weights outside the Hugging Face Hub are downloaded. If the hub refuses a file, this check passes. Without this
    check and without a network, huggingface_hub 2.4 retries for 45 seconds, then fails without naming the weights.

    Args:
        name: a timm model, or hf-hub:REPOSITORY.
        cfg: the model's configuration; by default the configuration registered with timm.
        cache_dir: folder in which timm keeps weights. The default is the hub's cache for weights on the hub, and
            torch's checkpoint cache for weights at other URLs.
    """
    hub_id: str | None = None
    if name.startswith(("hf-hub:", "hf_hub:")):
        hub_id = name.partition(":")[2]
    elif (cfg := cfg or timm.get_pretrained_cfg(name)) and not cfg.file:
        hub_id = cfg.hf_hub_id
        if isinstance(cfg.url, str) and cfg.url and not hub_id:
            download(cfg.url, Path(cfg.url).stem, cache_dir)  # to the path where timm looks for the file
    if not hub_id:
        return
    repository, _, revision = hub_id.partition("@")
    folder = Path(cache_dir or HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")
    if any(folder.glob("snapshots/*/*")):
        return
    try:
        get_hf_file_metadata(hf_hub_url(repository, "config.json", revision=revision or None))
    except HfHubHTTPError:
        return  # the hub can be reached; timm reports why the hub refuses the file
    except Exception as error:  # the type of the error depends on huggingface_hub's version
        raise OSError(
            f"the weights of {name} are not in the cache, and the Hugging Face Hub ({repository}) cannot be reached "
            f"({error}): connect to the network, or give the path of a weight file as checkpoint"
        ) from None
