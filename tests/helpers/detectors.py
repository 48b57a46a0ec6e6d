"""Define small detectors: as words of a command line, as options, and as metadata of weights."""

import shlex

DETECTION = shlex.split(
    "--task detection --model metaformer_pooling_nano --min-size 64 --max-size 120 --out-channels 64 --out-indices 1,2 "
    "--extra none --workers 0 --amp none"
)
SMALL = dict(
    model="metaformer_pooling_nano", model_args=dict(depths=[1, 1, 1], dims=[8, 8, 16]), out_channels=64,
    out_indices=(1, 2), extra="none", min_size=64, max_size=120, workers=0,
)  # fmt: skip
GOOD = dict(
    task="detection", detector="retinanet", detector_args={}, model="metaformer_pooling_nano",
    model_args=SMALL["model_args"], classes=["disc", "square"], out_indices=[1, 2], extra="none", out_channels=64,
    frozen_norms=False, min_size=64, max_size=120, anchor_scale=2.5, train_on=["train"], mean=[0.5, 0.5, 0.5],
    std=[0.2, 0.2, 0.2],
)  # fmt: skip
