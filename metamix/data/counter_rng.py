"""Make counter-based random numbers: hashes of integers (seed, purpose, epoch, index, ...).

With them, every process, worker and device augments a sample in the same way, and a run can be resumed at any step.
The hash chains the finaliser of SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014). int64 tensors wrap modulo 2^64 on every device.
"""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

# Purposes of random numbers. Each purpose has its own stream.
SPLIT, ORDER, SAMPLE, MIX = range(4)


def _mix(z: Tensor) -> Tensor:
    """Apply the finaliser of SplitMix64 to an int64 tensor; the masks clear the sign bits that `>>` copies."""
    z = (z ^ (z >> 30 & 2**34 - 1)) * -0x40A7B892E31B1A47
    z = (z ^ (z >> 27 & 2**37 - 1)) * -0x6B2FB644ECCEEE15
    return z ^ (z >> 31 & 2**33 - 1)


def hash64(*words: int | Tensor) -> Tensor:
    """Hash integers, or int64 tensors that broadcast against each other, to an int64 tensor of their common shape."""
    state = torch.zeros((), dtype=torch.int64)
    for word in words:
        state = _mix(state - 0x61C8864680B583EB + word)
    return state


def uniform(bits: Tensor) -> Tensor:
    """Map hashes (...) int64 to uniform random numbers (...) float32 in [0, 1), using 24 bits of each hash."""
    return (bits >> 40 & 2**24 - 1).float() * 2**-24


def normal(bits: Tensor) -> Tensor:
    """Map hashes (...) int64 to standard normal random numbers (...) float32; all of them are finite."""
    return math.sqrt(2) * torch.erfinv(2 * uniform(bits) - 1 + 2**-24)


def randint(bits: Tensor, high: int | Tensor) -> Tensor:
    """Map hashes (...) int64 to uniform random integers (...) int64 in [0, high), where `high` is below 2^31."""
    return (bits >> 32 & 2**32 - 1) * high >> 32


def generator(*words: int) -> torch.Generator:
    """Make a torch generator on the CPU, seeded with the hash of `words`."""
    return torch.Generator().manual_seed(int(hash64(*words)))


@contextmanager
def seeded(*words: int) -> Iterator[None]:
    """Seed the global CPU generators of Python, NumPy and torch with the hash of `words`; restore them afterwards."""
    seed = int(hash64(*words)) % 2**32
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def stratified_choice(labels: Tensor, count: int) -> Tensor:
    """Choose `count` of N samples, stratified by class: labels (N,) int64 -> (N,) bool, true if chosen.

    The choice looks random, but does not depend on a seed, so that runs with different seeds have the same splits.
    Samples are sorted by class, and by hash within a class. Then every (N / count)-th sample is taken. So the number of
    samples from a class is proportional to the size of the class, to within one sample.
    """
    total = len(labels)
    by_hash = hash64(0, SPLIT, torch.arange(total)).argsort()
    by_class = by_hash[labels[by_hash].argsort(stable=True)]
    chosen = torch.zeros(total, dtype=torch.bool)
    chosen[by_class[(torch.arange(count) * 2 + 1) * total // (2 * count)]] = True
    return chosen
