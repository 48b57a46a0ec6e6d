"""Keep the running statistics of batch norms unchanged."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def keep_statistics(module: nn.Module) -> Iterator[None]:
    """Keep the running statistics of the batch norms in `module` unchanged, even in training mode."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.num_batches_tracked is not None]  # other norms keep no statistics
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)  # keep the tensor: SyncBatchNorm rejects None as the count
