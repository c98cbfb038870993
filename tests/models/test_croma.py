"""CROMA: counts and keys by their tables, distances by hand, and tokens beside attention head by head."""

import math
from copy import deepcopy

import numpy as np
import pytest
import torch

from cubeloom.errors import ModelError
from cubeloom.models.croma import CHANNELS, Croma, scaled, standardised
from cubeloom.models.croma_layers import alibi
from cubeloom.models.network import Level
from cubeloom.models.registry import create_model, list_models, model_card, save_model
from cubeloom.pipeline.lift import lift
from cubeloom.pipeline.stages.embed import Embed
from cubeloom.pipeline.stages.mask import Mask

WIDTHS = {"base": 768, "large": 1024}
DEPTHS = {"base": (6, 12, 6), "large": (12, 24, 12)}
PARAMETERS = {
    "base": (42_614_016, 4_723_968, 85_618_944, 4_723_968, 56_684_544),
    "large": (151_251_968, 8_395_776, 303_025_152, 8_395_776, 201_488_384),
}
PARTS = ("s1_encoder", "s1_GAP_FFN", "s2_encoder", "s2_GAP_FFN", "joint_encoder")
SMALL = (32, 4)
"""Width and depth of the networks that compute; the sizes that are checked by their tables have no values."""


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def small(monkeypatch):
    """Makes networks of a small size, whose every weight matters."""
    monkeypatch.setitem(Croma.__init__.__globals__["SIZES"], "base", SMALL)

    def make(modality="joint", **settings):
        network = create_model("croma_base", modality=modality, **settings)
        for value in network.state_dict().values():
            value.add_(torch.randn_like(value) * 0.2)
        return network

    return make


def images(height=24, width=32, batch=2):
    return torch.rand(batch, 2, height, width), torch.rand(batch, 12, height, width)


def assert_same(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * max(1, float(expected.abs().max())))


def outline(size, **settings):
    with torch.device("meta"):
        return create_model(f"croma_{size}", **settings)


def layer_shapes(prefix, width, *, cross):
    """A block's keys and shapes, from the rules of the published checkpoints."""
    norm = {"input_norm.weight": (width,), "input_norm.bias": (width,)}
    out = {"to_out.weight": (width, width), "to_out.bias": (width,)}
    attention = {"to_qkv.weight": (3 * width, width)} | out | norm
    crossed = {f"to_{name}.weight": (width, width) for name in "qkv"} | out | norm
    wide = {"net.0.weight": (4 * width, width), "net.0.bias": (4 * width,)}
    forward = wide | {"net.3.weight": (width, 4 * width), "net.3.bias": (width,)} | norm
    kinds = (attention, crossed, forward) if cross else (attention, forward)
    return {f"{prefix}{place}.{key}": shape for place, kind in enumerate(kinds) for key, shape in kind.items()}


def official_shapes(size):
    width = WIDTHS[size]
    found = {}
    for name, channels, depth in zip(("s1", "s2", "joint"), (2, 12, 0), DEPTHS[size], strict=True):
        part = f"{name}_encoder."
        inner = part if name == "joint" else f"{part}transformer."
        for layer in range(depth):
            found |= layer_shapes(f"{inner}layers.{layer}.", width, cross=name == "joint")
        found |= {f"{inner}norm_out.{key}": (width,) for key in ("weight", "bias")}
        if name != "joint":
            found |= {f"{part}linear_input.weight": (width, 64 * channels), f"{part}linear_input.bias": (width,)}
            found |= {f"{name}_GAP_FFN.0.{key}": (width,) for key in ("weight", "bias")}
            found |= {f"{name}_GAP_FFN.1.weight": (4 * width, width), f"{name}_GAP_FFN.1.bias": (4 * width,)}
            found |= {f"{name}_GAP_FFN.3.weight": (width, 4 * width), f"{name}_GAP_FFN.3.bias": (width,)}
    return found


def slow_bias(rows, cols, head):
    places = [(row, col) for row in range(rows) for col in range(cols)]
    slope = 2 ** (-(head + 1) / 2)
    return torch.tensor([[-slope * math.dist(one, other) for other in places] for one in places])


class Slow:
    """The network from its state dict, a head at a time; on chosen tokens alone where `kept` names them."""

    def __init__(self, network, rows, cols, kept=None):
        self.state = network.state_dict()
        kept = list(range(rows * cols)) if kept is None else kept
        self.kept = kept
        self.biases = [slow_bias(rows, cols, head)[kept][:, kept] for head in range(16)]

    def linear(self, x, name):
        y = x @ self.state[f"{name}.weight"].T
        return y + self.state[f"{name}.bias"] if f"{name}.bias" in self.state else y

    def norm(self, x, name):
        centred = x - x.mean(-1, keepdim=True)
        y = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return y * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def heads(self, q, k, v):
        size = q.shape[-1] // 16
        made = []
        for head, bias in enumerate(self.biases):
            part = slice(head * size, (head + 1) * size)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size) + bias
            made.append(scores.softmax(-1) @ v[..., part])
        return torch.cat(made, -1)

    def block(self, x, name, context):
        attention = f"{name}.0"
        y = self.norm(x, f"{attention}.input_norm")
        x = x + self.linear(self.heads(*self.linear(y, f"{attention}.to_qkv").chunk(3, -1)), f"{attention}.to_out")
        if context is not None:
            cross = f"{name}.1"
            other = self.norm(context, f"{cross}.input_norm")
            q = self.linear(self.norm(x, f"{cross}.input_norm"), f"{cross}.to_q")
            seen = self.heads(q, self.linear(other, f"{cross}.to_k"), self.linear(other, f"{cross}.to_v"))
            x = x + self.linear(seen, f"{cross}.to_out")
        forward = f"{name}.{1 if context is None else 2}"
        y = self.linear(self.norm(x, f"{forward}.input_norm"), f"{forward}.net.0")
        return x + self.linear(y / 2 * (1 + torch.erf(y / math.sqrt(2))), f"{forward}.net.3")

    def transformer(self, x, prefix, context=None):
        for layer in range(sum(key.startswith(prefix) and key.endswith("0.to_qkv.weight") for key in self.state)):
            x = self.block(x, f"{prefix}layers.{layer}", context)
        return self.norm(x, f"{prefix}norm_out")

    def encode(self, image, part):
        patches = image.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(1, 2).flatten(2)
        tokens = self.linear(patches[:, self.kept], f"{part}.linear_input")
        return self.transformer(tokens, f"{part}.transformer.")

    def joint(self, radar, optical):
        return self.transformer(radar, "joint_encoder.", optical)

    def summary(self, tokens, part):
        y = self.linear(self.norm(tokens.mean(1), f"{part}.0"), f"{part}.1")
        return self.linear(torch.nn.functional.gelu(y), f"{part}.3")


class TestTables:
    @pytest.mark.parametrize("size", WIDTHS)
    def test_keys_and_shapes_are_the_official_ones(self, size):
        found = {key: tuple(value.shape) for key, value in outline(size).state_dict().items()}
        assert found == official_shapes(size)

    @pytest.mark.parametrize("size", WIDTHS)
    def test_parameters_of_each_part(self, size):
        network = outline(size)
        counted = {part: sum(p.numel() for p in network.get_submodule(part).parameters()) for part in PARTS}
        assert tuple(counted.values()) == PARAMETERS[size]
        assert sum(p.numel() for p in network.parameters()) == {"base": 194_365_440, "large": 672_557_056}[size]

    def test_entries_of_each_part(self):
        found = [len(outline("base").get_submodule(part).state_dict()) for part in PARTS]
        assert found == [70, 6, 136, 6, 110]

    def test_a_network_of_one_sensor_has_its_encoder_alone(self):
        for modality, parts in (("radar", PARTS[:2]), ("optical", PARTS[2:4])):
            assert tuple(dict(outline("base", modality=modality).named_children())) == parts

    def test_both_are_listed(self):
        assert {"croma_base", "croma_large"} <= {entry.name for entry in list_models()}


class TestBias:
    def test_the_corner_is_fourteen_in_the_first_head(self):
        assert alibi(15, 15)[0, 0, 0, 224].item() == pytest.approx(-14.0, abs=1e-6)

    def test_slopes_fall_by_the_root_of_two(self):
        beside = alibi(15, 15)[0, :, 0, 1]
        assert beside[[0, 1, 15]].tolist() == pytest.approx([-(0.5**0.5), -0.5, -0.00390625])

    @pytest.mark.parametrize(("rows", "cols"), [(1, 1), (2, 5), (4, 3)])
    def test_all_places_one_by_one(self, rows, cols):
        found = alibi(rows, cols)
        assert found.shape == (1, 16, rows * cols, rows * cols)
        for head in range(16):
            assert_same(found[0, head], slow_bias(rows, cols, head), 1e-7)

    def test_it_is_made_once_for_a_size(self):
        assert alibi(3, 4) is alibi(3, 4)

    def test_one_made_while_inferring_serves_a_training(self, small):
        alibi.cache_clear()
        network = small("radar")
        radar, _ = images()
        with torch.inference_mode():
            network.encode(radar)
        network.encode(radar).radar.sum().backward()
        assert network.s1_encoder.linear_input.weight.grad.abs().max() > 0


class TestTokens:
    @pytest.mark.parametrize("form", ["plain", "inference"])
    @pytest.mark.parametrize(("height", "width"), [(8, 8), (24, 32)])
    def test_heads_one_by_one_give_the_same(self, small, height, width, form):
        network, (radar, optical) = small(), images(height, width)
        slow = Slow(network, height // 8, width // 8)
        with torch.inference_mode():
            found = (network.for_inference() if form == "inference" else network).encode(radar, optical)
            of_radar, of_optical = slow.encode(radar, "s1_encoder"), slow.encode(optical, "s2_encoder")
            assert_same(found.radar, of_radar)
            assert_same(found.optical, of_optical)
            assert_same(found.joint, slow.joint(of_radar, of_optical))

    def test_an_image_of_120_px_has_225_and_any_other_size_needs_no_reload(self, small):
        network = small()
        with torch.inference_mode():
            for height, width in ((120, 120), (96, 96), (16, 40)):
                found = network.encode(*images(height, width, 1))
                for tokens in (found.radar, found.optical, found.joint):
                    assert tokens.shape == (1, height * width // 64, 32)

    @torch.inference_mode()
    def test_one_sensor_alone_is_its_part_of_both(self, small):
        network, (radar, optical) = small(), images()
        both = network.encode(radar, optical)
        assert_same(network.encode(radar=radar).radar, both.radar, 1e-6)
        assert_same(network.encode(optical=optical).optical, both.optical, 1e-6)
        assert network.encode(radar=radar).joint is None

    @torch.inference_mode()
    def test_embeddings_are_of_the_sensors_that_go_in(self, small):
        radar, optical = images()
        for modality, stack in (("radar", radar), ("optical", optical), ("joint", torch.cat([optical, radar], 1))):
            network = small(modality)
            slow = Slow(network, 3, 4)
            streams = {"radar": "s1", "optical": "s2"}
            tokens = {
                name: slow.encode(one, f"{streams[name]}_encoder")
                for name, one in (("radar", radar), ("optical", optical))
                if modality in (name, "joint")
            }
            if modality == "joint":
                tokens = slow.joint(**tokens)
                expected = tokens.mean(1)
            else:
                tokens = tokens[modality]
                expected = slow.summary(tokens, f"{streams[modality]}_GAP_FFN")
            x = stack * 4 - 2  # standardised: two deviations below the mean are the encoders' 0
            assert_same(network(x), expected)
            blocks = {"radar": 2, "optical": 4, "joint": 2}[modality]
            assert network.levels == (Level(32, 8),) * blocks
            (last,) = network.features(x, [blocks - 1])
            assert_same(last, tokens.transpose(1, 2).reshape(2, 32, 3, 4))
            assert (network.embedding_size, network.channels, network.multiple) == (32, stack.shape[1], 8)

    @torch.inference_mode()
    def test_patches_that_do_not_count_are_as_if_they_were_not_there(self, small):
        network, (radar, optical) = small(), images(16, 32)
        valid = torch.zeros(2, 16, 32, dtype=torch.bool)
        kept = [0, 2, 3, 5]
        for place in kept:
            valid[:, 8 * (place // 4) + 3, 8 * (place % 4) + 7] = True  # one pixel of a patch is enough
        slow = Slow(network, 2, 4, kept)
        of_radar, of_optical = slow.encode(radar, "s1_encoder"), slow.encode(optical, "s2_encoder")
        found = network.encode(radar, optical, valid)
        joint = slow.joint(of_radar, of_optical)
        assert_same(found.radar[:, kept], of_radar)
        assert_same(found.joint[:, kept], joint)
        stack = torch.cat([optical, radar], 1) * 4 - 2
        assert_same(network(stack, valid), joint.mean(1))

    @torch.inference_mode()
    def test_a_map_of_each_block(self, small):
        """That of block k is the last of a network that ends there."""
        network, (_, optical) = small("optical"), images()
        assert network.default_levels() == [0, 1, 2, 3]
        maps = network.features(optical, [0, 2, 3])
        for block, found in zip((0, 2, 3), maps, strict=True):
            shorter = deepcopy(network)
            shorter.s2_encoder.transformer.layers = shorter.s2_encoder.transformer.layers[: block + 1]
            assert_same(found, shorter.features(optical, [block])[0], 1e-6)
        with pytest.raises(ModelError, match="ascending indices from 0 to 3"):
            network.features(optical, [4])

    @torch.inference_mode()
    def test_scores_are_linear_in_the_embedding(self, small):
        network, (radar, _) = small("radar", num_classes=3), images()
        assert model_card("croma_base", modality="radar", num_classes=3).task == "classify"
        scores, layer = network(radar), network.head
        network.reset_head(0)
        assert isinstance(network.head, torch.nn.Identity)
        assert_same(scores, layer(network(radar)))

    @torch.inference_mode()
    def test_an_image_without_any_that_count_has_numbers(self, small):
        network, (radar, _) = small("radar"), images()
        valid = torch.ones(2, 24, 32, dtype=torch.bool)
        valid[1] = False
        assert_same(network(radar, valid), network(radar))


class TestScaling:
    def test_two_deviations_are_the_ends(self):
        assert scaled(torch.tensor([-9.0, -2, 0, 1, 2, 9])).tolist() == [0, 0, 0.5, 0.75, 1, 1]

    def test_eight_bits_are_rounded_down(self):
        x = torch.linspace(-2, 2, 1001)
        found = scaled(x, eight_bit=True)
        assert torch.equal(found, torch.clip((x + 2) / 4 * 255.0, 0, 255).to(torch.uint8).float() / 255)

    def test_statistics_of_the_batch_are_those_of_the_authors(self):
        x = torch.randn(3, 2, 8, 16) * torch.tensor([3.0, 500.0])[:, None, None] + 40
        for channel, found in enumerate(scaled(standardised(x)).unbind(1)):
            values = x[:, channel]
            low, high = values.mean() - 2 * values.std(), values.mean() + 2 * values.std()
            assert_same(found, torch.clip((values - low) / (high - low), 0, 1))

    def test_a_channel_of_one_value_has_a_number(self):
        assert torch.equal(scaled(standardised(torch.full((1, 2, 8, 8), 0.3))), torch.full((1, 2, 8, 8), 0.5))

    @torch.inference_mode()
    def test_the_batch_mode_does_not_see_the_units(self, small):
        network = small("optical", statistics="batch")
        x = torch.randn(2, 12, 16, 16)
        assert_same(network(x), network(x * 7 + 3), 1e-4)
        assert not torch.allclose(network(x), network(x[:1])[0], atol=1e-3)

    def test_cards_tell_bands_and_statistics(self):
        optical = model_card("croma_base", modality="optical")
        assert (optical.task, optical.tile, optical.multiple, optical.bands) == ("embed", 120, 8, 12)
        assert optical.input_bands.numbers == (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13)
        radar, both = model_card("croma_base", modality="radar"), model_card("croma_base")
        assert (radar.units, radar.bands, both.bands) == ("dB", 2, 14)
        assert both.mean == optical.mean + radar.mean
        assert both.std == optical.std + radar.std


class TestFiles:
    def saved(self, network, path, rename=lambda part: part, layer=lambda key: key):
        """As the authors save their parts."""
        parts = {
            rename(part): {layer(key): value for key, value in network.get_submodule(part).state_dict().items()}
            for part in PARTS
        }
        torch.save(parts, path)
        return parts

    def test_the_official_layout_loads(self, small, tmp_path):
        network = small()
        self.saved(network, tmp_path / "CROMA_base.pt")
        loaded = create_model("croma_base", tmp_path / "CROMA_base.pt")
        state = loaded.state_dict()
        assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())

    def test_of_one_sensor_the_others_are_left_aside(self, small, tmp_path):
        network = small()
        self.saved(network, tmp_path / "a.pt")
        loaded = create_model("croma_base", tmp_path / "a.pt", modality="radar")
        x = images()[0]
        with torch.inference_mode():
            assert_same(loaded.encode(radar=x).radar, network.encode(radar=x).radar, 1e-6)

    def test_the_names_of_the_pretraining_are_translated(self, small, tmp_path):
        names = dict(
            zip(
                PARTS,
                ("radar_encoder", "GAP_FFN_radar", "optical_encoder", "GAP_FFN_optical", "cross_encoder"),
                strict=True,
            )
        )

        def theirs(key):
            for ours, name in (
                ("to_qkv", "create_qkv"),
                ("to_q.", "create_q."),
                ("to_k.", "create_k."),
                ("to_v.", "create_v."),
                ("net.3", "net.2"),
            ):
                key = key.replace(ours, name)
            return key.replace(".0.to_out.", ".0.out.")

        network = small()
        parts = self.saved(network, tmp_path / "parts.pt", names.get, theirs)
        flat = {f"{part}.{key}": value for part, state in parts.items() for key, value in state.items()}
        flat |= {"decoder.mask_token": torch.ones(1), "global_contrast_loss.logit_scale": torch.ones(1)}
        torch.save({"state_dict": flat}, tmp_path / "trained.ckpt")
        state = create_model("croma_base", tmp_path / "trained.ckpt").state_dict()
        assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())

    @pytest.mark.parametrize("change", ["missing", "left over", "deeper"])
    @pytest.mark.parametrize("modality", ["joint", "optical"])
    def test_anything_else_is_refused(self, small, tmp_path, change, modality):
        parts = self.saved(small(), tmp_path / "a.pt")
        state = parts["s2_encoder"]
        if change == "missing":
            del state["transformer.norm_out.bias"]
        else:
            layer = 0 if change == "left over" else 4
            name = "more" if change == "left over" else "to_qkv.weight"
            state[f"transformer.layers.{layer}.0.{name}"] = torch.ones(3)
        torch.save(parts, tmp_path / "a.pt")
        with pytest.raises(ModelError, match="1 missing" if change == "missing" else "1 unexpected"):
            create_model("croma_base", tmp_path / "a.pt", modality=modality)

    def test_two_weights_of_one_name_are_refused(self, small, tmp_path):
        parts = self.saved(small(), tmp_path / "a.pt")
        torch.save(parts | {"GAP_FFN_s1": parts["s1_GAP_FFN"]}, tmp_path / "a.pt")
        with pytest.raises(ModelError, match="6 unexpected: GAP_FFN_s1"):
            create_model("croma_base", tmp_path / "a.pt")


class TestStage:
    def test_a_sentinel_2_scene_is_embedded_band_by_band(self, small, make_scene, tmp_path):
        network, card = small("optical"), model_card("croma_base", modality="optical")
        save_model(network, tmp_path / "optical.safetensors", card)
        scene = make_scene(height=24, width=32, bands=13, background=0)
        order = np.array([*range(9), 9, 11, 12])  # cirrus, at 10, is no channel
        wavelength, fwhm = (np.full(13, fill) for fill in (1373.5, 30.0))
        wavelength[order], fwhm[order] = card.input_bands.wavelengths_nm, card.input_bands.fwhm_nm
        scene = scene.assign_coords(
            wavelength=("band", wavelength, scene.wavelength.attrs),
            fwhm=("band", fwhm, scene.fwhm.attrs),
            good=("band", np.ones(13, bool), scene.good.attrs),
        )
        scene["quality"].values[:] = 0
        cube = scene.reflectance.values
        cube[-2] = cube[-3]
        embedded = lift(Embed(model=str(tmp_path / "optical.safetensors")))(lift(Mask())(scene))
        x = (cube[order] - np.float32(card.mean)[:, None, None]) / np.float32(card.std)[:, None, None]
        assert embedded.embedding.shape == (32, 3, 4)
        with torch.inference_mode():
            expected = network.features(torch.from_numpy(x[None]), [3])[0][0].numpy()
        np.testing.assert_allclose(embedded.embedding.values, expected, atol=1e-4)


class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [({"modality": "sar"}, "modality 'sar'; expected joint"), ({"statistics": "image"}, "statistics 'image'")],
    )
    def test_settings(self, settings, message):
        with pytest.raises(ModelError, match=message):
            create_model("croma_base", **settings)

    def test_images_that_do_not_fit(self, small):
        network, (radar, optical) = small(), images()
        for arguments, message in (
            ({}, "no image"),
            ({"radar": optical}, r"radar images \(N, 2, H, W\)"),
            ({"radar": radar[..., :30]}, "multiples of 8"),
            ({"radar": radar, "optical": optical[:1]}, "one N, H and W"),
            ({"radar": radar, "valid": torch.ones(2, 8, 8, dtype=torch.bool)}, r"valid pixels \(2, 8, 8\)"),
        ):
            with pytest.raises(ModelError, match=message):
                network.encode(**arguments)
        with pytest.raises(ModelError, match="is for optical alone"):
            small("optical").encode(radar=radar)

    @pytest.mark.parametrize("modality", CHANNELS)
    def test_stacks_and_maps_that_do_not_fit(self, small, modality):
        network = small(modality)
        with pytest.raises(ModelError, match=rf"takes \(N, {CHANNELS[modality]}, H, W\); found \(1, 3, 8, 8\)"):
            network(torch.zeros(1, 3, 8, 8))
        with pytest.raises(ModelError, match="ascending indices from 0 to"):
            network.features(torch.zeros(1, CHANNELS[modality], 8, 8), [4])
