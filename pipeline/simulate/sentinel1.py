"""`simulate_sentinel1`: a Sentinel-1 GRD product over the ground of a simulated EnMAP scene."""

import hashlib
import json
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

from cubeloom.errors import ConfigError

from .api import SimulatedProduct
from .observation import build_ground
from .options import Site, ground_options, settle_site
from .packaging import replace_in
from .sentinel1_documents import (
    Points,
    ProductFacts,
    annotation_document,
    calibration_document,
    ground_points,
    manifest,
    noise_document,
)
from .sentinel1_radiometry import POLARISATIONS, Instrument, add_reflectors
from .sentinel1_view import Scattering, radar_grid, scattering_table

FloatArray = npt.NDArray[np.float64]
_LINES = 64
"""Lines that are computed at once."""
_NEW_NOISE = 2.9
"""First version of the processor that annotates noise along track, and leaves zeros beside the image."""
_BORDER = 9
"""Largest number of border noise, of older processors."""
_PLACES = ((0.3, 0.3), (0.3, 0.7), (0.7, 0.3), (0.7, 0.7))
"""Where reflectors stand, as shares of the ground's height and width."""


def simulate_sentinel1(
    out: Path,
    *,
    seed: int = 0,
    height: int = 256,
    width: int = 256,
    landscape: str = "temperate",
    place: tuple[float, float] | None = None,
    start: datetime | None = None,
    delay_minutes: float = 390.0,
    direction: str = "ascending",
    version: str = "003.71",
    gain: float = 474.0,
    noise_floor: float = -24.0,
    looks: int = 5,
    reflectors: bool = False,
    shift: tuple[float, float] = (0.0, 0.0),
) -> SimulatedProduct:
    """Write a Sentinel-1 IW GRDH product (VV, VH) as ESA's SAFE folder, with the truth beside it.

    With the `seed`, `height`, `width`, `landscape`, `place` and `start` of a scene by `simulate_scene` (levels L1C and
    L2A) it shows the same ground. The same arguments give the same pixels. A product of the same name is replaced. A
    GRD image lies on no map, so there is no `epsg`: the reader's `crs=` chooses one.

    The truth is on the image's lines and pixels: `sigma0.tif` (VV, VH, linear, without speckle), `classes.tif`, and
    PARAMETERS.json.

    Args:
        out: folder for the product and `<PRODUCT>-TRUTH/`.
        seed: decides all that is random; of the EnMAP scene.
        height: of the EnMAP scene's rasters, px of 30 m.
        width: of the EnMAP scene's rasters, px of 30 m.
        landscape: `temperate`, `arid`, `coastal` or `alpine`.
        place: latitude and longitude of the middle, deg; drawn as for the EnMAP scene when None.
        start: the EnMAP scene's first line, with time zone; drawn as there when None.
        delay_minutes: from then to this pass.
        direction: `ascending` or `descending`.
        version: of the processor; before 002.90 noise is annotated across track alone, and there is border noise.
        gain: number whose square stands for a beta0 of 1.
        noise_floor: noise-equivalent sigma0 of the middle, dB.
        looks: of the speckle, in range.
        reflectors: whether four corner reflectors stand on the ground.
        shift: east and north, m, by which the images are displaced, to try co-registration with.

    Returns:
        Where the product and its truth lie.

    Raises:
        ConfigError: an argument is out of range.
    """
    options = ground_options(seed, height, width, landscape, place=place, start=start)
    _check(direction, version, gain, noise_floor, looks, delay_minutes)
    site = settle_site(options)
    ground = build_ground(options, site)
    grid = radar_grid(ground, direction)
    new, keyed = float(version) >= _NEW_NOISE, int(np.random.default_rng([seed, 52]).integers(2**63))
    instrument = Instrument(grid, gain, 10 ** (noise_floor / 10), float(looks), new, keyed)
    facts = _facts(site, instrument, version, direction, site.start + timedelta(minutes=delay_minutes))
    scattering = Scattering(ground, grid, shift, scattering_table(seed))
    standing = _reflectors(scattering) if reflectors else np.empty((0, 4))
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{facts.name}-", dir=out) as scratch:
        root, truth = Path(scratch) / f"{facts.name}.SAFE", Path(scratch) / f"{facts.name}-TRUTH"
        for folder in (root / "measurement", root / "annotation" / "calibration", truth):
            folder.mkdir(parents=True)
        points = ground_points(grid)
        means = _write_images(root, truth, facts, scattering, points, standing[:, 2:])
        _write_documents(root, facts, points, means)
        settings = {
            "product": facts.name,
            "seed": seed,
            "shift": shift,
            "gain": gain,
            "noise_floor_db": noise_floor,
            "looks": looks,
            "epsg": grid.epsg,
            "reflectors": [{"x": x, "y": y, "line": line, "pixel": pixel} for x, y, line, pixel in standing.tolist()],
        }
        (truth / "PARAMETERS.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        return SimulatedProduct(replace_in(out, root), replace_in(out, truth), facts.name)


def _check(direction: str, version: str, gain: float, floor: float, looks: int, delay: float) -> None:
    if direction not in ("ascending", "descending"):
        raise ConfigError(f"direction is {direction!r}, expected ascending or descending")
    parts = version.split(".")
    if not (len(parts) == 2 and len(parts[0]) == 3 and len(parts[1]) == 2 and "".join(parts).isdecimal()):
        raise ConfigError(f"version is {version!r}, expected one of the IPF such as 003.71")
    limits = {"gain": (gain, 10, 5000), "noise_floor": (floor, -60, 0), "looks": (looks, 1, 1000)}
    for name, (value, low, high) in (limits | {"delay_minutes": (delay, -1e5, 1e5)}).items():
        if not low <= value <= high:
            raise ConfigError(f"{name} is {value:g}, expected {low:g} to {high:g}")


def _facts(site: Site, instrument: Instrument, version: str, direction: str, start: datetime) -> ProductFacts:
    orbit = site.datatake + 1000, 1 + site.datatake % 175
    facts = ProductFacts(
        "", start, version, direction, orbit, 8 * orbit[0] + 3, site.ground_height, instrument.grid, instrument
    )
    times = f"{facts.start:%Y%m%dT%H%M%S}_{facts.stop:%Y%m%dT%H%M%S}"
    stem = f"S1A_IW_GRDH_1SDV_{times}_{orbit[0]:06d}_{facts.datatake:06X}"
    unique = hashlib.sha256(f"{stem} {instrument} {version}".encode()).hexdigest()[:4].upper()
    return ProductFacts(f"{stem}_{unique}", *(getattr(facts, name) for name in list(facts.__dataclass_fields__)[1:]))


def _reflectors(scattering: Scattering) -> FloatArray:
    """Easting, northing, line and pixel of each reflector; their places in the image by fixed-point iteration."""
    swath, grid = scattering.ground.swath, scattering.grid
    basis = np.linalg.inv(np.array([grid.along, grid.across]).T)
    rows = []
    for down, right in _PLACES:
        x = swath.easting + 30 * swath.shape[1] * right + 3.0
        y = swath.northing - 30 * swath.shape[0] * down + 4.0
        found = np.array(grid.shape) / 2
        for _ in range(20):
            there = np.array([float(part) for part in grid.place(*(np.asarray(value) for value in found))])
            found = found + basis @ (np.array([x, y]) + scattering.shift - there)
        rows.append([x, y, *found.tolist()])
    return np.array(rows)


def _stem(facts: ProductFacts, number: int) -> str:
    """Name of a polarisation's files."""
    parts = facts.name.lower().split("_")
    return f"s1a-iw-grd-{POLARISATIONS[number].lower()}-{'-'.join(parts[4:8])}-{number + 1:03d}"


def _write_images(
    root: Path, truth: Path, facts: ProductFacts, scattering: Scattering, points: Points, reflectors: FloatArray
) -> list[float]:
    """Measurements and truth, some lines at a time; the mean number of each polarisation."""
    height, width = facts.grid.shape
    shape = {"driver": "GTiff", "height": height, "width": width}
    total = np.zeros(len(POLARISATIONS))
    with ExitStack() as stack:
        plain = {**shape, "count": 1, "dtype": "uint16", "blockysize": 1}
        names = [f"measurement/{_stem(facts, number)}.tiff" for number in range(len(POLARISATIONS))]
        images = [stack.enter_context(_created(root / name, points, plain)) for name in names]
        packed = {**shape, "compress": "deflate", "zlevel": 1, "blockysize": 16}
        clean = stack.enter_context(_created(truth / "sigma0.tif", points, {**packed, "count": 2, "dtype": "float32"}))
        classes = stack.enter_context(_created(truth / "classes.tif", points, {**packed, "count": 1, "dtype": "uint8"}))
        for first in range(0, height, _LINES):
            sigma0, cover = scattering.lines(first, min(first + _LINES, height))
            add_reflectors(sigma0, first, reflectors, 1000.0)
            window = Window(0, first, width, cover.shape[0])
            clean.write(sigma0.astype(np.float32), window=window)
            classes.write(cover, 1, window=window)
            for number, image in enumerate(images):
                numbers = facts.instrument.numbers(sigma0[number], first, number)
                if not facts.instrument.varies:
                    _add_border_noise(numbers, facts.instrument.seed, first, number)
                total[number] += float(numbers.sum(dtype=np.int64))
                image.write(numbers, 1, window=window)
    return list((total / (height * width)).tolist())


def _add_border_noise(numbers: npt.NDArray[np.uint16], seed: int, first: int, polarisation: int) -> None:
    """Low numbers where there is no image, as older processors leave them."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 2**40 + 2 * first + polarisation]))
    noise = rng.integers(0, _BORDER + 1, numbers.shape, dtype=np.uint16)
    np.copyto(numbers, noise, where=numbers == 0)


@contextmanager
def _created(path: Path, points: Points, options: dict[str, Any]) -> Iterator[Any]:
    """A new GeoTIFF with ground control points and no transform, as ESA's."""
    columns = (part.ravel() for part in (points.line, points.pixel, points.longitude, points.latitude))
    control = [
        GroundControlPoint(row=line, col=pixel, x=longitude, y=latitude, z=0.0, id=str(number))
        for number, (line, pixel, longitude, latitude) in enumerate(zip(*columns, strict=True), 1)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", **options) as dataset:
            dataset.gcps = (control, rasterio.crs.CRS.from_epsg(4326))
            yield dataset


def _write_documents(root: Path, facts: ProductFacts, points: Points, means: list[float]) -> None:
    """Annotation, calibration and noise of both polarisations; last the manifest that lists all."""
    listed: list[tuple[str, str]] = []
    for number, polarisation in enumerate(POLARISATIONS):
        stem = _stem(facts, number)
        documents = {
            "annotation": (f"annotation/{stem}.xml", annotation_document(facts, polarisation, points, means[number])),
            "calibration": (
                f"annotation/calibration/calibration-{stem}.xml",
                calibration_document(facts, polarisation),
            ),
            "noise": (f"annotation/calibration/noise-{stem}.xml", noise_document(facts, polarisation)),
        }
        for kind, (name, text) in documents.items():
            (root / name).write_text(text, encoding="utf-8")
            listed.append((kind, name))
        listed.append(("measurement", f"measurement/{stem}.tiff"))
    files = []
    for kind, name in listed:
        with (root / name).open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        files.append((kind, name, (root / name).stat().st_size, digest))
    last_line, last_pixel = (size - 1.0 for size in facts.grid.shape)
    line = np.array([0, 0, last_line, last_line])
    latitude, longitude = facts.grid.geographic(line, np.array([0, last_pixel, last_pixel, 0]))
    text = manifest(facts, files, np.stack([latitude, longitude], axis=1))
    (root / "manifest.safe").write_text(text, encoding="utf-8")
