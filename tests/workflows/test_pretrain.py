"""Pretraining without labels: the parts against other ways to compute them, and whole trainings that stop and go on."""

import csv
import os
import signal
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file

from cubeloom.errors import ConfigError, InputError
from cubeloom.models.registry import create_model, model_card
from cubeloom.models.spectral_earth import DN_OF_ONE, ENMAP_202, statistics
from cubeloom.workflows.train import PretrainRecipe, load_recipe, train
from cubeloom.workflows.train.principal_components import principal_components

pytestmark = pytest.mark.skipif(find_spec("lightning") is None, reason="training networks needs the extra train")
PX = 16
DATES = (2, 2, 1, 2, 1, 2)
"""Of each place."""


@pytest.fixture(scope="module")
def earth(tmp_path_factory) -> Path:
    """A folder in SpectralEarth's layout: places of two materials each, whose dates differ in brightness."""
    import rasterio
    from scipy.ndimage import gaussian_filter

    folder = tmp_path_factory.mktemp("earth")
    bands = np.linspace(0, 1, len(ENMAP_202))
    for place, dates in enumerate(DATES):
        random = np.random.default_rng(place)
        spectra = 3000 * (1 + np.sin(random.uniform(2, 9, (2, 1)) * bands + random.uniform(0, 6, (2, 1))))
        share = gaussian_filter(random.standard_normal((PX, PX)), 2) > 0
        cube = np.where(share, spectra[0][:, None, None], spectra[1][:, None, None])
        for date in range(dates):
            path = folder / f"enmap/{place:07d}/{date:05d}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            profile = {"driver": "GTiff", "height": PX, "width": PX, "count": len(cube), "dtype": "int16"}
            with rasterio.open(path, "w", nodata=-32768, **profile) as raster:
                raster.write((cube * (1 - 0.1 * date)).astype(np.int16))
    return folder


METHODS = {
    "mae": {
        "name": "mae",
        "mask_ratio": 0.75,
        "decoder_width": 32,
        "decoder_heads": 2,
        "adapter": "visible",
        "components": 2,
    },
    "moco": {"name": "moco", "queue": 6, "momentum": 0.9, "hidden": 32, "outputs": 16},
    "dino": {"name": "dino", "hidden": 32, "bottleneck": 16, "outputs": 12, "momentum": 0.9},
}


@pytest.fixture
def write(earth, tmp_path):
    """Write a recipe of two epochs with changes."""

    def write(method: str = "mae", /, **changes) -> Path:
        recipe = {
            "kind": "pretrain",
            "method": METHODS[method],
            "model": "spectral_vit_nano",
            "data": {"earth": str(earth)},
            "size": 8,
            "tile": PX,
            "batch": 3,
            "steps": 2 * len(DATES) // 3,
            "optimiser": "adam",
            "learning_rate": 1e-3,
            "schedule": "constant",
            "threads": 1,
            "log_every": 1,
        }
        path = tmp_path / f"{method}.yaml"
        path.write_text(yaml.safe_dump({**recipe, **changes}))
        return path

    return write


@pytest.fixture
def recipe(write):
    """A recipe with changes, read."""

    def make(method: str = "mae", /, **changes) -> PretrainRecipe:
        loaded = load_recipe(write(method, **changes))
        assert isinstance(loaded, PretrainRecipe)
        return loaded

    return make


def losses(out: Path) -> list[float]:
    with out.with_suffix(".log.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def same(ours: Path, theirs: Path) -> bool:
    a, b = load_file(ours), load_file(theirs)
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("method", METHODS)
def test_two_epochs_with_a_stop_are_those_without(write, tmp_path, method):
    whole, parts = tmp_path / "spectral_vit_nano.tiny.safetensors", tmp_path / "parts.safetensors"
    report = train(write(method), whole)
    assert (report.exit_code, report.step) == (0, 4)
    assert train(write(method, minutes=1e-9), parts).exit_code == 75
    last = train(write(method, workers=2), parts)  # prepared ahead or not, the views are the same
    assert (last.exit_code, last.step) == (0, 4)
    assert same(whole, parts)
    assert losses(whole) == losses(parts)
    card = model_card(whole)
    assert (card.name, card.task, card.bands, card.training["places"]) == ("spectral_vit_nano.tiny", "embed", 202, 6)
    assert card.mean == pytest.approx(np.array(statistics().mean) / DN_OF_ONE)
    assert card.training["recipe"]["method"]["name"] == method
    network = create_model("spectral_vit_nano", whole)
    assert network(torch.zeros(1, 202, 12, 12)).shape == (1, 128)  # positions are interpolated
    torch.manual_seed(0)
    untrained = create_model("spectral_vit_nano", image_size=8).state_dict()
    assert not torch.equal(network.state_dict()["vit_core.cls_token"], untrained["vit_core.cls_token"])


def killed_after_step_3(path, out):
    def say(line):
        if line.startswith("step 3 "):
            os.kill(os.getpid(), signal.SIGKILL)

    train(path, out, say)


def test_a_killed_training_goes_on_to_the_same_weights(write, tmp_path, forked):
    """SIGKILL after step 3: it is done again from the checkpoint of step 2, with queue and slow encoder of then."""
    path = write("moco", steps=4, checkpoint_every=2)
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    run = forked(killed_after_step_3, path, killed)
    assert run.end() == -signal.SIGKILL, run.errors
    assert [file.name for file in killed.with_suffix(".training").glob("*.ckpt")] == ["step_000000002.ckpt"]
    assert (len(losses(killed)), killed.exists()) == (3, False)
    assert (train(path, whole).step, train(path, killed).step) == (4, 4)
    assert same(whole, killed)
    assert losses(whole) == losses(killed)


@pytest.mark.parametrize(("method", "steps"), [("mae", 20), ("moco", 12), ("dino", 12)])
def test_the_loss_falls(recipe, earth, method, steps):
    """On one batch again and again, with what it is compared to held: MoCo's queue, DINO's teacher and centre."""
    chosen = recipe(method, batch=4, learning_rate=2e-3)
    module, views = module_of(chosen), views_of(chosen, earth)
    module.look_at(views.locations)
    batch = views.batch(0)
    if method == "dino":
        with torch.no_grad():
            views = batch.flatten(0, 1)
            module.get_buffer("centre").copy_(module.teacher_head(module.teacher(views)).mean(0))
    optimiser, found = module.optimiser(), []
    for step in range(steps):
        torch.manual_seed(step % 4)
        loss = module.training_step(batch, 0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        found.append(float(loss.detach()))
        if method == "moco":
            module.get_buffer("queue").copy_(torch.eye(6, 16))
    assert np.mean(found[-3:]) < 0.9 * np.mean(found[:3])


def module_of(recipe):
    from cubeloom.workflows.train.pretrain import _card, _module

    torch.manual_seed(0)
    return _module(recipe, _card(recipe, Path("spectral_vit_nano.safetensors")))


def views_of(recipe, earth):
    from cubeloom.workflows.train.locations import load_locations
    from cubeloom.workflows.train.views import Views

    card = model_card(recipe.model)
    return Views(load_locations(recipe.data, card, recipe.edge, earth / "kept"), recipe, 2)


def test_an_encoder_sees_the_tokens_it_keeps_alone(recipe):
    """Whether the adapter sees the whole image or not: with running statistics the tokens are the same."""
    whole = recipe(size=12, method={**METHODS["mae"], "adapter": "whole"})
    module = module_of(whole).eval()
    random = torch.Generator().manual_seed(0)
    for norm in (module.network.spectral_adapter[index] for index in (1, 4, 7)):
        norm.running_mean.uniform_(-0.1, 0.1, generator=random)
        norm.running_var.uniform_(0.5, 2, generator=random)
    x = torch.randn(2, 202, 12, 12, generator=random)
    kept, masked = module.draw(2, x.device)
    assert (kept.shape, masked.shape) == ((2, 2), (2, 7))
    assert torch.equal(torch.cat([kept, masked], 1).sort(1).values, torch.arange(9).expand(2, 9))
    with torch.no_grad():
        seen = module.encode(x, kept)
        module.method = module.method.model_copy(update={"adapter": "visible"})
        assert torch.allclose(module.encode(x, kept), seen, atol=1e-5)
        for sample, tokens in enumerate(masked):
            for token in tokens.tolist():
                row, col = 4 * (token // 3), 4 * (token % 3)
                x[sample, :, row : row + 4, col : col + 4] = 99
        assert torch.allclose(module.encode(x, kept), seen, atol=1e-5)
        assert not torch.allclose(module.encode(x + 1, kept), seen, atol=1e-2)


def test_the_whole_of_an_image_gives_the_network_s_own_features(recipe):
    """With all tokens kept, the masked encoder is the network."""
    module = module_of(recipe(size=12, method={**METHODS["mae"], "adapter": "whole"})).eval()
    x = torch.randn(2, 202, 12, 12)
    with torch.no_grad():
        tokens = module.encode(x, torch.arange(9).expand(2, 9))
        [features] = module.network.features(x, [7])
        assert torch.allclose(tokens[:, 1:], features.flatten(2).transpose(1, 2), atol=1e-4)
        assert torch.allclose(tokens[:, 0], module.network(x), atol=1e-4)


def test_targets_are_tokens_standardised():
    from cubeloom.workflows.train.mae import targets

    x = torch.randn(2, 3, 8, 12) * torch.arange(1, 4)[:, None, None]
    found = targets(x, 4)
    assert found.shape == (2, 6, 48)
    for token in range(6):
        row, col = 4 * (token // 3), 4 * (token % 3)
        values = x[1, :, row : row + 4, col : col + 4].reshape(-1)
        assert torch.allclose(found[1, token], (values - values.mean()) / values.std(), atol=1e-4)


def test_principal_components_are_unrelated_and_of_variance_one():
    class Gradients:
        """Places whose spectra are mixtures of a few, and noise."""

        def __len__(self) -> int:
            return 40

        def dates(self, index: int) -> int:
            return 2

        def read(self, index: int, date: int):
            rng = np.random.default_rng([index, date])
            shares = rng.normal(size=(4, 900)) * np.array([30, 3, 1, 0.3])[:, None]
            mixed = 5 + np.sin(np.outer(np.arange(1, 51), [0.1, 0.2, 0.3, 0.4])) @ shares
            return (mixed + 1e-3 * rng.normal(size=mixed.shape)).reshape(50, 30, 30)

    places = Gradients()
    components = principal_components(places, 4, seed=0)
    spectra = np.concatenate([places.read(place, 0).reshape(50, -1) for place in range(40)], axis=1)
    scores = components[:, :-1] @ spectra + components[:, -1:]
    np.testing.assert_allclose(scores.mean(axis=1), 0, atol=0.05)
    np.testing.assert_allclose(np.cov(scores), np.eye(4), atol=0.05)
    left = spectra - np.linalg.pinv(components[:, :-1]) @ scores
    assert np.var(left, axis=1).max() < 2e-6  # noise alone
    with pytest.raises(ConfigError, match=r"components 51 .* 50 bands"):
        principal_components(places, 51, seed=0)


def test_what_is_foretold_are_components_of_the_pixels(recipe, earth):
    """Of all pixels of a token, in the order of `patches`: its decoder's last layer has as many outputs."""
    chosen = recipe("mae")
    module, views = module_of(chosen), views_of(chosen, earth)
    module.look_at(views.locations)
    x = views.batch(0)[0]
    found = module._targets(x)
    components = principal_components(views.locations, 2, chosen.seed)
    pixel = x[0, :, 5, 6].numpy()  # second token of the second row of four pixels: row 1, column 2 of it
    expected = np.clip(components[:, :-1] @ pixel + components[:, -1], -5, 5)
    assert found.shape == (3, 4, 32) == (*found.shape[:2], module.leave[1].out_features)
    np.testing.assert_allclose(found[0, 3].reshape(2, 4, 4)[:, 1, 2], expected, atol=1e-3)


def test_positions_are_sines_of_column_and_row():
    from cubeloom.workflows.train.mae import positions

    found = positions(5, 16)
    assert found.shape == (1, 26, 16)
    assert not found[0, 0].any()
    row, col = 3, 2
    rates = 10_000 ** (-np.arange(4) / 4)
    expected = np.concatenate([f(place * rates) for place in (col, row) for f in (np.sin, np.cos)])
    assert found[0, 1 + 5 * row + col].numpy() == pytest.approx(expected, abs=1e-6)


def test_contrast_is_the_cross_entropy_of_likenesses():
    from cubeloom.workflows.train.moco import contrast

    query, key, queue = (torch.nn.functional.normalize(torch.randn(n, 5), dim=1) for n in (3, 3, 7))
    found = 0.0
    for q, k in zip(query, key, strict=True):
        likeness = np.exp(np.array([float(q @ k), *(float(q @ other) for other in queue)]) / 0.2)
        found -= np.log(likeness[0] / likeness.sum()) / 3
    assert float(contrast(query, key, queue, 0.2)) == pytest.approx(found, rel=1e-5)


def test_the_queue_holds_the_last_keys():
    from cubeloom.workflows.train.moco import MocoModule
    from cubeloom.workflows.train.pretrain_recipe import Moco

    queue = torch.zeros(5, 2)
    holder = MocoModule.__new__(MocoModule)
    torch.nn.Module.__init__(holder)
    holder.method = Moco()
    holder.register_buffer("queue", queue)
    holder.register_buffer("next", torch.zeros((), dtype=torch.long))
    keys = torch.arange(12.0)[:, None].expand(12, 2)
    for start in range(0, 12, 3):
        holder._enqueue(keys[start : start + 3])
    assert set(holder.get_buffer("queue")[:, 0].tolist()) == {7, 8, 9, 10, 11}


def test_views_foretell_each_other_and_not_themselves():
    from cubeloom.workflows.train.dino import cross_views

    wanted, logits = torch.randn(8, 6).softmax(1), torch.randn(8, 6)
    expected = 0.0
    for place in range(4):
        for a, b in ((0, 1), (1, 0)):
            expected -= float((wanted[4 * a + place] * logits[4 * b + place].log_softmax(0)).sum()) / 8
    assert float(cross_views(wanted, logits, 2)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", ["moco", "dino"])
def test_the_mean_of_the_last_map_may_be_what_is_compared(recipe, method):
    """It is that of the tokens, without the class token, which then learns nothing by itself."""
    module = module_of(recipe(method, method={**METHODS[method], "embedding": "map"}))
    x = torch.randn(2, 202, 8, 8)
    with torch.no_grad():
        tokens = module.network.backbone.forward_features(module.network.spectral_adapter(x))
        found = module.embed(module.network, x)
    assert found.shape == (2, module.width)
    assert torch.allclose(found, tokens[:, 1:].mean(1), atol=1e-5)
    module.training_step(torch.randn(2, 3, 202, 8, 8), 0).backward()
    assert module.network.backbone.patch_embed.proj.weight.grad.abs().sum() > 0


def test_a_teacher_learns_to_the_end(recipe):
    """Its momentum reaches 1 with the last step alone; the authors' does after a tenth."""
    module = module_of(recipe("dino", steps=1000))
    momenta = [module.momentum(step) for step in range(1000)]
    assert momenta[0] == pytest.approx(0.9)
    assert (np.diff(momenta) > 0).all()
    assert momenta[500] == pytest.approx(0.95)
    assert momenta[-1] < 1


def test_followers_are_moving_averages_and_the_last_layer_waits(recipe, earth):
    from cubeloom.workflows.train.loop import claim, run_loop

    chosen = recipe("dino", steps=2, method={**METHODS["dino"], "momentum": 0.5, "freeze_last": 0.5})
    module = module_of(chosen)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    run_loop(module, views_of(chosen, earth), chosen, claim(chosen, earth / "a.safetensors"), model_card(chosen.model))
    after = module.state_dict()
    bias, last = "head.layers.0.bias", "head.last.weight"
    assert not torch.equal(after[last], before[last])  # the second step moved it, and the second alone:
    moved = (after[f"teacher_{last}"] - before[last]) / (after[last] - before[last])
    assert moved.median() == pytest.approx(1 - module.momentum(1), abs=1e-3)
    assert not torch.equal(after[bias], before[bias])
    assert not torch.equal(after[f"teacher_{bias}"], after[bias])
    assert module.trained is module.teacher


def test_two_dates_are_the_two_views(recipe, earth):
    plain = recipe("moco", size=PX, crop=[1, 1], flip=0, blur=0, batch=6)
    views = views_of(plain, earth)
    batch = views.batch(0)
    assert batch.shape == (2, 6, 202, PX, PX)
    assert torch.equal(batch, views.batch(0))
    assert not torch.equal(batch, views.batch(1))
    alike = [torch.equal(*batch[:, place]) for place in range(6)]
    assert sum(alike) == DATES.count(1)  # each place once, and where there is one date, it twice
    seen = {batch[0, place].numpy().tobytes() for place in range(6)}
    read = [views.locations.read(i, d) for i, n in enumerate(DATES) for d in range(n)]
    assert seen <= {np.ascontiguousarray(one).tobytes() for one in read}


def test_images_are_standardised_and_lack_nothing(recipe, earth):
    from rasterio import open as open_raster

    locations = views_of(recipe(), earth).locations
    path = earth / "enmap/0000002/00000.tif"
    with open_raster(path, "r+") as raster:
        values = raster.read()
        values[:, 3, 4] = -32768
        raster.write(values)
    image = locations.read(2, 0)
    mean, std = (np.array(part)[:, None, None] for part in statistics())
    expected = (values - mean) / std
    expected[:, 3, 4] = 0
    assert image == pytest.approx(expected, abs=1e-4)


def test_crops_have_the_share_asked_for():
    from cubeloom.workflows.train.views import crop_of

    random = np.random.default_rng(0)
    for _ in range(200):
        rows, cols = crop_of(60, 90, (0.1, 0.4), random)
        height, width = rows.stop - rows.start, cols.stop - cols.start
        assert 0 <= rows.start <= rows.stop <= 60
        assert 0 <= cols.start <= cols.stop <= 90
        assert 0.09 < height * width / 5400 < 0.42
        assert 0.7 < width / height < 1.4


def test_blur_is_a_gaussian():
    from scipy.ndimage import gaussian_filter

    from cubeloom.workflows.train.views import blurred

    image = np.random.default_rng(0).standard_normal((3, 100, 100)).astype(np.float32)
    expected = gaussian_filter(image, (0, 1.2, 1.2), mode="mirror", radius=(0, 5, 5))
    assert blurred(torch.from_numpy(image), 1.2).numpy() == pytest.approx(expected, abs=1e-5)


def test_simulated_dates_share_the_ground_and_not_the_noise():
    from cubeloom.models.spectral_earth import enmap_bands
    from cubeloom.workflows.train.simulated_dates import band_table, simulate_dates

    table = band_table(enmap_bands())
    first, second = simulate_dates(3000, 24, 2, table)
    assert first.cube.shape == (202, 24, 24)
    assert np.isfinite(first.cube).all()
    assert (first.classes == second.classes).mean() > 0.6
    assert np.array_equal(first.cube, simulate_dates(3000, 24, 1, table)[0].cube)
    noise = [
        one.cube - clean.cube
        for one, clean in zip((first, second), simulate_dates(3000, 24, 2, table, 0.0), strict=True)
    ]
    likeness = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(*noise, strict=True)]
    assert abs(np.mean(likeness)) < 0.05


def test_scenes_are_cut_into_places(recipe, tmp_path):
    """A product's squares hold its reflectance, standardised, and 0 outside the swath."""
    from cubeloom.pipeline.readers import open_scene
    from cubeloom.pipeline.simulate import simulate_scene

    product = simulate_scene(tmp_path, height=48, width=48, seed=3)
    chosen = recipe(data={"scenes": [str(product.path)]}, size=8, tile=8)
    locations = views_of(chosen, tmp_path).locations
    assert 5 <= len(locations) <= 9
    assert [locations.read(i, 0).shape[0] for i in range(len(locations))] == [202] * len(locations)
    [middle] = [files[0] for files in locations.parts[0].files if files[0].stem == "000016_000016_0"]
    scene = open_scene(product.path)
    reflectance = scene["reflectance"].values[np.array(ENMAP_202) - 1, 16:32, 16:32]
    mean, std = (np.array(part)[:, None, None] / DN_OF_ONE for part in statistics())
    expected = (reflectance - mean) / std
    known = np.isfinite(expected)
    assert known.mean() > 0.9
    assert np.load(middle).transpose(2, 0, 1)[known] == pytest.approx(expected[known], abs=4e-3)


def test_simulated_places_are_kept_for_other_trainings(write, tmp_path):
    """In a folder that the recipe names, relative to itself, and that does not make it another recipe."""
    from cubeloom.workflows.train.locations import load_locations

    places = {"count": 1, "px": 16}
    plain, named = (load_recipe(write(data={"simulated": said})) for said in (places, {**places, "folder": "kept"}))
    assert plain.identity() == named.identity()
    assert "folder" not in named.described()["data"]["simulated"]
    card = model_card(named.model)
    first = load_locations(named.data, card, named.edge, tmp_path / "one")
    [stored] = first.parts
    [[file, _]] = stored.files
    assert file.is_relative_to(tmp_path / "kept")
    written = file.stat().st_mtime_ns
    again = load_locations(named.data, card, named.edge, tmp_path / "two")
    alone = load_locations(plain.data, card, plain.edge, tmp_path / "three")
    assert file.stat().st_mtime_ns == written
    assert not (tmp_path / "two").exists()
    image = first.read(0, 0)
    assert image.shape == (202, 16, 16)
    assert all(np.array_equal(other.read(0, 0), image) for other in (again, alone))
    assert not np.array_equal(first.read(0, 1), image)


def test_a_resnet_learns_by_contrast_and_is_refused_by_masking(recipe):
    chosen = recipe("moco", model="spectral_resnet50", size=64)
    module = module_of(chosen)
    module.training_step(torch.randn(2, 2, 202, 16, 16), 0).backward()
    assert float(module.network.backbone.layer1[0].conv1.weight.grad.abs().sum()) > 0
    assert all(weight.grad is None for weight in module.slow.parameters())
    with pytest.raises(ConfigError, match="spectral_resnet50 has none: use moco or dino"):
        module_of(recipe("mae", model="spectral_resnet50", size=32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "simclr"}, r"method.*'mae', 'moco', 'dino'"),
        ({"crop": [0.8, 0.2]}, r"crop is a range from low to high; found \[0.8, 0.2\]"),
        ({"data": {}}, "nothing to learn from: give earth, ssl4eo, scenes, pairs or simulated"),
        ({"method": {"name": "mae", "mask_ratio": 1.5}}, "mask_ratio"),
        ({"settings": {"image_size": 64}}, "settings.image_size 64 is not size 8"),
    ],
)
def test_wrong_recipes_are_told(write, changes, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe(write(**changes))


def test_dates_of_a_place_are_on_one_grid(recipe, tmp_path):
    from cubeloom.pipeline.simulate import simulate_scene

    bands = {"height": 32, "width": 32, "seed": 3}
    here, there = simulate_scene(tmp_path, **bands), simulate_scene(tmp_path, **bands, place=(47.0, 11.0))
    with pytest.raises(InputError, match="not on the grid of"):
        views_of(recipe(data={"scenes": [[str(here.path), str(there.path)]]}), tmp_path)
    raw = simulate_scene(tmp_path, **bands, level="L1C")
    with pytest.raises(InputError, match=r"holds no reflectance, which the network sees; found radiance"):
        views_of(recipe(data={"scenes": [str(raw.path)]}), tmp_path)


def test_what_cannot_be_learnt_from_is_told(recipe, tmp_path):
    (tmp_path / "enmap").mkdir()
    with pytest.raises(InputError, match="holds no patch"):
        views_of(recipe(data={"earth": str(tmp_path)}), tmp_path)
    with pytest.raises(ConfigError, match="is no spectral backbone"):
        module_of(recipe(model="hsdt_s"))


def test_the_shipped_encoder_tells_a_spectrum_from_another():
    """Its card says what it has learnt from, and that it has not seen the scene that classifiers are judged on."""
    card = model_card("spectral_vit_nano.enmap")
    assert (card.task, card.sensor, card.input_bands.numbers) == ("embed", "EnMAP", ENMAP_202)
    assert "No pixel of the Potsdam scene" in card.training["note"]
    network = create_model("spectral_vit_nano.enmap")
    x = torch.zeros(2, 202, 64, 64)
    x[1, 50:80] = 1
    assert not torch.allclose(*network(x), atol=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_the_recipes_of_the_library_are_such(method):
    from cubeloom.workflows import train as package

    recipe = load_recipe(Path(package.__file__).parents[1] / f"library/pretrain_{method}.yaml")
    assert isinstance(recipe, PretrainRecipe)
    assert recipe.method.name == method
    assert recipe.data.simulated.dates == 2


def test_defaults_are_those_of_the_method():
    least = {"kind": "pretrain", "data": {"simulated": {"px": 128}}}
    mae, moco = (PretrainRecipe.model_validate({**least, "method": name}) for name in ("mae", "moco"))
    assert (mae.method.mask_ratio, mae.crop, mae.optimiser, mae.batch) == (0.9, (0.4, 1.0), "adam", 256)
    assert (moco.method.queue, moco.crop, moco.optimiser, moco.schedule) == (32_768, (0.08, 1.0), "sgd", "multistep")
    assert PretrainRecipe.model_validate({**least, "method": "moco", "optimiser": "adam"}).optimiser == "adam"
