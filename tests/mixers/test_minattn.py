import math
from itertools import product

import pytest
import torch
from timm.layers import set_fused_attn

from metamix.layers import attention
from metamix.mixers import create_mixer
from tests.helpers.formulas import area, assert_equal, linear, random_map, random_mixer, resize

SIZE = (5, 4)


def factor(mixer, head, d):
    """Return the triangular factor T of one head, filled row by row."""
    t, entries = torch.zeros(d, d, dtype=torch.float64), iter(mixer.query.entries[head])
    for row in range(d):
        for column in range(row + 1):
            t[row, column] = next(entries)
    return t


def formula(x, mixer, qk, heads, context):
    """Compute y_i = sum_j softmax_j(s(x_i, x_j) / sqrt(d)) V(x_j) in each head, then the projection."""
    d = x.shape[1] // heads
    seen = x if context is None else resize(x, context, area)
    value = seen if isinstance(mixer.value, torch.nn.Identity) else linear(seen, mixer.value)
    y = torch.empty_like(x)
    for head in range(heads):
        channels = slice(head * d, (head + 1) * d)
        if qk == "separate":
            q, k = linear(x, mixer.query)[:, channels], linear(seen, mixer.key)[:, channels]
        elif qk == "collapsed":
            q, k = linear(x, mixer.query), seen
        elif qk == "shared":
            q, k = linear(x, mixer.query)[:, channels], linear(seen, mixer.query)[:, channels]
        else:
            t = factor(mixer, head, d)
            q, k = (torch.einsum("io,bihw->bohw", t, m[:, channels]) for m in (x, seen))
        for image in range(x.shape[0]):
            keys, values = k[image].flatten(1), value[image, channels].flatten(1)
            for row in range(x.shape[2]):
                for column in range(x.shape[3]):
                    weights = torch.exp(q[image, :, row, column] @ keys / math.sqrt(d))
                    y[image, channels, row, column] = values @ (weights / weights.sum())
    return y if isinstance(mixer.proj, torch.nn.Identity) else linear(y, mixer.proj)


@pytest.mark.parametrize("size", [SIZE, (1, 1), (3, 7)])
@pytest.mark.parametrize("context", [None, (2, 3), (9, 9)])
@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("qk, heads", [*product(("separate", "shared", "cholesky"), (1, 4)), ("collapsed", 1)])
def test_outputs_equal_the_formula(qk, heads, value, context, size):
    mixer = random_mixer("minattn", 8, SIZE, qk=qk, num_heads=heads, value=value, context=context)
    x = random_map(2, 8, *size)
    assert_equal(mixer(x), formula(x, mixer, qk, heads, {(9, 9): SIZE}.get(context, context)))


def copy(layer, weight, bias):
    layer.weight.data, layer.bias.data = weight[:, :, None, None].clone(), bias.clone()


def test_cholesky_reaches_every_positive_definite_similarity():
    """Any positive definite S equals T T^T for some triangular T, with d (d + 1) / 2 parameters instead of d^2."""
    collapsed, cholesky = (random_mixer("minattn", 8, SIZE, qk=how, num_heads=1) for how in ("collapsed", "cholesky"))
    cholesky.value, cholesky.proj = collapsed.value, collapsed.proj
    root = random_map(1, 1, 8, 8)[0, 0]
    s = root @ root.T
    copy(collapsed.query, s, torch.zeros(8, dtype=torch.float64))
    t = torch.linalg.cholesky(s)
    cholesky.query.entries.data = torch.cat([t[row, : row + 1] for row in range(8)])[None]
    x = random_map(2, 8, *SIZE)
    assert_equal(cholesky(x), collapsed(x))
    assert cholesky.query.entries.numel() == 36


def test_without_a_value_map_tokens_are_averaged():
    """Outputs stay in each channel's range, and equal the outputs with identities as value map and projection."""
    mixer = random_mixer("minattn", 8, SIZE, value=False, num_heads=2)
    x = random_map(2, 8, *SIZE)
    y = mixer(x)
    assert (y <= x.amax((2, 3), keepdim=True)).all() and (y >= x.amin((2, 3), keepdim=True)).all()
    full = random_mixer("minattn", 8, SIZE, num_heads=2)
    full.query, full.key = mixer.query, mixer.key
    for layer in (full.value, full.proj):
        copy(layer, torch.eye(8, dtype=torch.float64), torch.zeros(8, dtype=torch.float64))
    assert_equal(full(x), y)
    assert not any(key.startswith(("value", "proj")) for key in mixer.state_dict())


def test_variants_have_the_expected_number_of_parameters():
    def count(**options):
        return sum(p.numel() for p in create_mixer("minattn", 8, size=SIZE, **options).parameters())

    matrix = 8 * 8 + 8
    assert count() == 4 * matrix
    assert count(qk="collapsed") == count(qk="shared") == 3 * matrix
    assert count(qk="cholesky") == 36 + 2 * matrix
    assert count(qk="cholesky", num_heads=2, value=False) == 2 * 10
    assert count(qk="collapsed", value=False) == matrix


def test_initial_cholesky_similarities_are_of_order_one():
    """With standard normal entries, similarities are of the order of d^2, so each token attends only to itself."""
    torch.manual_seed(0)
    query = create_mixer("minattn", 64, size=SIZE, qk="cholesky").query
    x = torch.randn(1, 64, 8, 8)

    def weight_on_itself():
        q = query(x).flatten(2)[0]
        return (q.T @ q / 8).softmax(-1).diagonal().mean()

    assert weight_on_itself() < 0.9
    torch.nn.init.normal_(query.entries)
    assert weight_on_itself() > 0.99


def test_attention_dropout_acts_in_training_only():
    mixer = random_mixer("minattn", 8, SIZE, attn_drop=0.5)
    x = random_map(2, 8, *SIZE)
    assert_equal(mixer(x), mixer(x), 0)
    assert_equal(mixer(x), formula(x, mixer, "separate", 1, None))
    mixer.train()
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            assert (mixer(x) - mixer(x)).abs().max() > 0.01


def test_wrong_options_are_refused():
    for options, words in (
        (dict(qk="colapsed"), "qk is 'colapsed'; did you mean 'collapsed'"),
        (dict(num_heads=3), "num_heads 3 does not divide the 8 channels: choose a divisor of 8"),
        (dict(qk="collapsed", num_heads=2), "is for one head, but num_heads is 2: use 1, or qk='shared'"),
    ):
        with pytest.raises(ValueError, match=words):
            create_mixer("minattn", 8, size=SIZE, **options)


@pytest.mark.parametrize("qk", ["shared", "separate"])
def test_positions_add_a_bias_for_each_offset(qk):
    mixer = random_mixer("minattn", 4, (3, 4), num_heads=2, qk=qk, positions=True)
    torch.nn.init.normal_(mixer.bias.table)
    torch.nn.init.zeros_(mixer.query.weight)
    torch.nn.init.zeros_(mixer.query.bias)  # all similarities are 0, so only the offset counts
    x = random_map(1, 4, 3, 4)
    value, y = linear(x, mixer.value), torch.empty_like(x)
    for head, h, w in product(range(2), range(3), range(4)):
        bias = torch.stack([mixer.bias.table[0, head, h - i + 2, w - j + 3] for i in range(3) for j in range(4)])
        channels = slice(2 * head, 2 * head + 2)
        y[0, channels, h, w] = value[0, channels].flatten(1) @ bias.softmax(0)
    assert_equal(mixer(x), linear(y, mixer.proj))


def test_positions_start_as_local_filters():
    """Each of the four heads attends most to one neighbour: left, above, right or below."""
    mixer = create_mixer("minattn", 8, size=(5, 5), num_heads=4, positions=True)
    x = torch.zeros(1, 8, 5, 5)
    weights = mixer.bias(x, x).softmax(-1).view(4, 5, 5, 5, 5)[:, 2, 2]  # attention of the middle token
    places = [divmod(int(head.argmax()), 5) for head in weights]
    assert places == [(2, 1), (1, 2), (2, 3), (3, 2)]
    assert weights.flatten(1).amax(1).min() > 0.3 and weights.min() > 1e-3


def test_positions_are_resampled_for_other_sizes():
    mixer = create_mixer("minattn", 4, size=(4, 4), positions=True)
    torch.nn.init.normal_(mixer.bias.table)
    larger = create_mixer("minattn", 4, size=(6, 5), positions=True)
    larger.load_state_dict(larger.adapt_state(mixer.state_dict()))
    assert larger.bias.table.shape == (1, 1, 11, 9)
    x = torch.randn(1, 4, 6, 5)
    torch.testing.assert_close(larger(x), mixer(x))


def test_positions_with_a_context_use_the_biases_of_its_grid_points():
    mixer = random_mixer("minattn", 4, (2, 2), context=2, positions=True)  # float64
    torch.nn.init.normal_(mixer.bias.table)
    torch.nn.init.zeros_(mixer.query.weight)
    torch.nn.init.zeros_(mixer.query.bias)  # all similarities are 0, so only the offset counts
    full = create_mixer("minattn", 4, size=(2, 2), positions=True).double()
    full.load_state_dict(mixer.state_dict())
    x = random_map(1, 4, 2, 2)
    assert_equal(mixer(x), full(x))
    larger = random_map(1, 4, 4, 4)
    corner = torch.stack(
        [mixer.bias.table[0, 0, 1 - i, 1 - j] for i in range(2) for j in range(2)]
    )  # biases of the first query
    value = linear(larger, mixer.value).unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2)).flatten(2)[0]  # (4, 2 2)
    want = torch.einsum("ck,k->c", value, corner.softmax(0))
    got = mixer(larger)[0, :, 0, 0]
    assert_equal(got, (mixer.proj.weight[:, :, 0, 0] @ want) + mixer.proj.bias)


def test_the_bias_is_added_with_and_without_the_fused_attention():
    torch.manual_seed(0)
    q, k, v, bias = torch.randn(2, 3, 6, 4), torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4), torch.randn(3, 6, 5)
    want = (q @ k.mT / 2 + bias).softmax(-1) @ v
    torch.testing.assert_close(attention(q, k, v, 0.0, bias), want)
    halves = (t.bfloat16() for t in (q, k, v))  # in bf16 on a CPU, `attention` uses no fused kernel
    torch.testing.assert_close(attention(*halves, 0.0, bias).float(), want, rtol=0, atol=0.05)


@pytest.mark.parametrize("fused", [True, False])
def test_timms_set_fused_attn_switches_the_fused_attention(fused, monkeypatch):
    calls = []
    attention = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or attention(*a, **k)
    )
    set_fused_attn(fused)
    try:
        mixer = create_mixer("minattn", 8, size=SIZE, num_heads=2).double()
    finally:
        set_fused_attn(True)
    x = torch.randn(1, 8, *SIZE, dtype=torch.float64)
    y = mixer(x)
    assert bool(calls) == fused
    mixer.fused = not fused
    assert_equal(mixer(x), y)
