"""Test how run lengths of masks are decoded."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from metamix.data.run_lengths import decode_runs, read_runs


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 1.0])
def test_compressed_run_lengths_are_decoded_and_damage_is_noticed(share):
    shape = np.random.default_rng(0).random((64, 96)) < share
    shape[:, 40:70] = False  # makes a long run: COCO stores the difference between a run and the second run before it
    segmentation = coco_mask.encode(np.asfortranarray(shape.astype(np.uint8)))
    text = segmentation["counts"].decode()
    ends = np.flatnonzero(np.diff(np.concatenate([[False], shape.T.ravel(), [not shape[-1, -1]]])))
    runs = np.diff(ends, prepend=0).tolist()
    assert read_runs({"size": [64, 96], "counts": text}, 64, 96) == (runs, None)
    assert "damaged or cut off" in read_runs({"size": [64, 96], "counts": text[:-1] + "o"}, 64, 96)[1]
    assert decode_runs(text[:-1] + "o") is None
