"""Test the layers that mixers and the skeleton share. `test_workarounds.py` reproduces the bugs that they avoid."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from metamix.layers import GELU, Conv2d, Dropout, GroupNorm1, Mlp, attention, average_to
from metamix.layers.spatial import averages, resize_nearest
from metamix.models.embed import ConvEmbed

LAYOUTS = (torch.contiguous_format, torch.channels_last)


@pytest.mark.parametrize("frozen, trained", (("", "weight"), ("weight", "bias"), ("bias", "weight")))
def test_group_norm_has_the_same_gradients_behind_frozen_layers(frozen, trained):
    """Without GroupNorm1's copy, the backward pass ends in a segmentation fault."""
    x = torch.randn(2, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    grads = []
    for image in (x, x.clone().requires_grad_()):
        norm = GroupNorm1(8)
        if frozen:
            norm.get_parameter(frozen).requires_grad_(False)
        (norm(image) * torch.arange(8.0)[:, None, None]).square().sum().backward()
        grads.append(norm.get_parameter(trained).grad)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


OPTIONS = [dict(groups=2), dict(padding_mode="reflect", padding=1), dict(padding="same"), dict(stride=(2, 1))]


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("cls", [Conv2d, ConvEmbed])
def test_convolutions_take_torchs_arguments_and_give_the_same_outputs(cls, option):
    ours, theirs = cls(4, 6, 3, **option).double(), torch.nn.Conv2d(4, 6, 3, **option).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 4, 8, 7, dtype=torch.float64)
    assert torch.equal(ours(x), theirs(x)) and cls(4, 6, 3, 1, 0, 1, 2, False, device="meta").weight.is_meta


@pytest.mark.parametrize("height, width", [(6, 4), (7, 13), (1, 2)])
def test_averages_over_a_grid_equal_torchs_adaptive_pooling(height, width):
    x = torch.rand(1, 2, height, width)
    for pooled in average_to(x, (3, 4)), averages(height, 3, x) @ x @ averages(width, 4, x).mT:
        torch.testing.assert_close(pooled, F.adaptive_avg_pool2d(x, (3, 4)))


def test_group_norm_without_weights_equals_torchs():
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    torch.testing.assert_close(GroupNorm1(8, affine=False)(x), F.group_norm(x, 1, eps=1e-5))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", ((2, 5, 3, 7), (2, 5, 7), (1, 1, 1, 1)))
def test_gelu_equals_torchs_and_keeps_the_layout(shape, layout):
    x = torch.randn(shape)
    x = (x.contiguous(memory_format=layout) if x.ndim == 4 else x).requires_grad_()
    y = GELU()(x)
    assert y.stride() == x.stride()
    torch.testing.assert_close(y, F.gelu(x))
    gradient = torch.randn(shape)
    torch.testing.assert_close(*(torch.autograd.grad(out, x, gradient)[0] for out in (y, F.gelu(x))))


def drop(x: torch.Tensor, p: float, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return Dropout(p).train()(x)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16))
@pytest.mark.parametrize("p", (0.1, 0.5, 0.9))
def test_dropout_drops_its_share_and_keeps_the_mean(p, dtype):
    x = torch.ones(8, 16, 33, 32, dtype=dtype)
    y = drop(x, p)
    assert y.dtype == dtype
    assert abs((y == 0).double().mean().item() - p) < 5e-3  # at least 3.6 standard deviations for 135,168 values
    kept = y[y != 0].double()
    torch.testing.assert_close(
        kept, torch.full_like(kept, 1 / (1 - p)), rtol=4e-3 if dtype == torch.bfloat16 else 2e-4, atol=0
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dropout_keeps_the_layout_and_masks_the_gradient(layout):
    x = torch.randn(2, 5, 3, 7).contiguous(memory_format=layout).requires_grad_()
    y = drop(x, 0.5)
    assert y.stride() == x.stride()
    y.sum().backward()
    torch.testing.assert_close(x.grad * x.detach(), y.detach())
    assert 0 < (x.grad == 0).sum() < x.numel()


def test_dropout_follows_torchs_seed():
    x = torch.ones(4, 64)
    assert torch.equal(drop(x, 0.3), drop(x, 0.3))
    assert not torch.equal(drop(x, 0.3), drop(x, 0.3, seed=1))


def test_neighbours_are_dropped_independently():
    """Four neighbours share one 64-bit draw, 16 bits each. Their masks must be unbiased and uncorrelated."""
    kept = (drop(torch.ones(400_000), 0.5) != 0).double().unflatten(0, (-1, 4))
    assert (kept.mean(0) - 0.5).abs().max() < 0.01
    correlation = torch.corrcoef(kept.T) - torch.eye(4)
    assert correlation.abs().max() < 0.02


@pytest.mark.parametrize(
    "p, mode, share", ((0.0, True, 0), (1.0, True, 1), (0.5, False, 0), (1e-9, True, 0), (1 - 1e-9, True, 1))
)
def test_dropout_drops_all_or_nothing_at_rates_near_0_and_1_and_in_evaluation(p, mode, share):
    y = Dropout(p).train(mode)(torch.ones(1000))
    assert y.tolist() == [1.0 - share] * 1000


def test_traced_dropout_draws_new_masks_each_time():
    traced = torch.jit.trace(Dropout(0.5), torch.ones(100), check_trace=False)
    assert not torch.equal(traced(torch.ones(100)), traced(torch.ones(100)))
    with FakeTensorMode():
        assert Dropout(0.5)(torch.ones(100)).shape == (100,)


def test_mlp_is_two_linear_maps_and_an_activation():
    mlp, x = Mlp(6, 10), torch.randn(2, 6, 3, 5)
    rows = x.movedim(1, -1)
    want = F.linear(
        F.gelu(F.linear(rows, mlp.fc1.weight.flatten(1), mlp.fc1.bias)), mlp.fc2.weight.flatten(1), mlp.fc2.bias
    )
    torch.testing.assert_close(mlp(x), want.movedim(-1, 1))


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_attention_at_16_bits_is_close_to_torchs_fused_attention(dtype):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, 40, 16), torch.randn(2, 3, 9, 16), torch.randn(2, 3, 9, 16)
    want = F.scaled_dot_product_attention(q, k, v)
    got = attention(*(t.to(dtype) for t in (q, k, v)))
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), want, rtol=0, atol=0.03)


def test_dropout_of_attention_keeps_its_mean():
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 1, 8, 16), torch.randn(1, 1, 9, 16), torch.randn(1, 1, 9, 16)
    want = F.scaled_dot_product_attention(q, k, v)
    many = attention(*(t.expand(4000, -1, -1, -1) for t in (q, k, v)), 0.2)
    assert not torch.allclose(many[0], want[0], atol=0.01)
    torch.testing.assert_close(many.mean(0), want[0], rtol=0, atol=0.05)


@pytest.mark.parametrize("leading", [(), (3,), (0,), (2, 1)])
def test_resized_masks_take_the_values_at_the_centres_of_pixels(leading):
    x = torch.randint(256, (*leading, 5, 9)).byte()
    rows, columns = ([int((i + 0.5) * before / after) for i in range(after)] for before, after in ((5, 2), (9, 11)))
    assert torch.equal(resize_nearest(x, (2, 11)), x[..., rows, :][..., columns])
