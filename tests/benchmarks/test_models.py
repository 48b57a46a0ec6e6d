"""Test the list of registered models."""

import timm

import metamix
from benchmarks.report import models


def test_every_registered_name_is_listed():
    listed = models.family() + models.papers()
    assert [model.name for model in metamix.list_models() if f"| `{model.name}` |" not in listed] == []


def test_image_models_are_listed_with_their_papers_and_scores():
    listed = models.image_models()
    assert [model.name for model in metamix.list_image_models() if f"| `{model.name}` |" not in listed] == []
    assert "| `wavemixsr_nano` | 190 k | 64.8 k | 1 | x2 | [2307.00430](" in listed
    assert "`x2` 36.76 dB on Set5" in listed


def test_weights_are_listed_with_their_accuracy():
    assert models.tags("metaformer_pooling_nano") == "`cifar10` 90.1 %, `digits` 99.7 %"
    assert models.tags("metaformer_pooling_s12") == "`sail_in1k` 77.2 % (published)"
    assert models.tags("wavemix_192_16") == "`galaxy10` 90.2 % (published), `in1k` 71.2 % (published)"
    assert models.tags("metaformer_raft_s12") == ""


def test_models_have_the_papers_of_their_families():
    assert models.arxiv_of("wavemixlite_8_10") == "2205.14375" and models.arxiv_of("raftmlp_s") == "2108.04384"
    assert {pattern for pattern, *_ in models.FAMILIES if not timm.list_models(pattern)} == set()
