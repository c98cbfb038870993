"""Embeddings as a table: GeoParquet with a row a square of the scene, for search, clustering and probes."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cubeloom.errors import ConfigError, InputError

from .grids import CHUNK, Window, tile
from .readers import open_source
from .readers.base import Source, values
from .readers.store import StoreSource
from .stages.embed import OUTPUT

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

LONLAT = "EPSG:4326"
SUFFIX = ".parquet"


def embedding_table(store: str | Path, tile: int = CHUNK) -> "GeoDataFrame":
    """The embeddings of a product as a table.

    A vector is the mean over the cells of a square that have one; of a network that pools its last map, such as a
    ResNet, that is its own embedding of the square. Squares without a vector are left out.

    Args:
        store: a published store with the stage `embed` in its history, or its URL.
        tile: side of a square, px of the grid that was embedded.

    Returns:
        Columns `scene_id`, `time`, `row` and `col` (of the square's first pixel), `valid` (share of its cells that have
        a vector), `embedding` (float32) and `geometry` (lon/lat).

    Raises:
        InputError: the store holds no embedding, or has no CRS.
        ConfigError: a side that cells do not fill.
    """
    from geopandas import GeoDataFrame, GeoSeries

    source = _embedded(store)
    spec = source.spec
    if spec.grid.crs is None:
        raise InputError(f"{store}: in sensor geometry, so its squares lie nowhere; embed a product with a map grid")
    stride = _stride(spec.group)
    if tile < 1 or tile % stride:
        raise ConfigError(f"tile {tile}: expected a multiple of {stride} px, the cells of this embedding")
    rows = [row for window in _squares(source, tile // stride) if (row := _row(source, window, stride))]
    outlines = GeoSeries([row.pop("geometry") for row in rows], crs=spec.grid.crs.to_wkt())
    return GeoDataFrame(
        {name: [row[name] for row in rows] for name in ("scene_id", "time", "row", "col", "valid", "embedding")},
        geometry=outlines.to_crs(LONLAT),
    )


def write_embeddings(store: str | Path, out: str | Path, tile: int = CHUNK) -> Path:
    """Write `embedding_table` as GeoParquet; arguments and errors as there.

    Raises:
        ConfigError: also where `out` exists or has another suffix.
    """
    out = Path(out)
    require_free(out)
    table = embedding_table(store, tile)
    partial = out.with_name(f".{out.name}.partial")
    try:
        table.to_parquet(partial, index=False, schema_version="1.1.0")
        partial.replace(out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error})") from error
    finally:
        partial.unlink(missing_ok=True)
    return out


def require_free(out: Path) -> None:
    """Check that a table can be written to `out`.

    Raises:
        ConfigError: it exists, its folder does not, or the suffix is not `.parquet`.
    """
    if out.suffix != SUFFIX:
        raise ConfigError(f"{out}: expected a file name that ends with {SUFFIX}")
    if not out.parent.is_dir():
        raise ConfigError(f"{out.parent}: no such folder; make it, or choose another place for {out.name}")
    if out.exists():
        raise ConfigError(f"{out} exists; remove it, or choose another name")


def _embedded(store: str | Path) -> Source:
    """The group of a store that holds embeddings."""
    from .store import read_commit

    root = open_source(store)
    metadata = read_commit(root.path)["metadata"] if isinstance(root, StoreSource) else {}
    tail = f"/{OUTPUT}/zarr.json"
    groups = sorted(key.removesuffix(tail) for key in metadata if key.endswith(tail) and "overviews" not in key)
    if not groups:
        raise InputError(f"{store}: holds no {OUTPUT}; make one with `cubeloom embed`")
    return open_source(store, group=groups[0])


def _stride(group: str) -> int:
    """Pixels to a cell, which the name of the group ends with."""
    return int(group.rpartition("d")[2])


def _squares(source: Source, edge: int) -> list[Window]:
    return list(tile(source.spec.shape, (edge, edge)))


def _row(source: Source, window: Window, stride: int) -> dict[str, Any] | None:
    """What the table tells of a square; None where it has no vector."""
    from shapely import Polygon

    features: npt.NDArray[np.float32] = values(source.read(OUTPUT, window))
    known = np.isfinite(features[0])
    if not known.any():
        return None
    spec = source.spec
    corners = [(window.col, window.row), (window.col + window.width, window.row)]
    corners += [(col, row + window.height) for col, row in reversed(corners)]
    return {
        "scene_id": spec.scene_id,
        "time": spec.time,
        "row": window.row * stride,
        "col": window.col * stride,
        "valid": float(known.mean()),
        "embedding": features[:, known].mean(axis=1, dtype=np.float64).astype(np.float32),
        "geometry": Polygon([spec.grid.affine * corner for corner in corners]),
    }
