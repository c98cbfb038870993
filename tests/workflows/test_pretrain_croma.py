"""CROMA's pretraining: its losses by other means, and a training on pairs of scenes that stops and goes on."""

import csv
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import yaml
from affine import Affine
from scipy.ndimage import gaussian_filter

import cubeloom
from cubeloom.errors import ConfigError, InputError
from cubeloom.models.croma import PARTS, S1_MEAN, S1_STD, S2_MEAN, S2_STD
from cubeloom.models.registry import create_model, model_card
from cubeloom.workflows.train import PretrainRecipe, load_recipe, train
from cubeloom.workflows.train.ssl4eo import BANDS, find_chips

pytestmark = pytest.mark.skipif(find_spec("lightning") is None, reason="training networks needs the extra train")
PX, EDGE = 128, 16
"""Of a scene, and of a view; squares of two views each are the places."""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, sentinel_scenes) -> list[dict[str, str]]:
    """Two pairs of stores of one ground each: reflectance of 12 bands, and power of VV and VH."""
    folder, found = tmp_path_factory.mktemp("pairs"), []
    for number in range(2):
        draw = np.random.default_rng(number)
        fields = np.stack([gaussian_filter(draw.standard_normal((PX, PX)), 3) for _ in range(2)])
        fields /= fields.std(axis=(1, 2), keepdims=True)
        level = np.array(S2_MEAN) + np.linspace(-1, 1, 12) * S2_STD  # which every patch has, so that it is soon learnt
        optical = level[:, None, None] + 0.03 * np.tensordot(draw.normal(size=(12, 2)), fields, 1)
        decibels = np.array(S1_MEAN)[:, None, None] + 3 * fields
        scenes = dict(zip(("scene", "radar"), sentinel_scenes(optical, 10 ** (decibels / 10)), strict=True))
        paths = {name: cubeloom.write_scene(one, folder / f"{name}{number}.zarr") for name, one in scenes.items()}
        found.append({name: str(path) for name, path in paths.items()})
    return found


@pytest.fixture
def write(pairs, tmp_path):
    """Write a recipe of two epochs with changes."""

    def write(**changes) -> Path:
        recipe = {
            "kind": "pretrain",
            "method": {"name": "croma", "mask_ratio": 0.5, "decoder_width": 32, "decoder_heads": 2},
            "model": "croma_nano",
            "data": {"pairs": pairs},
            "size": EDGE,
            "batch": 4,
            "steps": 2 * 2 * (PX // (2 * EDGE)) ** 2 // 4,
            "learning_rate": 3e-3,
            "schedule": "constant",
            "threads": 1,
            "log_every": 1,
        }
        path = tmp_path / "croma.yaml"
        path.write_text(yaml.safe_dump({**recipe, **changes}))
        return path

    return write


def losses(out: Path) -> list[float]:
    with out.with_suffix(".log.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_two_epochs_with_a_stop_are_those_without_and_the_loss_falls(write, tmp_path):
    whole, parts = tmp_path / "croma_nano.tiny.safetensors", tmp_path / "parts.safetensors"
    report = train(write(), whole)
    assert (report.exit_code, report.step) == (0, 16)
    found = losses(whole)
    assert np.mean(found[-4:]) < 0.8 * np.mean(found[:4])
    assert train(write(minutes=1e-9), parts).exit_code == 75
    assert train(write(workers=1), parts).exit_code == 0
    assert whole.read_bytes() == parts.read_bytes()
    assert losses(parts) == found
    card = model_card(whole)
    assert (card.name, card.task, card.bands, card.training["places"]) == ("croma_nano.tiny", "embed", 14, 32)
    assert (card.tile, card.polarisations, card.training["recipe"]["method"]["name"]) == (EDGE, ("VV", "VH"), "croma")
    optical = create_model("croma_nano", whole, modality="joint")
    assert {key.partition(".")[0] for key in optical.state_dict()} == {part.rstrip(".") for part in PARTS}


def module_of(write, **changes):
    from cubeloom.workflows.train.pretrain import _card, _module

    recipe = load_recipe(write(**changes))
    assert isinstance(recipe, PretrainRecipe)
    torch.manual_seed(0)
    return _module(recipe, _card(recipe, Path("croma_nano.safetensors")))


def tokens_of(*places: list[int], total: int) -> tuple[torch.Tensor, torch.Tensor]:
    hidden = [[place for place in range(total) if place not in row] for row in places]
    return torch.tensor(places), torch.tensor(hidden)


@torch.no_grad()
def test_losses_are_those_of_the_formulas(write):
    module = module_of(write, size=24).eval()
    radar, optical = torch.rand(2, 2, 24, 24), torch.rand(2, 12, 24, 24)
    of_radar, of_optical = tokens_of([0, 4, 8], [1, 2, 5], total=9), tokens_of([3, 4, 5], [0, 7, 8], total=9)
    found = module.loss(radar, optical, of_radar, of_optical)

    network = module.network
    places = np.array([(row, col) for row in range(3) for col in range(3)], float)
    slopes = 2 ** (-(np.arange(16) + 1) / 2)
    expected, summaries, joints = 0.0, {"radar": [], "optical": []}, []
    for sample in range(2):
        seen = {"radar": of_radar[0][sample], "optical": of_optical[0][sample]}

        def bias(queries, keys):
            apart = np.linalg.norm(places[queries][:, None] - places[keys][None], axis=2)
            return torch.tensor(-slopes[:, None, None] * apart, dtype=torch.float32)[None]

        streams = {}
        for name, image, encoder in (("radar", radar, network.s1_encoder), ("optical", optical, network.s2_encoder)):
            patches = image[sample].unfold(1, 8, 8).unfold(2, 8, 8).permute(1, 2, 0, 3, 4).reshape(9, -1)
            tokens = encoder.linear_input(patches[seen[name]][None])
            streams[name] = encoder.transformer(tokens, bias(seen[name], seen[name]))
            ffn = network.s1_GAP_FFN if name == "radar" else network.s2_GAP_FFN
            vector = module.projections[name](ffn(streams[name].mean(1)))[0]
            summaries[name].append(vector / vector.norm())
        own, across = bias(seen["radar"], seen["radar"]), bias(seen["radar"], seen["optical"])
        joints.append(network.joint_encoder(streams["radar"], own, streams["optical"], across)[0])
    for sample in range(2):
        whole = module.mask_token[0].repeat(9, 1)
        whole[of_radar[0][sample]] = module.enter(joints[sample])
        made = module.leave(module.decoder((whole + module.places[0])[None]))[0].reshape(9, 14, 8, 8)
        stack = torch.cat([optical, radar], 1)[sample]
        truth = stack.unfold(1, 8, 8).unfold(2, 8, 8).permute(1, 2, 0, 3, 4).reshape(9, 14, 8, 8)
        mean, variance = truth.mean((1, 2, 3), keepdim=True), truth.var((1, 2, 3), keepdim=True)
        error = (made - (truth - mean) / (variance + 1e-6).sqrt()) ** 2
        expected += float(error[of_optical[1][sample], :12].mean() + error[of_radar[1][sample], 12:].mean()) / 2
    likeness = torch.stack(summaries["radar"]) @ torch.stack(summaries["optical"]).t() / 0.07
    own = likeness.diagonal()
    expected += float((likeness.logsumexp(1) - own).mean() + (likeness.logsumexp(0) - own).mean()) / 2
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_hidden_patches_of_a_sensor_are_not_seen(write):
    """Their pixels change what is to be foretold, and no token."""
    module = module_of(write).eval()
    radar, optical = torch.rand(1, 2, 16, 16), torch.rand(1, 12, 16, 16)
    of_radar, of_optical = tokens_of([0, 3], total=4), tokens_of([1, 2], total=4)
    kept = {}
    module.decode = lambda joint, seen: kept.setdefault("joint", []).append(joint) or torch.zeros(1, 4, 896)
    module.loss(radar, optical, of_radar, of_optical)
    radar[..., :8, 8:], optical[..., 8:, 8:] = 9.0, 9.0
    module.loss(radar, optical, of_radar, of_optical)
    assert torch.equal(*kept["joint"])
    optical[..., :8, 8:] = 0.0
    module.loss(radar, optical, of_radar, of_optical)
    assert not torch.allclose(kept["joint"][0], kept["joint"][2], atol=1e-3)


def test_views_show_both_sensors_of_a_place(write, pairs, tmp_path):
    from cubeloom.workflows.train.locations import load_locations

    recipe = load_recipe(write())
    locations = load_locations(recipe.data, model_card("croma_nano"), EDGE, tmp_path)
    assert len(locations) == 32
    place = locations.read(1, 0)
    scene, radar = (cubeloom.open_scene(pairs[0][name]) for name in ("scene", "radar"))
    square = np.s_[:, 0:32, 32:64]
    expected = (10 * np.log10(radar.sigma0.values[square]) - np.array(S1_MEAN)[:, None, None]) / np.array(S1_STD)[
        :, None, None
    ]
    assert place.shape == (14, 32, 32)
    assert place[12:] == pytest.approx(expected, abs=5e-3)
    assert np.corrcoef(place[0].ravel(), scene.reflectance.values[square][0].ravel())[0, 1] > 0.999


@pytest.fixture
def chips(tmp_path) -> Path:
    """Two places as SSL4EO-S12 has them: every band on a grid of its own, values that follow from where they lie."""

    def put(path: Path, px: int, metres: float, apart: float, scale: float, dtype: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        grid = Affine(metres, 0, apart, 0, -metres, apart)
        x, y = np.meshgrid(apart + metres * (np.arange(px) + 0.5), apart - metres * (np.arange(px) + 0.5))
        place = {"crs": "EPSG:32632", "transform": grid, "dtype": dtype, "count": 1, "height": px, "width": px}
        with rasterio.open(path, "w", **place) as image:
            image.write((scale * (1000 + x - 2 * y)).astype(dtype), 1)

    for place, times in (("0000007", ("20200604T054639", "20200813T054639")), ("0000008", ("20200101T000000",))):
        for time in times:
            for name in BANDS:
                edge = {"B01": 8, "B09": 8, "B02": 48, "B03": 48, "B04": 48, "B08": 48}.get(name, 24)
                path = tmp_path / "s2a" / place / f"{time}_T32" / f"{name.replace('B0', 'B')}.tif"
                put(path, edge, 480 / edge, 48 / edge, 1.0, "uint16")
            for name in ("VV", "VH"):
                put(
                    tmp_path / "s1" / place / f"S1A_{time[:7]}8T000000" / f"{name}.tif",
                    50,
                    10.1,
                    -7.0,
                    -0.01,
                    "float32",
                )
    return tmp_path


def test_chips_of_both_sensors_lie_on_one_grid_and_are_learnt_from(write, chips, tmp_path):
    out = tmp_path / "croma_nano.chips.safetensors"
    assert train(write(data={"ssl4eo": str(chips)}, batch=2, steps=1, size=16), out).step == 1
    assert model_card(out).training["places"] == 2
    found = find_chips(chips, model_card("croma_nano"))
    assert [found.dates(0), found.dates(1), found.places[0][1].radar.name] == [2, 1, "S1A_20200818T000000"]
    image = found.read(0, 1)
    assert image.shape == (14, 48, 48)
    inner = np.s_[4:-4, 4:-4]
    x, y = np.meshgrid(1 + 10 * (np.arange(48) + 0.5), 1 - 10 * (np.arange(48) + 0.5))
    field = (1000 + x - 2 * y)[inner]
    optical = image[:12] * np.array(S2_STD)[:, None, None] + np.array(S2_MEAN)[:, None, None]
    radar = image[12:] * np.array(S1_STD)[:, None, None] + np.array(S1_MEAN)[:, None, None]
    np.testing.assert_allclose(optical[:, *inner], np.stack([field / 10_000] * 12), atol=2e-4)
    np.testing.assert_allclose(radar[:, *inner], np.stack([-field / 100] * 2), atol=1e-2)
    alone = find_chips(chips, model_card("spectral_gpt_base"))
    np.testing.assert_allclose(alone.read(0, 1)[:, *inner], image[:12, *inner], atol=1e-5)
    (chips / "s2a" / "0000007" / "20200604T054639_T32" / "B8A.tif").unlink()
    with pytest.raises(InputError, match=r"B8A\.tif: no such file"):
        find_chips(chips, model_card("croma_nano"))
    with pytest.raises(InputError, match="holds no place of SSL4EO-S12"):
        find_chips(chips / "s1", model_card("croma_nano"))


def test_what_does_not_fit_is_told(write, pairs, tmp_path):
    with pytest.raises(ConfigError, match=r"method croma is for croma_\* of both sensors"):
        module_of(write, settings={"modality": "optical"})
    with pytest.raises(ConfigError, match="size 20 is no multiple of the patches' 8 px"):
        module_of(write, size=20, about={"tile": 16})
    swapped = [{"scene": pairs[0]["radar"], "radar": pairs[0]["scene"]}]
    with pytest.raises(InputError, match="holds no reflectance"):
        train(write(data={"pairs": swapped}), tmp_path / "croma_nano.x.safetensors")


def test_defaults_are_those_of_the_method(pairs):
    recipe = PretrainRecipe.model_validate({"kind": "pretrain", "method": "croma", "data": {"pairs": pairs}})
    assert (recipe.model, recipe.size, recipe.method.mask_ratio, recipe.blur) == ("croma_base", 120, 0.75, 0.0)
    library = load_recipe(Path(cubeloom.__file__).parents[1] / "workflows/library/pretrain_croma.yaml")
    assert isinstance(library, PretrainRecipe)
    assert library.method.name == "croma"
