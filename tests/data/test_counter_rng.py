import random

import numpy as np
import torch

from metamix.data.counter_rng import generator, hash64, normal, randint, seeded, uniform


def test_hash_equals_splitmix64():
    """The expected numbers are the published first outputs of SplitMix64 for the seeds 0 and 1234567."""
    assert int(hash64(0)) % 2**64 == 0xE220A8397B1DCDAF
    assert int(hash64(1234567)) % 2**64 == 6457827717110365317


def test_tensors_are_hashed_by_element():
    index = torch.tensor([0, 1, 5, 2**40, -3])
    together = hash64(7, index[:, None], torch.arange(3))
    assert together.shape == (5, 3)
    assert all(together[i, j] == hash64(7, int(index[i]), j) for i in range(5) for j in range(3))


def test_order_of_words_matters():
    assert hash64(1, 2) != hash64(2, 1) != hash64(1, 2, 0)


def test_numbers_are_spread_evenly():
    bits = hash64(3, torch.arange(100_000))
    share = torch.histc(uniform(bits), 10, 0, 1) / len(bits)
    assert (share - 0.1).abs().max() < 0.005
    numbers = randint(bits, 7)
    assert (numbers.bincount() / len(bits) - 1 / 7).abs().max() < 0.005
    assert numbers.max() == 6
    highs = torch.arange(100_000) % 9 + 1
    assert ((randint(bits, highs) < highs) & (randint(bits, highs) >= 0)).all()


def test_normal_numbers_are_finite_for_the_lowest_and_highest_bits():
    ends = torch.tensor([0, 2**24 - 1]) << 40
    assert uniform(ends).tolist() == [0, 1 - 2**-24]
    low, high = normal(ends).tolist()
    assert low == -high and 5 < high < 6


def test_neighbouring_samples_and_draws_are_uncorrelated():
    table = uniform(hash64(0, torch.arange(20_000)[:, None], torch.arange(4)))
    table = torch.cat([table[1:], table[:-1]], dim=1)
    off_diagonal = torch.corrcoef(table.T) - torch.eye(8)
    assert off_diagonal.abs().max() < 0.04


def test_seeded_draws_repeat_and_restore_the_global_state():
    def draw():
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    with seeded(1, 2):
        first = draw()
    with seeded(1, 2):
        assert draw() == first
    with seeded(1, 3):
        assert draw() != first
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()
    assert torch.equal(torch.get_rng_state(), before[2])


def test_generator_depends_on_all_words():
    assert len({int(torch.randint(2**40, (), generator=generator(a, b))) for a in range(3) for b in range(3)}) == 9
