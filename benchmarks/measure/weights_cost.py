"""Speed and memory of trained models, for `benchmarks/compare.py --measure`, on the CPU.

What a step of inference or training is, and how models take turns: benchmarks/timing.py. Precision is that of the
recipes on this machine: bf16 where it has instructions for it.
"""

from collections.abc import Sequence

import timm
import torch

import metamix  # noqa: F401 - registers the models with timm
from benchmarks.measure.timing import MODES, Subject, in_fresh_process, interleaved, machine, memory_mib
from metamix.training.optimization import autocast_dtype
from metamix.utils.system import commit, keep_freed_memory

BATCH_SIZE = 128
SECONDS = 60  # for all models together
TURNS = 15  # at least, for each


def measure(cards: Sequence[dict]) -> dict:
    """Where and how it was measured, and for each card's name images a second and MiB, in training and inference."""
    keep_freed_memory()  # as training does
    precision = "bf16" if autocast_dtype("auto", torch.device("cpu")) else "fp32"
    steps = {}
    for card in cards:
        one = subject(card["name"])
        steps |= {(card["name"], mode): one.step(mode, precision) for mode in MODES}
    seconds = interleaved(steps, SECONDS, TURNS)
    models = {card["name"]: in_fresh_process(peaks, card["name"], precision) for card in cards}
    for (name, mode), median in seconds.items():
        models[name][f"{mode}_img_per_s"] = round(BATCH_SIZE / median, 1)
    return {
        "commit": commit(),
        "machine": machine(),
        "precision": precision,
        "batch_size": BATCH_SIZE,
        "models": models,
    }


def subject(name: str) -> Subject:
    model = timm.create_model(name)
    return Subject(model, BATCH_SIZE, model.pretrained_cfg["input_size"][1], "channels_last")


def peaks(name: str, precision: str) -> dict[str, int]:
    """MiB that inference, and then training, add to the peak of this process, which holds torch and the model."""
    one = subject(name)
    before, found = memory_mib(), {}
    for mode in ("infer", "train"):
        for _ in range(3):
            one.step(mode, precision)()
        found[f"{mode}_mib"] = round(memory_mib() - before)
    return found
