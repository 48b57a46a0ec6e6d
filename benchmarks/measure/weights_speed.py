"""Measure speed and memory of the shipped weights of one tag on the CPU, and write them to their cards.

    python -m benchmarks.measure.weights_speed --tag cifar10

All models of the tag take turns. Run this on a quiet machine. The precision is the default in training: bf16 if the
processor has instructions for it, otherwise fp32.
"""

import argparse
from collections.abc import Sequence

import timm
import torch

import metamix  # noqa: F401 - registers the models with timm
from benchmarks.measure.timing import MODES, Subject, in_fresh_process, machine, memory_mib
from benchmarks.weight_cards import load_tag, write_card
from metamix.training.forward import autocast_dtype
from metamix.utils.system import commit, keep_freed_memory
from metamix.utils.text import exit_with_message
from metamix.utils.timing import interleaved

BATCH_SIZE = 128
SECONDS = 60  # time for all models together
TURNS = 15  # minimum for each model


def measure(names: Sequence[str], precision: str) -> dict[str, dict]:
    """Return images per second and MiB of training and inference, by name."""
    subjects = {name: subject(name) for name in names}
    steps = {(name, mode): one.step(mode, precision) for name, one in subjects.items() for mode in MODES}
    seconds = interleaved(steps, SECONDS, TURNS)
    costs = {name: in_fresh_process(added_memory, name, precision) for name in names}
    for (name, mode), median in seconds.items():
        costs[name][f"{mode}_img_per_s"] = round(BATCH_SIZE / median, 1)
    return costs


def subject(name: str) -> Subject:
    model = timm.create_model(name)
    return Subject(model, BATCH_SIZE, model.pretrained_cfg["input_size"][1], "channels_last")


def added_memory(name: str, precision: str) -> dict[str, int]:
    """Return the MiB that inference, and then training, add to the peak of a process that holds torch and the model."""
    one = subject(name)
    before, added = memory_mib(), {}
    for mode in MODES:
        for _ in range(3):
            one.step(mode, precision)()
        added[f"{mode}_mib"] = round(memory_mib() - before)
    return added


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tag", help="tag of the weights, such as digits or cifar10")
    args = parser.parse_args(argv)
    with exit_with_message(ValueError, OSError):
        cards = load_tag(args.tag)
        keep_freed_memory()
        precision = "bf16" if autocast_dtype("auto", torch.device("cpu")) else "fp32"
        costs, here = measure([card["name"] for card in cards], precision), machine()
        where = {"cpu": here["cpu"], "threads": here["threads"], "precision": precision}
        where |= {"batch_size": BATCH_SIZE, "commit": commit()}
        for card in cards:
            write_card(card | {"cost": costs[card["name"]] | where})


if __name__ == "__main__":
    main()
