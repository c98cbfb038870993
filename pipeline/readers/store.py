"""Published product stores, read back as Scenes."""

from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from cubeloom.errors import InputError
from cubeloom.pipeline.encoding import Array, Packed
from cubeloom.pipeline.folders import Folder
from cubeloom.pipeline.grids import Shape, Window
from cubeloom.pipeline.scene import SceneSpec, spec_of


def recognises(path: Path) -> bool:
    """Whether `path` is a Zarr format 3 group."""
    return path.is_dir() and (path / "zarr.json").is_file()


def open_source(path: Path, group: str = "") -> "StoreSource":
    """The Source over one group of a published store.

    Args:
        path: the `.zarr` folder.
        group: empty for the native grid, or `x2`, `overviews/4`, ...

    Raises:
        StoreError: the store has no commit record, so it is not a finished product.
        InputError: it has no such group, or the group holds no Scene.
    """
    from cubeloom.pipeline.store import read_commit

    read_commit(path)
    return StoreSource(path, group, _read_spec(path, path, "", group))


def open_remote_source(url: str, group: str = "") -> "StoreSource":
    """The Source over one group of a product in a remote, by its URL.

    Raises:
        StoreError: there is no commit record, so nothing there is a finished product, or it is damaged.
        RetryableError: the server does not answer.
        InputError: it has no such group.
        ConfigError: no product can have this URL, or the extra that it needs is not installed.
    """
    from cubeloom.pipeline.remotes import open_folder
    from cubeloom.pipeline.store import read_commit

    found = open_folder(url)
    folder = found.listing(read_commit(found))
    spec = folder.files.through(
        "cannot read its metadata", lambda: _read_spec(folder, *folder.files.zarr_store(), group)
    )
    return StoreSource(folder, group, spec)


def _read_spec(path: Folder, store: Any, root: str, group: str) -> SceneSpec:  # noqa: ANN401 - any store of Zarr's
    wanted = "/".join(filter(None, (root, group))) or None
    try:
        frame = xr.open_zarr(store, group=wanted, consolidated=True, decode_coords="all", chunks=None)
    except (FileNotFoundError, KeyError, zarr.errors.GroupNotFoundError):
        nodes = zarr.open_group(store, path=root, mode="r").members(max_depth=None)
        groups = sorted(name for name, node in nodes if _is_group(node))
        raise InputError(f"{path}: no group {group!r}; it has {', '.join(groups) or 'the root group alone'}") from None
    frame = frame.assign_coords(detector=("band", _names(frame["detector"])))
    added = {"Conventions", "zarr_conventions", "coordinates"}
    frame.attrs = {k: v for k, v in frame.attrs.items() if k not in added and not k.startswith(("proj:", "spatial:"))}
    spec = spec_of(frame)
    return replace(spec, chunk=_chunk(frame) * Fraction(spec.scale).denominator)


def _chunk(frame: xr.Dataset) -> int:
    """Edge, px, of a group's chunks: stores of other releases may have others than would be laid out now."""
    cube = next(iter(frame.data_vars.values()))
    return int(cube.encoding["chunks"][-1])


def _is_group(node: object) -> bool:
    return isinstance(node, zarr.Group)


def _names(detector: xr.DataArray) -> Array:
    meanings = np.array(["" if name == "single" else name for name in detector.attrs["flag_meanings"].split()])
    return np.asarray(meanings[np.asarray(detector.values, int)], object)


@dataclass(frozen=True)
class StoreSource:
    """A Source over one group of a store; chunks are read whole and decoded one by one."""

    path: Folder
    group: str
    spec: SceneSpec

    @property
    def block_shape(self) -> Shape:
        """Some whole chunks, or the whole grid where it is smaller."""
        return min(512, self.spec.shape[0]), min(512, self.spec.shape[1])

    @property
    def exact(self) -> bool:
        """True: the numbers come from such a store."""
        return True

    def read(self, name: str, window: Window, bands: slice | None = None, out: Array | None = None) -> Array | Packed:
        """One window of a variable, still packed where the store packs it."""
        from cubeloom.pipeline.chunks import read_window

        data = read_window(self.path, self.group, self.spec, name, window)
        if bands is not None:
            data = data[bands]
        encoding = self.spec.variables[name].encoding
        return Packed(data, encoding) if encoding.scale is not None else data

    def fingerprint(self) -> str:
        """Digest of the commit record, which holds the hash of every chunk."""
        import hashlib

        from cubeloom.pipeline.store import COMMIT

        return hashlib.sha256((self.path / COMMIT).read_bytes() + self.group.encode()).hexdigest()
