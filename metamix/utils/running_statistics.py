"""The running statistics of batch norms."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def keep_statistics(module: nn.Module) -> Iterator[None]:
    """Keep the running statistics of the batch norms in `module` as they are, also in training."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.num_batches_tracked is not None]  # the others have no statistics
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)  # SyncBatchNorm refuses None in its place
