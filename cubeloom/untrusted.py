"""Limits for everything that comes from outside: XML, YAML, JSON, names, archives and raster headers.

Each function either returns something safe to use or raises one error that names the file and the limit. Nothing is
repaired or renamed: an archive with one bad member is refused as a whole.
"""

import json
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any
from xml.etree.ElementTree import Element, ParseError  # noqa: TID251 - the types alone; defusedxml parses

import yaml
from defusedxml import DefusedXmlException
from defusedxml import ElementTree as SafeElementTree

from cubeloom.errors import ConfigError, InputError

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

__all__ = [
    "Element",
    "load_json",
    "load_yaml",
    "open_raster",
    "parse_xml",
    "read_zip_member",
    "safe_name",
    "unpack_tar",
    "zip_members",
]

XML_LIMIT = 64 * 2**20
"""Bytes of one XML document; EnMAP's metadata have about 4 MiB."""
JSON_LIMIT = 256 * 2**20
YAML_LIMIT = 2**20

MEMBER_LIMIT = 10_000
"""Members of one archive."""
UNPACKED_LIMIT = 64 * 2**30
"""Bytes of one archive when unpacked."""
RATIO_LIMIT = 200
"""How many times larger than the archive its content may be ..."""
RATIO_FLOOR = 100 * 2**20
"""... once the content exceeds this many bytes: an all-zero quality mask rightly packs 1000 to 1."""

DECODED_LIMIT = 16 * 2**30
"""Bytes of one raster when decoded: some 20 EnMAP scenes of 1300 x 1300 x 224 uint16."""
BLOCK_LIMIT = 2**30
"""Bytes of one decoded tile or strip (over all bands where they lie pixel by pixel)."""

DRIVERS = {".tif": "GTiff", ".tiff": "GTiff", ".geotiff": "GTiff", ".jp2": "JP2OpenJPEG", ".jpeg2000": "JP2OpenJPEG"}
"""GDAL driver by suffix; every other suffix is read as ENVI. No driver that follows references (VRT) is ever tried."""


def parse_xml(source: bytes | Path, origin: str = "") -> Element:
    """Parse an XML document that declares no DTD and no entities and has at most `XML_LIMIT` bytes.

    Args:
        source: the document, or the file that holds it.
        origin: name for messages; the path where `source` is one.

    Raises:
        InputError: too large, not well-formed, or with a DTD or entities.
    """
    if isinstance(source, Path):
        origin, source = origin or str(source), _read_limited(source, XML_LIMIT, "XML document")
    if len(source) > XML_LIMIT:
        raise InputError(f"{origin}: the XML document has {len(source):,} bytes; at most {XML_LIMIT:,} are read")
    try:
        root: Element = SafeElementTree.fromstring(source, forbid_dtd=True)
    except DefusedXmlException as error:
        raise InputError(
            f"{origin}: the XML declares a DTD, entities or external references, which are refused ({error}); "
            "product metadata need none: fetch the file again from its provider"
        ) from None
    except (ParseError, ValueError, LookupError) as error:
        raise InputError(f"{origin}: not well-formed XML ({error}); the file may be cut short") from None
    return root


def load_json(path: Path, limit: int = JSON_LIMIT) -> Any:  # noqa: ANN401 - any JSON value
    """The content of a JSON file of at most `limit` bytes.

    Raises:
        InputError: too large, unreadable, or not JSON.
    """
    data = _read_limited(path, limit, "JSON document")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from None


def _read_limited(path: Path, limit: int, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    if len(data) > limit:
        raise InputError(f"{path}: the {what} has {path.stat().st_size:,} bytes; at most {limit:,} are read")
    return data


class _StrictLoader(yaml.SafeLoader):
    """YAML without the two constructs that surprise: aliases (which may blow up) and keys given twice."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed", event.start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_yaml(text: str, origin: str) -> Any:  # noqa: ANN401 - any YAML value
    """Plain data of a YAML document: no tags, no aliases, no key twice, at most `YAML_LIMIT` characters.

    Args:
        text: the document.
        origin: name of its file, for messages.

    Raises:
        ConfigError: says what and in which line.
    """
    if len(text) > YAML_LIMIT:
        raise ConfigError(f"{origin}: the YAML document has {len(text):,} characters; at most {YAML_LIMIT:,} are read")
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{origin}{where}: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{origin}: not valid YAML ({error})") from None
    except RecursionError:
        raise ConfigError(f"{origin}: the YAML document is nested too deep") from None


_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=@,() -]{0,199}")


def safe_name(name: str, what: str = "id") -> str:
    """`name` itself, if it can be one component of a path on every system.

    Raises:
        InputError: it is empty or longer than 200, or holds anything but ASCII letters, digits and `_.+=@,()- `,
            or starts with a dot or hyphen, or ends with a dot or blank.
    """
    if not _NAME.fullmatch(name) or name[-1] in ". ":
        shown = ascii(name if len(name) <= 80 else name[:80] + "...")
        raise InputError(
            f"{what} {shown} cannot be used as a file name: use 1 to 200 ASCII letters, digits and _.+=@,()- , "
            "starting with a letter, digit or underscore"
        )
    return name


def zip_members(path: Path) -> list[zipfile.ZipInfo]:
    """The files in a ZIP archive, once all its members have passed the limits.

    Raises:
        InputError: not a ZIP, or an absolute or climbing name, a link, a name twice, encryption, too many members,
            or too much content.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"{path}: not a readable ZIP archive ({error}); it may be cut short") from None
    guard = _ArchiveGuard(path)
    for member in members:
        if stat.S_ISLNK(member.external_attr >> 16):
            raise InputError(f"{path}: member {member.filename!r} is a link; links in archives are refused")
        if member.flag_bits & 1:
            raise InputError(f"{path}: member {member.filename!r} is encrypted; unpack the archive and read the folder")
        guard.admit(member.orig_filename, member.file_size)
    return [member for member in members if not member.is_dir()]


def read_zip_member(path: Path, name: str, limit: int = XML_LIMIT) -> bytes:
    """The content of one member of a ZIP archive, at most `limit` bytes of it measured while unpacking.

    Raises:
        InputError: the member is larger, or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as file:
            data = file.read(limit + 1)
    except (zipfile.BadZipFile, zlib.error, KeyError, OSError, EOFError, NotImplementedError, ValueError) as error:
        raise InputError(f"{path}: member {name!r} cannot be unpacked ({error})") from None
    if len(data) > limit:
        raise InputError(f"{path}: member {name!r} has more than {limit:,} bytes")
    return data


def unpack_tar(path: Path, into: Path, wanted: Callable[[str], bool]) -> list[Path]:
    """Unpack the wanted members of a tar archive (plain or compressed) in one pass.

    Args:
        path: the archive.
        into: existing empty folder.
        wanted: tells by a member's name whether to unpack it; all members are checked.

    Returns:
        The files written, all below `into`.

    Raises:
        InputError: as `zip_members`; sizes are those met while streaming.
    """
    guard, written = _ArchiveGuard(path), []
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                guard.admit(member.name, member.size)
                if member.isdir():
                    continue
                if not member.isreg():
                    raise InputError(f"{path}: member {member.name!r} is a link or device, which archives may not hold")
                content = archive.extractfile(member)
                if content is not None and wanted(member.name):
                    written.append(_write(content, into / PurePosixPath(member.name)))
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise InputError(f"{path}: not a readable tar archive ({error}); it may be cut short") from None
    return written


def _write(content: IO[bytes], target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as file:
        for piece in _pieces(content):
            file.write(piece)
    return target


def _pieces(content: IO[bytes]) -> Iterator[bytes]:
    while piece := content.read(2**20):
        yield piece


class _ArchiveGuard:
    """Checks the members of one archive one after the other."""

    def __init__(self, path: Path) -> None:
        self.path, self.names, self.size = path, set[str](), 0
        self.cap = min(UNPACKED_LIMIT, max(RATIO_FLOOR, RATIO_LIMIT * path.stat().st_size))

    def admit(self, name: str, size: int) -> None:
        """Take one more member into account, or refuse the archive."""
        plain = str(PurePosixPath(name))
        climbs = ".." in PurePosixPath(name).parts or name.startswith("/") or re.match("[A-Za-z]:", name)
        if climbs or "\\" in name or "\0" in name or not name:
            raise InputError(f"{self.path}: member {name!r} would be unpacked outside its folder; archive refused")
        if plain in self.names:
            raise InputError(f"{self.path}: two members are named {name!r}; archive refused")
        self.names.add(plain)
        self.size += size
        if len(self.names) > MEMBER_LIMIT:
            raise InputError(f"{self.path}: more than {MEMBER_LIMIT:,} members; archive refused")
        if self.size > self.cap:
            raise InputError(
                f"{self.path}: unpacks to more than {self.cap:,} bytes ({RATIO_LIMIT} times its size, at most "
                f"{UNPACKED_LIMIT:,}); archive refused"
            )


def open_raster(name: str, origin: str) -> "DatasetReader":
    """Open a GeoTIFF, ENVI or JPEG 2000 file, by the driver of its suffix alone, and check its header.

    Args:
        name: path for GDAL, `/vsizip/...` included.
        origin: the file in the user's words, for messages.

    Raises:
        InputError: no such format, damaged, or the header declares more than `DECODED_LIMIT` or `BLOCK_LIMIT`.
    """
    import rasterio
    from rasterio.errors import RasterioError

    driver = DRIVERS.get(Path(name).suffix.lower(), "ENVI")
    # ENVI needs its .hdr beside it; the others get to see no sidecar files at all.
    listing = "TRUE" if driver == "ENVI" else "EMPTY_DIR"
    try:
        with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN=listing):
            dataset = rasterio.open(name, driver=driver, sharing=False)
    except RasterioError as error:
        raise InputError(f"{origin}: cannot be opened as {driver} ({error}); damaged, or of another format") from None
    try:
        _check_header(dataset, origin)
    except InputError:
        dataset.close()
        raise
    return dataset


def _check_header(dataset: "DatasetReader", origin: str) -> None:
    import numpy as np

    item = max(np.dtype(dtype).itemsize for dtype in dataset.dtypes)
    total = dataset.width * dataset.height * dataset.count * item
    if total > DECODED_LIMIT:
        raise InputError(
            f"{origin}: the header declares {dataset.count} bands of {dataset.height} x {dataset.width} px, "
            f"{total / 1e9:.1f} GB when decoded; at most {DECODED_LIMIT / 1e9:.1f} GB are read"
        )
    interleaved = dataset.interleaving is not None and dataset.interleaving.name == "pixel"
    rows, cols = dataset.block_shapes[0]
    block = rows * cols * item * (dataset.count if interleaved else 1)
    if block > BLOCK_LIMIT:
        raise InputError(
            f"{origin}: one block of {rows} x {cols} px decodes to {block / 1e9:.1f} GB; at most "
            f"{BLOCK_LIMIT / 1e9:.1f} GB are read: rewrite it with smaller tiles"
        )
