"""The minimal transformers of "Reducing the Transformer Architecture to a Minimum" (arXiv 2410.13732).

`minattn_<similarity>_<mlp|nomlp>_<h1|h4>_<mnist|cifar>`: six isotropic layers of 64 channels on 16 patches with learned
positions. The similarity is full (query, key, value, projection), collapsed (query and key in one matrix), minimal
(collapsed, and neither value nor projection) or symmetric (a Cholesky factor for query and key).

A norm stands before each half and at the end, and the mean over tokens is classified; the third party whose table these
rows come from norms after each half and reads a class token. Both have the same number of parameters, less its unused
norm.
"""

from functools import partial

from timm.layers import LayerNorm2d
from torch import nn

from metamix.utils.text import nearest

from .metaformer import ConvEmbed
from .registry import CIFAR10, MNIST, build, register

SIMILARITY = {
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
    **kwargs,
) -> nn.Module:
    """A minimal transformer: one of SIMILARITY, with or without the MLP, whose hidden width is `dim`."""
    if similarity not in SIMILARITY:
        raise ValueError(
            f"similarity is {similarity!r}{nearest(similarity, SIMILARITY)} Accepted: {', '.join(SIMILARITY)}."
        )
    norm = partial(LayerNorm2d, eps=1e-5)
    options = dict(num_heads=num_heads, attn_drop=proj_drop_rate, **SIMILARITY[similarity])
    preset = dict(
        mixer="minattn",
        default_mixer_args=lambda dim: {"minattn": options},
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


DATA = {
    "mnist": (MNIST | dict(pool_size=(4, 4)), dict(patch_size=7)),
    "cifar": (CIFAR10 | dict(pool_size=(4, 4)), dict(patch_size=8)),
}
ROWS = (
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
    """The registered name of a row of ROWS, for the images of a key of DATA."""
    return f"minattn_{similarity}_{'mlp' if mlp else 'nomlp'}_h{heads}_{data}"


for data, (cfg, preset) in DATA.items():
    for similarity, mlp, heads in ROWS:
        name = variant(similarity, mlp, heads, data)
        register(name, minattn, cfg=cfg, similarity=similarity, mlp=mlp, num_heads=heads, **preset)
