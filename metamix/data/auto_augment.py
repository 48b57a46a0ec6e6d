"""Apply TrivialAugment or RandAugment with torchvision's and timm's implementations, which take PIL images.

    trivial                 one of 14 operations at one of 31 strengths
                            (Müller & Hutter, "TrivialAugment", ICCV 2021, with the wide ranges)
    rand-m9-n2[-mstd0.5]    n of 15 operations in sequence, each skipped half of the time, at magnitude m of 10 with
                            Gaussian noise of standard deviation mstd (Cubuk et al., "RandAugment", 2020, timm's "inc1")

Images in memory and streamed images get the same operations.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor
from torchvision.transforms import TrivialAugmentWide

from .counter_rng import seeded

Policy = Callable[[Image.Image], Image.Image]


def make_policy(text: str, mean: tuple[float, ...]) -> Policy | None:
    """Make the policy that `text` describes; return None for "none", and raise ValueError for an unknown policy.

    `mean` fills areas outside an image: one value from 0 to 1 for each channel.
    """
    if text == "none":
        return None
    fill = tuple(round(255 * value) for value in mean)
    if text == "trivial":
        return TrivialAugmentWide(fill=list(fill))
    match = re.fullmatch(r"rand-m(\d+)(?!.*-n.*-n)(?!.*-mstd.*-mstd)(-n[1-9]\d*|-mstd\d+(\.\d+)?|-inc1)*", text)
    if not match or int(match[1]) > 10:
        raise ValueError(f"auto_augment is {text!r}: give none, trivial, or rand-m9-n2 (m: 0 to 10; -mstd0.5: noise)")
    transform = rand_augment_transform(f"{text}-inc1", {"img_mean": fill})
    for operation in transform.ops:
        if operation.name == "PosterizeIncreasing":
            operation.aug_fn = pil_posterize
    return transform


def pil_posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Posterize to at least 1 bit: timm passes 0 bits at magnitude 10, which newer versions of Pillow reject."""
    return ImageOps.posterize(image, max(bits, 1))


def apply_policy(policy: Policy, images: Tensor, keys: Tensor) -> Tensor:
    """Apply a policy to images (n, H, W, C) uint8; the key of each image, (n,) int64, seeds its random numbers."""
    augmented = []
    for image, key in zip(images.cpu().numpy(), keys.tolist()):
        with seeded(key):
            picture = policy(Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image))
        augmented.append(torch.from_numpy(np.array(picture)).view(image.shape))
    return torch.stack(augmented).to(images.device)
