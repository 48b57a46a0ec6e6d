"""Test the list of registered models."""

import json

import pytest
import timm

from benchmarks.measure import model_sizes
from benchmarks.report import models

SIZES = json.loads(model_sizes.FILE.read_text())


def test_every_registered_name_is_listed():
    assert set(SIZES) == set(model_sizes.registered()), "run: python -m benchmarks.measure.model_sizes"
    listed = models.family() + models.papers()
    assert [name for name in SIZES if f"| `{name}` |" not in listed] == []


@pytest.mark.parametrize("name", ["metaformer_raft_nano", "wavemixlite_8_10", "minattn_minimal_nomlp_h1_mnist"])
def test_sizes_are_those_of_the_models(name):
    assert model_sizes.measure(name) == SIZES[name]


def test_weights_are_listed_with_their_accuracy():
    assert models.tags("metaformer_pooling_nano") == "`cifar10` 88.5 %, `digits` 99.7 %"
    assert models.tags("metaformer_pooling_s12") == "`sail_in1k`" and models.tags("metaformer_raft_s12") == ""


def test_papers_are_those_of_the_families():
    assert models.arxiv_of("wavemixlite_8_10") == "2205.14375" and models.arxiv_of("raftmlp_s") == "2108.04384"
    assert {pattern for pattern, *_ in models.FAMILIES if not timm.list_models(pattern)} == set()
