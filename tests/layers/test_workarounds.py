"""Reproduce the library bugs that `metamix.layers` works around.

Each test shows that the library has a bug and that our layer does not have it. A test skips with the word "fixed" once
the library is fixed. The docstring of each workaround says when the workaround can be removed.
"""

import shutil
import time
from collections.abc import Callable
from functools import partial

import pytest
import timm
import torch
import torch._inductor.exc
import torch.nn.functional as F
from timm.layers import LayerNorm2d, SelectAdaptivePool2d
from torch import nn
from torch.export import Dim

from metamix.layers import (
    GELU,
    Conv2d,
    Dropout,
    Float32LayerNorm2d,
    GlobalPool,
    GroupNorm1,
    attention,
    average_to,
    is_channels_last,
    is_exporting,
    to_channels_last,
)
from metamix.training.forward import cpu_has_bf16
from tests.helpers.running import in_a_process

LAYOUTS = (torch.contiguous_format, torch.channels_last)


def skip_fixed(layer: str):
    pytest.skip(f"fixed in torch {torch.__version__}: {layer} can be removed if this is the oldest supported version")


def skip_without_bf16():
    """Skip on a processor without instructions for bf16, where torch uses kernels that do not have the bug."""
    if not cpu_has_bf16():
        pytest.skip("the processor has no instructions for bf16")


def channels_last(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)


# Wrong results and crashes


def train_frozen(norm: nn.Module):
    norm.bias.requires_grad_(False)
    norm(channels_last(2, 8, 6, 6)).square().sum().backward()


def test_group_norm_on_a_frozen_input():
    """Run each norm in its own process, because the bug is a segmentation fault."""
    codes = [in_a_process(train_frozen, norm(8)) for norm in (GroupNorm1, timm.layers.GroupNorm1)]
    assert codes[0] == 0
    if codes[1] == 0:
        skip_fixed("GroupNorm1")
    assert codes[1] < 0


def padding_gradient(conv: nn.Conv2d, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the gradient of the weights that see only padding, computed after memory full of NaN was freed."""
    memory = torch.full((100_000,), float("nan"))
    del memory
    x = channels_last(*shape)
    conv.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(x)
    y.sum().backward()
    torch.testing.assert_close(y.float(), nn.Conv2d.forward(conv, x), rtol=0.02, atol=0.02)
    return conv.weight.grad[..., [conv.padding[1] - 1, -conv.padding[1]]]


@pytest.mark.parametrize(
    "options, shapes",
    [
        ({"kernel_size": 3, "stride": 2, "padding": 1}, [(4, 8, 1, 1), (4, 8, 3, 1)]),
        ({"kernel_size": 7, "stride": 4, "padding": 2}, [(4, 8, 3, 3), (4, 8, 8, 3)]),  # a stem on tiny images
    ],
)
def test_convolution_of_a_narrow_map(options, shapes):
    assert not any(padding_gradient(Conv2d(8, 8, **options), shape).any() for shape in shapes * 3)
    skip_without_bf16()
    if not any(padding_gradient(nn.Conv2d(8, 8, **options), shape).any() for shape in shapes * 3):
        skip_fixed("Conv2d")


def test_memory_format_inside_vmap():
    seen = []
    torch.vmap(lambda x: seen.append((is_channels_last(x), is_channels_last(to_channels_last(x)))) or x)(
        torch.randn(2, 3, 4, 5, 6)
    )
    assert seen == [(False, True)]
    try:
        torch.vmap(lambda x: x.contiguous(memory_format=torch.channels_last))(torch.randn(2, 3, 4, 5, 6))
    except RuntimeError as error:
        assert "inside" in str(error) and "vmap" in str(error)
    else:
        skip_fixed("is_channels_last")


def compiles(norm: type[nn.Module]) -> bool:
    """Return whether inductor correctly compiles a norm after a strided convolution, for any image size."""
    torch._dynamo.reset()
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), norm(8), nn.Conv2d(8, 4, 1))
    x = channels_last(2, 3, 8, 8)
    try:
        with torch.no_grad():
            return torch.allclose(torch.compile(model, dynamic=True)(x), model(x), atol=1e-5)
    except torch._inductor.exc.InductorError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="inductor needs a C++ compiler")
def test_layer_norm_compiled_for_any_size():
    assert compiles(Float32LayerNorm2d)
    if compiles(LayerNorm2d):
        skip_fixed("layer_norm_2d's compiled path")


class AdaptivePool(nn.Module):
    def forward(self, x):
        return F.adaptive_avg_pool2d(x, (3, 4))


class AverageTo(nn.Module):
    def forward(self, x):
        return average_to(x, (3, 4))


def onnx_differs(module: nn.Module, file) -> bool:
    """Return whether the module fails or gives other values in ONNX Runtime at a size other than the example's."""
    import onnxruntime

    auto = {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}
    try:
        torch.onnx.export(module, (torch.randn(2, 2, 9, 8),), file, dynamo=True, dynamic_shapes=(auto,), verbose=False)
        session = onnxruntime.InferenceSession(file)
        x = torch.randn(3, 2, 7, 13)
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    except Exception:  # any failure, in torch, onnxscript or ONNX Runtime, shows the bug
        return True
    return y.shape != (3, 2, 3, 4) or not torch.allclose(torch.from_numpy(y), module(x), atol=1e-5)


def test_adaptive_pooling_in_onnx(tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install metamix[deploy]")
    assert not onnx_differs(AverageTo(), tmp_path / "ours.onnx")
    if not onnx_differs(AdaptivePool(), tmp_path / "torch.onnx"):
        skip_fixed("average_to")


# Slow kernels and layouts


def cpu_seconds(function: Callable, repeats: int = 5) -> float:
    """Return the least CPU time of one call, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def skip_unless_slower(theirs: Callable, ours: Callable, layer: str):
    seconds, own_seconds = cpu_seconds(theirs), cpu_seconds(ours)
    assert own_seconds < 1.5 * seconds, f"metamix.layers.{layer} takes at least 1.5 times as long as the library's code"
    if seconds < 1.15 * own_seconds:
        skip_fixed(layer)


def test_gelu_of_a_channels_last_map():
    x = channels_last(8, 64, 56, 56)  # float32, since torch has a fast kernel for bf16 on some processors
    skip_unless_slower(lambda: nn.GELU()(x), lambda: GELU()(x), "GELU")


def test_dropout_on_a_cpu():
    x = channels_last(8, 64, 56, 56)
    skip_unless_slower(lambda: nn.Dropout(0.3)(x), lambda: Dropout(0.3)(x), "Dropout")


def test_attention_at_16_bits():
    torch.manual_seed(0)
    q, k, v = (torch.randn(8, 6, 64, 16).bfloat16().requires_grad_() for _ in range(3))
    fused = F.scaled_dot_product_attention
    skip_without_bf16()
    skip_unless_slower(
        lambda: fused(q, k, v).sum().backward(), lambda: attention(q, k, v).sum().backward(), "attention"
    )


def test_layer_norm_at_16_bits():
    x = channels_last(32, 24, 16, 16, dtype=torch.bfloat16).requires_grad_()
    ours, theirs = (norm(24, eps=1e-6).bfloat16() for norm in (Float32LayerNorm2d, LayerNorm2d))
    y = ours(x)
    torch.testing.assert_close(y, theirs(x), rtol=0.02, atol=0.02)
    gradient = torch.randn_like(y)
    passes = [partial(norm(x).backward, gradient, retain_graph=True) for norm in (theirs, ours)]
    skip_unless_slower(*passes, "Float32LayerNorm2d")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_of_a_global_mean_keeps_the_layout(layout):
    x = torch.randn(2, 5, 3, 7).contiguous(memory_format=layout).requires_grad_()
    y = GlobalPool("avg")(x)
    torch.testing.assert_close(y, x.mean((2, 3)))
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    assert gradient.stride() == x.stride()
    torch.testing.assert_close(gradient, (2 / 21 * y).detach()[..., None, None].expand(2, 5, 3, 7))


def test_gradient_of_timms_global_mean_is_contiguous():
    x = channels_last(2, 5, 3, 7).requires_grad_()
    (gradient,) = torch.autograd.grad(SelectAdaptivePool2d(pool_type="avg", flatten=True)(x).square().sum(), x)
    if gradient.stride() == x.stride():
        skip_fixed("GlobalPool")
    assert gradient.is_contiguous()


class MoreInExports(nn.Module):
    """Add 1 in an export."""

    def __init__(self, exporting: Callable[[], bool]):
        super().__init__()
        self.exporting = exporting

    def forward(self, x):
        return x + 1 if self.exporting() else x * 1


def test_exporting_is_not_compiling():
    zero = torch.zeros(1)
    assert torch.export.export(MoreInExports(is_exporting), (zero,)).module()(zero) == 1
    assert torch.compile(MoreInExports(is_exporting), backend="eager")(zero) == 0
    if torch.compile(MoreInExports(torch.compiler.is_exporting), backend="eager")(zero) == 0:
        skip_fixed("is_exporting")
