"""Run models on batches: move and split batches, choose the precision, and score a model over a loader."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from metamix.utils.system import cpu_flags
from metamix.utils.text import package_logger

from .processes import ProcessGroup
from .task import Batch, Metric, State

log = package_logger(__name__)


def num_samples(batch: Batch) -> int:
    """Return the number of samples in a batch."""
    return len(next(iter(batch.values())))


def drop_unreadable(batch: Batch) -> Batch:
    """Return a batch to score without the samples that could not be read, to which loaders give the index -1."""
    if "index" not in batch or bool((batch["index"] >= 0).all()):
        return batch
    places = [place for place, index in enumerate(batch["index"].tolist()) if index >= 0]
    return {
        key: value[places] if isinstance(value, Tensor) else [value[place] for place in places]
        for key, value in batch.items()
    }


def micro_batches(batch: Batch, size: int) -> Iterator[Batch]:
    """Split a batch into the fewest parts of at most `size` samples; 0 keeps it whole.

    The sizes of the parts differ by at most one, since batch norm works badly on a small last part.
    """
    count = num_samples(batch)
    parts = -(-count // size) if size else 1
    for i in range(parts):
        start, stop = i * count // parts, (i + 1) * count // parts
        yield {key: value[start:stop] for key, value in batch.items()}


def memory_format(channels_last: bool) -> torch.memory_format:
    """Return the memory format for the option `channels_last`."""
    return torch.channels_last if channels_last else torch.contiguous_format


def to_device(value: Any, device: torch.device, memory_format: torch.memory_format | None = None) -> Any:
    """Move all tensors in nested dicts, lists and tuples to a device. Other values are returned unchanged.

    If `memory_format` is given, tensors with four dimensions are converted to it, and the copy need not block the CPU.
    """

    def move(tensor: Tensor) -> Tensor:
        layout = memory_format if tensor.ndim == 4 else None
        return tensor.to(device, non_blocking=memory_format is not None, memory_format=layout or torch.preserve_format)

    return tree_map_only(Tensor, move, value)


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Return an autocast context for `dtype`; None disables autocast."""
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def autocast_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    """Return the dtype of autocast, or None for float32.

    "auto" is bf16 on CUDA GPUs and CPUs with instructions for it, fp16 on older CUDA GPUs, and float32 elsewhere.
    """
    if amp == "fp16" and device.type == "cpu":
        log.warning("fp16 on a CPU is about ten times slower than float32; use --amp none or --amp bf16")
    if amp != "auto":
        return {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and cpu_has_bf16() else None


def cpu_has_bf16() -> bool:
    """Return whether the CPU has instructions for bf16; without them, torch emulates it."""
    return not cpu_flags().isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


@torch.no_grad()
def score_batches(
    metric: Metric,
    model: nn.Module,
    loader: Iterable[Batch],
    group: ProcessGroup,
    dtype: torch.dtype | None,
    memory_format: torch.memory_format,
) -> tuple[dict[str, float], list[State]]:
    """Score a model over the samples of this rank's loader that could be read.

    Return the scores by name, the same on all ranks, and the states of all ranks, on the CPU. The model is left in
    evaluation mode. `dtype` is the dtype of autocast, or None for float32.
    """
    model.eval()
    state = to_device(metric.start(), group.device) | {"unreadable": 0}
    for whole in loader:
        batch = to_device(drop_unreadable(whole), group.device, memory_format)
        state["unreadable"] += num_samples(whole) - num_samples(batch)
        if num_samples(batch):
            with autocast(group.device, dtype):
                metric.update(state, metric.predict(model, batch), batch)
    states = group.all_gather(to_device(state, torch.device("cpu")))
    return metric.result(states), states
