"""Weights that others publish on the network."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Published:
    """Weights on the network: their address, and the size of the file in bytes if it is known."""

    url: str
    size: int | None = None


def download(published: Published, name: str) -> Path:
    """Download published weights into torch's cache of checkpoints, and check their size if it is known.

    Raises:
        ValueError: the file has another size than it should.
        OSError: the download fails.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
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
