"""Radar backscatter as COG assets of a STAC item that lies beside its files, as Planetary Computer's RTC comes.

Such TIFFs hold numbers and a grid at most. When they were taken, by which satellite and on which orbit, which file is
which polarisation and how many looks there were is read from the item. Units and calibration are as for other
backscatter: what neither files nor item say must be told.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cubeloom.errors import InputError
from cubeloom.pipeline.scene import SceneSpec
from cubeloom.untrusted import safe_name

from .item_files import Item, is_of, item_assets, item_properties, item_time, lies_beside, local_raster, read_item
from .rasters import handle
from .sentinel1_chips import BackscatterSource, Layer, backscatter, described, is_backscatter
from .sentinel1_safe import POLARISATIONS
from .sentinel2_scene import credit

__all__ = ["ItemSource", "lies_beside_files", "open_source", "recognises"]

_PICTURES = {"thumbnail", "overview", "visual", "tiles"}
"""Roles of assets that hold no backscatter."""
_MODES = ("IW", "EW", "SM")
_MOST_LOOKS = 10_000


def recognises(path: Path) -> bool:
    """Whether `path` is a STAC item of Sentinel-1 with polarisations among its assets, or the folder of one's files.

    Raises:
        InputError: a `.json` file that is damaged.
    """
    return _document(path) is not None


def lies_beside_files(path: Path) -> bool:
    """Whether `path` is such an item, and files of its polarisations lie in its folder or below."""
    return lies_beside(path, lambda item: [asset for asset, _ in _radar_assets(item)])


def open_source(path: Path, *, units: str | None = None, calibration: str | None = None) -> "ItemSource":
    """The Source over the polarisations of a STAC item.

    Args:
        path: the item, or the folder that holds it and its files; hrefs must stay in that folder.
        units: `db`, `linear` (power) or `amplitude`, where neither files nor item say it.
        calibration: `sigma0` or `gamma0`, where they do not say it (`rtc` in a name or collection stands for gamma0).

    Raises:
        InputError: the item lacks what is needed, or its files are not here, damaged, or on different grids.
        ConfigError: an option is missing (says what the pixels suggest) or wrong.
    """
    document = _document(path)
    item = None if document is None else read_item(document)
    if document is None or item is None:
        raise InputError(f"{path}: no STAC item of Sentinel-1 with polarisations among its assets")
    source = backscatter(document, _layers(document, item), units, calibration, said=_said(item))
    return ItemSource(_told(source.spec, document, item), source.layers, source.info, source.units, document)


def _document(path: Path) -> Path | None:
    if not path.is_dir():
        item = read_item(path)
        return path if item is not None and _radar_assets(item) else None
    found = [near for near in sorted(path.glob("*.json")) if lies_beside_files(near)]
    return found[0] if len(found) == 1 else None


def _radar_assets(item: Item) -> list[tuple[Item, tuple[str, ...]]]:
    """The assets of an item of Sentinel-1 that hold polarisations, and which; none of another item."""
    if not is_of(item, "sentinel-1"):
        return []
    found = [(asset, _polarisations(key, asset)) for key, asset in item_assets(item).items()]
    return [(asset, names) for asset, names in found if names]


def _polarisations(key: str, asset: Item) -> tuple[str, ...]:
    """Polarisations of an asset's bands in their order: as it states them, else the one that it is called by."""
    roles = asset.get("roles")
    if isinstance(roles, list) and _PICTURES & set(map(str, roles)):
        return ()
    listed = [asset.get("sar:polarizations"), *(_names(asset.get(bands)) for bands in ("bands", "eo:bands")), [key]]
    for one in listed:
        names = tuple(str(name).upper() for name in one) if isinstance(one, list) else ()
        if names and set(names) <= set(POLARISATIONS) and len(set(names)) == len(names):
            return names
    return ()


def _names(bands: Any) -> list[Any]:  # noqa: ANN401 - whatever an item holds
    return [band.get("name") for band in bands if isinstance(band, dict)] if isinstance(bands, list) else []


def _layers(path: Path, item: Item) -> list[Layer]:
    found: dict[str, Layer] = {}
    for asset, names in _radar_assets(item):
        file = local_raster(path, asset["href"])
        if file is None:
            continue
        dataset = handle(file)
        if not is_backscatter(dataset):
            raise InputError(
                f"{file}: holds {dataset.dtypes[0]} numbers, which mean nothing without the calibration of their "
                "product; expected backscatter in floating point. Open the GRD product's folder or ZIP instead"
            )
        own = described(dataset)
        if dataset.count != len(names) or (own and own != list(names)):
            shown = ", ".join(own or ()) or f"{dataset.count} without names"
            raise InputError(f"{file}: its bands are {shown}; the item {path} says {', '.join(names)}")
        for number, name in enumerate(names, 1):
            if name in found:
                raise InputError(f"{path}: lists {found[name].file} and {file} as {name}; expected one file of each")
            found[name] = Layer(name, file, number)
    if not found:
        raise InputError(
            f"{path}: no file of the polarisations that the item lists is here; fetch them with `cubeloom search "
            "--download`"
        )
    return list(found.values())


def _said(item: Item) -> list[str]:
    """What an item says of the numbers: names in which `rtc` may stand, and units of bands."""
    texts = [item.get("collection"), item.get("id")]
    for asset, _ in _radar_assets(item):
        for bands in (asset.get("raster:bands"), asset.get("bands"), [asset]):
            listed = bands if isinstance(bands, list) else []
            texts += [band.get(key) for band in listed if isinstance(band, dict) for key in ("unit", "raster:unit")]
    return [text.lower() for text in texts if isinstance(text, str)]


def _told(spec: SceneSpec, path: Path, item: Item) -> SceneSpec:
    """The Scene with what the item says of it."""
    properties = item_properties(item)
    time = item_time(path, item)
    unit = re.fullmatch(r"sentinel-?1([a-d])", str(properties.get("platform")).lower())
    mode = properties.get("sar:instrument_mode")
    state = str(properties.get("sat:orbit_state")).lower()
    attrs: dict[str, Any] = {
        "orbit_direction": state if state in ("ascending", "descending") else None,
        "absolute_orbit": _whole(properties.get("sat:absolute_orbit")),
        "relative_orbit": _whole(properties.get("sat:relative_orbit")),
        "instrument_mode": mode if mode in _MODES else None,
        "looks": _looks(properties),
        "footprint": _footprint(item),
        "attribution": credit(time),
    }
    kept = {key: value for key, value in spec.attrs.items() if key != "time_known"}
    corrected = re.search(r"(?<![a-z])rtc(?![a-z])", " ".join(_said(item)))
    return replace(
        spec,
        scene_id=safe_name(str(item.get("id", "")), f"{path}: item id"),
        sensor=f"Sentinel-1{unit[1].upper()}" if unit else spec.sensor,
        processing_level="RTC" if corrected else spec.processing_level,
        time=time,
        attrs={**kept, **{key: value for key, value in attrs.items() if value is not None}},
    )


def _whole(value: Any) -> int | None:  # noqa: ANN401 - whatever an item holds
    return value if type(value) is int and 0 < value < 10**7 else None


def _looks(properties: Item) -> float | None:
    """Range times azimuth looks."""
    looks = [properties.get(f"sar:looks_{axis}") for axis in ("range", "azimuth")]
    known = [float(number) for number in looks if isinstance(number, int | float) and 0 < number <= _MOST_LOOKS]
    return known[0] * known[1] if len(known) == 2 else None


def _footprint(item: Item) -> list[list[float]] | None:
    """Corners of the imaged ground, `[longitude, latitude]`; None where the item has no plain polygon."""
    geometry = item.get("geometry")
    if not isinstance(geometry, dict) or geometry.get("type") != "Polygon":
        return None
    try:
        ring = np.array(geometry["coordinates"][0], float)[:, :2]
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    if len(ring) < 4 or ring.shape[1] != 2 or not (np.abs(ring) <= (180, 90)).all():
        return None
    corners: list[list[float]] = ring.tolist()
    return corners[:-1] if corners[0] == corners[-1] else corners


@dataclass(frozen=True, eq=False)
class ItemSource(BackscatterSource):
    """A Source over the polarisations of an item.

    Attributes:
        item: the item's file.
    """

    item: Path

    def files(self) -> list[Path]:
        """The item and the files that the scene is read from."""
        return sorted({*super().files(), self.item})
