"""`simulate_places`: the same ground by several satellites, as each of them delivers it."""

import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from cubeloom.errors import ConfigError

from .api import SimulatedProduct, simulate_scene
from .options import ground_options, settle_site
from .packaging import pack_zip
from .sentinel1 import simulate_sentinel1
from .sentinel2 import simulate_sentinel2
from .styles import STYLES

SENSORS = ("enmap", "sentinel2", "sentinel1")
APART = timedelta(days=50)
"""From one date of a place to the next: five cycles of a Sentinel-2 satellite."""
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
    dates: int = 1,
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
        dates: how often Sentinel-2 sees each place, `APART` from each other; crops grow and are harvested.
        options: further arguments of `simulate_scene`.

    Returns:
        The products by sensor, in the order of the places, and of the dates of each.

    Raises:
        ConfigError: no such sensor, or an argument is out of range.
    """
    _check(count, sensors, landscapes, str(options.get("level", "L2A")), dates)
    ground = {name: options[name] for name in _GROUND if name in options}
    made: dict[str, list[SimulatedProduct]] = {sensor: [] for sensor in sensors}
    for number in range(count):
        place: dict[str, Any] = {"seed": seed + number, "landscape": landscapes[number % len(landscapes)]}
        for sensor in sensors:
            if sensor == "enmap":
                made[sensor].append(simulate_scene(out, container=container, **place, **options))
            elif sensor == "sentinel2":
                for visit, start in enumerate(_starts(dates, {**place, **ground})):
                    seen = {**place, **ground, "start": start, "visit": visit}
                    product = simulate_sentinel2(out, epsg=epsg, shift=shift, **seen)
                    made[sensor].append(_delivered(product, container))
            else:
                product = simulate_sentinel1(out, shift=shift, **place, **ground)
                made[sensor].append(_delivered(product, container))
    return made


def _starts(dates: int, ground: Mapping[str, Any]) -> list[datetime | None]:
    """When a place is seen; None for the time that is drawn."""
    if dates == 1:
        return [ground.get("start")]
    first = settle_site(ground_options(**{"height": 256, "width": 256, **ground})).start
    return [first + visit * APART for visit in range(dates)]


def _check(count: int, sensors: Sequence[str], landscapes: Sequence[str], level: str, dates: int) -> None:
    if count < 1 or not landscapes:
        raise ConfigError(f"expected at least one place and one landscape, found {count} and {list(landscapes)}")
    unknown = [sensor for sensor in sensors if sensor not in SENSORS]
    if unknown or not sensors or len(set(sensors)) != len(sensors):
        raise ConfigError(
            f"sensors are {', '.join(sensors) or 'none'}; expected some of {', '.join(SENSORS)}, each once"
        )
    if dates < 1 or (dates > 1 and set(sensors) != {"sentinel2"}):
        raise ConfigError(f"dates is {dates} with sensors {', '.join(sensors)}; several dates are of sentinel2 alone")
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
