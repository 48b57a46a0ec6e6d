"""Build NiNformer, "A Network in Network Transformer with Token Mixing Generated Gating Function" (arXiv 2403.02411).

The model is isotropic. Its stem is a patch convolution, and it has no position embeddings. As in the author's code, the
two halves of a block share one LayerNorm, and no norm precedes the mean over tokens.

Departure: the author uses torch's default initialization for the blocks' MLPs and the head. In our model, these layers
start with small random weights and biases of zero.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from timm.layers import LayerNorm2d
from torch import Tensor, nn

from metamix.utils.checks import check_counts
from metamix.weights.layout import Layout

from .embed import ConvEmbed
from .official import ModelAndLayout, check_value, official
from .registry import CIFAR10, build, register


def ninformer(
    name: str,
    pretrained: bool = False,
    *,
    patch_size: int = 4,
    d_model: int = 256,
    d_ffn: int = 512,
    num_layers: int = 4,
    **kwargs: Any,
) -> nn.Module:
    """Build a NiNformer. The arguments below have the paper's names; `kwargs` are arguments of `MetaFormer`.

    Args:
        patch_size: side of the patches in pixels.
        d_model: channels.
        d_ffn: hidden width of all MLPs, over tokens and over channels.
        num_layers: number of blocks.
    """
    check_counts(1, patch_size=patch_size, d_model=d_model, d_ffn=d_ffn, num_layers=num_layers)
    preset: dict[str, Any] = dict(
        mixer="nin",
        default_mixer_args={"nin": dict(token_dim=d_ffn, channel_dim=d_ffn)},
        stem=partial(ConvEmbed, kernel_size=patch_size, stride=patch_size),
        norm1=partial(LayerNorm2d, eps=1e-5),
        tie_norms=True,
        norm="none",
        mlp_ratio=d_ffn / d_model,
        layer_scale=0,
        proj_drop_rate=0.5,
    )
    return build(name, pretrained, depths=(num_layers,), dims=(d_model,), **(preset | kwargs))


register("ninformer_cifar", ninformer, cfg=CIFAR10 | dict(pool_size=(8, 8)))


# Checkpoints of github.com/Abdullah-88/NiNformer

NINFORMER = Layout((
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


@official(
    "ninformer",
    same=("d_model", "d_ffn", "num_layers", "num_classes"),
    renamed=dict(in_channels="in_chans", dropout="proj_drop_rate"),
)
def official_ninformer(
    state: Mapping[str, Tensor], *, image_size: int = 32, patch_size: int = 4, seq_len: int = 64, **arguments: Any
) -> ModelAndLayout:
    """Build our model for the arguments of the author's `NiNformer`."""
    check_counts(1, patch_size=patch_size)
    tokens = (image_size // patch_size) ** 2
    check_value("seq_len", seq_len, [tokens], f"{tokens}, the number of patches in an image of {image_size} pixels")
    return ninformer("ninformer_cifar", img_size=image_size, patch_size=patch_size, **arguments), NINFORMER
