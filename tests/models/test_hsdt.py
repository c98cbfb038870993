"""HSDT: keys and shapes by their rules, the forward pass beside a slow one, and the fused form beside both."""

import random

import pytest
import torch
from torch.nn import functional

from cubeloom.errors import ModelError
from cubeloom.models import fused, hsdt_fused
from cubeloom.models.checkpoints import load_strictly
from cubeloom.models.hsdt import HSDT, pyramid
from cubeloom.models.hsdt_layers import GSSA, SMFFN, S3Conv, spatial_means
from cubeloom.models.registry import create_model, model_card

FAMILIES = {"hsdt_s": (8, 5, (1, 3)), "hsdt_m": (16, 5, (1, 3)), "hsdt_l": (16, 7, (1, 3, 5))}
"""C, layers of each half, and those of the encoder that halve the size."""


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def network_of(family, **settings):
    """A network in eval mode whose every weight and statistic matters, with normalisations of both signs and zero."""
    network = create_model(family, **settings)
    for name, values in network.state_dict().items():
        if name.endswith("running_var"):
            values.copy_(torch.rand_like(values) + 0.3)
        elif values.is_floating_point() and ".conv." not in name and "tail" not in name:
            values.copy_(torch.randn_like(values) * (values.shape[1] ** -0.5 if values.ndim > 1 else 0.5))
    network.head.bn.weight.data[0] = 0
    return network


def assert_same(found, expected):
    """Equal to 1e-5 of the largest value; with weights as lively as these, rounding grows on its way."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def scene(bands=31, height=8, width=16, batch=1, channels=1):
    return torch.rand(batch, channels, bands, height, width)


def expected_shapes(channels, half_layers, down, inputs=1):
    """The state dict's keys and shapes, from the rules of the published checkpoints."""
    shapes = {"tail.weight": (1, channels, 3, 3, 3), "tail.bias": (1,)}

    def block(prefix, before, after, dense):
        if dense:
            shapes[f"{prefix}.conv.weight"] = (after, before, 3, 3, 3)
        else:
            shapes[f"{prefix}.conv.dw_conv.0.weight"] = (after, before, 1, 3, 3)
            shapes[f"{prefix}.conv.dw_conv.2.weight"] = (after, after, 1, 3, 3)
            shapes[f"{prefix}.conv.pw_conv.weight"] = (after, before, 3, 1, 1)
        for name in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{prefix}.bn.{name}"] = (after,)
        shapes[f"{prefix}.bn.num_batches_tracked"] = ()
        for name, rows, columns in (("w_1", 2 * after, after), ("w_2", after, 2 * after), ("w_3", 2 * after, after)):
            shapes[f"{prefix}.attn.ffn.{name}.weight"] = (rows, columns)
            shapes[f"{prefix}.attn.ffn.{name}.bias"] = (rows,)
        shapes[f"{prefix}.attn.attn.attn_proj.weight"] = (31, after)
        shapes[f"{prefix}.attn.attn.attn_proj.bias"] = (31,)
        shapes[f"{prefix}.attn.attn.value_proj.weight"] = shapes[f"{prefix}.attn.attn.fc.weight"] = (after, after)

    block("head", inputs, channels, dense=False)
    width = channels
    for index in range(half_layers):
        after = 2 * width if index in down else width
        block(f"encoder.layers.{index}", width, after, dense=index in down)
        block(f"decoder.layers.{half_layers - 1 - index}", after, width, dense=index in down)
        width = after
    return shapes


def slow_forward(state, x, query="learned"):
    """The network from its state dict, (N, C, D, H, W) and three-dimensional convolutions throughout."""

    def conv(y, key, **how):
        return functional.conv3d(y, state[f"{key}.weight"], **how)

    def block(y, prefix):
        if f"{prefix}.conv.weight" in state:
            halves = state[f"{prefix}.conv.weight"].shape[0] > state[f"{prefix}.conv.weight"].shape[1]
            if not halves:
                y = functional.interpolate(y, scale_factor=(1, 2, 2), mode="trilinear", align_corners=True)
            y = conv(y, f"{prefix}.conv", padding=1, stride=(1, 2, 2) if halves else 1)
        else:
            z = functional.leaky_relu(conv(y, f"{prefix}.conv.dw_conv.0", padding=(0, 1, 1)), 0.01)
            z = functional.leaky_relu(conv(z, f"{prefix}.conv.dw_conv.2", padding=(0, 1, 1)), 0.01)
            y = z + conv(y, f"{prefix}.conv.pw_conv", padding=(1, 0, 0))
        names = ("running_mean", "running_var", "weight", "bias")
        y = functional.batch_norm(y, *(state[f"{prefix}.bn.{name}"] for name in names))
        return slow_ffn(slow_attention(y, state, f"{prefix}.attn.attn", query), state, f"{prefix}.attn.ffn")

    layers = sum(key.startswith("encoder") and key.endswith("bn.bias") for key in state)
    skips = [block(x, "head")]
    for index in range(layers):
        skips.append(block(skips[-1], f"encoder.layers.{index}"))
    y = block(skips.pop(), "decoder.layers.0")
    for index in range(1, layers):
        y = block(y + skips.pop(), f"decoder.layers.{index}")
    return conv(y + skips.pop(), "tail", padding=1, bias=state["tail.bias"]) + x[:, :1]


def slow_attention(x, state, prefix, query):
    means = torch.einsum("ncdhw->ndc", x) / (x.shape[3] * x.shape[4])
    if query == "learned":
        logits = torch.einsum("ndc,ec->nde", means, state[f"{prefix}.attn_proj.weight"])
        logits = logits + state[f"{prefix}.attn_proj.bias"]
    else:
        logits = torch.einsum("ndc,nec->nde", means, means)
    shares = logits.exp() / logits.exp().sum(-1, keepdim=True)
    values = torch.einsum("ncdhw,kc->nkdhw", x, state[f"{prefix}.value_proj.weight"])
    mixed = torch.einsum("nde,nkehw->nkdhw", shares, values)
    return x + torch.einsum("nkdhw,ck->ncdhw", mixed, state[f"{prefix}.fc.weight"])


def slow_ffn(x, state, prefix):
    def linear(name, y):
        weight, bias = state[f"{prefix}.{name}.weight"], state[f"{prefix}.{name}.bias"]
        return torch.einsum("ncdhw,kc->nkdhw", y, weight) + bias[:, None, None, None]

    rise = linear("w_1", x)
    bent = rise * 0.5 * (1 + torch.erf(rise / 2**0.5))
    both = linear("w_3", x)
    value, gate = both[:, : x.shape[1]], both[:, x.shape[1] :]
    return linear("w_2", bent) + value / (1 + (-gate).exp())


@pytest.mark.parametrize(
    ("family", "parameters", "entries"),
    [("hsdt_s", 134_350, 192), ("hsdt_m", 521_158, 192), ("hsdt_l", 2_094_786, 260)],
)
def test_state_dict_is_that_of_the_published_checkpoints(family, parameters, entries):
    network = create_model(family)
    found = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert found == expected_shapes(*FAMILIES[family])
    assert len(found) == entries
    assert sum(value.numel() for value in network.parameters()) == parameters


@pytest.mark.parametrize("query", ["learned", "self"])
@pytest.mark.parametrize("family", FAMILIES)
def test_forward_is_that_of_the_slow_one(family, query):
    network = network_of(family).double()
    x = scene(batch=2).double()
    with torch.inference_mode():
        expected = slow_forward(network.state_dict(), x, query)
        assert (expected - x).abs().max() > 0.1
        torch.testing.assert_close(network(x, query=query), expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(network.for_inference()(x, query=query), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("bands", "height", "width"), [(31, 16, 24), (8, 24, 8), (40, 8, 40)])
def test_fused_is_plain(family, bands, height, width):
    network = network_of(family)
    x = scene(bands, height, width, batch=2)
    valid = torch.rand(2, height, width) < 0.7
    with torch.inference_mode():
        faster = network.for_inference()
        for mask in (None, valid):
            assert_same(faster(x, mask), network(x, mask))


@pytest.mark.parametrize("multiple", [4, 12, 20])
def test_fused_at_the_smallest_and_at_odd_widths(multiple):
    network, x = network_of("hsdt_s"), scene(5, 4, multiple)
    with torch.inference_mode():
        assert_same(network.for_inference()(x), network(x))


@pytest.mark.parametrize("piece", [2**8, 2**14])
def test_pieces_do_not_show(monkeypatch, piece):
    network, x = network_of("hsdt_s").for_inference(), scene(height=16, batch=2)
    with torch.inference_mode():
        whole = network(x)
        monkeypatch.setattr(hsdt_fused, "PIECE", piece)
        assert_same(network(x), whole)


def test_fused_leaves_the_network_as_it_was():
    network, x = network_of("hsdt_s"), scene()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    faster = network.train().for_inference()
    with torch.inference_mode():
        first = faster(x)
        assert torch.equal(first, faster(x))
        assert torch.equal(first, faster.for_inference()(x))
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    network(x).sum().backward()


def test_fused_kernels_are_the_plain_functions():
    x, factor = torch.randn(2, 6, 5, 7), torch.randn(2, 4, 5, 7)
    x, factor = (array.contiguous(memory_format=torch.channels_last) for array in (x, factor))
    weight, bias = torch.randn(4, 6, 1, 1), torch.randn(4)
    plain = functional.conv2d(x, weight, bias)
    close = {"rtol": 1e-5, "atol": 1e-5}
    for activation, function in (("gelu", functional.gelu), ("sigmoid", torch.sigmoid), ("none", torch.clone)):
        for kind in (torch.float32, torch.float64):
            found = fused.convolve(x.to(kind), weight.to(kind), bias.to(kind), activation)
            torch.testing.assert_close(found.float(), function(plain), **close)
    torch.testing.assert_close(fused.convolve_times(factor, x, weight, bias), factor * plain, **close)
    total = factor.clone(memory_format=torch.preserve_format)
    fused.convolve_onto(total, x, weight, bias)
    torch.testing.assert_close(total, factor + plain, **close)


def test_half_precision_is_near():
    network, x = network_of("hsdt_s"), scene()
    with torch.inference_mode():
        expected = network(x)
        halves = network.to(torch.bfloat16)
        for form in (halves, halves.for_inference()):
            found = form(x.bfloat16())
            assert found.dtype == torch.bfloat16
            assert (found - expected).square().mean() < 1e-3 * expected.square().mean()


def test_second_channel_is_read_and_not_added():
    network = network_of("hsdt_s", in_channels=2)
    assert model_card("hsdt_s", in_channels=2).sigma_input
    assert {key: tuple(value.shape) for key, value in network.state_dict().items()} == expected_shapes(
        *FAMILIES["hsdt_s"], inputs=2
    )
    x = scene(channels=2, batch=2)
    with torch.inference_mode():
        assert_same(network.for_inference()(x), network(x))
        noisier = torch.cat([x[:, :1], x[:, 1:] + 1], 1)
        assert (network(noisier) - network(x)).abs().max() > 1e-3
        network.tail.weight.zero_()
        torch.testing.assert_close(network(noisier), x[:, :1] + network.tail.bias)


def test_queries_follow_the_number_of_bands():
    network = network_of("hsdt_s")
    x = scene()
    with torch.inference_mode():
        assert torch.equal(network(x), network(x, query="learned"))
        assert (network(x) - network(x, query="self")).abs().max() > 1e-4
        assert torch.equal(network(x[:, :, :30]), network(x[:, :, :30], query="self"))
        fewer = network_of("hsdt_s", num_bands=12)
        assert torch.equal(fewer(x[:, :, :12]), fewer(x[:, :, :12], query="learned"))


def test_training_tosses_a_coin_of_torch():
    network, x = network_of("hsdt_s").train(), scene()
    state = random.getstate()

    def run(seed):
        torch.manual_seed(seed)
        return network(x).detach()

    assert torch.equal(run(3), run(3))
    assert len({float(run(seed).sum()) for seed in range(4)}) > 1
    assert random.getstate() == state


def test_self_attention_does_not_know_the_order_of_bands():
    attention = GSSA(8, 31)
    for weight in attention.parameters():
        torch.nn.init.normal_(weight)
    x, order = torch.rand(2, 9, 4, 6, 8), torch.randperm(9)
    torch.testing.assert_close(attention(x, None, "self")[:, order], attention(x[:, order], None, "self"))
    assert (attention(x, None, "self") - x).abs().max() > 0.1


def test_layers_work_each_on_their_axes():
    x = torch.zeros(1, 9, 9, 9, 3)
    x[0, 4, 4, 4] = 1
    reach = S3Conv(3, 5)(x)[0].abs().sum(-1).detach()
    along_bands, across = reach.sum((1, 2)) > 0, reach[4] > 0
    assert along_bands.nonzero().flatten().tolist() == [3, 4, 5]
    assert across.nonzero().min() == 2
    assert across.nonzero().max() == 6
    ffn = SMFFN(3)
    changed = ffn(x) - ffn(torch.zeros_like(x))
    assert changed.abs().sum(-1).nonzero().tolist() == [[0, 4, 4, 4]]


def test_means_are_over_valid_pixels():
    x, valid = torch.rand(2, 5, 8, 12, 3), torch.rand(2, 8, 12) < 0.5
    expected = torch.stack([sample[:, mask].mean(1) for sample, mask in zip(x, valid, strict=True)])
    weight = pyramid(valid, 4, x.dtype)[0]
    torch.testing.assert_close(spatial_means(x, weight), expected)
    other = torch.where(valid[:, None, :, :, None], x, 1e6 * torch.randn_like(x))
    assert torch.equal(spatial_means(other, weight), spatial_means(x, weight))
    torch.testing.assert_close(spatial_means(x, torch.ones(2, 8, 12)), spatial_means(x, None))
    assert spatial_means(x, torch.zeros(2, 8, 12)).abs().max() == 0


def test_coarser_levels_weigh_pixels_by_what_is_valid_in_them():
    valid = torch.zeros(1, 8, 8, dtype=torch.bool)
    valid[:, :4, :2] = True
    full, half, quarter = pyramid(valid, 4, torch.float32)
    assert full.sum() == 8
    assert half[0, :2, 0].tolist() == [1, 1]
    assert half.sum() == 2
    assert quarter[0].tolist() == [[0.5, 0], [0, 0]]


def test_mask_matters_and_full_mask_does_not():
    network, x = network_of("hsdt_s"), scene(batch=2)
    valid = torch.ones(2, 8, 16, dtype=torch.bool)
    with torch.inference_mode():
        assert_same(network(x, valid), network(x))
        valid[0, :, 8:] = False
        masked = network(x, valid)
        assert (masked[0] - network(x)[0]).abs().max() > 1e-4
        assert_same(masked[1], network(x)[1])


@pytest.mark.parametrize("form", ["plain", "fused"])
def test_samples_of_a_batch_do_not_meet(form):
    network, x = network_of("hsdt_s"), scene(batch=3)
    network = network.for_inference() if form == "fused" else network
    with torch.inference_mode():
        alone = torch.cat([network(sample[None]) for sample in x])
        assert_same(network(x), alone)


def test_every_weight_learns():
    network = create_model("hsdt_s").train()
    network(scene(batch=2), query="learned").square().sum().backward()
    assert [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_training_lowers_the_loss():
    network = HSDT(1, 4, 3, (1,)).train()
    clean = torch.rand(2, 1, 12, 1, 1).expand(-1, -1, -1, 8, 8)
    noisy = clean + 0.2 * torch.randn(clean.shape)
    optimiser = torch.optim.Adam(network.parameters(), 5e-3)
    losses = []
    for _ in range(30):
        loss = (network(noisy) - clean).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3


def test_counters_may_be_missing_and_other_architectures_are_refused(tmp_path):
    network = network_of("hsdt_s")
    state = {key: value for key, value in network.state_dict().items() if "num_batches" not in key}
    torch.save({"net": state}, tmp_path / "model_best.pth")
    loaded = create_model("hsdt_s", tmp_path / "model_best.pth")
    x = scene()
    with torch.inference_mode():
        assert torch.equal(loaded(x), network(x))
    with pytest.raises(ModelError, match=r"head\.conv"):
        create_model("hsdt_m", tmp_path / "model_best.pth")
    with pytest.raises(ModelError, match=r"tail\.bias"):
        load_strictly(create_model("hsdt_s"), {k: v for k, v in network.state_dict().items() if k != "tail.bias"}, "it")


@pytest.mark.parametrize(
    ("shape", "valid", "query", "words"),
    [
        ((1, 31, 8, 8), None, "auto", r"\(N, 1, D, H, W\)"),
        ((1, 2, 31, 8, 8), None, "auto", r"\(1, 2, 31, 8, 8\)"),
        ((1, 1, 31, 8, 10), None, "auto", "multiples of 4"),
        ((1, 1, 30, 8, 8), None, "learned", "31 bands; found 30"),
        ((1, 1, 31, 8, 8), (1, 4, 4), "auto", r"\(1, 4, 4\)"),
    ],
)
def test_input_that_does_not_fit_is_refused(shape, valid, query, words):
    network = create_model("hsdt_s")
    mask = None if valid is None else torch.ones(valid, dtype=torch.bool)
    for form in (network, network.for_inference()):
        with pytest.raises(ModelError, match=words):
            form(torch.rand(shape), mask, query)
    assert model_card("hsdt_l").multiple == create_model("hsdt_l").multiple == 8
