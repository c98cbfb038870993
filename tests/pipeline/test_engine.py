"""One way of running: lifted on Dask or block by block into a store, a stage gives the same array."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import cubeloom
from cubeloom.errors import ConfigError
from cubeloom.pipeline import memory, store
from cubeloom.pipeline.engine import MemoryJournal, execute, quiet, run_to_store
from cubeloom.pipeline.executor import Threads
from cubeloom.pipeline.lift import lift
from cubeloom.pipeline.plan import make_plan
from cubeloom.pipeline.readers import open_source
from cubeloom.pipeline.readers.base import SceneSource
from cubeloom.pipeline.scene import spec_of
from cubeloom.pipeline.stages import stage_class, stage_names


class Blocks(SceneSource):
    """A scene in memory whose file would be laid out in blocks of a given shape."""

    def __init__(self, scene: xr.Dataset, shape: tuple[int, int]) -> None:
        super().__init__(scene, spec_of(scene))
        self.shape = shape

    @property
    def block_shape(self):
        return self.shape


@pytest.fixture
def scene(make_scene) -> xr.Dataset:
    """Higher than a block of statistics, and two chunks wide."""
    return make_scene(height=280, width=150, bands=16)


METHODS = ["denoise by a network", "denoise without outliers", "classify by a network"]
"""Further ways of a stage that are carried out in a way of their own."""


@pytest.fixture
def examples(scene, save_toy, save_labels, tmp_path) -> dict[str, Callable[[], list]]:
    """What makes, for every registered stage, a chain that ends with it, with parameters that make it work."""
    mask = stage_class("mask")()

    def by_network() -> list:
        toy = save_toy(tile=128, halo=16, transform="eigenimages")
        denoise = stage_class("denoise")
        return [mask, denoise(method="network", model=toy.model, weights=toy.weights, uncertainty=True)]

    def with_model(stage: str, family: str, **told: str) -> list:
        return [mask, stage_class(stage)(model=save_labels(scene, family, tile=96, multiple=8, **told))]

    chains = {
        "mask": [stage_class("mask")(dilate=2)],
        "destripe": [mask, stage_class("destripe")()],
        "denoise": [mask, stage_class("denoise")(method="subspace")],
        "denoise without outliers": [mask, stage_class("denoise")(method="subspace", outliers=True)],
        "select_bands": [stage_class("select_bands")(wavelengths=((400, 1500),))],
        "resample_bands": [
            stage_class("resample_bands")(wavelengths=(900.0, 1500.0), fwhm=400.0, max_uncovered=0.2, group="broad")
        ],
        "texture": [mask, stage_class("texture")(bands=(3,), measures=("entropy", "contrast"))],
        "indices": [mask, stage_class("indices")(names=("NDWI", "NBR", "NDSInw"), constants={"beta": 0.1})],
        "despeckle": [mask, stage_class("despeckle")(looks=5)],
        "to_db": [mask, stage_class("to_db")()],
        "superres": [mask, stage_class("superres")(scale=2)],
        "gate": [
            mask,
            stage_class("destripe")(),
            stage_class("gate")(max_sam=90, max_shift=9, max_rmse=9, max_drift=2),
        ],
    }
    return {
        **{name: lambda chain=chain: chain for name, chain in chains.items()},
        "denoise by a network": by_network,
        "classify by a network": lambda: with_model("classify", "labels"),
        "embed": lambda: with_model("embed", "maps", task="embed"),
        "classify": lambda: [mask, stage_class("classify")(model=str(trained(scene, tmp_path / "model.skops")))],
    }


def trained(scene: xr.Dataset, path: Path) -> Path:
    """A small classifier that knows the scene's bands."""
    from sklearn.ensemble import RandomForestClassifier

    from cubeloom.models.classifiers import Classifier, MapClass

    bands = spec_of(scene).bands.take(scene.good.values)
    spectra = np.nan_to_num(scene.reflectance.values[scene.good.values].reshape(len(bands), -1).T[::37])
    labels = 1 + (spectra[:, 3] > np.median(spectra[:, 3])) + 2 * (spectra[:, 9] > np.median(spectra[:, 9]))
    forest = RandomForestClassifier(5, random_state=0).fit(spectra, labels)
    classes = tuple(MapClass(value, f"class {value}", "#336699") for value in (1, 2, 3, 4))
    Classifier(forest, classes, bands.wavelength, bands.fwhm, "reflectance", "1").save(path)
    return path


RADAR = ("despeckle", "to_db")
"""Stages that take backscatter alone."""


def as_backscatter(scene: xr.Dataset) -> xr.Dataset:
    """The scene as if a radar had measured it."""
    radar = scene.rename(reflectance="sigma0").assign_attrs(measurement="sigma0", subject="sigma0")
    radar["sigma0"] = abs(radar["sigma0"]).assign_attrs(scene["reflectance"].attrs)
    return radar


def read_all(path: Path, group: str) -> dict[str, np.ndarray]:
    opened = cubeloom.open_scene(path, group=group)
    return {str(name): variable.values for name, variable in opened.data_vars.items()}


GUIDED = {"fuse", "pair", "sharpen"}
"""Stages that take a second scene, which tests of their own hold to the same."""

ALONE = [name for name in stage_names() if name not in GUIDED]


@pytest.mark.parametrize("name", [*ALONE, *METHODS])
def test_a_stage_gives_the_same_lazily_and_in_a_batch(name, scene, make_scene, examples, tmp_path, monkeypatch):
    """From a store, whose numbers steps read back from staging, and from floats that the store would round."""
    stages = examples[name]()
    wide = make_scene(height=140, width=270, bands=16)
    scene, wide = map(as_backscatter, (scene, wide)) if name in RADAR else (scene, wide)
    stored = cubeloom.write_scene(scene, tmp_path / "scene.zarr")
    for source, start, edges in (
        (open_source(stored), cubeloom.open_scene(stored), (128, 512)),
        (Blocks(wide, (140, 256)), wide, (256,)),
    ):
        lazy = start.chunk(y=100, x=130)
        for stage in stages:
            lazy = lift(stage)(lazy)
        group = spec_of(lazy).group
        by_hand = read_all(cubeloom.write_scene(lazy, tmp_path / "lazy.zarr", overwrite=True), "")
        for edge in edges:
            monkeypatch.setattr(memory, "LARGEST_BLOCK", edge)
            run_to_store(source, stages, tmp_path / "batch.zarr", overwrite=True)
            batch = read_all(tmp_path / "batch.zarr", group)
            for variable in batch:
                np.testing.assert_array_equal(batch[variable], by_hand[variable], f"{variable}, blocks of {edge} px")


def test_every_registered_stage_is_an_example(examples):
    assert sorted(examples) == sorted([*ALONE, *METHODS])


class Killed(Exception):
    """Stands for a kill in the middle of a run."""


class KilledJournal(MemoryJournal):
    """A journal whose process dies after some blocks."""

    def __init__(self, survives: int) -> None:
        super().__init__()
        self.survives = survives

    def add_block(self, window, written):
        if self.survives == 0:
            raise Killed
        super().add_block(window, written)
        self.survives -= 1


def test_a_run_goes_on_where_it_was_cut_off(scene, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "LARGEST_BLOCK", 128)
    source = Blocks(scene, (128, 128))
    stages = [stage_class("mask")(), stage_class("superres")(scale=2)]
    plan = make_plan(source, stages, workers=1)
    journal = KilledJournal(4)
    with Threads(1) as executor:
        with pytest.raises(Killed):
            execute(plan, tmp_path / "cut.zarr", journal, executor, quiet)
        done = dict(journal.chunks())
        journal.survives = 10**6
        read: set[int] = set()
        original = SceneSource.read

        def noting(self, name, window, bands=None):
            read.add(window.row)
            return original(self, name, window, bands)

        monkeypatch.setattr(SceneSource, "read", noting)
        execute(plan, tmp_path / "cut.zarr", journal, executor, quiet)
        monkeypatch.undo()
        execute(plan, tmp_path / "whole.zarr", MemoryJournal(), executor, quiet)
    assert 0 not in read, "the first row of blocks was done already"
    assert done.items() <= journal.chunks().items()
    assert (tmp_path / "cut.zarr" / store.COMMIT).read_bytes() == (tmp_path / "whole.zarr" / store.COMMIT).read_bytes()


def test_the_measurement_is_published_as_it_was_read(scene, tmp_path):
    stages = [stage_class("mask")(), stage_class("destripe")(), stage_class("denoise")(method="subspace")]
    run_to_store(Blocks(scene, (256, 150)), stages, tmp_path / "s.zarr")
    cubeloom.write_scene(scene, tmp_path / "plain.zarr")
    product = cubeloom.open_scene(tmp_path / "s.zarr")
    np.testing.assert_array_equal(product.reflectance, cubeloom.open_scene(tmp_path / "plain.zarr").reflectance)
    assert set(product.data_vars) == {"reflectance", "quality", "valid", "denoised"}
    assert product.attrs["subject"] == "denoised"


def test_a_plan_above_the_budget_is_refused_with_its_arithmetic(scene):
    with pytest.raises(ConfigError, match=r"projected memory \d+ MiB = .* workers x .* budget is 300 MiB"):
        make_plan(Blocks(scene, (512, 512)), [stage_class("denoise")(method="subspace")], workers=2, memory=300 * 2**20)


@pytest.fixture(scope="module")
def large(make_scene) -> xr.Dataset:
    return make_scene(height=600, width=600, bands=60)


def test_blocks_shrink_to_the_budget(large):
    stages = [stage_class("mask")(), stage_class("denoise")(method="subspace")]
    wide = make_plan(Blocks(large, (512, 512)), stages, workers=2, memory=8 * 2**30)
    tight = make_plan(Blocks(large, (512, 512)), stages, workers=2, memory=700 * 2**20)
    assert wide.block_shape == (512, 512)
    assert tight.block_shape[0] * tight.block_shape[1] < 512 * 512
    assert tight.projected_bytes <= 700 * 2**20
    assert tight.identity == wide.identity, "memory is no part of what a product is"
    ingest = make_plan(Blocks(large, (512, 512)), [], memory=400 * 2**20)
    assert ingest.ingest_shape[0] * ingest.ingest_shape[1] < 512 * 512


def test_publishing_what_no_step_makes_is_refused(scene):
    with pytest.raises(ConfigError, match="publish names denoised"):
        make_plan(Blocks(scene, (512, 512)), [stage_class("mask")()], publish=["denoised"])


def test_workers_of_their_own_memory_are_not_added_up(large):
    """A cluster of many workers takes blocks that one of them can hold, not a share of it for each."""
    stages = [stage_class("mask")(), stage_class("denoise")(method="subspace")]
    source, options = Blocks(large, (512, 512)), {"content": "same", "memory": 700 * 2**20}
    with pytest.raises(ConfigError, match="100 workers x"):
        make_plan(source, stages, workers=100, **options)
    many, one = (make_plan(source, stages, workers=n, together=False, **options) for n in (100, 1))
    assert many.projected_bytes <= one.projected_bytes <= options["memory"]
    assert many.block_shape <= one.block_shape
    assert many.identity == one.identity
