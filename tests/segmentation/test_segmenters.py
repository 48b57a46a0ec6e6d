"""Networks for segmentation on the models of the zoo: sizes, gradients, exports and wrong arguments."""

import torch

import metamix  # noqa: F401  registers the models
from metamix.segmentation import build_segmenter

TINY = dict(depths=(1, 1, 1), dims=(8, 16, 16))  # a nano model that runs in milliseconds


def count(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


def test_parameters_of_semantic_fpn():
    with torch.device("meta"):
        model = build_segmenter("semantic_fpn", "metaformer_pooling_s12", 150)
        small = build_segmenter("semantic_fpn", "metaformer_pooling_nano", 11)
    assert count(model.backbone.pyramid.fpn, model.head) == 4_266_646
    assert small.backbone.channels == (64,) * 4 and small.head.classifier.in_channels == 64
