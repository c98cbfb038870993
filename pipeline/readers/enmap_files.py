"""Where the files of an EnMAP product lie: folder, ZIP, order archive, and all the names they go by."""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cubeloom.errors import InputError
from cubeloom.untrusted import XML_LIMIT, read_zip_member, unpack_tar, zip_members

from .rasters import RasterFile, file_state

_IMAGES = "tif|tiff|geotiff|bsq|bil|bip|jp2|jpeg2000"
_FILE = re.compile(
    r"(?P<stem>.*?)-?(?P<role>METADATA|SPECTRAL_IMAGE(_VNIR|_SWIR)?|QL_PIXELMASK(_VNIR|_SWIR)?|QL_QUALITY_[A-Z]+(_VNIR|_SWIR)?)"
    rf"(?P<cog>_COG)?\.(?P<suffix>xml|{_IMAGES})",
    re.IGNORECASE,
)
"""`<product>-<ROLE>.<suffix>`; some copies have no product name, lower case, or `_COG` before the suffix."""
_PRODUCT = re.compile(r"ENMAP\d{2}-____L(1B|1C|2A)-DT\d{9,10}_", re.IGNORECASE)
_LISTED = 20
"""Products that a message lists at most."""
_TAR_SUFFIXES = (".tar.gz", ".tgz", ".tar")


@dataclass(frozen=True)
class ProductFiles:
    """The files of one product.

    Attributes:
        stem: product name that the file names start with; empty where they have none.
        where: folder or archive, for messages and the Scene's `source`.
        metadata: METADATA.XML; None where it is missing.
        rasters: cubes and masks by role in upper case, such as `SPECTRAL_IMAGE` or `QL_QUALITY_CLOUD`.
        archive: the ZIP that holds everything; None for a folder.
    """

    stem: str
    where: str
    metadata: RasterFile | None
    rasters: Mapping[str, RasterFile]
    archive: Path | None = None

    @property
    def is_product(self) -> bool:
        """Whether there are metadata or a cube; masks alone are no product."""
        return self.metadata is not None or any(role.startswith("SPECTRAL_IMAGE") for role in self.rasters)

    @property
    def entry(self) -> Path:
        """The file that stands for the product: METADATA.XML, else a cube."""
        return self.metadata.path if self.metadata else self.rasters[max(self.rasters)].path

    def read_metadata(self) -> bytes:
        """The document METADATA.XML.

        Raises:
            InputError: the product has none, or it is too large.
        """
        file = self.metadata
        if file is None:
            raise InputError(
                f"{self.where}: METADATA.XML is missing beside {self.stem or 'SPECTRAL_IMAGE'}, so wavelengths, gains "
                "and the acquisition time are unknown; fetch the whole product (cut patches such as HySpecNet's come "
                "without it)"
            )
        if file.member:
            return read_zip_member(file.path, file.member)
        if file_state(file.path)[0] > XML_LIMIT:
            raise InputError(f"{file}: the XML has more than {XML_LIMIT:,} bytes")
        return file.path.read_bytes()


def recognises(path: Path) -> bool:
    """Whether `path` looks like an EnMAP product, or a folder or order archive that holds one. Opens ZIPs at most.

    Raises:
        InputError: a ZIP named like an EnMAP product is damaged or refused.
    """
    if path.is_dir():
        return next(iter(_candidates(path)), None) is not None
    if _tar_of(path):
        return True
    if path.suffix.lower() == ".zip":
        return path.is_file() and _is_product_zip(path)
    found = _FILE.fullmatch(path.name)
    return path.is_file() and found is not None and found["role"].upper().startswith(("METADATA", "SPECTRAL_IMAGE"))


def find_products(folder: Path) -> list[Path]:
    """Every EnMAP product at or below a folder, or in an order archive, in the order of their paths.

    Args:
        folder: where to look; links to folders are not followed.

    Returns:
        Paths for `open_source`: product folders (METADATA.XML where several products share a folder), ZIPs, and
        orders (`.tar.gz`). One of the several products of an order has the path `<order>.tar.gz/<path inside it>`.
        A damaged archive is among them, so that opening it says what is wrong.
    """
    if not folder.is_dir():
        return _in_order(folder) if _tar_of(folder) else [folder] if recognises(folder) else []
    found: list[Path] = []
    for path in sorted(_candidates(folder)):
        found += _in_order(path) if _tar_of(path) else [path]
    return found


def locate(path: Path) -> ProductFiles:
    """The files of the one product that `path` stands for.

    Args:
        path: product folder, ZIP, order `.tar.gz`, a path inside an order, METADATA.XML, or the image itself.

    Raises:
        InputError: none is there, or several are (lists them).
    """
    order = _tar_of(path)
    if order is not None:
        return _locate_in_order(path, order)
    if path.is_dir():
        return _locate_in_folder(path)
    if path.suffix.lower() == ".zip":
        members = {m.filename: m.file_size for m in zip_members(path)}
        return _only(_group([RasterFile(path, name, size) for name, size in members.items()]), path)
    groups = _group(RasterFile(near) for near in path.parent.iterdir() if near.is_file())
    found = _FILE.fullmatch(path.name)
    wanted = [group for group in groups if found and group.stem == found["stem"]]
    return _only(wanted, path)


def _locate_in_folder(folder: Path) -> ProductFiles:
    groups = _group(RasterFile(path) for path in sorted(folder.iterdir()) if path.is_file())
    if groups:
        return _only(groups, folder)
    products = find_products(folder)
    if len(products) == 1:
        return locate(products[0])
    raise _not_one(folder, [str(path) for path in products])


def _locate_in_order(path: Path, order: Path) -> ProductFiles:
    unpacked = _unpack(order)
    inner = unpacked / path.relative_to(order)
    if not inner.exists():
        raise InputError(f"{path}: {order.name} holds no such product; it holds {_listed(_in_order(order))}")
    products = [inner] if inner != unpacked else find_products(unpacked)
    if len(products) != 1:
        raise _not_one(order, [str(order / product.relative_to(unpacked)) for product in products])
    return locate(products[0])


def _in_order(order: Path) -> list[Path]:
    """Paths of the products in an order; the order itself where it holds one."""
    root = _tar_of(order)
    if root is None or root != order:
        return [order]
    try:
        unpacked = _unpack(order)
    except InputError:  # opening it says what is wrong
        return [order]
    inner = find_products(unpacked)
    return [order] if len(inner) <= 1 else [order / path.relative_to(unpacked) for path in inner]


def _tar_of(path: Path) -> Path | None:
    """The tar archive that `path` is, or runs through; None where there is none."""
    for part in (path, *path.parents):
        if part.name.lower().endswith(_TAR_SUFFIXES) and part.is_file():
            return part
    return None


def _unpack(order: Path) -> Path:
    """Unpack the products of an order once into the cache folder; a ZIP inside a tar allows no random access.

    The folder gets its name only when it is complete, so a kill leaves no half order behind it.
    """
    size, changed = file_state(order)
    key = hashlib.sha256(f"{order.name}:{size}:{changed}".encode()).hexdigest()
    cache = Path(os.environ.get("CUBELOOM_CACHE") or Path.home() / ".cache" / "cubeloom") / "products"
    target = cache / key
    if target.is_dir():
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix="unpacking-", dir=cache))
        try:
            unpack_tar(order, staging, _is_wanted)
            _publish(staging, target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise InputError(
            f"{order}: cannot be unpacked below {cache} ({error}); set CUBELOOM_CACHE to a folder with room"
        ) from error
    return target


def _publish(staging: Path, target: Path) -> None:
    try:
        staging.rename(target)
    except OSError:
        if not target.is_dir():  # else another process was first
            raise


def _is_wanted(name: str) -> bool:
    plain = PurePosixPath(name)
    return plain.suffix.lower() in (".zip", ".hdr") or _FILE.fullmatch(plain.name) is not None


def _is_product_zip(path: Path) -> bool:
    if _PRODUCT.match(path.name):
        return True
    try:
        names = [PurePosixPath(member.filename).name for member in zip_members(path)]
    except InputError:
        return False
    return any(group.is_product for group in _group(RasterFile(path, name) for name in names))


def _candidates(folder: Path) -> Iterable[Path]:
    """Product folders (or files, where several products share a folder), ZIPs and orders at or below a folder."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and not name.endswith(".zarr")]
        here = [Path(parent, name) for name in names]
        products = [group for group in _group(map(RasterFile, here)) if group.is_product]
        yield from [Path(parent)] if len(products) == 1 else [product.entry for product in products]
        for path in here:
            is_zip = path.suffix.lower() == ".zip"
            if (is_zip and _is_product_zip(path)) or path.name.lower().endswith(_TAR_SUFFIXES):
                yield path


def _group(files: Iterable[RasterFile]) -> list[ProductFiles]:
    """Files sorted into products by folder and name; a plain file goes before its `_COG` copy."""
    grouped: dict[tuple[str, str], dict[str, RasterFile]] = {}
    for file in sorted(files, key=lambda file: ("_cog." in str(file).lower(), str(file))):
        place = PurePosixPath(str(file))
        found = _FILE.fullmatch(place.name)
        if found is None or (found["role"].upper() == "METADATA") != (found["suffix"].lower() == "xml"):
            continue
        roles = grouped.setdefault((str(place.parent), found["stem"]), {})
        roles.setdefault(found["role"].upper(), file)
    return [_product(stem, place, roles) for (place, stem), roles in grouped.items()]


def _product(stem: str, place: str, roles: dict[str, RasterFile]) -> ProductFiles:
    archive = next((file.path for file in roles.values() if file.member), None)
    return ProductFiles(stem, place, roles.pop("METADATA", None), roles, archive)


def _only(groups: list[ProductFiles], path: Path) -> ProductFiles:
    """The one product among groups of files; groups of masks alone do not count."""
    products = [group for group in groups if group.is_product]
    if len(products) != 1:
        raise _not_one(path, [f"{group.where}/{group.stem}" for group in products])
    return products[0]


def _not_one(path: Path, found: list[str]) -> InputError:
    if not found:
        return InputError(
            f"{path}: no EnMAP product there; expected METADATA.XML and SPECTRAL_IMAGE (or _VNIR and _SWIR), in a "
            "folder, a ZIP, or a ZIP inside an order's tar.gz"
        )
    listed = found[:_LISTED] + ["..."] * (len(found) > _LISTED)
    return InputError(f"{path}: holds {len(found)} EnMAP products; open one of them:\n  - " + "\n  - ".join(listed))


def _listed(paths: list[Path]) -> str:
    return ", ".join(map(str, paths)) or "none"
