"""`simulate_sentinel2`: a Sentinel-2 Level-2A product over the ground of a simulated EnMAP scene."""

import json
import tempfile
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

import numpy as np
from affine import Affine
from rasterio.warp import transform

from cubeloom.errors import ConfigError

from .api import SimulatedProduct
from .atmosphere import sun_position
from .geometry import utm_zone
from .observation import build_ground
from .options import Options, ground_options, settle_site
from .packaging import replace_in
from .rasters import Grid, profile, write_class_map
from .sentinel2_metadata import ProductFacts
from .sentinel2_product import TileWriter, shares, write_documents
from .sentinel2_tile import Look, TileGrid, cover_map, observe, tile_over
from .weather import draw_weather

_OFFSET_SINCE = 4
"""First processing baseline whose numbers carry the offset."""
_COLUMNS, _ROWS, _BELTS = "ABCDEFGHJKLMNPQRSTUVWXYZ", "ABCDEFGHJKLMNPQRSTUV", "CDEFGHJKLMNPQRSTUVWX"


def simulate_sentinel2(
    out: Path,
    *,
    seed: int = 0,
    height: int = 256,
    width: int = 256,
    landscape: str = "temperate",
    place: tuple[float, float] | None = None,
    start: datetime | None = None,
    delay_minutes: float = 20.0,
    clouds: float = 0.05,
    baseline: str = "05.11",
    epsg: int | Literal["next"] | None = None,
    shift: tuple[float, float] = (0.0, 0.0),
    visit: int = 0,
) -> SimulatedProduct:
    """Write a Sentinel-2 L2A product as ESA's SAFE folder, with its parameters beside it.

    With the `seed`, `height`, `width`, `landscape`, `place` and `start` of a scene by `simulate_scene` (levels L1C and
    L2A) it shows the same ground. The same arguments give the same pixels. A product of the same name is replaced.

    Args:
        out: folder for the product and `<PRODUCT>-TRUTH/`.
        seed: decides all that is random; of the EnMAP scene.
        height: of the EnMAP scene's rasters, px of 30 m.
        width: of the EnMAP scene's rasters, px of 30 m.
        landscape: `temperate`, `arid`, `coastal` or `alpine`.
        place: latitude and longitude of the middle, deg; drawn as for the EnMAP scene when None.
        start: the EnMAP scene's first line, with time zone; drawn as there when None.
        delay_minutes: from then to this pass.
        clouds: share of the tile under clouds, which are not those of the EnMAP scene, 0-0.95.
        baseline: of the processor; from 04.00 on the numbers carry the offset of -1000.
        epsg: UTM zone of the tile: a code within a zone of the place, `next` for the nearer of the neighbouring zones,
            the EnMAP scene's when None.
        shift: east and north, m, by which the images are displaced, to try co-registration with.
        visit: another one has other clouds, air and noise over the same ground; give it its own `start`.

    Returns:
        Where the product and its parameters lie.

    Raises:
        ConfigError: an argument is out of range.
    """
    options = ground_options(seed, height, width, landscape, place=place, start=start, clouds=clouds)
    look, time = _look(options, delay_minutes, epsg, shift, visit)
    offset = -1000 if _baseline(baseline) >= _OFFSET_SINCE else 0
    tile, orbit = mgrs_tile(look.grid, _latitude(look.grid)), 1 + seed % 143
    processed = time.replace(microsecond=0) + timedelta(hours=5)
    name = f"S2A_MSIL2A_{time:%Y%m%dT%H%M%S}_N{baseline.replace('.', '')}_R{orbit:03d}_{tile}_{processed:%Y%m%dT%H%M%S}"
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=out) as scratch:
        root, truth = Path(scratch) / f"{name}.SAFE", Path(scratch) / f"{name}-TRUTH"
        truth.mkdir()
        images = observe(look)
        writer = TileWriter(
            root, f"L2A_{tile}_A000001_{time:%Y%m%dT%H%M%S}", f"{tile}_{time:%Y%m%dT%H%M%S}", look.grid, offset
        )
        writer.write_images(images, look.sky.aerosol, look.sky.water_vapour)
        writer.write_masks(images)
        facts = ProductFacts(
            name=name,
            tile=tile,
            granule=writer.granule,
            baseline=baseline,
            offset=offset,
            start=time,
            processed=processed,
            orbit=orbit,
            grid=look.grid,
            sun=(look.sky.sun_zenith, look.sky.sun_azimuth),
            images=writer.images,
            masks=writer.masks,
            shares=shares(images.classes),
            corners=corners(look.grid),
        )
        write_documents(root, facts)
        settings = {"product": name, "seed": seed, "shift": shift, "clouds": clouds, "offset": offset, "visit": visit}
        (truth / "PARAMETERS.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        corner = Affine(10, 0, look.grid.left, 0, -10, look.grid.top)
        layout = profile(Grid(look.grid.shape(10), f"EPSG:{look.grid.epsg}", corner), "uint8", 1, "tiled")
        write_class_map(truth, cover_map(look), layout)
        return SimulatedProduct(replace_in(out, root), replace_in(out, truth), name)


def _look(
    options: Options, delay_minutes: float, epsg: int | Literal["next"] | None, shift: tuple[float, float], visit: int
) -> tuple[Look, datetime]:
    """What the instrument sees, and when; ground and sky are those of the EnMAP scene, the sun has moved on."""
    if not abs(delay_minutes) <= 180:
        raise ConfigError(f"delay_minutes is {delay_minutes:g}, expected -180 to 180")
    site = settle_site(options)
    epsg = neighbouring_zone(*site.place) if epsg == "next" else epsg
    if epsg is not None and not (epsg // 100 in (326, 327) and _zones_apart(epsg, utm_zone(*site.place)) <= 1):
        expected = f"{utm_zone(*site.place)} or {neighbouring_zone(*site.place)}"
        raise ConfigError(f"epsg is {epsg}, expected a UTM zone that reaches the place, such as {expected}")
    ground = build_ground(options, site)
    time = site.start + timedelta(minutes=delay_minutes)
    zenith, azimuth, distance = sun_position(time, *site.place)
    drawn = options.seed
    if visit:
        drawn = int(np.random.default_rng([options.seed, 46, visit]).integers(2**31))
        site = settle_site(replace(options, seed=drawn, place=site.place, start=site.start))
    sky = replace(site.sky, sun_zenith=zenith, sun_azimuth=azimuth, sun_distance=distance, view_zenith=4.0)
    everywhere = np.ones(ground.swath.shape, bool)
    weather = draw_weather(np.random.default_rng([drawn, 44]), everywhere, options.clouds, (zenith, azimuth))
    seed = int(np.random.default_rng([drawn, 45]).integers(2**63))
    return Look(ground, weather, sky, tile_over(ground, epsg), shift, seed), time


def neighbouring_zone(latitude: float, longitude: float) -> int:
    """Code of the UTM zone beside the one of a place, on the side that it is nearer to."""
    zone = utm_zone(latitude, longitude)
    east = (longitude + 180) % 6 >= 3
    return zone - zone % 100 + (zone % 100 - 1 + (1 if east else -1)) % 60 + 1


def _zones_apart(one: int, other: int) -> int:
    """How many zones lie between two codes, the shorter way round; none where it is no UTM zone."""
    if not 1 <= one % 100 <= 60:
        return 60
    apart = abs(one % 100 - other % 100)
    return min(apart, 60 - apart)


def _baseline(text: str) -> float:
    parts = text.split(".")
    if len(parts) != 2 or not all(len(part) == 2 and part.isdigit() for part in parts):
        raise ConfigError(f"baseline is {text!r}, expected two numbers of two digits, such as 05.11")
    return float(text)


def corners(grid: TileGrid) -> list[tuple[float, float]]:
    """Latitude and longitude of a tile's corners, in order round it."""
    right, bottom = grid.left + 60 * grid.cells[1], grid.top - 60 * grid.cells[0]
    x, y = [grid.left, right, right, grid.left], [grid.top, grid.top, bottom, bottom]
    lon, lat = transform(f"EPSG:{grid.epsg}", "EPSG:4326", x, y)
    return list(zip(lat, lon, strict=True))


def _latitude(grid: TileGrid) -> float:
    """Latitude of the tile's middle, deg."""
    return float(np.mean([latitude for latitude, _ in corners(grid)]))


def mgrs_tile(grid: TileGrid, latitude: float) -> str:
    """Name of the 100 km square of the military grid that the tile's upper left corner lies in, with a T before it."""
    zone = grid.epsg % 100
    belt = _BELTS[int(np.clip((latitude + 80) // 8, 0, 19))]
    column = _COLUMNS[((zone - 1) % 3 * 8 + int(grid.left // 100_000) - 1) % 24]
    row = _ROWS[(int(grid.top // 100_000) + (5 if zone % 2 == 0 else 0)) % 20]
    return f"T{zone:02d}{belt}{column}{row}"
