"""Formats of checkpoints: how the authors name and lay out the tensors of our models.

A `Format` turns our name of a tensor into the file's, and the file's tensor into ours. Each paper has one, in the order
PoolFormer, RaftMLP, WaveMix, NiNformer; MAXIM's is in `maxim_format.py`. `format_of` tells which published format a
file has.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from metamix.mixers.raft import RaftMlp


@dataclass(frozen=True)
class Format:
    """Names and layouts of the tensors in a file.

    Args:
        names: (pattern, replacement) pairs of `re.sub`. Applied in turn to our name of a tensor, they give the file's.
        layout: (our name, the file's tensor, model) -> the tensor in our layout.
    """

    names: Sequence[tuple[str, str | Callable]] = ()
    layout: Callable[[str, Tensor, nn.Module], Tensor] = lambda key, tensor, model: tensor

    def name(self, key: str) -> str:
        """Return the file's name of our tensor `key`."""
        for pattern, replacement in self.names:
            key = re.sub(pattern, replacement, key)
        return key

    def translate(self, state: Mapping[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], set[str]]:
        """Translate the tensors of a file to our names and layouts.

        Returns:
            The tensors that `model` has, by our names, and the file's names of all other tensors.
        """
        own = model.state_dict()
        names = {key: self.name(key) for key in own}
        given = {key: self.convert(key, state[name], model, own[key]) for key, name in names.items() if name in state}
        return given, state.keys() - set(names.values())

    def convert(self, key: str, tensor: Tensor, model: nn.Module, own: Tensor) -> Tensor:
        """Convert one tensor to our layout. One of another size stays as it is, and `check_state` reports it."""
        try:
            tensor = self.layout(key, tensor, model)
        except RuntimeError:
            return tensor
        # Their linear maps are convolutions here, with kernels of 1x1 or as large as the map.
        return tensor.reshape(own.shape) if own.ndim == 4 and tensor.shape == own.flatten(1).shape else tensor


OURS = Format()

# PoolFormer, Yu et al. 2022: github.com/sail-sg/poolformer, and timm's port of it

POOLFORMER = Format((
    (r"^stem\.", "patch_embed.proj."),
    (r"^stages\.(\d+)\.downsample\.", lambda m: f"network.{2 * int(m[1]) - 1}.proj."),
    (r"^stages\.(\d+)\.blocks\.", lambda m: f"network.{2 * int(m[1])}."),
    (r"layer_scale(\d)\.gamma", r"layer_scale_\1"),
))  # fmt: skip

TIMM_POOLFORMER = Format((
    (r"^head\.", "head.fc."),
    (r"^norm\.", "head.norm."),
    (r"^stem\.", "stem.conv."),
    (r"\.downsample\.", ".downsample.conv."),
    (r"(layer_scale\d)\.gamma", r"\1.scale"),
))  # fmt: skip

# RaftMLP, Tatsunami and Taki 2022: github.com/okojoalg/raft-mlp

RAFTMLP_NAMES = (
    (r"^model\.", ""),  # inside ShortcutClassifier
    (r"^head\.", "classifier."),
    (r"^norms\.(\d+)\.", r"heads.\1.1."),
    (r"^gates\.(\d+)\.", r"heads.\1.4."),
    (r"^stem\.", "stages.0.downsample."),
    (r"^stages\.(\d+)\.", r"levels.\1."),
    (r"\.blocks\.(\d+)\.", lambda m: f".fn.{2 + int(m[1])}."),
    (r"\.mixer\.(vertical|horizontal)\.norm\.", r".mixer.\1.norm.1."),
    (r"\.mixer\.vertical\.", ".1."),
    (r"\.mixer\.horizontal\.", ".3."),
    (r"\.norm2\.", ".5.norm."),
    (r"\.mlp\.", ".5."),
    (r"\.fc1\.", ".fn.0."),
    (r"\.fc2\.", ".fn.3."),
)


def raftmlp_format(*, last_head: int, cross: bool) -> Format:
    """Return the format of a RaftMLP.

    Args:
        last_head: index of the authors' head that holds the final norm: the last level with shortcuts, else 0.
        cross: whether patches of several sizes are embedded ("emb_cross_mlp"), else "emb_mixer".
    """
    names = (
        *RAFTMLP_NAMES,
        (r"^norm\.", f"heads.{last_head}.1."),
        (r"\.downsample\.convs\.\d+\.", ".fn.0.fc." if cross else ".fn.1."),
    )
    patch = "o (c h w) -> o c h w" if cross else "o (h w c) -> o c h w"
    return Format(names, partial(raftmlp_layout, patch=patch))


def raftmlp_layout(key: str, tensor: Tensor, model: nn.Module, patch: str) -> Tensor:
    """Reorder the channels of norms, and split the weights of patch embeddings by kernel."""
    *path, name, kind = key.split(".")
    parent: Any = model.get_submodule(".".join(path))
    if isinstance(parent, RaftMlp) and name == "norm":  # their norm sees the channels in another order than the stream
        return rearrange(tensor, "(c r) -> (r c)", r=parent.raft_size)
    if path[-1:] == ["convs"] and kind == "weight":  # one Linear has the patches of all kernels, side by side
        columns = tensor.split([conv.weight[0].numel() for conv in parent], dim=1)[int(name)]
        k = parent[int(name)].kernel_size[0]
        return rearrange(columns, patch, h=k, w=k)
    return tensor


# WaveMix, Jeevan et al. 2022: github.com/pranavphoenix/WaveMix, its classifier

ONE_LEVEL = (r"\.levels\.0\.", ".feedforward.")  # without the level's number; goes before the other names
WAVEMIX_BLOCK_NAMES = (
    (r"\.reduce\.", ".reduction."),
    (r"\.levels\.(\d+)\.", lambda m: f".feedforward{int(m[1]) + 1}."),
    (r"\.fc1\.", ".0."),
    (r"\.fc2\.", ".3."),
    (r"\.up\.", ".4."),
    (r"\.norm\.", ".5."),
)
WAVEMIX_NAMES = (
    (r"^head\.", "pool.2."),
    (r"^stem\.", "conv."),
    (r"^stages\.0\.blocks\.(\d+)\.mixer\.", r"layers.\1."),
    *WAVEMIX_BLOCK_NAMES,
)


def wavemix_layout(key: str, tensor: Tensor, model: Any) -> Tensor:
    """Reorder the detail channels that the first convolution of each MLP reads."""
    if not key.endswith(".fc1.weight"):
        return tensor
    c = model.num_features // 4
    low, high, deeper = tensor.split([c, 3 * c, tensor.shape[1] - 4 * c], dim=1)
    # Theirs: the three bands of a channel, then those of the next.
    high = rearrange(high, "o (c band) h w -> o (band c) h w", band=3)
    return torch.cat([low, high, deeper], dim=1)


WAVEMIX = Format(WAVEMIX_NAMES, wavemix_layout)
WAVEMIX_ONE_LEVEL = Format((ONE_LEVEL, *WAVEMIX_NAMES), wavemix_layout)

# WaveMix for super-resolution: their wavemix/sisr.py, and WaveMixSR of github.com/pranavphoenix/WaveMixSR

SISR_NAMES = (
    (r"^head\.", "expand."),
    (r"^stem\.", "conv."),
    (r"^blocks\.(\d+)\.mixer\.", r"layers.\1."),
    *WAVEMIX_BLOCK_NAMES,
)
SISR = Format(SISR_NAMES, wavemix_layout)
SISR_ONE_LEVEL = Format((ONE_LEVEL, *SISR_NAMES), wavemix_layout)
WAVEMIXSR = Format(
    (
        ONE_LEVEL,
        (r"^head\.", "final."),
        (r"^stem\.0\.", "path1.1."),
        (r"^stem\.1\.", "path1.2."),
        (r"^blocks\.(\d+)\.mixer\.", r"layers.\1."),
        *WAVEMIX_BLOCK_NAMES,
    ),
    wavemix_layout,
)

# NiNformer, Abdullah 2024: github.com/Abdullah-88/NiNformer

NINFORMER = Format((
    (r"^head\.", "classifier."),
    (r"^stem\.", "patcher."),
    (r"^stages\.0\.blocks\.", "model."),
    (r"\.norm1\.", ".norm."),
    (r"\.mixer\.value\.", ".mgu.proj."),
    (r"\.mixer\.token_norm\.", ".mgu.Mixer.token_mix.0."),
    (r"\.mixer\.token_mlp\.", ".mgu.Mixer.token_mix.2."),
    (r"\.mixer\.channel_norm\.", ".mgu.Mixer.channel_mix.0."),
    (r"\.mixer\.channel_mlp\.", ".mgu.Mixer.channel_mix.1."),
    (r"\.mlp\.", ".ffn."),
    (r"\.fc1\.", ".net.0."),
    (r"\.fc2\.", ".net.3."),
))  # fmt: skip

# Formats that registered models load directly, by the name of a tensor that no other format has.
PUBLISHED = {
    "patch_embed.proj.weight": POOLFORMER,
    "stem.conv.weight": TIMM_POOLFORMER,
    "layers.0.feedforward.0.weight": WAVEMIX_ONE_LEVEL,
    "layers.0.feedforward1.0.weight": WAVEMIX,
}


def format_of(state: Mapping[str, Tensor], own: Collection[str] = ()) -> Format:
    """Return the published format of a file's tensors, or our own.

    Args:
        state: the tensors by the file's names.
        own: names of the model's tensors; a stem of the user's may have the name of a published tensor.
    """
    return next((published for name, published in PUBLISHED.items() if name in state and name not in own), OURS)
