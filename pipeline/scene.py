"""The Scene contract: one `xarray.Dataset` layout for every sensor, and its description without pixels.

A Scene holds one or more spectral cubes `(band, y, x)` on one grid and one band axis, and layers `(y, x)` beside
them. `SceneSpec` is the same Scene as metadata only: stages plan on it, readers and stores carry it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from cubeloom.errors import InputError

from .encoding import BOOL, FLAGS, FLOAT, REFLECTANCE, Encoding
from .grids import CHUNK, Scale

QUALITY_FLAGS: dict[str, int] = {
    "background": 1 << 0,
    "water": 1 << 1,
    "cloud": 1 << 2,
    "cloud_shadow": 1 << 3,
    "haze": 1 << 4,
    "cirrus_thin": 1 << 5,
    "cirrus_medium": 1 << 6,
    "cirrus_thick": 1 << 7,
    "snow": 1 << 8,
    "interpolated": 1 << 9,
    "saturated": 1 << 10,
    "artefact": 1 << 11,
    "reduced_quality": 1 << 12,
    "low_quality": 1 << 13,
    "not_produced": 1 << 14,
    "land": 1 << 15,
}
"""Bits of the `quality` layer, one meaning each, the same for every sensor."""

MEASUREMENTS = {"reflectance": "1", "radiance": "W m-2 sr-1 nm-1", "sigma0": "1", "gamma0": "1"}
"""Names and units of the cubes that readers deliver; everything else is derived."""

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Bands:
    """The band axis. Every field has one entry a band, in the order of the cube.

    Attributes:
        number: the provider's band number, 1-based.
        wavelength: centre wavelength, nm, ascending.
        fwhm: full width at half maximum, nm.
        detector: name of the detector in lower case (`vnir`, `swir`); empty where there is one only.
        good: False where the band holds no usable data (all nodata, or inside a water-vapour absorption).
        preferred: False where another detector's band stands for the same wavelengths in plots and metrics.
    """

    number: npt.NDArray[np.int32]
    wavelength: FloatArray
    fwhm: FloatArray
    detector: npt.NDArray[np.str_]
    good: BoolArray
    preferred: BoolArray

    def __post_init__(self) -> None:
        casts = {
            "number": np.int32,
            "wavelength": float,
            "fwhm": float,
            "detector": np.str_,
            "good": bool,
            "preferred": bool,
        }
        for name, dtype in casts.items():
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=dtype))
        sizes = {name: getattr(self, name).shape for name in casts}
        if len(set(sizes.values())) != 1 or len(self.number.shape) != 1:
            raise ValueError(f"band fields differ in length: {sizes}")

    def __len__(self) -> int:
        return int(self.number.size)

    def take(self, index: npt.NDArray[Any]) -> "Bands":
        """The bands at `index` (positions or a boolean mask)."""
        fields = ("number", "wavelength", "fwhm", "detector", "good", "preferred")
        return Bands(*(getattr(self, name)[index] for name in fields))

    def describe(self, position: int) -> str:
        """A band for a message, such as `band 91 (swir, 931.2 nm)`."""
        detector = f"{self.detector[position]}, " if self.detector[position] else ""
        return f"band {self.number[position]} ({detector}{self.wavelength[position]:.1f} nm)"

    def nearest(self, wavelength: float) -> int:
        """Position of the good, preferred band nearest to `wavelength` (nm); of any band where there is none such."""
        usable = self.good & self.preferred
        distance = np.abs(self.wavelength - wavelength)
        return int(np.argmin(np.where(usable, distance, np.inf) if usable.any() else distance))


@dataclass(frozen=True)
class Variable:
    """A variable without its pixels: dimensions, encoding in a store, CF attributes."""

    dims: tuple[str, ...]
    encoding: Encoding
    attrs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_cube(self) -> bool:
        """Whether this is a spectral cube of numbers (not a per-band mask)."""
        return self.dims == ("band", "y", "x") and self.encoding != BOOL


UNCERTAINTY = "uncertainty"
"""Name of the cube that says how far the subject may be off: its standard deviation."""

_FLOAT_CUBES = ("sigma0", "gamma0", "despeckled", UNCERTAINTY, "texture")
"""Cubes whose range does not suit the packing of reflectance, whatever their units."""


def cube_variable(name: str, *, long_name: str | None = None, units: str = "1") -> Variable:
    """A cube as DESIGN stores it: reflectance-like cubes packed to int16, radiance and sigma0 as float32."""
    units = MEASUREMENTS.get(name, units)
    packed = units == "1" and name not in _FLOAT_CUBES
    attrs = {"long_name": long_name or name.replace("_", " "), "units": units}
    return Variable(("band", "y", "x"), REFLECTANCE if packed else FLOAT, attrs)


def quality_variable() -> Variable:
    """The `quality` layer with its CF flags."""
    attrs = {
        "long_name": "quality flags",
        "flag_masks": list(QUALITY_FLAGS.values()),
        "flag_meanings": " ".join(QUALITY_FLAGS),
    }
    return Variable(("y", "x"), FLAGS, attrs)


def defect_variable() -> Variable:
    """The `defect` cube: True where the detector element of that band and pixel is defective."""
    return Variable(("band", "y", "x"), BOOL, {"long_name": "defective pixel of this band"})


def valid_variable() -> Variable:
    """The `valid` layer: True where the pixel takes part in processing."""
    return Variable(("y", "x"), BOOL, {"long_name": "pixel takes part in processing"})


@dataclass(frozen=True, eq=False)
class SceneSpec:
    """A Scene without pixels.

    Attributes:
        grid: odc-geo GeoBox; its CRS is None for sensor geometry (L1B), whose coordinates are pixel numbers.
        variables: every variable of the Scene by name.
        measurement: name of the cube that was measured (`reflectance`, `radiance`, `sigma0`).
        subject: name of the cube that the next stage works on; the measurement until a stage makes another.
        group: group of the product store this Scene is written to; empty for the native grid and bands.
        scale: how many times finer the grid is than that of the source; a fraction where it is coarser.
        chunk: edge, px, of the chunks of the store that holds the Scene, on its native grid and finer ones; see
            `cubeloom.pipeline.chunks.laid_out`, which sets it for a store to be.
        attrs: further JSON-like metadata (angles, cloud cover, licence, ...), carried into store and item.
        guides: scenes of other sensors that stages may look at beside this one, by name, on the native grid or one a
            whole number of times (their `scale`) finer. One with a `group` is published too.
    """

    scene_id: str
    sensor: str
    processing_level: str
    time: datetime
    source: str
    bands: Bands
    grid: GeoBox
    variables: Mapping[str, Variable]
    measurement: str
    subject: str
    group: str = ""
    scale: Scale = 1
    chunk: int = CHUNK
    history: tuple[str, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)
    guides: Mapping[str, "SceneSpec"] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the grid, px."""
        return int(self.grid.shape[0]), int(self.grid.shape[1])

    def sizes(self, name: str) -> tuple[int, ...]:
        """Shape of a variable."""
        variable = self.variables[name]
        known = {"band": len(self.bands), "y": self.shape[0], "x": self.shape[1]}
        known["class"] = len(variable.attrs.get("class_values", ()))
        known["feature"] = int(variable.attrs.get("features", 0))
        return tuple(known[dim] for dim in variable.dims)

    def with_variables(self, /, history: str = "", subject: str | None = None, **variables: Variable) -> "SceneSpec":
        """This Scene with more (or changed) variables, one more line of history and perhaps a new subject."""
        return replace(
            self,
            variables={**self.variables, **variables},
            subject=subject or self.subject,
            history=(*self.history, history) if history else self.history,
        )


def spec_of(scene: xr.Dataset) -> SceneSpec:
    """The description of a Scene; reads coordinates and attributes, never pixels.

    Raises:
        InputError: the Dataset breaks the Scene contract.
    """
    validate_scene(scene)
    fields = {name: np.asarray(scene[name].values) for name in ("wavelength", "fwhm", "detector", "good", "preferred")}
    attrs = dict(scene.attrs)
    history = tuple(line for line in str(attrs.pop("history", "")).split("\n") if line)
    variables = {
        str(name): Variable(tuple(map(str, v.dims)), _encoding_of(v), _descriptive(v.attrs))
        for name, v in scene.data_vars.items()
    }
    own = {
        key: attrs.pop(key) for key in ("scene_id", "sensor", "processing_level", "source", "measurement", "subject")
    }
    own |= {"group": attrs.pop("group", ""), "scale": Fraction(attrs.pop("scale", 1))}
    time = datetime.fromisoformat(str(np.datetime_as_string(scene["time"].values.astype("datetime64[us]")))).replace(
        tzinfo=UTC
    )
    bands = Bands(number=np.asarray(scene["band"].values), **fields)
    return SceneSpec(
        time=time, bands=bands, grid=grid_of(scene), variables=variables, history=history, attrs=attrs, **own
    )


def coordinates(spec: SceneSpec) -> xr.Dataset:
    """A Dataset with the coordinates and attributes of a Scene and no variables."""
    bands = spec.bands
    coords: dict[str, Any] = {
        "band": ("band", bands.number, {"long_name": "band number of the provider"}),
        "wavelength": (
            "band",
            bands.wavelength,
            {"units": "nm", "standard_name": "radiation_wavelength", "long_name": "centre wavelength"},
        ),
        "fwhm": ("band", bands.fwhm, {"units": "nm", "long_name": "full width at half maximum"}),
        "detector": ("band", bands.detector.astype(object)),
        "good": ("band", bands.good, {"long_name": "band holds usable data"}),
        "preferred": ("band", bands.preferred, {"long_name": "band to show where detectors overlap"}),
        "time": np.datetime64(spec.time.astimezone(UTC).replace(tzinfo=None), "ns"),
    }
    for variable in spec.variables.values():
        if "class" in variable.dims:
            coords["class"] = (
                "class",
                np.asarray(variable.attrs["class_values"], np.uint8),
                {"long_name": "class value"},
            )
    attrs = {
        **spec.attrs,
        "scene_id": spec.scene_id,
        "sensor": spec.sensor,
        "processing_level": spec.processing_level,
        "source": spec.source,
        "measurement": spec.measurement,
        "subject": spec.subject,
        "history": "\n".join(spec.history),
    }
    if spec.group:
        whole = Fraction(spec.scale).denominator == 1
        attrs |= {"group": spec.group, "scale": int(spec.scale) if whole else float(spec.scale)}
    return xr.Dataset(coords={**coords, **_grid_coordinates(spec.grid)}, attrs=attrs)


def scene_from(spec: SceneSpec, arrays: Mapping[str, Any]) -> xr.Dataset:
    """The Scene of a spec with these arrays (Dask or NumPy) as its variables."""
    scene = coordinates(spec)
    for name, variable in spec.variables.items():
        scene[name] = xr.DataArray(arrays[name], dims=variable.dims, attrs=dict(variable.attrs))
        scene[name].encoding.update(variable.encoding.cf)
    return scene


def _grid_coordinates(grid: GeoBox) -> dict[str, Any]:
    if grid.crs is None:
        centres = {"y": np.arange(grid.shape[0]) + 0.5, "x": np.arange(grid.shape[1]) + 0.5}
        return {
            dim: (dim, values, {"units": "pixel", "long_name": f"{dim} in sensor geometry"})
            for dim, values in centres.items()
        }
    from odc.geo.xr import xr_coords

    axes: dict[Any, Any] = dict(xr_coords(grid, "spatial_ref"))
    ref = axes.pop("spatial_ref")
    named = zip(("y", "x"), axes.values(), strict=True)  # a geographic grid calls its axes latitude and longitude
    return {"spatial_ref": ref.variable, **{dim: (dim, axis.values, dict(axis.attrs)) for dim, axis in named}}


def grid_of(scene: xr.Dataset) -> GeoBox:
    """The grid of a Scene, from its `spatial_ref` and pixel-centre coordinates."""
    shape = (scene.sizes["y"], scene.sizes["x"])
    if "spatial_ref" not in scene.coords:
        return GeoBox(shape, Affine.identity(), None)
    ref = scene["spatial_ref"].attrs
    declared = Affine.from_gdal(*map(float, str(ref["GeoTransform"]).split())) if "GeoTransform" in ref else None
    return GeoBox(shape, _transform(scene, declared), str(ref.get("crs_wkt") or ref["spatial_ref"]))


def _transform(scene: xr.Dataset, declared: Affine | None) -> Affine:
    """The transform that the pixel centres say; the declared one where it agrees, since it is exact.

    A Scene cut out with xarray keeps the old GeoTransform, so the coordinates have the last word.
    """
    steps, starts = [], []
    for dim, step in (("y", declared.e if declared else None), ("x", declared.a if declared else None)):
        centres = np.asarray(scene[dim].values, float)
        if centres.size > 1:
            step = (centres[-1] - centres[0]) / (centres.size - 1)
        if step is None:
            raise InputError(f"one value of {dim!r} and no GeoTransform: the pixel size is unknown; set spatial_ref")
        steps.append(step)
        starts.append(centres[0] - step / 2)
    found = Affine(steps[1], 0, starts[1], 0, steps[0], starts[0])
    tolerance = 1e-6 * abs(steps[1])
    if declared and max(abs(a - b) for a, b in zip(found, declared, strict=True)) < tolerance:
        return declared
    return found


def _encoding_of(variable: xr.DataArray) -> Encoding:
    """How a variable will be stored: as it was read, or by its dtype and units."""
    stored = variable.encoding
    if "scale_factor" in stored and stored.get("dtype") is not None:
        fill = stored.get("_FillValue")
        return Encoding(
            str(np.dtype(stored["dtype"])), float(stored["scale_factor"]), None if fill is None else int(fill)
        )
    if np.issubdtype(variable.dtype, np.floating):
        packed = (
            variable.attrs.get("units") == "1"
            and variable.name not in _FLOAT_CUBES
            and variable.dims == ("band", "y", "x")
        )
        return REFLECTANCE if packed else FLOAT
    fill = stored.get("_FillValue")
    return Encoding(str(variable.dtype), None, None if fill is None else int(fill))


def _descriptive(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """Attributes that describe a variable, without those that the store adds by itself."""
    added = {"grid_mapping", "_FillValue", "scale_factor", "add_offset", "proj:code", "proj:wkt2", "zarr_conventions"}
    return {
        str(k): _plain(v) for k, v in attrs.items() if k not in added and not str(k).startswith(("spatial:", "proj:"))
    }


def _plain(value: object) -> Any:  # noqa: ANN401 - JSON values
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def validate_scene(scene: xr.Dataset) -> None:
    """Check the Scene contract on metadata alone; pixels are never read.

    Raises:
        InputError: lists every breach, what was found and what was expected.
    """
    problems = [*_attribute_problems(scene), *_band_problems(scene), *_variable_problems(scene)]
    if problems:
        name = scene.attrs.get("scene_id", "scene without scene_id")
        raise InputError(f"{name} is not a Scene:\n  - " + "\n  - ".join(problems))


def _attribute_problems(scene: xr.Dataset) -> list[str]:
    needed = ("scene_id", "sensor", "processing_level", "source", "measurement", "subject")
    problems = [f"attribute {key!r} is missing" for key in needed if key not in scene.attrs]
    for key in ("measurement", "subject"):
        name = scene.attrs.get(key)
        if name is not None and name not in scene.data_vars:
            problems.append(
                f"attribute {key!r} names {name!r}, none of the variables {sorted(map(str, scene.data_vars))}"
            )
    if "time" not in scene.coords:
        problems.append("coordinate 'time' (UTC) is missing")
    return problems


def _band_problems(scene: xr.Dataset) -> list[str]:
    problems = []
    for name in ("band", "wavelength", "fwhm", "detector", "good", "preferred"):
        if name not in scene.coords:
            problems.append(f"coordinate {name!r} on 'band' is missing")
        elif scene[name].dims != ("band",):
            problems.append(f"coordinate {name!r} has dimensions {scene[name].dims}, expected ('band',)")
    if problems:
        return problems
    wavelength = np.asarray(scene["wavelength"].values, float)
    if wavelength.size == 0:
        return ["there are no bands"]
    unknown = ~(np.isfinite(wavelength) & (wavelength > 0))
    if unknown.any():
        at = int(np.argmax(unknown))
        return [f"band {scene['band'].values[at]} has the wavelength {wavelength[at]:g}; expected nanometres"]
    if wavelength.max() < 100:
        problems.append(f"wavelengths run to {wavelength.max():g}: they look like micrometres; expected nanometres")
    falls = np.flatnonzero(np.diff(wavelength) < 0)
    if falls.size:
        at = int(falls[0])
        problems.append(
            f"wavelengths must ascend: band {scene['band'].values[at]} at {wavelength[at]:.1f} nm "
            f"stands before band {scene['band'].values[at + 1]} at {wavelength[at + 1]:.1f} nm"
        )
    fwhm = np.asarray(scene["fwhm"].values, float)
    unknown = ~(np.isfinite(fwhm) & (fwhm > 0))
    if unknown.any():
        at = int(np.argmax(unknown))
        problems.append(f"band {scene['band'].values[at]} has a fwhm of {fwhm[at]:g}; expected nanometres above zero")
    return problems


def _variable_problems(scene: xr.Dataset) -> list[str]:
    problems = [f"dimension {dim!r} is missing" for dim in ("y", "x") if dim not in scene.dims]
    allowed = (("band", "y", "x"), ("class", "y", "x"), ("feature", "y", "x"), ("y", "x"))
    for name, variable in scene.data_vars.items():
        if variable.dims not in allowed:
            problems.append(f"variable {name!r} has dimensions {variable.dims}, expected one of {allowed}")
    for name, unit in MEASUREMENTS.items():
        if name in scene.data_vars and scene[name].attrs.get("units") != unit:
            problems.append(f"variable {name!r} has units {scene[name].attrs.get('units')!r}, expected {unit!r}")
    return problems
