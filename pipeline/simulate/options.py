"""What a scene is asked to be, and what follows from it: place, time, sun and product name."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np

from cubeloom.errors import ConfigError

from .atmosphere import Sky, sun_position
from .bands import BandTable, operational
from .cover import Season
from .styles import STYLES

LEVELS = ("L1B", "L1C", "L2A")
LAYOUTS = ("tiled", "strips")
CONTAINERS = ("folder", "zip", "tar.gz")
LINE_SECONDS = 4.5 / 1024
"""Time from one sensor line to the next, s."""


@dataclass(frozen=True)
class Options:
    """A scene to simulate; see `simulate_scene` for the meaning of each field."""

    level: str
    seed: int
    height: int
    width: int
    bands: BandTable
    version: str
    layout: str
    container: str
    clouds: float
    noise: float
    stripes: float
    dead_pixels: float
    landscape: str
    place: tuple[float, float] | None
    start: datetime | None
    tile_id: int

    def __post_init__(self) -> None:
        allowed = {"level": LEVELS, "layout": LAYOUTS, "container": CONTAINERS, "landscape": tuple(STYLES)}
        for name, known in allowed.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(known)}")
        limits = {"clouds": (0, 0.95), "noise": (0, 100), "stripes": (0, 100), "dead_pixels": (0, 0.2)}
        limits |= {"height": (16, 20000), "width": (16, 20000), "tile_id": (1, 999), "seed": (0, 2**63)}
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected {low} to {high}")
        parts = self.version.split(".")
        if len(parts) != 3 or not all(len(part) == 2 and part.isdigit() for part in parts):
            raise ConfigError(f"version is {self.version!r}, expected three numbers of two digits, such as 01.05.02")
        if self.start is not None and self.start.tzinfo is None:
            raise ConfigError(f"start is {self.start}, which has no time zone; expected UTC")


def ground_options(
    seed: int,
    height: int,
    width: int,
    landscape: str,
    *,
    place: tuple[float, float] | None = None,
    start: datetime | None = None,
    clouds: float = 0.0,
    bands: BandTable | None = None,
) -> Options:
    """The options of an L2A scene as far as they decide its ground, for those who look at that with other eyes."""
    return Options(
        level="L2A",
        seed=seed,
        height=height,
        width=width,
        bands=bands or operational(2, 2),
        version="01.05.02",
        layout="tiled",
        container="folder",
        clouds=clouds,
        noise=1.0,
        stripes=0.0,
        dead_pixels=0.0,
        landscape=landscape,
        place=place,
        start=start,
        tile_id=1,
    )


@dataclass(frozen=True)
class Site:
    """Where and when a scene was taken, and under which sky."""

    place: tuple[float, float]
    start: datetime
    stop: datetime
    processed: datetime
    sky: Sky
    angle: float
    ground_height: float
    datatake: int

    @property
    def season(self) -> Season:
        """The season, as on the northern hemisphere."""
        day = self.start.timetuple().tm_yday
        return Season(day if self.place[0] >= 0 else (day + 182) % 365 + 1)


def settle_site(options: Options) -> Site:
    """Place and time as asked for, or drawn from the seed: a site of the landscape, a day of summer, about 11:00."""
    rng = np.random.default_rng([options.seed, 2])
    sites = STYLES[options.landscape].sites
    drawn = sites[int(rng.integers(len(sites)))]
    day = float(rng.normal(190, 28))
    moved = (drawn[0] + float(rng.uniform(-0.4, 0.4)), drawn[1] + float(rng.uniform(-0.4, 0.4)))
    place = options.place or moved
    if not (-80 <= place[0] <= 80 and -180 <= place[1] < 180):
        raise ConfigError(f"place is {place}, expected latitude -80 to 80 and longitude -180 to 180")
    if place[0] < 0:
        day = (day + 182) % 365
    noon = datetime(int(rng.integers(2022, 2026)), 1, 1, 11, tzinfo=UTC) + timedelta(days=int(day))
    local = noon + timedelta(hours=-place[1] / 15, seconds=int(rng.uniform(-1500, 1500)))
    start = options.start.astimezone(UTC) if options.start else local.replace(microsecond=int(rng.integers(10**6)))
    zenith, azimuth, distance = sun_position(start, *place)
    if zenith > 80:
        raise ConfigError(
            f"the sun stands {90 - zenith:.0f} deg high at {place} on {start:%Y-%m-%d %H:%M} UTC: too low"
        )
    sky = Sky(
        zenith,
        azimuth,
        abs(float(rng.normal(0, 4))),
        float(rng.uniform(0.8, 3)),
        float(rng.uniform(0.06, 0.25)),
        distance,
    )
    return Site(
        place=place,
        start=start,
        stop=start + timedelta(seconds=options.height * LINE_SECONDS),
        processed=start.replace(microsecond=0) + timedelta(days=2, seconds=int(rng.integers(86400))),
        sky=sky,
        angle=float(np.radians(rng.uniform(11, 15))),
        ground_height=float(round(rng.uniform(20, 700), 1)),
        datatake=int(rng.integers(1000, 160000)),
    )


def product_name(options: Options, site: Site) -> str:
    """Name of the product, as DLR forms it."""
    version = options.version.replace(".", "")
    return (
        f"ENMAP01-____{options.level}-DT{site.datatake:010d}_{site.start:%Y%m%dT%H%M%SZ}_{options.tile_id:03d}"
        f"_V{version}_{site.processed:%Y%m%dT%H%M%SZ}"
    )
