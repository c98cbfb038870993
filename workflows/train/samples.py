"""Labelled spectra out of scenes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.base import compute
from dask.delayed import delayed
from odc.geo.geobox import GeoBox

from cubeloom.errors import ConfigError, InputError, ModelError
from cubeloom.pipeline.binding import Binding, bind
from cubeloom.pipeline.grids import STATISTICS_BLOCK, tile
from cubeloom.pipeline.lift import lift, lift_guide
from cubeloom.pipeline.readers import open_scene
from cubeloom.pipeline.scene import QUALITY_FLAGS, Bands, SceneSpec, spec_of
from cubeloom.pipeline.stages import Pair, Stage

from .both_sensors import cube_of_both
from .labels_recipe import LabelledScene

VECTOR_SUFFIXES = {".gpkg", ".geojson", ".json", ".shp", ".fgb", ".parquet"}


@dataclass(frozen=True, eq=False)
class Samples:
    """Labelled pixels of one or more scenes.

    Attributes:
        spectra: `(n, band)` float32, without NaN; behind the bands the backscatter of `polarisations`, dB.
        labels: `(n,)` class values.
        scene: `(n,)` which scene, by number.
        row: `(n,)` and `col`: where in the scene's grid, px.
        bands: the bands of `spectra`.
        polarisations: of a radar scene beside the scenes.
        units: of `spectra`.
        variable: the cube they come from.
        sources: identity of every scene and label file.
    """

    spectra: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8]
    scene: npt.NDArray[np.int32]
    row: npt.NDArray[np.int32]
    col: npt.NDArray[np.int32]
    bands: Bands
    units: str
    variable: str
    sources: tuple[Mapping[str, str], ...]
    polarisations: tuple[str, ...] = ()


def collect(
    scenes: Sequence[LabelledScene],
    stages: Sequence[Stage],
    variable: str | None,
    names: Mapping[int, str],
    radar: str | None = None,
) -> Samples:
    """The labelled, valid pixels of scenes after `stages`.

    The first scene's usable bands are those of the samples; further scenes are bound to them.

    Args:
        scenes: scenes and labels.
        stages: what runs before.
        variable: the cube to take; None for the one that the stages made last.
        names: name of every class value.
        radar: name of a guide whose backscatter stands behind the bands; None for none.

    Raises:
        InputError: a scene or label file cannot be used; says which and why.
        ConfigError: no step gives the guide, or it shows other polarisations in some scenes.
        ModelError: a further scene lacks bands of the first.
    """
    parts: list[dict[str, npt.NDArray[Any]]] = []
    bands, units, taken, sources = None, "", "", []
    polarisations: tuple[str, ...] = ()
    for number, labelled in enumerate(scenes):
        scene, guides = after_steps(labelled, stages)
        spec = spec_of(scene)
        taken = variable or spec.subject
        if taken not in spec.variables or not spec.variables[taken].is_cube:
            raise InputError(f"{labelled.scene}: no cube {taken!r}; it has {', '.join(spec.variables)}")
        if bands is None:
            bands, units = _usable(spec), str(spec.variables[taken].attrs.get("units"))
        elif units != spec.variables[taken].attrs.get("units"):
            raise InputError(f"{labelled.scene}: {taken} is not in {units!r} like that of {scenes[0].scene}")
        labels = read_labels(labelled, spec.grid, names)
        cube, shown = _with_radar(scene, taken, guides, radar, labelled.scene)
        if parts and shown != polarisations:
            raise ConfigError(f"{labelled.scene}: its radar shows {', '.join(shown)}, not {', '.join(polarisations)}")
        polarisations = shown
        part = _take(scene, spec, cube, labels, bands, labelled.scene)
        parts.append({**part, "scene": np.full(part["labels"].size, number, np.int32)})
        sources.append(source_of(labelled, spec))
    if bands is None:
        raise ConfigError("a recipe needs at least one scene")
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return Samples(
        **joined, bands=bands, units=units, variable=taken, sources=tuple(sources), polarisations=polarisations
    )


def after_steps(labelled: LabelledScene, stages: Sequence[Stage]) -> tuple[xr.Dataset, Mapping[str, xr.Dataset]]:
    """A labelled scene after the steps of its recipe, with the guides that these ask for; and the paired guides.

    Raises:
        InputError: a scene cannot be read, or a step cannot take it.
        ConfigError: a step asks for a guide that is not named beside the scene.
    """
    scene = open_scene(labelled.scene, **labelled.options)
    guides: dict[str, xr.Dataset] = {}
    for stage in stages:
        if missing := [name for name in stage.guides if name not in labelled.guides]:
            raise ConfigError(
                f"{labelled.scene}: {stage.name} needs the guide {missing[0]!r}; name it beside the scene, "
                f"guides: {{{missing[0]}: PRODUCT}}"
            )
        if isinstance(stage, Pair):
            guide = open_scene(labelled.guides[stage.guide], **stage.open)
            guides[stage.guide] = lift_guide(stage, stage.regridded)(scene, guide)
        else:
            scene = lift(stage)(scene, *(guides[name] for name in stage.guides))
    return scene, guides


def source_of(labelled: LabelledScene, spec: SceneSpec) -> dict[str, str]:
    """What a model's card tells of a labelled scene."""
    guides = {name: path.name for name, path in labelled.guides.items()}
    return {"scene": spec.scene_id, "level": spec.processing_level, "labels": labelled.labels.name, **guides}


def _with_radar(
    scene: xr.Dataset, variable: str, guides: Mapping[str, xr.Dataset], name: str | None, path: Path
) -> tuple[xr.DataArray, tuple[str, ...]]:
    """A scene's cube with a radar's backscatter behind it where one is named, and the polarisations."""
    if name is None:
        return scene[variable], ()
    if name not in guides:
        raise ConfigError(f"{path}: no step gives the guide {name!r}; put `pair: {{guide: {name}, ...}}` among them")
    cube, bands = cube_of_both(scene, variable, guides[name])
    return cube, tuple(str(one).upper() for one in bands.detector[scene.sizes["band"] :])


def _usable(spec: SceneSpec) -> Bands:
    usable = spec.bands.good & spec.bands.preferred
    if not usable.any():
        raise InputError(f"{spec.scene_id}: no band is both good and preferred, so there is nothing to learn from")
    return spec.bands.take(usable)


def _take(
    scene: xr.Dataset, spec: SceneSpec, cube: xr.DataArray, labels: npt.NDArray[np.uint8], bands: Bands, path: Path
) -> dict[str, npt.NDArray[Any]]:
    """Spectra, labels and places of the labelled, valid pixels, block by block; blocks without labels are not read."""
    try:
        binding = bind(spec.bands, bands.wavelength, bands.fwhm)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    lazy, windows = [], []
    for window in tile(spec.shape, (STATISTICS_BLOCK, STATISTICS_BLOCK)):
        rows, cols = window.slices
        part, wanted = scene.isel(y=rows, x=cols), labels[rows, cols]
        if wanted.any():
            numbers = cube.isel(y=rows, x=cols).data
            lazy.append(delayed(_labelled)(numbers, _valid(part).data, wanted, binding, len(spec.bands)))
            windows.append(window)
    # One computation, so that statistics of the whole scene are taken once; what comes back are labelled pixels alone.
    found: list[dict[str, npt.NDArray[Any]]] = list(compute(*lazy))
    for window, one in zip(windows, found, strict=True):
        one["row"] += window.row
        one["col"] += window.col
    if not sum(one["labels"].size for one in found):
        raise InputError(
            f"{path}: none of its {int((labels > 0).sum())} labelled pixels is valid and has all good bands"
        )
    return {key: np.concatenate([one[key] for one in found]) for key in found[0]}


def _labelled(
    cube: npt.NDArray[np.float32],
    valid: npt.NDArray[np.bool_],
    labels: npt.NDArray[np.uint8],
    binding: Binding,
    count: int,
) -> dict[str, npt.NDArray[Any]]:
    """The labelled, valid pixels of one window that have all bands, of which the first `count` are spectral."""
    wanted = valid & (labels > 0)
    pixels = cube[:, wanted]
    spectra = np.concatenate([binding.apply(pixels[:count]), pixels[count:]]).T
    whole = np.isfinite(spectra).all(axis=1)
    row, col = (index[whole].astype(np.int32) for index in np.nonzero(wanted))
    return {"spectra": spectra[whole], "labels": labels[wanted][whole], "row": row, "col": col}


def _valid(part: xr.Dataset) -> xr.DataArray:
    """Pixels that take part, as `cubeloom.pipeline.blocks.Block.valid` has them."""
    if "valid" in part:
        return part["valid"]
    if "quality" in part:
        return (part["quality"] & QUALITY_FLAGS["background"]) == 0
    return xr.ones_like(part[str(part.attrs["subject"])].isel(band=0), dtype=bool)


def read_labels(labelled: LabelledScene, grid: GeoBox, names: Mapping[int, str]) -> npt.NDArray[np.uint8]:
    """Class values on a scene's grid, 0 where there is none.

    Raises:
        InputError: the labels do not lie on the grid, or hold values or names that are not among the classes.
    """
    path = labelled.labels
    if not path.exists():
        raise InputError(f"labels {path}: no such file")
    values = _from_vector(labelled, grid, names) if path.suffix.lower() in VECTOR_SUFFIXES else _from_raster(path, grid)
    unknown = sorted(set(np.unique(values).tolist()) - {0, *names})
    if unknown:
        raise InputError(f"labels {path}: values {unknown} are not among the recipe's classes {sorted(names)}")
    return values.astype(np.uint8)


def _from_raster(path: Path, grid: GeoBox) -> npt.NDArray[np.int64]:
    from cubeloom.untrusted import open_raster

    with open_raster(str(path), str(path)) as raster:
        same_grid = raster.shape == tuple(grid.shape) and raster.transform.almost_equals(grid.affine, 1e-6)
        if not same_grid or (grid.crs is not None and raster.crs != grid.crs):
            raise InputError(
                f"labels {path}: not on the scene's grid. Found {raster.shape} px, {raster.crs}, "
                f"{raster.transform[:6]}; expected {tuple(grid.shape)} px, {grid.crs}, {tuple(grid.affine)[:6]}; "
                "warp them with nearest-neighbour resampling"
            )
        values, nodata = raster.read(1), raster.nodata
    if nodata is not None:
        values = np.where(values == nodata, 0, values)
    whole: npt.NDArray[np.int64] = np.nan_to_num(values).astype(np.int64)
    return whole


def _from_vector(labelled: LabelledScene, grid: GeoBox, names: Mapping[int, str]) -> npt.NDArray[np.int64]:
    """Burn points, and polygons by the pixel centres they hold, into the grid; the later of two wins."""
    import geopandas
    from rasterio.features import rasterize

    path, field = labelled.labels, labelled.field
    table = geopandas.read_parquet(path) if path.suffix == ".parquet" else geopandas.read_file(path)
    if field is None or field not in table.columns:
        columns = [name for name in table.columns if name != table.geometry.name]
        raise InputError(f"labels {path}: set field to the attribute of the class; found {field!r}, it has {columns}")
    if table.crs is None or grid.crs is None:
        raise InputError(f"labels {path}: vector labels need a CRS, theirs and the scene's; give a raster instead")
    values: dict[str | int, int] = {name: value for value, name in names.items()}
    values.update({value: value for value in names})
    unknown = sorted({str(label) for label in table[field] if label not in values})
    if unknown:
        raise InputError(
            f"labels {path}: {field} holds {', '.join(unknown[:8])}, not among the recipe's classes {dict(names)}"
        )
    shapes = table.to_crs(grid.crs.to_wkt()).geometry
    pairs = [(shape, values[label]) for shape, label in zip(shapes, table[field], strict=True) if shape is not None]
    if not pairs:
        raise InputError(f"labels {path}: no feature has a geometry")
    burnt: npt.NDArray[np.int64] = rasterize(pairs, out_shape=tuple(grid.shape), transform=grid.affine, dtype="int32")
    return burnt
