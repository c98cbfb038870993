"""Ground to evaluate super-resolution on: simulated, with the truth known, or a product with a guide or without."""

import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.geobox import GeoBox

from cubeloom.errors import ConfigError
from cubeloom.models.cards import did_you_mean
from cubeloom.pipeline.degrade import degrade
from cubeloom.pipeline.functions import mask, pair, resample_bands
from cubeloom.pipeline.readers import open_scene
from cubeloom.pipeline.scene import Bands, FloatArray, SceneSpec, cube_variable, scene_from, spec_of
from cubeloom.pipeline.simulate.bands import operational
from cubeloom.pipeline.simulate.observation import Cube, build_cubes, build_ground
from cubeloom.pipeline.simulate.options import ground_options, settle_site
from cubeloom.pipeline.simulate.sentinel2 import simulate_sentinel2
from cubeloom.pipeline.simulate.styles import STYLES
from cubeloom.pipeline.srf import SENSORS

from .cubes import centre, cube_name, parse_source, split_options

Float32Array = npt.NDArray[np.float32]

SIMULATED = "simulated:"
GUIDES: Mapping[str, dict[str, str]] = {"finest": {}, "common": {"bands": "common"}}
"""What of a guide methods may take, with the options to open it by: its finest bands, or the coarser ones as well."""
OWN_BANDS = {
    "finest": ("B2", "B3", "B4", "B8"),
    "common": ("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12"),
}
"""The same of a guide that is the scene's own cube, seen through a sensor's responses."""
WATER_VAPOUR = ((1350, 1460), (1800, 1960))
"""Ranges, nm, whose bands count as not good on simulated ground."""
EDGE = 96


@dataclass(frozen=True, eq=False)
class Ground:
    """A piece of ground, and all that is known of it.

    Attributes:
        name: unique among those of an evaluation.
        source: as the user wrote it.
        scene: what was measured, in memory; pixels that take no part are NaN.
        truth: its cube on the grid some times finer, `(band, y, x)`, where that is known.
        guides: the guide on that finer grid, by what of it is taken.
        own: a guide made of the scene's cube, on its own grid: for Wald's protocol alone, where it is the truth.
        notes: what had to be decided.
    """

    name: str
    source: str
    scene: xr.Dataset
    truth: Float32Array | None = None
    guides: Mapping[str, xr.Dataset] = field(default_factory=dict)
    own: Mapping[str, xr.Dataset] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_ground(
    source: str, scale: int, mtf: float, largest: int, guides: Collection[str], taken: Collection[str] = ()
) -> Ground:
    """Ground from `PATH[#guide=PATH,...]` or `simulated:LANDSCAPE[#seed=N,edge=PX]`.

    Args:
        source: the scene: a product, store or raster as `open_scene` takes them, cropped about its middle. `guide`
            names a finer scene of another sensor, which is co-registered, or a sensor of `resample_bands`: then the
            guide is the scene's own cube through that sensor's responses. `name` is what the ground is called. Other
            options are those of `open_scene`.
        scale: how many times finer truth and guides shall be.
        mtf: modulation transfer by which simulated ground is degraded to its scene.
        largest: longest side of the crop, px.
        guides: which of `GUIDES` are wanted.
        taken: names that others have.

    Raises:
        InputError: nothing there that can be read.
        ConfigError: an option that does not fit.
    """
    if source.startswith(SIMULATED):
        return _simulated(source, scale, mtf, guides, taken)
    path, options = parse_source(source)
    guide, name = options.pop("guide", None), options.pop("name", path.name)
    scene = _kept(_cropped(open_scene(path, **options), largest, scale))
    ground = Ground(cube_name(Path(name), list(taken)), source, scene)
    if guide is None:
        return ground
    if guide in SENSORS:
        note = f"guide in Wald's protocol: the scene's own cube through the responses of {guide}"
        return replace(ground, own={name: _through(scene, guide, name) for name in guides}, notes=(note,))
    return replace(ground, guides=_paired(scene, guide, scale, guides, coregister="correct"))


def _cropped(scene: xr.Dataset, largest: int, scale: int) -> xr.Dataset:
    """The middle of a scene, edges multiples of the scale."""
    row, col, *edges = centre((scene.sizes["y"], scene.sizes["x"]), largest)
    height, width = (edge // scale * scale for edge in edges)
    return scene.isel(y=slice(row, row + height), x=slice(col, col + width))


def _kept(scene: xr.Dataset) -> xr.Dataset:
    """A scene in memory with one cube alone, NaN at pixels that take no part."""
    spec = spec_of(scene)
    cube = np.where(mask(scene)["valid"].values, scene[spec.subject].values, np.float32(np.nan))
    return with_cube(spec, cube)


def with_cube(spec: SceneSpec, cube: Float32Array, grid: GeoBox | None = None) -> xr.Dataset:
    """A Scene with another cube in the place of its subject and nothing beside, on its grid or another one."""
    name = spec.subject
    kept = {name: spec.variables[name]}
    return scene_from(replace(spec, grid=grid or spec.grid, variables=kept, measurement=name), {name: cube})


def _paired(
    scene: xr.Dataset, path: str | Path, scale: int, guides: Collection[str], coregister: str
) -> dict[str, xr.Dataset]:
    """A guide on the grid `scale` times finer, in memory; Sentinel-2's bands of 10 m, whose blur is known, restored."""
    paired = {}
    for name in guides:
        guide = open_scene(path, **GUIDES[name])
        how = "restored" if name == "finest" and guide.attrs["sensor"].startswith("Sentinel-2") else None
        paired[name] = _kept(pair(scene, guide, refine=scale, coregister=coregister, resampling=how))
    return paired


def _through(scene: xr.Dataset, sensor: str, guide: str) -> xr.Dataset:
    """The scene's cube as a sensor of few bands would see it."""
    seen = [response for response in SENSORS[sensor] if response.name in OWN_BANDS[guide]]
    bands = {"wavelengths": [one.wavelength for one in seen], "fwhm": [one.fwhm for one in seen]}
    made = resample_bands(scene, **bands).load()
    return made.assign_attrs(scene_id=f"{scene.attrs['scene_id']} through {sensor}", sensor=sensor)


def _simulated(source: str, scale: int, mtf: float, guides: Collection[str], taken: Collection[str]) -> Ground:
    text, options = split_options(source)
    landscape = text.removeprefix(SIMULATED)
    if landscape not in STYLES:
        hint = did_you_mean(landscape, STYLES)
        raise ConfigError(f"{source}: {landscape!r} is no landscape{hint}; expected one of {', '.join(STYLES)}")
    if unknown := sorted(set(options) - {"seed", "edge"}):
        raise ConfigError(f"{source}: simulated ground takes no option {unknown[0]!r}; it takes seed and edge")
    try:
        seed, edge = int(options.get("seed", 0)), int(options.get("edge", EDGE))
    except ValueError:
        raise ConfigError(f"{source}: seed and edge are whole numbers") from None
    scene, truth = simulate(landscape, seed, edge // scale * scale, scale, mtf)
    with tempfile.TemporaryDirectory(prefix="cubeloom-") as folder:
        product = simulate_sentinel2(Path(folder), seed=seed, height=edge, width=edge, landscape=landscape, clouds=0.0)
        paired = _paired(scene, product.path, scale, guides, coregister="off")
    note = f"simulated {landscape} landscape, seed {seed}"
    return Ground(cube_name(Path(f"{landscape}-{seed}"), list(taken)), source, scene, truth, paired, notes=(note,))


def simulate(landscape: str, seed: int, edge: int, scale: int, mtf: float) -> tuple[xr.Dataset, Float32Array]:
    """A simulated EnMAP scene and its truth.

    The ground is sampled on a grid `scale` times finer through EnMAP's bands: the truth, `(band, y, x)`. Degraded, and
    with the noise of the simulated detectors, it is the scene. No clouds, no stripes, no dead elements.

    Args:
        landscape: of `STYLES`.
        seed: of the ground; Sentinel-2 by the same seed, landscape and edge shows the same.
        edge: of the scene, px of 30 m.
        scale: how many times finer the truth is.
        mtf: modulation transfer by which the truth is degraded.
    """
    options = ground_options(seed, edge, edge, landscape, bands=operational())
    site = settle_site(options)
    [cube] = build_cubes(options, site, build_ground(options, site))
    truth = np.stack([_row(cube, row, edge * scale, scale) for row in range(edge * scale)], axis=1)
    order = np.argsort(options.bands.wavelength, kind="stable")
    swath = cube.ground.swath
    spec = SceneSpec(
        scene_id=f"{landscape}-{seed}",
        sensor="EnMAP",
        processing_level="L2A",
        time=site.start,
        source="simulated",
        bands=_bands(options.bands.wavelength[order], options.bands.fwhm[order], options.bands.detector[order]),
        grid=GeoBox((edge, edge), swath.transform, f"EPSG:{swath.epsg}"),
        variables={"reflectance": cube_variable("reflectance")},
        measurement="reflectance",
        subject="reflectance",
    )
    measured = _noisy(cube, degrade(truth, scale, mtf), seed)
    return scene_from(spec, {"reflectance": measured[order]}), truth[order]


def _bands(wavelength: FloatArray, fwhm: FloatArray, detector: npt.NDArray[Any]) -> Bands:
    absorbed = np.any([(wavelength >= low) & (wavelength <= high) for low, high in WATER_VAPOUR], axis=0)
    every = np.ones(len(wavelength), bool)
    return Bands(np.arange(1, len(wavelength) + 1, dtype=np.int32), wavelength, fwhm, detector, ~absorbed, every)


def _row(cube: Cube, row: int, width: int, scale: int) -> Float32Array:
    """One row of the fine grid, `(band, x)`."""
    x = ((np.arange(width) + 0.5) / scale).astype(np.float32)
    y = np.full(width, (row + 0.5) / scale, np.float32)
    return cube.ground.surface.reflectance(y, x, cube.spectra, 1 / scale).T


def _noisy(cube: Cube, clean: Float32Array, seed: int) -> Float32Array:
    """The clean cube as the simulated detectors measure it, corrected for the atmosphere again."""
    pixels = clean.reshape(len(clean), -1).T
    light, columns = cube.transfer, np.arange(len(pixels)) % cube.ground.swath.columns
    radiance = (pixels * light.slope + light.path).astype(np.float32)
    measured, _ = cube.sensor.measure(radiance, columns, np.random.default_rng(seed))
    return (((measured - light.path) / light.slope).T.reshape(clean.shape)).astype(np.float32)
