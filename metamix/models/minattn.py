"""Build the minimal transformers of "Reducing the Transformer Architecture to a Minimum" (arXiv 2410.13732).

`minattn_<similarity>_<mlp|nomlp>_<h1|h4>_<mnist|cifar>`: six isotropic layers of 64 channels on 16 patches with learned
positions. The similarity is full (query, key, value, projection), collapsed (query and key in one matrix), minimal
(collapsed, without value and projection) or symmetric (one Cholesky factor for query and key).

Departure: our models have a norm before each half of a layer and a norm at the end, and classify the mean over tokens.
The published table was made with a third party's implementation, which has a norm after each half and classifies a
class token. The parameter counts are the same, except for a norm that the third party counts but does not use.
"""

from functools import partial
from typing import Any

from timm.layers import LayerNorm2d
from torch import nn

from metamix.utils.checks import check_choice, check_counts

from .embed import ConvEmbed
from .registry import CIFAR10, MNIST, build, register

SIMILARITY: dict[str, dict[str, Any]] = {
    "full": dict(qk="separate"),
    "collapsed": dict(qk="collapsed"),
    "minimal": dict(qk="collapsed", value=False),
    "symmetric": dict(qk="cholesky"),
}


def minattn(
    name: str,
    pretrained: bool = False,
    *,
    similarity: str,
    num_heads: int = 1,
    mlp: bool = True,
    patch_size: int = 8,
    dim: int = 64,
    depth: int = 6,
    proj_drop_rate: float = 0.1,
    **kwargs: Any,
) -> nn.Module:
    """Build a minimal transformer; `kwargs` are arguments of `MetaFormer`.

    Args:
        similarity: a key of `SIMILARITY`.
        num_heads: number of attention heads.
        mlp: whether layers have the channel MLP, whose hidden width is `dim`.
        patch_size: side of the patches in pixels.
        dim: number of channels.
        depth: number of layers.
        proj_drop_rate: dropout rate in MLPs and attention.
    """
    check_choice("similarity", similarity, SIMILARITY)
    check_counts(1, patch_size=patch_size)
    norm = partial(LayerNorm2d, eps=1e-5)
    mixer_args = dict(num_heads=num_heads, attn_drop=proj_drop_rate) | SIMILARITY[similarity]
    preset: dict[str, Any] = dict(
        mixer="minattn",
        default_mixer_args={"minattn": mixer_args},
        stem=partial(ConvEmbed, kernel_size=patch_size, stride=patch_size),
        norm1=norm,
        norm2=norm,
        norm=norm,
        mlp_ratio=float(mlp),
        layer_scale=0,
        pos_embed=True,
        proj_drop_rate=proj_drop_rate,
    )
    return build(name, pretrained, depths=(depth,), dims=(dim,), **(preset | kwargs))


DATA = {"mnist": (MNIST | dict(pool_size=(4, 4)), 7), "cifar": (CIFAR10 | dict(pool_size=(4, 4)), 8)}
ROWS = (  # rows of the paper's table: similarity, MLP, heads
    ("full", True, 1),
    ("full", True, 4),
    ("collapsed", True, 1),
    ("minimal", True, 1),
    ("full", False, 1),
    ("full", False, 4),
    ("symmetric", False, 1),
    ("symmetric", False, 4),
    ("collapsed", False, 1),
    ("minimal", False, 1),
)


def variant(similarity: str, mlp: bool, heads: int, data: str) -> str:
    """Return the registered name of the model for a row of `ROWS` and a key of `DATA`."""
    return f"minattn_{similarity}_{'mlp' if mlp else 'nomlp'}_h{heads}_{data}"


for data, (cfg, patch_size) in DATA.items():
    for similarity, mlp, heads in ROWS:
        register(
            variant(similarity, mlp, heads, data),
            minattn,
            cfg=cfg,
            similarity=similarity,
            mlp=mlp,
            num_heads=heads,
            patch_size=patch_size,
        )
