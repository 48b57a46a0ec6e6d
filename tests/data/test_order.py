"""Test which samples each process takes in each step."""

import pytest
import torch

from metamix.data.order import BalancedOrder, EvalOrder, TrainOrder


def test_an_epoch_is_a_permutation_that_depends_on_seed_and_epoch():
    order = TrainOrder(103, 10, 0, 1, seed=0)
    epochs = [torch.cat(order.epoch(epoch, 0)) for epoch in (0, 1, 0)]
    assert len(order) == 10 and len(epochs[0].unique()) == 100
    assert torch.equal(epochs[0], epochs[2]) and not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], torch.cat(TrainOrder(103, 10, 0, 1, seed=1).epoch(0, 0)))


def test_ranks_hold_contiguous_parts_of_the_global_batch():
    whole = TrainOrder(100, 12, 0, 1, seed=3).epoch(2, 0)
    parts = [TrainOrder(100, 12, rank, 3, seed=3).epoch(2, 0) for rank in range(3)]
    assert len(whole) == 8
    assert all(torch.equal(batch, torch.cat(shares)) for batch, *shares in zip(whole, *parts, strict=True))


def test_a_set_smaller_than_a_batch_is_repeated():
    order = TrainOrder(5, 12, 0, 1, seed=0)
    (batch,) = order.epoch(0, 0)
    assert len(order) == 1 and sorted((batch % 5).bincount().tolist()) == [2, 2, 2, 3, 3]
    assert len(batch.unique()) == 12 and batch.max() < 15  # each repeat has its own number


def test_balanced_epochs_have_equally_many_samples_of_each_class():
    labels = torch.tensor([0] * 70 + [1] * 25 + [2] * 5)
    order = BalancedOrder(labels, 10, 0, 1, seed=0)
    epochs = [torch.cat(order.epoch(epoch, 0)) for epoch in (0, 1, 0)]
    assert torch.equal(epochs[0], epochs[2]) and not torch.equal(epochs[0], epochs[1])
    for epoch in epochs:
        assert len(epoch.unique()) == 100  # each repeat has its own number
        assert len(labels[epoch[:30] % 100].unique()) == 3  # classes are mixed
        assert sorted(labels[epoch % 100].bincount().tolist()) == [33, 33, 34]
        counts = (epoch % 100).bincount(minlength=100)
        assert counts[:70].max() == 1, "samples of a frequent class are not repeated"
        assert set(counts[70:95].tolist()) <= {1, 2} and set(counts[95:].tolist()) <= {6, 7}
    larger = {int(labels[torch.cat(order.epoch(epoch, 0)) % 100].bincount().argmax()) for epoch in range(8)}
    assert len(larger) > 1, "the class that gets one more sample changes"
    parts = [BalancedOrder(labels, 10, rank, 2, seed=0).epoch(1, 3) for rank in range(2)]
    assert all(torch.equal(a, torch.cat(b)) for a, b in zip(order.epoch(1, 3), zip(*parts), strict=True))


@pytest.mark.parametrize("total, world", [(12, 1), (13, 4), (7, 3), (2, 4)])
def test_evaluation_sees_every_sample_once(total, world):
    batches = [batch for rank in range(world) for batch in EvalOrder(total, 2, rank, world).epoch(0, 0)]
    assert torch.cat(batches).tolist() == list(range(total))
    assert all(0 < len(batch) <= 2 for batch in batches)
