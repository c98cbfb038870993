"""Backbones behind a spectral adapter: counts and keys by their tables, beside plain forward passes, feature maps."""

import pytest
import torch
from torch.nn import functional

from cubeloom.errors import ModelError
from cubeloom.models.registry import create_model, model_card
from cubeloom.models.spectral_adapter import FoldedAdapter, SpectralAdapter
from cubeloom.models.spectral_networks import VIT_SIZES, Level

PARAMETERS = {
    "spectral_resnet50": 24_202_624,
    "spectral_vit_nano": 2_036_224,
    "spectral_vit_tiny": 5_985_344,
    "spectral_vit_small": 22_531_328,
    "spectral_vit_base": 87_473_792,
    "spectral_vit_large": 305_516_416,
    "spectral_vit_huge": 633_672_832,
    "spectral_vit_giant": 1_138_043_264,
}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def outline(name, **settings):
    """A network without values: shapes alone, whatever its size."""
    with torch.device("meta"):
        return create_model(name, **settings)


def lively(name, **settings):
    """A network in eval mode whose every weight and statistic matters."""
    network = create_model(name, **settings)
    for key, values in network.state_dict().items():
        if key.endswith("running_var"):
            values.copy_(torch.rand_like(values) + 0.5)
        elif values.is_floating_point() and values.ndim == 1:
            values.add_(torch.randn_like(values) * 0.2)
    return network


def cube(height=16, width=16, bands=202, batch=1):
    return torch.randn(batch, bands, height, width)


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1, float(expected.abs().max())))


def shapes(network):
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


def norm_shapes(prefix, width):
    names = ("weight", "bias", "running_mean", "running_var")
    return {f"{prefix}.{name}": (width,) for name in names} | {f"{prefix}.num_batches_tracked": ()}


def adapter_shapes():
    return {f"spectral_adapter.{key}": tuple(value.shape) for key, value in SpectralAdapter().state_dict().items()}


def vit_shapes(width, depth):
    """The state dict's keys and shapes, from the rules of the published checkpoints."""
    found = {"cls_token": (1, 1, width), "pos_embed": (1, 1025, width)}
    found |= {"patch_embed.proj.weight": (width, 128, 4, 4), "patch_embed.proj.bias": (width,)}
    layers = [("attn.qkv", 3 * width, width), ("attn.proj", width, width)]
    layers += [("mlp.fc1", 4 * width, width), ("mlp.fc2", width, 4 * width)]
    for prefix in ("norm", *(f"blocks.{index}.norm{norm}" for index in range(depth) for norm in (1, 2))):
        found |= {f"{prefix}.weight": (width,), f"{prefix}.bias": (width,)}
    for index in range(depth):
        for name, rows, columns in layers:
            found |= {f"blocks.{index}.{name}.weight": (rows, columns), f"blocks.{index}.{name}.bias": (rows,)}
    return adapter_shapes() | {f"vit_core.{key}": shape for key, shape in found.items()}


def resnet_shapes():
    found = {}
    inputs = 128
    for stage, (blocks, width, outputs) in enumerate(((3, 64, 256), (4, 128, 512), (6, 256, 1024), (3, 512, 2048)), 1):
        for block in range(blocks):
            prefix = f"layer{stage}.{block}"
            inner = 256 if (stage, block) == (1, 0) else width
            for layer, shape in enumerate(((inner, inputs, 1, 1), (inner, inner, 3, 3), (outputs, inner, 1, 1)), 1):
                found[f"{prefix}.conv{layer}.weight"] = shape
                found |= norm_shapes(f"{prefix}.bn{layer}", shape[0])
            if block == 0:
                found[f"{prefix}.downsample.0.weight"] = (outputs, inputs, 1, 1)
                found |= norm_shapes(f"{prefix}.downsample.1", outputs)
            inputs = outputs
    return adapter_shapes() | {f"resnet.{key}": shape for key, shape in found.items()}


def slow_vit(state, y, heads):
    """A vision transformer's class token from its state dict and the adapter's features (N, 128, H, W)."""
    part = {key.removeprefix("vit_core."): value for key, value in state.items()}

    def linear(x, name):
        return x @ part[f"{name}.weight"].T + part[f"{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * part[f"{name}.weight"] + part[f"{name}.bias"]

    def attention(x, name):
        q, k, v = (one.unflatten(-1, (heads, -1)) for one in linear(x, f"{name}.qkv").chunk(3, -1))
        shares = (torch.einsum("nqhc,nkhc->nhqk", q, k) / q.shape[-1] ** 0.5).softmax(-1)
        return linear(torch.einsum("nhqk,nkhc->nqhc", shares, v).flatten(-2), f"{name}.proj")

    patches = y.unfold(2, 4, 4).unfold(3, 4, 4)
    x = torch.einsum("ncijyx,kcyx->nijk", patches, part["patch_embed.proj.weight"]).flatten(1, 2)
    x = torch.cat([part["cls_token"].expand(len(x), -1, -1), x + part["patch_embed.proj.bias"]], 1)
    x = x + part["pos_embed"]
    for index in range(sum(key.endswith("mlp.fc1.bias") for key in part)):
        x = x + attention(norm(x, f"blocks.{index}.norm1"), f"blocks.{index}.attn")
        hidden = functional.gelu(linear(norm(x, f"blocks.{index}.norm2"), f"blocks.{index}.mlp.fc1"))
        x = x + linear(hidden, f"blocks.{index}.mlp.fc2")
    return norm(x, "norm")


def slow_resnet(state, y, dense=False):
    """A ResNet's last feature map from its state dict and the adapter's features."""
    part = {key.removeprefix("resnet."): value for key, value in state.items()}

    def conv(x, name, norm, stride=1, dilation=1):
        weight = part[f"{name}.weight"]
        x = functional.conv2d(x, weight, None, stride, dilation * (weight.shape[-1] // 2), dilation)
        names = ("running_mean", "running_var", "weight", "bias")
        return functional.batch_norm(x, *(part[f"{norm}.{name}"] for name in names))

    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        for block in range(blocks):
            prefix = f"layer{stage}.{block}"
            stride = 2 if block == 0 and not dense else 1
            z = conv(y, f"{prefix}.conv1", f"{prefix}.bn1").relu()
            z = conv(z, f"{prefix}.conv2", f"{prefix}.bn2", stride, 2 ** (stage - 1) if dense else 1).relu()
            z = conv(z, f"{prefix}.conv3", f"{prefix}.bn3")
            if block == 0:
                y = conv(y, f"{prefix}.downsample.0", f"{prefix}.downsample.1", stride)
            y = (y + z).relu()
    return y


@pytest.mark.parametrize("family", PARAMETERS)
def test_parameters_are_as_many_as_published(family):
    network = outline(family)
    assert sum(value.numel() for value in network.parameters()) == PARAMETERS[family]
    found = shapes(network)
    if family == "spectral_resnet50":
        assert found == resnet_shapes()
        assert len(found) == 333
    else:
        assert found == vit_shapes(*VIT_SIZES[family.rpartition("_")[2]][:2])
        assert len(found) == 27 + 12 * len(network.backbone.blocks)
    assert found.keys() < shapes(outline(family, num_classes=19)).keys()


def test_vit_is_the_slow_one():
    network, x = lively("spectral_vit_nano", image_size=16), cube(batch=2)
    with torch.inference_mode():
        expected = slow_vit(network.state_dict(), network.spectral_adapter(x), heads=2)
        assert_same(network(x), expected[:, 0])
        assert_same(network.for_inference()(x), expected[:, 0])
        assert_same(network.features(x)[-1], expected[:, 1:].mT.unflatten(2, (4, 4)))


def test_resnet_is_the_slow_one():
    network, x = lively("spectral_resnet50"), cube(32, 48)
    with torch.inference_mode():
        expected = slow_resnet(network.state_dict(), network.spectral_adapter(x))
        assert expected.shape == (1, 2048, 2, 3)
        assert_same(network(x), expected.mean((2, 3)))
        assert_same(network.features(x)[-1], expected)
        assert_same(network.for_inference()(x), expected.mean((2, 3)))
        dense = create_model("spectral_resnet50", dense=True)
        dense.load_state_dict(network.state_dict())
        x = cube(6, 5)
        expected = slow_resnet(network.state_dict(), network.spectral_adapter(x), dense=True)
        assert_same(dense.features(x)[-1], expected)
        assert dense.levels == tuple(Level(level.channels, 1) for level in network.levels)


@pytest.mark.parametrize(
    ("family", "settings", "expected"),
    [
        ("spectral_resnet50", {}, [(128, 1), (256, 2), (512, 4), (1024, 8), (2048, 16)]),
        ("spectral_resnet50", {"dense": True}, [(256, 1), (512, 1), (1024, 1), (2048, 1)]),
        ("spectral_vit_nano", {}, [(128, 4)] * 4),
        ("spectral_vit_huge", {"patch_size": 8}, [(1280, 8)] * 4),
        ("spectral_timm", {"backbone": "convnext_atto"}, [(40, 4), (80, 8), (160, 16), (320, 32)]),
        ("spectral_timm", {"backbone": "inception_next_atto"}, [(40, 4), (80, 8), (160, 16), (320, 32)]),
        ("spectral_timm", {"backbone": "resnet18"}, [(64, 2), (64, 4), (128, 8), (256, 16), (512, 32)]),
        (
            "spectral_timm",
            {"backbone": "swin_tiny_patch4_window7_224"},
            [(96, 4), (192, 8), (384, 16), (768, 32)],
        ),
        ("spectral_timm", {"backbone": "vit_tiny_patch16_224"}, [(192, 16)] * 4),
    ],
)
def test_feature_maps_have_their_channels_and_strides(family, settings, expected):
    network = outline(family, **settings)
    x = torch.empty(2, 202, 128, 128, device="meta")
    maps = network.features(x)
    assert [(one.shape[1], 128 // one.shape[2]) for one in maps] == expected
    assert [network.levels[index] for index in network.default_levels()] == [Level(*one) for one in expected]
    assert [tuple(one.shape) for one in network.features(x, [1])] == [
        (2, network.levels[1].channels, *(2 * [128 // network.levels[1].stride]))
    ]
    assert network(x).shape == (2, network.embedding_size)


def test_maps_are_those_on_the_way_to_the_embedding():
    network, x = lively("spectral_timm", backbone="convnext_atto"), cube(32, 64)
    with torch.inference_mode():
        maps = network.features(x)
        head = network.backbone.head
        assert_same(head.norm(maps[-1].mean((2, 3), keepdim=True)).flatten(1), network(x))
        assert_same(network.for_inference().features(x)[1], maps[1])
        assert torch.equal(network.features(x, [0, 2])[1], maps[2])


def test_positions_are_interpolated_for_other_sizes():
    network, x = lively("spectral_vit_nano", image_size=16), cube(24, 8)
    swapped = x.unflatten(3, (2, 4)).flip(3).flatten(3)
    with torch.inference_mode():
        network.backbone.pos_embed.normal_()
        assert network.features(x)[0].shape == (1, 128, 6, 2)
        assert (network(swapped) - network(x)).abs().max() > 1e-4
        network.backbone.pos_embed.zero_()
        assert_same(network(swapped), network(x))


def test_fused_form_is_its_own():
    network, x = lively("spectral_vit_nano", image_size=16).train(), cube()
    faster = network.for_inference()
    assert network.training
    assert isinstance(faster.spectral_adapter, FoldedAdapter)
    with torch.inference_mode():
        first = faster(x)
        assert torch.equal(faster.for_inference()(x), first)
        network.backbone.norm.weight.mul_(2)
        assert torch.equal(faster(x), first)
        assert not any(value.requires_grad for value in faster.parameters())


@pytest.mark.parametrize(
    ("family", "settings", "side"),
    [
        ("spectral_vit_nano", {"image_size": 16}, 16),
        ("spectral_resnet50", {}, 16),
        ("spectral_timm", {"backbone": "convnext_atto"}, 32),
    ],
)
def test_a_new_head_learns_and_so_does_every_weight(family, settings, side):
    network = create_model(family, **settings)
    embedding = network.embedding_size
    network.reset_head(3)
    x = cube(side, side, batch=2)
    with torch.inference_mode():
        assert network(x).shape == (2, 3)
    network.train()(x).square().sum().backward()
    still = [name for name, value in network.named_parameters() if value.grad is None]
    assert still == []
    network.reset_head(0)
    with torch.inference_mode():
        assert network.eval()(x).shape == (2, embedding)


def test_training_lowers_the_loss():
    network = create_model("spectral_vit_nano", num_classes=2, image_size=8).train()
    x = torch.randn(8, 1, 1, 1) + torch.randn(8, 90, 8, 8)
    labels = torch.arange(8) % 2
    x[labels == 1, 30:40] += 1
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3)
    losses = []
    for _ in range(20):
        loss = functional.cross_entropy(network(x), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_cards_say_what_the_network_takes():
    assert model_card("spectral_vit_nano").task == "embed"
    assert model_card("spectral_vit_nano", num_classes=4).task == "classify"
    for family in PARAMETERS:
        card = model_card(family)
        assert (card.bands, card.tile % card.multiple) == (202, 0)
    assert model_card("spectral_vit_base", image_size=64, patch_size=8).multiple == 8
    assert model_card("spectral_timm", backbone="swin_tiny_patch4_window7_224", image_size=96).tile == 96


@pytest.mark.parametrize(
    ("family", "settings", "words"),
    [
        ("spectral_timm", {"backbone": "convnext_tinny"}, "did you mean 'convnext_tiny'"),
        ("spectral_timm", {"backbone": "hf-hub:someone/something"}, "timm has no network"),
        ("spectral_timm", {"backbone": "convnext_tiny.fb_in1k"}, "timm has no network"),
        ("spectral_timm", {"backbone": "vgg11", "drop_path_rate": 0.1}, "cannot be built"),
        ("spectral_vit_nano", {"image_size": 30}, "no multiple"),
        ("spectral_vit_nano", {"patch_size": 0}, "multiple"),
        ("spectral_vit_nano", {"img_size": 64}, "did you mean 'image_size'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(family, settings, words):
    with pytest.raises(ModelError, match=words):
        outline(family, **settings)


@pytest.mark.parametrize(
    ("family", "settings", "shape", "words"),
    [
        ("spectral_vit_nano", {"image_size": 16}, (1, 202, 16, 18), "multiples of 4"),
        ("spectral_vit_nano", {"image_size": 16}, (1, 60, 16, 16), "at least 75 bands"),
        ("spectral_vit_nano", {"image_size": 16}, (202, 16, 16), r"\(N, bands, H, W\)"),
        ("spectral_resnet50", {}, (1, 1, 202, 16, 16), r"\(N, bands, H, W\)"),
        ("spectral_timm", {"backbone": "swin_tiny_patch4_window7_224"}, (1, 202, 64, 64), "128 × 128"),
    ],
)
def test_input_that_does_not_fit_is_refused(family, settings, shape, words):
    network = outline(family, **settings)
    for use in (network, network.features):
        with pytest.raises(ModelError, match=words):
            use(torch.empty(shape, device="meta"))


@pytest.mark.parametrize("indices", [[], [8], [-1], [3, 1], [2, 2]])
def test_levels_that_are_not_there_are_refused(indices):
    with pytest.raises(ModelError, match="from 0 to 7"):
        outline("spectral_vit_nano").features(torch.empty(1, 202, 128, 128, device="meta"), indices)
