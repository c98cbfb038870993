"""`simulate_scene` and `simulate_catalog`."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cubeloom.errors import ConfigError

from .bands import N_SWIR, N_VNIR, BandTable, operational
from .options import Options, product_name, settle_site
from .packaging import order_name, pack_order, pack_zip, replace_in
from .product import write_product
from .styles import STYLES


@dataclass(frozen=True)
class SimulatedProduct:
    """A product on disk.

    Attributes:
        path: the product's folder, ZIP or tar.gz.
        truth_folder: clean cube, class map and parameters.
        scene_id: the product's name.
    """

    path: Path
    truth_folder: Path
    scene_id: str


def simulate_scene(
    out: Path,
    *,
    level: str = "L2A",
    seed: int = 0,
    height: int = 256,
    width: int = 256,
    n_vnir: int = N_VNIR,
    n_swir: int = N_SWIR,
    bands: BandTable | None = None,
    version: str = "01.05.02",
    layout: str = "tiled",
    container: str = "folder",
    clouds: float = 0.05,
    noise: float = 1.0,
    stripes: float = 1.0,
    dead_pixels: float = 3e-4,
    landscape: str = "temperate",
    place: tuple[float, float] | None = None,
    start: datetime | None = None,
    tile_id: int = 1,
    block_rows: int = 16,
    workers: int = 2,
) -> SimulatedProduct:
    """Write an EnMAP product in DLR's layout, with the truth beside it.

    The same arguments give the same pixels, whatever `block_rows` and `workers`. A product of the same name is
    replaced.

    Args:
        out: folder for the product and `<PRODUCT>-TRUTH/`.
        level: `L1B` (two cubes in sensor geometry, radiance), `L1C` (UTM, radiance) or `L2A` (UTM, reflectance).
        seed: decides all that is random.
        height: of the rasters, px.
        width: of the rasters, px.
        n_vnir: bands of the VNIR detector, 1-91.
        n_swir: bands of the SWIR detector, 1-133.
        bands: an explicit band table instead.
        version: of the processor; older ones leave more bands without data.
        layout: of the GeoTIFFs, `tiled` or `strips`.
        container: `folder`, `zip` or `tar.gz` (an order that holds the ZIP).
        clouds: share of the swath under clouds, 0-0.95; cirrus and haze follow.
        noise: factor on the noise of the instrument.
        stripes: factor on the column stripes that calibration leaves.
        dead_pixels: share of defective detector elements (column x band).
        landscape: `temperate`, `arid`, `coastal` or `alpine`.
        place: latitude and longitude of the middle, deg; drawn from sites of the landscape when None.
        start: first line's time, with time zone; drawn when None.
        tile_id: tile of the datatake.
        block_rows: lines computed at once by a worker; memory grows with it.
        workers: threads.

    Returns:
        Where the product and its truth lie.

    Raises:
        ConfigError: an argument is out of range.
    """
    options = Options(
        level=level,
        seed=seed,
        height=height,
        width=width,
        bands=bands or operational(n_vnir, n_swir),
        version=version,
        layout=layout,
        container=container,
        clouds=clouds,
        noise=noise,
        stripes=stripes,
        dead_pixels=dead_pixels,
        landscape=landscape,
        place=place,
        start=start,
        tile_id=tile_id,
    )
    site = settle_site(options)
    name = product_name(options, site)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=out) as scratch:
        product, truth = Path(scratch) / name, Path(scratch) / f"{name}-TRUTH"
        product.mkdir()
        truth.mkdir()
        write_product(product, truth, name, options, site, block_rows=block_rows, workers=workers)
        delivered = _pack(product, container, order_name(site.datatake), f"{site.start:%Y-%m-%dT%H_%M_%S}")
        return SimulatedProduct(replace_in(out, delivered), replace_in(out, truth), name)


def _pack(product: Path, container: str, order: str, stamp: str) -> Path:
    if container == "folder":
        return product
    archive = product.with_name(f"{product.name}.ZIP")
    pack_zip(product, archive)
    if container == "zip":
        return archive
    delivered = product.with_name(f"{order}.tar.gz")
    pack_order(archive, delivered, order, stamp)
    return delivered


def simulate_catalog(
    out: Path,
    count: int,
    *,
    seed: int = 0,
    landscapes: Sequence[str] = tuple(STYLES),
    **options: Any,  # noqa: ANN401 - passed on to simulate_scene
) -> list[SimulatedProduct]:
    """Write `count` scenes that differ in landscape, place, UTM zone, date and sun.

    Args:
        out: folder for the products.
        count: how many.
        seed: of the first scene; the others follow.
        landscapes: kinds of landscape, taken in turn.
        options: further arguments of `simulate_scene`.

    Raises:
        ConfigError: an argument is out of range.
    """
    if count < 1 or not landscapes:
        raise ConfigError(f"a catalog needs at least one scene and one landscape, found {count} and {list(landscapes)}")
    return [
        simulate_scene(out, seed=seed + number, landscape=landscapes[number % len(landscapes)], **options)
        for number in range(count)
    ]
