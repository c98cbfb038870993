"""ESSAformer: the published keys and counts, the published graph, and how far a pixel sees."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from cubeloom.errors import ModelError
from cubeloom.models.essaformer import ESSAformer, enlarged, reach
from cubeloom.models.essaformer_widen import widened
from cubeloom.models.essaformer_winograd import Winograd, transforms
from cubeloom.models.registry import create_model, model_card, save_model

COUNTS = {2: (9_132_992, 32), 4: (11_640_832, 36), 8: (14_148_672, 40)}


def published_keys(scale, bands, width):
    """Names and shapes as the authors' classes have them."""
    keys = {"conv_first": (width, bands, 3, 3), "conv_last": (bands, width, 3, 3)}
    for half, layers in (("convup", "convu"), ("convdown", "convd")):
        keys[f"blockup.{half}.{layers}.0"] = (2 * width, 2 * width, 1, 1)
        keys[f"blockup.{half}.{layers}.3"] = (2 * width, 2 * width, 3, 3)
        keys[f"blockup.{half}.{layers}.6"] = (width, 2 * width, 1, 1)
        keys[f"blockup.{half}.norm"] = (width,)
        keys[f"blockup.{half}.attn.lnqkv"] = (3 * width, width)
        keys[f"blockup.{half}.attn.ln"] = (width, width)
    square = 9 if scale == 3 else 4
    for step in range({2: 1, 3: 1, 4: 2, 8: 3}[scale]):
        keys[f"blockup.convupsample.{2 * step}"] = (square * width, width, 3, 3)
        keys[f"blockup.convdownsample.{2 * step}"] = (width // square, width, 3, 3)
    return {f"{key}.weight": shape for key, shape in keys.items()} | {
        f"{key}.bias": shape[:1] for key, shape in keys.items()
    }


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_the_keys_are_the_authors(scale):
    with torch.device("meta"):
        made = ESSAformer(128, 252 if scale == 3 else 256, scale).state_dict()
    assert {key: tuple(value.shape) for key, value in made.items()} == published_keys(
        scale, 128, 252 if scale == 3 else 256
    )
    if scale in COUNTS:
        assert (sum(value.numel() for value in made.values()), len(made)) == COUNTS[scale]


@pytest.mark.parametrize(("bands", "count"), [(31, 11_193_759), (102, 11_520_998)])
def test_any_number_of_bands(bands, count):
    with torch.device("meta"):
        assert sum(value.numel() for value in ESSAformer(bands).parameters()) == count


def published(state, x, scale):
    """The graph as the paper writes it, on weights by their published keys."""

    def layer(name):
        return state[f"{name}.weight"], state[f"{name}.bias"]

    def conv(image, name):
        weight, bias = layer(name)
        return functional.conv2d(image, weight, bias, padding=weight.shape[-1] // 2)

    def steps(prefix):
        return sorted({key.rpartition(".")[0] for key in state if key.startswith(f"blockup.{prefix}.")})

    def up(image):
        for name in steps("convupsample"):
            image = functional.pixel_shuffle(conv(image, name), 3 if scale == 3 else 2)
        return image

    def down(image):
        for name in steps("convdownsample"):
            image = functional.pixel_unshuffle(conv(image, name), 3 if scale == 3 else 2)
        return image

    def attention(tokens, prefix):
        query, key, value = functional.linear(tokens, *layer(f"{prefix}.lnqkv")).chunk(3, 2)
        query, key = ((part - part.mean(2, keepdim=True)) ** 2 for part in (query, key))
        query = functional.normalize(query / (query.sum(2, keepdim=True) + 1e-7), dim=2)
        key = functional.normalize(key / (key.sum(2, keepdim=True) + 1e-7), dim=1)
        context = (key.transpose(1, 2) @ value) / tokens.shape[1] ** 0.5
        return functional.linear(value + query @ context, *layer(f"{prefix}.ln"))

    def refine(image, half, layers):
        prefix = f"blockup.{half}"
        tokens = image.flatten(2).transpose(1, 2)
        tokens = functional.layer_norm(tokens, tokens.shape[2:], *layer(f"{prefix}.norm"))
        made = torch.cat([attention(tokens, f"{prefix}.attn").transpose(1, 2).view(image.shape), image], 1)
        for index in (0, 3):
            made = functional.leaky_relu(conv(made, f"{prefix}.{layers}.{index}"), 0.2)
        return conv(made, f"{prefix}.{layers}.6") + image

    coarse = conv(x, "conv_first")
    fine = refine(up(coarse), "convup", "convu")
    for _ in range(2):
        coarse = refine(down(fine) + coarse, "convdown", "convd")
        fine = refine(up(coarse) + fine, "convup", "convu")
    return conv(fine, "conv_last")


def lively(network, seed=0):
    """Weights and running means as training might leave them."""
    random = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if name.endswith("power"):
            value.copy_(torch.rand(value.shape, generator=random) * 0.1 + 0.02)
        elif name.endswith("scatter"):
            value.copy_(torch.randn(value.shape, generator=random) * 0.05)
        elif value.ndim == 4:
            size = value[0].numel()
            value.copy_(torch.randn(value.shape, generator=random) * (1.5 / size) ** 0.5)
        elif name.endswith("norm.weight"):
            value.copy_(torch.rand(value.shape, generator=random) + 0.5)
    return network.eval()


@pytest.mark.parametrize(
    ("scale", "width", "shape"), [(2, 24, (9, 14)), (3, 18, (7, 6)), (4, 20, (6, 5)), (8, 8, (1, 3))]
)
def test_the_graph_is_the_papers(scale, width, shape):
    network = lively(ESSAformer(11, width, scale))
    x = torch.rand(2, 11, *shape, generator=torch.Generator().manual_seed(1))
    state = {key: value.double() for key, value in network.state_dict().items()}
    expected = published(state, x.double(), scale)
    with torch.no_grad():
        made, fast = network(x), network.for_inference()(x)
    assert made.shape == (2, 11, scale * shape[0], scale * shape[1])
    for answer in (made, fast):
        assert (answer - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("skip", [False, True])
def test_running_means_in_strips(skip):
    """More rows than a strip has, so that its edges are met."""
    network = lively(ESSAformer(6, 16, 2, "running", skip=skip))
    x = torch.rand(1, 6, 37, 70, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        plain, fast = network(x), network.for_inference()(x)
    assert (plain - fast).abs().max() < 1e-5 * plain.abs().max()


def test_running_means_follow_the_tiles():
    """What a network has seen again and again is what it has kept, so that training ends where use begins."""
    network = lively(ESSAformer(5, 8, 2, "running", dropout=0.0)).train()
    x = torch.rand(2, 5, 12, 12)
    with torch.no_grad():
        both = network(x)
    tile = ESSAformer(5, 8, 2).eval()
    published = tile.state_dict().keys()
    tile.load_state_dict({key: value for key, value in network.state_dict().items() if key in published})
    with torch.no_grad():
        assert (tile(x) - both).abs().max() < 1e-5
        for _ in range(3):
            network.train()(x[:1] * 0.5)
        network.blockup.convup.attn.seen.zero_()
        network.blockup.convdown.attn.seen.zero_()
        alone = network(x[:1])
        assert (network.eval()(x[:1]) - alone).abs().max() < 1e-5


def seen(network, side=25, at=12):
    """How far from a pixel of the input the output changes with it, px of the input."""
    x = torch.rand(1, network.bands, side, side, generator=torch.Generator().manual_seed(3)).double()
    other = x.clone()
    other[..., at, at] += 3.0
    with torch.no_grad():
        changed = (network(x) - network(other)).abs().amax((0, 1)).numpy() > 0
    rows = np.flatnonzero(changed.any(axis=1)) // network.scale
    return int(max(at - rows[0], rows[-1] - at))


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_a_pixel_is_seen_as_far_as_told(scale):
    network = lively(ESSAformer(3, 9 if scale == 3 else 4, scale, "running")).double()
    assert seen(network) == reach(scale, skip=False)


def test_the_published_network_sees_all_of_its_tile():
    assert seen(lively(ESSAformer(3, 12, 2)).double()) == 12


def test_the_skip_starts_at_cubic_convolution():
    network = ESSAformer(4, 9, 3, skip=True)
    x = torch.rand(1, 4, 6, 7)
    with torch.no_grad():
        assert torch.equal(network.eval()(x), enlarged(x, 3))


def test_the_cards_tell_what_a_tile_means(tmp_path):
    assert model_card("essaformer_x4").reach is None
    card = model_card("essaformer_x4", statistics="running", bands=40, width=16)
    assert (card.task, card.scale, card.bands, card.reach) == ("superres", 4, 40, reach(4, skip=False))
    network = lively(create_model("essaformer_x4", statistics="running", bands=4, width=8))
    path = tmp_path / "essaformer_x4.tiny.safetensors"
    card = model_card("essaformer_x4", statistics="running", bands=4, width=8)
    save_model(network, path, card.model_copy(update={"name": "essaformer_x4.tiny", "tag": "tiny"}))
    x = torch.rand(1, 4, 5, 5)
    with torch.no_grad():
        assert torch.equal(create_model("essaformer_x4", path)(x), network(x))


def test_what_does_not_fit_is_told():
    with pytest.raises(ModelError, match=r"a width that is a multiple of 9"):
        create_model("essaformer_x3", width=256)
    with pytest.raises(ModelError, match=r"statistics is tile or running; found 'batch'"):
        create_model("essaformer_x2", statistics="batch")
    with pytest.raises(ModelError, match=r"takes \(N, 7, H, W\); found \(1, 6, 4, 4\)"):
        create_model("essaformer_x2", bands=7, width=8)(torch.zeros(1, 6, 4, 4))


def test_winograd_is_a_convolution():
    random = torch.Generator().manual_seed(4)
    weight, bias = torch.randn(9, 7, 3, 3, generator=random), torch.randn(9, generator=random)
    rows = torch.randn(14, 22, 7, generator=random)
    expected = functional.conv2d(rows.permute(2, 0, 1)[None].double(), weight.double(), bias.double())[0]
    made = Winograd(weight, bias)(rows).permute(2, 0, 1)
    assert (made - expected).abs().max() < 3e-6 * expected.abs().max()
    before, kernel, after = transforms()
    image, small = np.random.default_rng(0).random(6), np.random.default_rng(1).random(3)
    np.testing.assert_allclose(after @ ((kernel @ small) * (before @ image)), np.correlate(image, small), atol=1e-14)


@pytest.mark.parametrize(("scale", "statistics"), [(2, "running"), (2, "tile"), (3, "running")])
def test_a_wider_network_begins_as_the_narrow_one(scale, statistics):
    narrow = lively(ESSAformer(5, 9 if scale == 3 else 8, scale, statistics, skip=True))
    wide = widened(narrow, 2).eval()
    x = torch.rand(2, 5, 8, 7, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected, made = narrow(x), wide(x)
    gone = narrow(x * 0)
    assert wide.width == 2 * narrow.width
    assert (made - expected).abs().max() < 0.02 * (expected - gone).abs().max()
    wide.train()(x).square().mean().backward()
    first, second = wide.blockup.convup.layers[3].weight.grad.chunk(2)
    assert (first - second).abs().max() > 0.01 * first.abs().max()  # copies part when they learn
