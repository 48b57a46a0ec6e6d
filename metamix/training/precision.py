"""Choose the precision of forward passes."""

from __future__ import annotations

import logging

import torch

from metamix.utils.system import cpu_flags

log = logging.getLogger(__name__)


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Return autocast in `dtype`; None disables it."""
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def autocast_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    """Return the dtype of autocast, None for float32.

    "auto" is bf16 on GPUs and CPUs with instructions for it, fp16 on older CUDA GPUs, and float32 elsewhere.
    """
    if amp == "fp16" and device.type == "cpu":
        log.warning("fp16 on a CPU is some ten times slower than float32; use --amp none or --amp bf16")
    if amp != "auto":
        return {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and cpu_has_bf16() else None


def cpu_has_bf16() -> bool:
    """Return whether the CPU has instructions for bf16; without them, torch emulates it."""
    return not cpu_flags().isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})
