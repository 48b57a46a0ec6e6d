"""Efficient token-mixing vision backbones: one MetaFormer skeleton, swappable mixers, registered with timm."""

__version__ = "0.1.0"
