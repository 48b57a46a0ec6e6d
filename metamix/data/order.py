"""Choose the samples that each process takes in each step, and their order.

The samples of a step are a slice of a permutation that depends only on (seed, epoch). Rank r takes the r-th of
`world_size` parts of the slice. So the global batch is the same on any number of processes, and an epoch can start at
any step. If sample i occurs several times in an epoch, its occurrences get the numbers i, i + total, i + 2 total and so
on. Augmentation is seeded with this number, so each occurrence is augmented differently.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .counter_rng import ORDER, generator


class TrainOrder:
    """Draw this rank's samples of each step in random order; raise ValueError if ranks cannot share a batch equally."""

    def __init__(self, total: int, batch_size: int, rank: int, world_size: int, seed: int):
        if batch_size % world_size:
            raise ValueError(f"batch_size is {batch_size}: give a multiple of {world_size}, the number of processes")
        self.total, self.batch_size, self.seed = total, batch_size, seed
        self.part = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)

    def __len__(self) -> int:
        """Return the number of steps in an epoch."""
        return max(1, self.total // self.batch_size)

    def permutation(self, rng: torch.Generator) -> Tensor:
        """Draw the samples of an epoch in random order, (total,) int64."""
        return torch.randperm(self.total, generator=rng)

    def epoch(self, epoch: int, start: int) -> list[Tensor]:
        """Return the numbers of this rank's samples in every step from `start` on."""
        order = self.permutation(generator(self.seed, ORDER, epoch))
        order = number_repeats(order.repeat(-(-self.batch_size // self.total)), self.total)
        return [order[step * self.batch_size :][: self.batch_size][self.part] for step in range(start, len(self))]


def number_repeats(order: Tensor, total: int) -> Tensor:
    """Add `total` to the second occurrence of a sample in `order`, twice `total` to the third, and so on."""
    samples, places = order.sort(stable=True)
    repeats = torch.arange(len(order)) - torch.searchsorted(samples, samples)
    return torch.empty_like(order).index_copy_(0, places, samples + repeats * total)


class BalancedOrder(TrainOrder):
    """Order samples at random, with the same number from each class, for data sets with rare classes.

    An epoch has as many samples as the source: samples of rare classes are repeated, and some samples of frequent
    classes are left out. The labels are (total,) int64.
    """

    def __init__(self, labels: Tensor, batch_size: int, rank: int, world_size: int, seed: int):
        super().__init__(len(labels), batch_size, rank, world_size, seed)
        self.members = [(labels == label).nonzero()[:, 0] for label in labels.unique()]

    def permutation(self, rng: torch.Generator) -> Tensor:
        """Draw equally many samples from each class, to within one, in random order: (total,) int64."""
        share, rest = divmod(self.total, len(self.members))
        favoured = set(torch.randperm(len(self.members), generator=rng)[:rest].tolist())
        chosen = []
        for number, members in enumerate(self.members):
            count = share + (number in favoured)
            rounds = -(-count // len(members))
            orders = [members[torch.randperm(len(members), generator=rng)] for _ in range(rounds)]
            chosen.append(torch.cat(orders)[:count])
        return torch.cat(chosen)[torch.randperm(self.total, generator=rng)]


class EvalOrder:
    """Yield this rank's part of the samples in their order. All ranks together yield every sample once."""

    def __init__(self, total: int, batch_size: int, rank: int, world_size: int):
        part = torch.arange(rank * total // world_size, (rank + 1) * total // world_size)
        self.batches: Sequence[Tensor] = part.split(batch_size) if len(part) else ()

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, start: int) -> Sequence[Tensor]:
        return self.batches[start:]


class ListedOrder(EvalOrder):
    """Yield the samples with the indices `numbers`, (n,) int64, in batches of one."""

    def __init__(self, numbers: Tensor):
        self.batches = numbers.split(1)


Order = TrainOrder | EvalOrder
