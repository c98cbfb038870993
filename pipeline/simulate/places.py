"""`simulate_places`: the same ground by several satellites, as each of them delivers it."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from cubeloom.errors import ConfigError

from .api import SimulatedProduct, simulate_scene
from .packaging import pack_zip
from .sentinel1 import simulate_sentinel1
from .sentinel2 import simulate_sentinel2
from .styles import STYLES

SENSORS = ("enmap", "sentinel2", "sentinel1")
_GROUND = ("height", "width", "place", "start")
"""Options that say which ground is looked at, and when."""


def simulate_places(
    out: Path,
    count: int,
    *,
    sensors: Sequence[str] = ("enmap",),
    seed: int = 0,
    landscapes: Sequence[str] = tuple(STYLES),
    container: str = "folder",
    epsg: int | Literal["next"] | None = None,
    shift: tuple[float, float] = (0.0, 0.0),
    **options: Any,  # noqa: ANN401 - passed on to simulate_scene
) -> dict[str, list[SimulatedProduct]]:
    """Write products over `count` places that differ in landscape, UTM zone, date and sun, one of each sensor a place.

    Args:
        out: folder for the products.
        count: how many places.
        sensors: of `SENSORS`.
        seed: of the first place; the others follow.
        landscapes: kinds of landscape, taken in turn.
        container: `folder`, `zip`, or `tar.gz`, an order of EnMAP's; then Sentinel products are ZIPs.
        epsg: UTM zone of the Sentinel-2 tiles, as for `simulate_sentinel2`.
        shift: east and north, m, by which the Sentinels' images are displaced.
        options: further arguments of `simulate_scene`.

    Returns:
        The products by sensor, in the order of the places.

    Raises:
        ConfigError: no such sensor, or an argument is out of range.
    """
    _check(count, sensors, landscapes, str(options.get("level", "L2A")))
    ground = {name: options[name] for name in _GROUND if name in options}
    made: dict[str, list[SimulatedProduct]] = {sensor: [] for sensor in sensors}
    for number in range(count):
        place: dict[str, Any] = {"seed": seed + number, "landscape": landscapes[number % len(landscapes)]}
        for sensor in sensors:
            if sensor == "enmap":
                product = simulate_scene(out, container=container, **place, **options)
            elif sensor == "sentinel2":
                product = _delivered(simulate_sentinel2(out, epsg=epsg, shift=shift, **place, **ground), container)
            else:
                product = _delivered(simulate_sentinel1(out, shift=shift, **place, **ground), container)
            made[sensor].append(product)
    return made


def _check(count: int, sensors: Sequence[str], landscapes: Sequence[str], level: str) -> None:
    if count < 1 or not landscapes:
        raise ConfigError(f"expected at least one place and one landscape, found {count} and {list(landscapes)}")
    unknown = [sensor for sensor in sensors if sensor not in SENSORS]
    if unknown or not sensors or len(set(sensors)) != len(sensors):
        raise ConfigError(
            f"sensors are {', '.join(sensors) or 'none'}; expected some of {', '.join(SENSORS)}, each once"
        )
    if level == "L1B" and set(sensors) != {"enmap"}:
        raise ConfigError("L1B lies in sensor geometry, on ground of its own; simulate it alone, or L1C or L2A")


def _delivered(product: SimulatedProduct, container: str) -> SimulatedProduct:
    """A SAFE folder as its archive delivers it: as it is, or as `<PRODUCT>.zip`."""
    if container == "folder":
        return product
    archive = product.path.with_suffix(".zip")
    pack_zip(product.path, archive)
    shutil.rmtree(product.path)
    return SimulatedProduct(archive, product.truth_folder, product.scene_id)
