"""FreeNet: keys and shapes by their rules, the forward pass beside a slow one, any size, and what masks leave alone."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional

from cubeloom.errors import ModelError
from cubeloom.models import freenet
from cubeloom.models.freenet import HALO, FreeNet, GroupNorm, SpectralAttention, shares
from cubeloom.models.registry import create_model, model_card

SMALL = {"in_channels": 5, "num_classes": 3, "width": 0.25}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def network_of(**settings):
    """A network in eval mode whose every weight matters."""
    network = create_model("freenet", **{**SMALL, **settings})
    for values in network.state_dict().values():
        values.copy_(torch.randn_like(values) * (1.5 * values[0].numel() ** -0.5 if values.ndim > 1 else 0.7))
    return network


def image(height=32, width=48, batch=1, bands=5):
    return torch.randn(batch, bands, height, width)


def partly_valid(*shape):
    return torch.rand(shape) < 0.6


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def expected_shapes(bands, classes, widths=(96, 128, 192, 256), inner=128, reduction=16):
    """The state dict's keys and shapes, from the rules of the authors' class."""
    shapes = {}

    def layer(key, *shape):
        shapes[f"{key}.weight"], shapes[f"{key}.bias"] = shape, shape[:1]

    layer("feature_ops.0.0", widths[0], bands, 3, 3)
    layer("feature_ops.0.1", widths[0])
    for stage, width in enumerate(widths):
        block = f"feature_ops.{3 * stage + 1}.0"
        layer(f"{block}.0.seq.0", width // reduction, width)
        layer(f"{block}.0.seq.2", width, width // reduction)
        layer(f"{block}.1.0", width, width, 3, 3)
        layer(f"{block}.1.1", width)
        if stage:
            layer(f"feature_ops.{3 * stage}.0", width, widths[stage - 1], 3, 3)
        layer(f"reduce_1x1convs.{stage}", inner, width, 1, 1)
        layer(f"fuse_3x3convs.{stage}", inner, inner, 3, 3)
    layer("cls_pred_conv", classes, inner, 1, 1)
    return shapes


def slow_forward(state, x, groups, valid=None):
    """The network from its state dict: every statistic over the valid values themselves, the image padded before."""

    def conv(y, key, stride=1):
        weight = state[f"{key}.weight"]
        return functional.conv2d(y, weight, state[f"{key}.bias"], stride, padding=weight.shape[-1] // 2)

    def weights_at(y):
        if valid is None:
            return torch.ones_like(y[:, :1])
        blocks = x.shape[2] // y.shape[2]
        found = valid.to(y.dtype).unflatten(2, (-1, blocks)).unflatten(1, (-1, blocks))
        return found.mean((2, 4))[:, None]

    def conv_norm_relu(y, key):
        y = conv(y, f"{key}.0")
        w, parts = weights_at(y), []
        for part in y.chunk(groups, 1):
            total = w.sum((1, 2, 3), keepdim=True) * part.shape[1]
            mean = (part * w).sum((1, 2, 3), keepdim=True) / total
            variance = ((part - mean) ** 2 * w).sum((1, 2, 3), keepdim=True) / total
            parts.append((part - mean) / (variance + 1e-5) ** 0.5)
        scale, shift = (state[f"{key}.1.{name}"][:, None, None] for name in ("weight", "bias"))
        return (torch.cat(parts, 1) * scale + shift).clamp_min(0)

    def attention(y, key):
        w = weights_at(y)
        means = (y * w).sum((2, 3)) / w.sum((2, 3))
        hidden = (means @ state[f"{key}.seq.0.weight"].T + state[f"{key}.seq.0.bias"]).clamp_min(0)
        logits = hidden @ state[f"{key}.seq.2.weight"].T + state[f"{key}.seq.2.bias"]
        return y / (1 + (-logits).exp())[..., None, None]

    y, taps = conv_norm_relu(x, "feature_ops.0"), []
    for stage in range(4):
        if stage:
            y = conv(y, f"feature_ops.{3 * stage}.0", stride=2).clamp_min(0)
        y = conv_norm_relu(attention(y, f"feature_ops.{3 * stage + 1}.0.0"), f"feature_ops.{3 * stage + 1}.0.1")
        taps.append(y)
    y = conv(conv(taps[3], "reduce_1x1convs.3"), "fuse_3x3convs.0")
    for stage in (2, 1, 0):
        larger = y.repeat_interleave(2, 2).repeat_interleave(2, 3)
        y = conv(conv(taps[stage], f"reduce_1x1convs.{stage}") + larger, f"fuse_3x3convs.{3 - stage}")
    return conv(y, "cls_pred_conv")


@pytest.mark.parametrize(
    ("bands", "classes", "parameters"), [(103, 9, 2_712_755), (204, 16, 2_800_922), (144, 15, 2_748_953)]
)
def test_state_dict_is_that_of_the_authors(bands, classes, parameters):
    network = create_model("freenet", in_channels=bands, num_classes=classes)
    assert {key: tuple(value.shape) for key, value in network.state_dict().items()} == expected_shapes(bands, classes)
    assert sum(value.numel() for value in network.parameters()) == parameters


@pytest.mark.parametrize(
    ("width", "groups", "widths", "inner"),
    [(0.5, 8, (48, 64, 96, 128), 64), (0.8, 12, (72, 96, 144, 204), 102), (1 / 16, 1, (6, 8, 12, 16), 8)],
)
def test_width_rounds_features_down_to_whole_groups(width, groups, widths, inner):
    network = create_model("freenet", in_channels=4, num_classes=2, width=width)
    found = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert found == expected_shapes(4, 2, widths, inner, groups)
    assert {module.num_groups for module in network.modules() if isinstance(module, GroupNorm)} == {groups}


@pytest.mark.parametrize(("width", "groups"), [(1.0, 16), (0.25, 4)])
@pytest.mark.parametrize("masked", [False, True])
def test_forward_is_that_of_the_slow_one(width, groups, masked):
    network = network_of(width=width).double()
    x = image(32, 16, batch=2).double()
    valid = partly_valid(2, 32, 16) if masked else None
    with torch.inference_mode():
        expected = slow_forward(network.state_dict(), x, groups, valid)
        assert expected.std() > 0.1
        torch.testing.assert_close(network(x, valid), expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(network.for_inference()(x, valid), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (16, 32), (17, 31), (40, 8), (15, 64)])
def test_any_size_is_padded_with_zeros_and_cropped(height, width):
    network, x = network_of(), image(height, width, batch=2)
    valid = partly_valid(2, height, width)
    rows, cols = (-(-size // 16) * 16 for size in (height, width))
    padded, counted = torch.zeros(2, 5, rows, cols), torch.zeros(2, rows, cols, dtype=torch.bool)
    padded[..., :height, :width], counted[:, :height, :width] = x, valid
    with torch.inference_mode():
        found = network(x)
        assert found.shape == (2, 3, height, width)
        assert torch.equal(found, network(padded)[..., :height, :width])
        assert torch.equal(network(x, valid), network(padded, counted)[..., :height, :width])
        assert_same(network.for_inference()(x), found)


def test_taps_halve_the_size():
    network = network_of(width=1.0)
    with torch.inference_mode():
        taps = network.encode(image(32, 48), shares(None, 4))
    assert [tuple(tap.shape[1:]) for tap in taps] == [(96, 32, 48), (128, 16, 24), (192, 8, 12), (256, 4, 6)]


class Kept(nn.Module):
    """Stands where statistics of the whole image would be taken."""

    def forward(self, x, share=None):
        return x


def test_convolutions_reach_no_further_than_the_halo(monkeypatch):
    monkeypatch.setattr(freenet, "SpectralAttention", lambda *_: Kept())
    monkeypatch.setattr(freenet, "GroupNorm", lambda *_: Kept())
    network = FreeNet(1, 1, 1 / 16).double()
    for values in network.parameters():
        nn.init.uniform_(values, 0.5, 1)
    x = torch.zeros(1, 1, 112, 112, dtype=torch.float64, requires_grad=True)
    reach = []
    for pixel in range(48, 56):
        (gradient,) = torch.autograd.grad(network(x)[0, 0, pixel, pixel], x)
        seen = gradient[0, 0].nonzero()
        assert torch.equal(seen.amin(0), seen.amin()[None].expand(2))
        reach.append((pixel - int(seen.min()), int(seen.max()) - pixel))
    assert tuple(map(max, zip(*reach, strict=True))) == (45, 38)
    assert HALO >= 45


def test_means_reach_the_whole_image():
    network = network_of().double()
    x = torch.randn(1, 5, 96, 112, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(x)[0, 0, 0, 0], x)
    assert gradient.abs().sum(1).bool().all()


@torch.no_grad()
def test_group_norm_takes_each_group_over_valid_pixels():
    norm, x, valid = GroupNorm(2, 6), 3 + 2 * torch.randn(2, 6, 8, 12), partly_valid(2, 8, 12)
    share = shares(valid.float(), 1)[0]
    found = norm(x, share)
    for sample, mask in zip(found, valid, strict=True):
        for group in sample.chunk(2):
            assert abs(float(group[:, mask].mean())) < 1e-5
            assert float(group[:, mask].std(correction=0)) == pytest.approx(1, abs=1e-4)
    other = x.clone()
    other[:, :3] += 5 * torch.randn(2, 3, 8, 12)
    assert torch.equal(norm(other, share)[:, 3:], found[:, 3:])
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    assert_same(norm(x, shares(torch.ones(2, 8, 12), 1)[0]), norm(x))
    moved = torch.where(valid[:, None], x, 1e6 * torch.randn_like(x))
    kept = valid[:, None].expand_as(x)
    assert torch.equal(norm(moved, share)[kept], norm(x, share)[kept])


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
def test_normalisation_is_exact_wherever_features_lie_and_however_far_they_are_from_zero(masked):
    norm, x = GroupNorm(2, 6), 3 + 0.3 * torch.randn(2, 6, 210, 190)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    share = shares(partly_valid(2, 210, 190).double(), 1)[0] if masked else None
    expected = deepcopy(norm).double()(x.double(), share)
    side_by_side = x.contiguous(memory_format=torch.channels_last)
    for form in (x, side_by_side):
        found = norm(form, None if share is None else share.float())
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4 if masked else 2e-5)


@torch.no_grad()
def test_attention_is_one_gate_a_channel_from_valid_pixels():
    attention, x, valid = SpectralAttention(8, 4), torch.rand(2, 8, 6, 10) + 1, partly_valid(2, 6, 10)
    nn.init.normal_(attention.seq[0].weight)
    nn.init.normal_(attention.seq[2].weight)
    gates = attention(x) / x
    assert_same(gates, gates[..., :1, :1].expand_as(gates))
    assert 0 < gates.min() < gates.max() < 1
    assert (gates[0] - gates[1]).abs().max() > 1e-4
    order = torch.randperm(60)
    shuffled = x.flatten(2)[..., order].view_as(x)
    assert_same(attention(shuffled).flatten(2), attention(x).flatten(2)[..., order])
    share = shares(valid.float(), 1)[0]
    moved = torch.where(valid[:, None], x, 1e6 * torch.randn_like(x))
    kept = valid[:, None].expand_as(x)
    assert torch.equal(attention(moved, share)[kept], attention(x, share)[kept])
    assert_same(attention(x, shares(torch.ones(2, 6, 10), 1)[0]), attention(x))


@pytest.mark.parametrize("form", ["plain", "fused"])
def test_what_stands_under_the_mask_beyond_reach_changes_no_valid_pixel(form):
    """Convolutions see a filled border; nothing else of what is masked comes through, however far and wide it is."""
    network = network_of()
    network = network.for_inference() if form == "fused" else network
    x = image(20, 150)
    valid = torch.zeros(1, 20, 150, dtype=torch.bool)
    valid[..., :80] = partly_valid(1, 20, 80)
    moved = x.clone()
    moved[..., 80 + 38 :] = 1e4 * torch.randn(5, 20, 32)
    with torch.inference_mode():
        expected, found = network(x, valid)[..., :80], network(moved, valid)[..., :80]
        assert torch.equal(found, expected)
        assert (network(moved)[..., :80] - network(x)[..., :80]).abs().max() > 1e-2


def test_full_mask_does_not_matter_and_an_empty_one_does_no_harm():
    network, x = network_of(), image(32, 48, batch=2)
    with torch.inference_mode():
        assert_same(network(x, torch.ones(2, 32, 48, dtype=torch.bool)), network(x))
        for size in (20, 32):
            assert network(image(size, size), torch.zeros(1, size, size, dtype=torch.bool)).isfinite().all()


@pytest.mark.parametrize("form", ["plain", "fused"])
def test_samples_of_a_batch_do_not_meet(form):
    network, x = network_of(), image(batch=3)
    network = network.for_inference() if form == "fused" else network
    with torch.inference_mode():
        assert_same(network(x), torch.cat([network(sample[None]) for sample in x]))


def test_fused_leaves_the_network_as_it_was():
    network, x = network_of(), image()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    faster = network.train().for_inference()
    with torch.inference_mode():
        assert torch.equal(faster(x), faster.for_inference()(x))
    assert sum(v.numel() for v in faster.parameters()) < sum(v.numel() for v in network.parameters())
    assert network.training
    assert not faster.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("masked", [False, True])
def test_every_weight_learns(masked):
    network, x = network_of().train(), image(20, 36)
    network(x, partly_valid(1, 20, 36) if masked else None).square().sum().backward()
    assert [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_authors_checkpoints_load_and_others_are_refused(tmp_path):
    network, x = network_of(), image()
    wrapped = {f"module.{key}": value for key, value in network.state_dict().items()}
    torch.save({"model": wrapped, "opt": {"param_groups": []}, "global_step": 9}, tmp_path / "own.pth")
    with torch.inference_mode():
        assert torch.equal(create_model("freenet", tmp_path / "own.pth", **SMALL)(x), network(x))
    with pytest.raises(ModelError, match=r"feature_ops\.0\.0\.weight \(24, 5, 3, 3\) instead of \(24, 6, 3, 3\)"):
        create_model("freenet", tmp_path / "own.pth", **{**SMALL, "in_channels": 6})
    with pytest.raises(ModelError, match=r"cls_pred_conv"):
        create_model("freenet", tmp_path / "own.pth", **{**SMALL, "num_classes": 4})


def test_card_says_what_it_takes():
    card = model_card("freenet", in_channels=202, num_classes=6)
    assert (card.task, card.bands, card.multiple, card.halo) == ("segment", 202, 16, HALO)


@pytest.mark.parametrize("settings", [{"width": 0.05}, {"num_classes": 0}, {"width": -1}, {"width": float("inf")}])
def test_sizes_of_no_network_are_refused(settings):
    with pytest.raises(ModelError, match=r"freenet.*at least 1"):
        create_model("freenet", **settings)


@pytest.mark.parametrize(
    ("shape", "valid", "words"),
    [
        ((5, 16, 16), None, r"\(N, 5, H, W\); found \(5, 16, 16\)"),
        ((1, 6, 16, 16), None, r"found \(1, 6, 16, 16\)"),
        ((1, 5, 0, 16), None, r"found \(1, 5, 0, 16\)"),
        ((1, 5, 16, 16), (16, 16), r"found \(16, 16\)"),
        ((2, 5, 16, 16), (1, 16, 16), r"found \(1, 16, 16\)"),
    ],
)
def test_input_that_does_not_fit_is_refused(shape, valid, words):
    network = create_model("freenet", **SMALL)
    mask = None if valid is None else torch.ones(valid, dtype=torch.bool)
    for form in (network, network.for_inference()):
        with pytest.raises(ModelError, match=words):
            form(torch.rand(shape), mask)
