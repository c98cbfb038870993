"""SpectralGPT: counts and keys by their tables, tokens beside attention head by head, and what is made of them."""

import argparse
import csv
import math
from importlib.util import find_spec

import numpy as np
import pytest
import rasterio
import torch
import yaml

import cubeloom
from cubeloom.errors import ConfigError, ModelError
from cubeloom.models.network import Level
from cubeloom.models.registry import create_model, list_models, model_card, save_model
from cubeloom.models.spectral_gpt import SpectralGpt
from cubeloom.models.spectral_gpt_decoder import SpectralGptDecoder, multi_target_loss
from cubeloom.models.spectral_gpt_layers import patches
from cubeloom.pipeline import memory
from cubeloom.pipeline.engine import run_to_store
from cubeloom.pipeline.guided import with_guides
from cubeloom.pipeline.lift import lift
from cubeloom.pipeline.readers.base import SceneSource
from cubeloom.pipeline.regrid import regridded
from cubeloom.pipeline.scene import QUALITY_FLAGS, spec_of
from cubeloom.pipeline.stages.classify import Classify
from cubeloom.pipeline.stages.embed import Embed
from cubeloom.pipeline.stages.mask import Mask
from cubeloom.workflows.train import train

WIDTHS = {"base": (768, 12), "large": (1024, 24), "huge": (1280, 32)}
"""Width and depth."""
COUNTS = {
    ("base", 96): (98_496_960, 85_317_888),
    ("base", 128): (98_640_320, 85_403_904),
    ("large", 128): (316_142_784, 302_775_296),
    ("huge", 128): (643_759_040, 630_260_480),
}
"""Parameters of encoder and decoder together, and of the encoder."""
SMALL = (32, 4, 2)
"""Width, depth and heads of the networks that compute; the sizes that are checked by their tables have no values."""
PX = 16
"""Side of the images that the small networks' positions are for: 2 × 2 tokens of each group of bands."""


CHANNELS = [*range(10), 11, 12]
"""Places of the network's bands among all of Sentinel-2; B10, of cirrus, is none of them."""
trains = pytest.mark.skipif(find_spec("lightning") is None, reason="training networks needs the extra train")


@pytest.fixture
def sentinel2(make_scene):
    """Makes clear scenes of Sentinel-2's thirteen bands: squares of 8 px, each of one of two spectra."""
    bands = model_card("spectral_gpt_base").input_bands

    def make(seed=0, height=32, width=32):
        scene = make_scene(height=height, width=width, bands=13, background=0)
        random, table = np.random.default_rng(seed), np.random.default_rng(5).uniform(0.05, 0.5, (2, 13))
        classes = np.kron(random.integers(0, 2, (height // 8, width // 8)), np.ones((8, 8), int))
        cube = table[classes].transpose(2, 0, 1) + random.normal(0, 0.01, (13, height, width))
        wavelength, fwhm = (np.full(13, fill) for fill in (1373.5, 30.0))
        wavelength[CHANNELS], fwhm[CHANNELS] = bands.wavelengths_nm, bands.fwhm_nm
        scene = scene.assign(reflectance=scene.reflectance.copy(data=cube.astype(np.float32)))
        scene = scene.drop_vars("defect", errors="ignore").assign_coords(
            wavelength=("band", wavelength, scene.wavelength.attrs),
            fwhm=("band", fwhm, scene.fwhm.attrs),
            good=("band", np.ones(13, bool), scene.good.attrs),
        )
        scene["quality"].values[:] = 0
        return scene, classes

    return make


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def small(monkeypatch):
    """Makes networks of a small size, whose every weight matters."""
    monkeypatch.setitem(SpectralGpt.__init__.__globals__["SIZES"], "base", SMALL)

    def make(**settings):
        network = create_model("spectral_gpt_base", **{"image_size": PX, **settings})
        for value in network.state_dict().values():
            value.add_(torch.randn_like(value) * 0.2)
        return network

    return make


def assert_same(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * max(1, float(expected.abs().max())))


def outline(size, **settings):
    with torch.device("meta"):
        network = create_model(f"spectral_gpt_{size}", **settings)
        return network, SpectralGptDecoder(network)


def block_shapes(prefix, width):
    linears = {f"attn.{name}": (width, width) for name in ("q", "k", "v", "proj")}
    linears |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    found = {f"{prefix}norm{number}.{key}": (width,) for number in (1, 2) for key in ("weight", "bias")}
    found |= {f"{prefix}{name}.weight": shape for name, shape in linears.items()}
    return found | {f"{prefix}{name}.bias": shape[:1] for name, shape in linears.items()}


def official_shapes(size, side):
    """Keys and shapes of the published files, by their table."""
    width, depth = WIDTHS[size]
    found = {"pos_embed_spatial": (1, side**2, width), "pos_embed_temporal": (1, 4, width), "mask_token": (1, 1, 512)}
    found |= {"patch_embed.proj.weight": (width, 1, 3, 8, 8), "patch_embed.proj.bias": (width,)}
    for number in range(depth):
        found |= block_shapes(f"blocks.{number}.", width)
    found |= {"norm.weight": (width,), "norm.bias": (width,)}
    found |= {"decoder_embed.weight": (512, width), "decoder_embed.bias": (512,)}
    found |= {"decoder_pos_embed_spatial": (1, side**2, 512), "decoder_pos_embed_temporal": (1, 4, 512)}
    for number in range(4):
        found |= block_shapes(f"decoder_blocks.{number}.", 512)
    found |= {"decoder_norm.weight": (512,), "decoder_norm.bias": (512,)}
    return found | {"decoder_pred.weight": (192, 512), "decoder_pred.bias": (192,)}


class Slow:
    """The network from its state dict, a head and a token at a time; on chosen tokens alone where `kept` names them."""

    def __init__(self, network):
        self.network, self.state = network, network.state_dict()

    def linear(self, x, name):
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, x, name):
        centred = x - x.mean(-1, keepdim=True)
        y = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return y * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def attention(self, x, name):
        q, k, v = (self.linear(x, f"{name}.{key}").chunk(SMALL[2], -1) for key in "qkv")
        seen = [(a @ b.mT / math.sqrt(a.shape[-1])).softmax(-1) @ c for a, b, c in zip(q, k, v, strict=True)]
        return self.linear(torch.cat(seen, -1), f"{name}.proj")

    def blocks(self, x):
        """Tokens behind each block."""
        found = []
        for name in (f"blocks.{number}" for number in range(SMALL[1])):
            x = x + self.attention(self.norm(x, f"{name}.norm1"), f"{name}.attn")
            y = self.linear(self.norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")
            x = x + self.linear(y / 2 * (1 + torch.erf(y / math.sqrt(2))), f"{name}.mlp.fc2")
            found.append(x)
        return found

    def tokens(self, image):
        """What goes into the first block: a convolution, and the sum of two positions."""
        state, net = self.state, self.network
        shape = (net.group, net.multiple, net.multiple)
        kernel = state["patch_embed.proj.weight"]
        maps = torch.nn.functional.conv3d(image[:, None], kernel, state["patch_embed.proj.bias"], shape)
        found = []
        for group in range(maps.shape[2]):
            for row in range(maps.shape[3]):
                for col in range(maps.shape[4]):
                    place = row * maps.shape[4] + col
                    if "pos_embed_joint" in state:
                        position = state["pos_embed_joint"][0, group * maps[0, 0, 0].numel() + place]
                    else:
                        position = state["pos_embed_spatial"][0, place] + state["pos_embed_temporal"][0, group]
                    found.append(maps[:, :, group, row, col] + position)
        return torch.stack(found, 1)


def image(bands=12, px=PX, batch=2):
    """In [0, 1], and both of them in every band, so that it stays as it is when it is scaled by itself."""
    x = torch.rand(batch, bands, px, px)
    x[:, :, 0, 0], x[:, :, 1, 1] = 0, 1
    return x


class TestTables:
    @pytest.mark.parametrize(("size", "px"), COUNTS)
    def test_keys_shapes_and_parameters_are_the_official_ones(self, size, px):
        network, decoder = outline(size, image_size=px)
        whole = network.state_dict() | decoder.state_dict()
        assert {key: tuple(value.shape) for key, value in whole.items()} == official_shapes(size, px // 8)
        ours, filled = (sum(value.numel() for value in part.parameters()) for part in (network, decoder))
        assert (ours + filled, ours) == COUNTS[size, px]
        assert len(whole) == {"base": 271, "large": 463, "huge": 591}[size]

    @pytest.mark.parametrize(
        ("px", "group", "tokens", "seen"), [(96, 3, 576, 57), (128, 3, 1024, 102), (128, 2, 1536, 153)]
    )
    def test_tokens(self, px, group, tokens, seen):
        network, decoder = outline("base", image_size=px, group=group)
        x = torch.zeros(2, 12, px, px, device="meta")
        assert network.encode(x).shape == (2, tokens, 768)
        kept = torch.zeros(2, int(tokens * (1 - 0.9)), dtype=torch.long, device="meta")
        assert kept.shape[1] == seen
        made = decoder(network.encode(x, kept), kept, px // 8, px // 8)
        assert made.shape == (2, tokens, group * 64)

    def test_all_are_listed(self):
        assert {f"spectral_gpt_{size}" for size in WIDTHS} <= {entry.name for entry in list_models()}


class TestTokens:
    @pytest.mark.parametrize("form", ["plain", "inference"])
    @pytest.mark.parametrize(("bands", "group"), [(12, 3), (12, 2), (10, 2), (12, 12)])
    @torch.inference_mode()
    def test_heads_one_by_one_give_the_same(self, small, bands, group, form):
        network, x = small(bands=bands, group=group), image(bands)
        slow = Slow(network)
        expected = slow.norm(slow.blocks(slow.tokens(x))[-1], "norm")
        assert_same((network.for_inference() if form == "inference" else network).encode(x), expected)

    @torch.inference_mode()
    def test_the_embedding_is_the_mean_of_all_tokens_and_of_joint_ones_of_all_but_the_first(self, small):
        x = image()
        for positions, first in (("separable", 0), ("joint", 1)):
            network = small(positions=positions, num_classes=3)
            slow = Slow(network)
            mean = slow.blocks(slow.tokens(x))[-1][:, first:].mean(1)
            assert_same(network(x), slow.linear(slow.norm(mean, "norm"), "head"))

    @torch.inference_mode()
    def test_maps_join_the_groups_of_bands(self, small):
        x = image()
        for joined, channels in (("mean", 32), ("concat", 128)):
            network = small(joined=joined)
            assert network.levels == (Level(channels, 8),) * 4
            slow = Slow(network)
            for number, found in zip((1, 3), network.features(x, [1, 3]), strict=True):
                tokens = slow.norm(slow.blocks(slow.tokens(x))[number], "norm").view(2, 4, 2, 2, 32)
                whole = tokens.permute(0, 1, 4, 2, 3)
                assert_same(found, whole.mean(1) if joined == "mean" else whole.reshape(2, 128, 2, 2))

    @torch.inference_mode()
    def test_tokens_that_are_not_kept_are_as_if_they_were_not_there(self, small):
        network, x = small(), image()
        kept = torch.tensor([[0, 5, 6, 15], [1, 2, 9, 12]])
        slow = Slow(network)
        tokens = slow.tokens(x).take_along_dim(kept[..., None], 1)
        assert_same(network.encode(x, kept), slow.norm(slow.blocks(tokens)[-1], "norm"))

    @torch.inference_mode()
    def test_positions_are_interpolated_for_other_sizes(self, small):
        for positions in ("separable", "joint"):
            network = small(positions=positions)
            assert network.features(torch.rand(1, 12, 24, 40))[0].shape == (1, 32, 3, 5)
            for name, table in network.named_parameters():
                if name.startswith("pos_embed_") and "temporal" not in name:
                    table.copy_(table.mean(1, keepdim=True).expand_as(table))
            blank = torch.full((1, 12, 40, 24), 0.5)
            maps = network.features(blank)[-1].flatten(2)
            assert_same(maps, maps[..., :1].expand_as(maps))  # of one position everywhere nothing else is made


class TestScaling:
    def test_an_image_by_its_own_range(self, small):
        x = torch.randn(2, 12, PX, PX) * 7 + 3
        x[0, 4] = 2.0
        found = small().scaled(x)
        assert found[1, 3].min() == 0
        assert found[1, 3].max() == pytest.approx(1)
        assert (found[0, 4] == 0).all()
        low, high = x[1, 3].min(), x[1, 3].max()
        assert_same(found[1, 3], (x[1, 3] - low) / (high - low))

    @torch.inference_mode()
    def test_units_and_other_images_do_not_matter(self, small):
        network, x = small(), torch.randn(2, 12, PX, PX)
        assert_same(network(x * 5 - 2), network(x), 1e-4)
        assert_same(network(x)[:1], network(x[:1]))

    def test_two_deviations_of_the_data_are_the_ends(self, small):
        x = torch.linspace(-3, 3, 12 * PX * PX).view(1, 12, PX, PX)
        assert_same(small(statistics="dataset").scaled(x), ((x + 2) / 4).clamp(0, 1))

    def test_the_card_tells_bands(self):
        card = model_card("spectral_gpt_base")
        assert (card.task, card.tile, card.multiple, card.bands) == ("embed", 128, 8, 12)
        assert card.input_bands.numbers == (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13)
        other = model_card("spectral_gpt_base", bands=10, group=2, num_classes=4)
        assert (other.task, other.bands, other.input_bands, other.mean) == ("classify", 10, None, ())


class TestDecoder:
    @torch.inference_mode()
    def test_what_was_seen_and_the_mask_stand_at_their_places(self, small):
        """With blocks that do nothing, a token's answer is that of what stands there and of its position."""
        network = small()
        decoder = SpectralGptDecoder(network, width=16, depth=1, heads=2)
        decoder.decoder_blocks[0] = torch.nn.Identity()
        seen, kept = torch.randn(1, 3, 32), torch.tensor([[9, 0, 14]])
        made = decoder(seen, kept, 2, 2)
        for token in range(16):
            inside = decoder.decoder_embed(seen[0, kept[0].tolist().index(token)]) if token in kept else None
            inside = decoder.mask_token[0, 0] if inside is None else inside
            place = decoder.decoder_pos_embed_temporal[0, token // 4] + decoder.decoder_pos_embed_spatial[0, token % 4]
            assert_same(made[0, token], decoder.decoder_pred(decoder.decoder_norm(inside + place)))

    def test_values_of_a_token(self):
        x = torch.arange(2 * 6 * 8 * 12).view(2, 6, 8, 12)
        found = patches(x, 3, 4)
        assert found.shape == (2, 12, 48)
        for token in range(12):
            group, row, col = token // 6, token % 6 // 3, token % 3
            cube = x[:, 3 * group : 3 * group + 3, 4 * row : 4 * row + 4, 4 * col : 4 * col + 4]
            assert torch.equal(found[:, token], cube.flatten(1))

    def test_the_loss_of_a_zero_prediction(self):
        target, masked = torch.randn(2, 16, 6), torch.tensor([[0, 3, 7], [15, 2, 1]])
        squares = [target[n, t].square().mean() for n in range(2) for t in masked[n]]
        sums = [sum(target[n, g * 4 + place] for g in range(4)).square().mean() for n in range(2) for place in range(4)]
        expected = sum(squares) / len(squares) + sum(sums) / len(sums)
        assert_same(multi_target_loss(torch.zeros_like(target), target, masked, 4), expected)


class TestFiles:
    def published(self, network, path, **more):
        """As the authors save a pretraining: behind `model`, with the decoder, and with what else they know of it."""
        decoder = SpectralGptDecoder(network, width=16, depth=2, heads=2)
        state = network.state_dict() | decoder.state_dict() | more
        torch.save({"model": state, "epoch": 199, "scaler": {}, "args": argparse.Namespace(mask_ratio=0.9)}, path)

    def test_the_official_layout_loads(self, small, tmp_path):
        network, path = small(), tmp_path / "SpectralGPT.pth"
        self.published(network, path)
        state = create_model("spectral_gpt_base", path, image_size=PX).state_dict()
        assert state.keys() == network.state_dict().keys()
        assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())

    def test_a_classifier_as_published_leaves_the_positions_aside(self, small, tmp_path):
        network, path = small(), tmp_path / "SpectralGPT.pth"
        self.published(network, path)
        loaded = create_model("spectral_gpt_base", path, image_size=PX, positions="joint")
        assert torch.equal(loaded.pos_embed_joint, torch.zeros(1, 16, 32))
        assert torch.equal(loaded.norm.weight, network.norm.weight)

    def test_the_published_classifier_s_own_file_loads(self, small, tmp_path):
        network, path = small(positions="joint", num_classes=3), tmp_path / "eurosat.pth"
        state = network.state_dict()
        state["pos_embed"] = state.pop("pos_embed_joint")
        torch.save({"model": state}, path)
        x = image()
        with torch.inference_mode():
            for settings in ({"num_classes": 3}, {}):
                loaded = create_model("spectral_gpt_base", path, image_size=PX, positions="joint", **settings)
                loaded = loaded if settings else torch.nn.Sequential(loaded, network.head)
                assert_same(loaded(x), network(x))
        with pytest.raises(ModelError, match="2 missing: pos_embed_spatial, pos_embed_temporal"):
            create_model("spectral_gpt_base", path, image_size=PX)

    def test_anything_else_is_refused(self, small, tmp_path):
        network, path = small(), tmp_path / "a.pth"
        self.published(network, path, more=torch.ones(1))
        with pytest.raises(ModelError, match="1 unexpected: more"):
            create_model("spectral_gpt_base", path, image_size=PX)
        self.published(network, path)
        with pytest.raises(ModelError, match=r"pos_embed_spatial \(1, 4, 32\) instead of \(1, 9, 32\)"):
            create_model("spectral_gpt_base", path, image_size=24)
        with pytest.raises(ModelError, match=r"2 missing: head\.weight, head\.bias"):
            create_model("spectral_gpt_base", path, image_size=PX, num_classes=3)


class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"positions": "sine"}, "no positions 'sine'; expected separable or joint"),
            ({"statistics": "batch"}, "no statistics 'batch'"),
            ({"joined": "sum"}, "no joined 'sum'"),
            ({"bands": 10}, "bands 10 is no multiple of group 3"),
            ({"image_size": 100}, "tile 100 is no multiple of 8"),
            ({"patch_size": 0}, "multiple: Input should be greater than or equal to 1"),
        ],
    )
    def test_settings(self, settings, message):
        with pytest.raises(ModelError, match=message):
            create_model("spectral_gpt_base", **settings)

    @pytest.mark.parametrize("shape", [(1, 13, 16, 16), (1, 12, 16, 20), (12, 16, 16), (1, 12, 0, 16)])
    def test_images_that_do_not_fit(self, small, shape):
        with pytest.raises(ModelError, match=r"takes \(N, 12, H, W\) with H and W multiples of 8; found"):
            small().encode(torch.zeros(shape))


class TestStage:
    def test_a_scene_is_embedded_band_by_band(self, small, sentinel2, tmp_path):
        network, card = small(), model_card("spectral_gpt_base", image_size=PX)
        save_model(network, tmp_path / "gpt.safetensors", card)
        scene, _ = sentinel2(height=16, width=32)
        embedded = lift(Embed(model=str(tmp_path / "gpt.safetensors")))(lift(Mask())(scene))
        assert embedded.embedding.shape == (32, 2, 4)
        cube = torch.from_numpy(scene.reflectance.values[None, CHANNELS])
        for left in (0, 16):  # the tiles, each scaled by itself
            with torch.inference_mode():
                expected = network.features(cube[..., left : left + 16], [3])[0][0].numpy()
            np.testing.assert_allclose(embedded.embedding.values[..., left // 8 : left // 8 + 2], expected, atol=1e-3)

    @pytest.fixture
    def change(self, small, tmp_path):
        """A network of two dates, and where it is saved."""
        settings = {"backbone": "spectral_gpt_base", "backbone_settings": {"image_size": PX}, "head": "linear"}
        small()
        network = create_model("spectral_change", **settings)
        classes = [{"value": value, "name": str(value), "colour": "#000000"} for value in (1, 2)]
        card = model_card("spectral_change", **settings)
        card = type(card).model_validate({**card.model_dump(), "classes": classes})
        assert (card.dates, card.halo, card.bands) == (2, 2, 12)
        save_model(network, tmp_path / "change.safetensors", card)
        return network, str(tmp_path / "change.safetensors")

    def test_of_two_dates_the_differences_of_features_are_classified(self, change, sentinel2):
        network, model = change
        (later, _), (earlier, _) = (sentinel2(seed, 16, 16) for seed in (1, 2))
        mapped = lift(Classify(model=model, guide="before"))(lift(Mask())(later), earlier)
        dates = [torch.from_numpy(scene.reflectance.values[None, CHANNELS]) for scene in (later, earlier)]
        with torch.inference_mode():
            features = [network.encoder.features(date, [3])[0] for date in dates]
            scores = torch.nn.functional.interpolate(network.head(features[0] - features[1]), (16, 16), mode="bilinear")
        np.testing.assert_allclose(mapped.probability.values, scores.softmax(1)[0].numpy(), atol=2e-3)
        same = lift(Classify(model=model, guide="before"))(lift(Mask())(later), later)
        assert np.ptp(same.probability.values, axis=(1, 2)).max() < 1e-4  # nowhere is there any difference

    def test_a_pixel_takes_part_where_it_does_at_both_dates(self, change, sentinel2):
        (later, _), (earlier, _) = (sentinel2(seed, 16, 16) for seed in (1, 2))
        for scene, place in ((later, (3, 4)), (earlier, (10, 11))):
            scene.reflectance.values[:, *place] = np.nan
        mapped = lift(Classify(model=change[1], guide="before"))(lift(Mask())(later), earlier)
        assert [tuple(place) for place in np.argwhere(mapped.classes.values == 0)] == [(3, 4), (10, 11)]

    def test_blocks_and_what_lies_under_the_masks_do_not_show(self, change, sentinel2, tmp_path, monkeypatch):
        stage, guide = Classify(model=change[1], guide="before", tile=64), "before"
        (later, _), (earlier, _) = (sentinel2(seed, 136, 144) for seed in (1, 2))
        earlier.reflectance.values[:, :9, :11] = np.nan
        later["quality"].values[70:75, 60:80] = QUALITY_FLAGS["cloud"]
        expected = lift(stage)(lift(Mask())(later.chunk(y=70, x=90)), earlier).probability.values
        assert np.isnan(expected[0]).sum() == 99 + 100
        monkeypatch.setattr(memory, "LARGEST_BLOCK", 128)
        source = SceneSource(later, spec_of(later))
        guides = {guide: regridded(SceneSource(earlier, spec_of(earlier)), source.spec)}
        run_to_store(with_guides(source, guides), [Mask(), stage], tmp_path / "s.zarr")
        found = cubeloom.open_scene(tmp_path / "s.zarr").probability.values
        np.testing.assert_allclose(found, expected, atol=0.5 / 250 + 1e-6)
        later.reflectance.values[:, :9, :11] = 7.0
        earlier.reflectance.values[:, 70:75, 60:80] = 7.0
        later.reflectance.values[:, 70:75, 60:80] = 7.0
        np.testing.assert_array_equal(lift(stage)(lift(Mask())(later), earlier).probability.values, expected)

    def test_another_date_is_of_the_same_quantity(self, change, sentinel2):
        later, earlier = sentinel2(1, 16, 16)[0], sentinel2(2, 16, 16)[0]
        earlier = earlier.rename(reflectance="radiance").assign_attrs(measurement="radiance", subject="radiance")
        earlier.radiance.attrs["units"] = "W m-2 sr-1 nm-1"
        with pytest.raises(ModelError, match="compares two dates of the scene's reflectance"):
            lift(Classify(model=change[1], guide="before"))(later, earlier)


@trains
class TestTraining:
    def losses(self, out):
        with out.with_suffix(".log.csv").open() as file:
            return [float(row["loss"]) for row in csv.DictReader(file)]

    @pytest.fixture
    def pretraining(self, small, sentinel2, tmp_path):
        """Writes a recipe of two epochs over the squares of two scenes."""
        small()
        for seed in (1, 2):
            cubeloom.write_scene(sentinel2(seed)[0], tmp_path / f"{seed}.zarr")

        def write(**changes):
            loop = {
                "steps": 8,
                "learning_rate": 3e-3,
                "schedule": "constant",
                "warmup": 0,
                "threads": 1,
                "log_every": 1,
            }
            recipe = {
                "kind": "pretrain",
                "method": {
                    "name": "mae_3d",
                    "mask_ratio": 0.75,
                    "decoder_width": 32,
                    "decoder_depth": 2,
                    "decoder_heads": 2,
                },
                "model": "spectral_gpt_base",
                "data": {"scenes": [str(tmp_path / f"{seed}.zarr") for seed in (1, 2)]},
                "size": PX,
                "batch": 2,
                **loop,
                **changes,
            }
            path = tmp_path / "recipe.yaml"
            path.write_text(yaml.safe_dump(recipe))
            return path

        return write

    def test_pretraining_learns_and_goes_on_after_a_stop(self, pretraining, tmp_path):
        whole, parts = (tmp_path / f"{name}.safetensors" for name in ("spectral_gpt_base.tiny", "parts"))
        assert train(pretraining(), whole).step == 8
        assert train(pretraining(minutes=1e-9), parts).exit_code == 75
        assert train(pretraining(), parts).exit_code == 0
        found = self.losses(whole)
        assert self.losses(parts) == found
        assert np.mean(found[-3:]) < 0.8 * np.mean(found[:3])
        ours, theirs = (create_model("spectral_gpt_base", path).state_dict() for path in (whole, parts))
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
        card = model_card(whole)
        assert (card.settings, card.task, card.tile) == ({"image_size": PX}, "embed", PX)
        assert "decoder_embed.weight" not in ours

    @pytest.fixture
    def tuning(self, small, sentinel2, tmp_path):
        """Writes a recipe that tells the two kinds of squares apart, from weights of a backbone."""
        card = model_card("spectral_gpt_base", image_size=PX, patch_size=4)
        save_model(small(patch_size=4), tmp_path / "gpt.safetensors", card)
        for name, seed in (("train", 1), ("other", 2)):
            scene, classes = sentinel2(seed)
            cubeloom.write_scene(scene, tmp_path / f"{name}.zarr")
            grid, labels = spec_of(scene).grid, (classes + 1).astype(np.uint8)
            profile = {"driver": "GTiff", "height": 32, "width": 32, "count": 1, "dtype": "uint8"}
            with rasterio.open(
                tmp_path / f"{name}.tif", "w", **profile, crs=str(grid.crs), transform=grid.affine
            ) as raster:
                raster.write(labels, 1)

        def source(name, guides):
            return {"scene": str(tmp_path / f"{name}.zarr"), "labels": str(tmp_path / f"{name}.tif"), "guides": guides}

        def write(guides=None, **changes):
            scenes = {
                "train": [source("train", dict(guides or {}))],
                "validation": [source("other", dict(guides or {}))],
                "other_date": "before" if guides else None,
                "validation_split": {"block_px": 16, "test_fraction": 0.3, "buffer_px": 0},
                "split": {"block_px": 8, "test_fraction": 0.1, "buffer_px": 0},
                "classes": {1: {"name": "one"}, 2: {"name": "other"}},
            }
            recipe = {
                "kind": "tune",
                "backbone": "spectral_gpt_base",
                "weights": str(tmp_path / "gpt.safetensors"),
                "head": "conv",
                "tune": "full",
                "scenes": scenes,
                "tile_px": PX,
                "batch": 4,
                "steps": 40,
                "learning_rate": 3e-3,
                "validate_every": 40,
                "log_every": 1,
                "threads": 1,
            }
            path = tmp_path / "tune.yaml"
            path.write_text(yaml.safe_dump({**recipe, **changes}))
            return path

        return write

    def test_a_head_for_pixels_is_tuned_and_classifies_a_scene(self, tuning, sentinel2, tmp_path):
        out = tmp_path / "spectral_segmenter.tiny.safetensors"
        assert train(tuning(), out).step == 40
        found = self.losses(out)
        assert np.mean(found[-3:]) < 0.5 * np.mean(found[:3])
        card = model_card(out)
        assert (card.family, card.bands, card.tile, card.settings["backbone"]) == (
            "spectral_segmenter",
            12,
            PX,
            "spectral_gpt_base",
        )
        scene, classes = sentinel2(3)
        mapped = cubeloom.classify(cubeloom.mask(scene), model=str(out)).classes.values
        assert (mapped == classes + 1).mean() > 0.9

    def test_change_between_two_dates_is_tuned_and_mapped(self, tuning, sentinel2, tmp_path):
        """The earlier date is all of the first kind, so what is of the other kind has changed."""
        blank, before = sentinel2(4)[0], tmp_path / "before.zarr"
        blank.reflectance.values[:] = blank.reflectance.values[:, :1, :1]
        cubeloom.write_scene(blank, before)
        out = tmp_path / "spectral_change.tiny.safetensors"
        assert train(tuning({"before": str(before)}), out).step == 40
        found = self.losses(out)
        assert np.mean(found[-3:]) < 0.5 * np.mean(found[:3])
        card = model_card(out)
        assert (card.family, card.bands, card.dates) == ("spectral_change", 12, 2)
        scene, classes = sentinel2(3)
        mapped = cubeloom.classify(cubeloom.mask(scene), blank, model=str(out), guide="before").classes.values
        assert (mapped == classes + 1).mean() > 0.9

    def test_low_rank_additions_go_onto_queries_keys_and_values(self, tuning, tmp_path):
        assert train(tuning(tune="lora", lora={"rank": 2}, steps=1), tmp_path / "lora.safetensors").step == 1
        network = create_model("spectral_segmenter", tmp_path / "lora.safetensors").state_dict()
        before = create_model("spectral_gpt_base", tmp_path / "gpt.safetensors").state_dict()
        changed = {key for key, value in before.items() if not torch.equal(network[f"encoder.{key}"], value)}
        kinds = ("q", "k", "v", "proj")
        assert changed == {f"blocks.{number}.attn.{kind}.weight" for number in range(SMALL[1]) for kind in kinds}

    def test_there_is_no_spectral_adapter_to_tune(self, tuning, tmp_path):
        with pytest.raises(ConfigError, match="no spectral adapter to tune; choose tune frozen, first_n, full or lora"):
            train(tuning(tune="adapter"), tmp_path / "adapter.safetensors")

    def test_an_untrained_backbone_sees_the_bands_of_its_card(self, tuning, tmp_path):
        recipe = tuning(weights=None, settings={"image_size": PX}, tune="first_n", first=1, steps=1)
        train(recipe, tmp_path / "new.safetensors")
        assert model_card(tmp_path / "new.safetensors").input_bands == model_card("spectral_gpt_base").input_bands
