"""Random numbers that are a function of where they are used, and of nothing else.

Every draw is a hash of integers (seed, purpose, epoch, index, ...), so a sample looks the same whichever process,
worker or device prepares it, and a run can be taken up anywhere. The hash chains the finaliser of SplitMix64 (Steele,
Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014); int64 tensors wrap modulo 2^64, on every
device alike.
"""

import math
import random
from contextlib import contextmanager

import numpy as np
import torch

# What a number is drawn for: two purposes never share a stream.
SPLIT, ORDER, SAMPLE, MIX, NOISE = range(5)


def _mix(z):
    """The finaliser of SplitMix64, (...) int64 -> (...) int64; `>>` keeps the sign, hence the masks."""
    z = (z ^ (z >> 30 & 2**34 - 1)) * -0x40A7B892E31B1A47
    z = (z ^ (z >> 27 & 2**37 - 1)) * -0x6B2FB644ECCEEE15
    return z ^ (z >> 31 & 2**33 - 1)


def hash64(*words):
    """Hash integers, or int64 tensors that broadcast against each other, to int64 of their common shape."""
    state = torch.zeros((), dtype=torch.int64)
    for word in words:
        state = _mix(state - 0x61C8864680B583EB + word)
    return state


def uniform(bits):
    """Hashes (...) int64 -> (...) float32 in [0, 1), with 24 bits each."""
    return (bits >> 40 & 2**24 - 1).float() * 2**-24


def normal(bits):
    """Hashes (...) int64 -> (...) float32, standard normal; finite for every hash."""
    return math.sqrt(2) * torch.erfinv(2 * uniform(bits) - 1 + 2**-24)


def randint(bits, high):
    """Hashes (...) int64 -> (...) int64 in [0, high); `high` is a number below 2^31 or a tensor of such."""
    return (bits >> 32 & 2**32 - 1) * high >> 32


def generator(*words):
    """A torch generator on the CPU, seeded with the hash of `words`."""
    return torch.Generator().manual_seed(int(hash64(*words)))


@contextmanager
def seeded(*words):
    """Seed the global generators of Python, NumPy and torch with the hash of `words`, and put back what was there."""
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


def stratified(labels, count, seed):
    """Choose `count` of N samples, from each class its share (to within one), at random by `seed`: (N,) bool.

    Samples are sorted by class, and by hash within a class; then every (N / count)-th of them is taken.
    """
    total = len(labels)
    by_hash = hash64(seed, SPLIT, torch.arange(total)).argsort()
    by_class = by_hash[labels[by_hash].argsort(stable=True)]
    chosen = torch.zeros(total, dtype=torch.bool)
    chosen[by_class[(torch.arange(count) * 2 + 1) * total // (2 * count)]] = True
    return chosen
