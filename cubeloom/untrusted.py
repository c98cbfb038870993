"""Limits for everything that comes from outside: XML, YAML, JSON, names, archives and raster headers.

Each function either returns something safe to use or raises one error that names the file and the limit. Nothing is
repaired or renamed.
"""

import json
import re
import stat
from collections.abc import Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import Element, ParseError  # noqa: TID251 - the types alone; defusedxml parses

import yaml
from defusedxml import DefusedXmlException
from defusedxml import ElementTree as SafeElementTree

from cubeloom.archives import read_zip_member, unpack_tar, zip_members
from cubeloom.errors import ConfigError, InputError

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

__all__ = [
    "Element",
    "load_json",
    "load_yaml",
    "open_raster",
    "parse_json",
    "parse_xml",
    "read_yaml",
    "read_zip_member",
    "safe_name",
    "unpack_tar",
    "zip_members",
]

XML_LIMIT = 64 * 2**20
"""Bytes of one XML document; EnMAP's metadata have about 4 MiB."""
MARKUP_LIMIT = 4_000_000
"""Tags and attributes of one XML document, of some hundred bytes of memory each; EnMAP's have 0.1 million."""
JSON_LIMIT = 256 * 2**20
JSON_DEPTH = 100
"""Lists and objects inside each other in one JSON document; a multipolygon in an item collection has 9."""
YAML_LIMIT = 2**20
YAML_DIGITS = 100
"""Characters of one number in YAML: `1:1:1:...` is one to base 60, and takes quadratic time."""

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
    if source.count(b"<") + source.count(b"=") > MARKUP_LIMIT:
        raise InputError(f"{origin}: the XML document has more than {MARKUP_LIMIT:,} tags and attributes")
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
    """The content of a JSON file of at most `limit` bytes, nested at most `JSON_DEPTH` deep.

    Raises:
        InputError: too large, unreadable, nested too deep, or not JSON.
    """
    return parse_json(_read_limited(path, limit, "JSON document"), str(path))


def parse_json(data: bytes, origin: str) -> Any:  # noqa: ANN401 - any JSON value
    """The content of a JSON document, nested at most `JSON_DEPTH` deep.

    Raises:
        InputError: nested too deep, or not JSON.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{origin}: not valid JSON ({error})") from None
    if _deeper_than(content, JSON_DEPTH):
        raise InputError(f"{origin}: the JSON document is nested more than {JSON_DEPTH} deep")
    return content


def _deeper_than(content: object, limit: int) -> bool:
    """Whether lists and objects stand more than `limit` deep inside each other; what walks them may then recurse."""
    level = [content]
    for _ in range(limit):
        inner = (
            value.values() if isinstance(value, dict) else value for value in level if isinstance(value, dict | list)
        )
        level = [value for values in inner for value in values if isinstance(value, dict | list)]
    return bool(level)


def _read_limited(path: Path, limit: int, what: str) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would never end, nor begin
            raise InputError(f"{path}: cannot be read (not a file)")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if len(data) > limit:
        raise InputError(f"{path}: the {what} has {path.stat().st_size:,} bytes; at most {limit:,} are read")
    return data


class _StrictLoader(yaml.SafeLoader):
    """YAML without the constructs that surprise: aliases (which may blow up), tags, and keys given twice."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        what = "aliases (*name)" if isinstance(event, yaml.AliasEvent) else event.tag and f"tags ({event.tag})"
        if what:
            raise yaml.composer.ComposerError(None, None, f"{what} are not allowed", event.start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:  # noqa: ANN401 - as the base class
        if node.tag.endswith((":int", ":float")) and len(node.value) > YAML_DIGITS:
            raise yaml.constructor.ConstructorError(None, None, "the number is too long", node.start_mark)
        return super().construct_scalar(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:  # noqa: ANN401 - any YAML value
    """Plain data of a YAML file, as `load_yaml`.

    Raises:
        ConfigError: says what and in which line.
    """
    try:
        text = _read_limited(path, 4 * YAML_LIMIT, "YAML document").decode()
    except InputError as error:
        raise ConfigError(str(error)) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not valid YAML, which is text in UTF-8 ({error})") from None
    return load_yaml(text, str(path))


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
    except (yaml.YAMLError, ValueError, OverflowError) as error:
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


def open_raster(name: str, origin: str) -> "DatasetReader":
    """Open a GeoTIFF, ENVI or JPEG 2000 file, by the driver of its suffix alone, and check its header.

    Args:
        name: path of a file, or `/vsizip/{ARCHIVE}/MEMBER`.
        origin: the file in the user's words, for messages.

    Raises:
        InputError: no such format, damaged, or the header declares more than `DECODED_LIMIT` or `BLOCK_LIMIT`.
    """
    import rasterio
    from rasterio.errors import RasterioError

    if not name.startswith("/vsizip/{"):
        if name.startswith("/vsi"):
            raise InputError(f"{origin}: GDAL's virtual file systems are not read; expected a file")
        name = str(Path(name).absolute())  # `GTIFF_DIR:...` or `http:...` in front would mean something to GDAL
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

    if not dataset.dtypes or any("complex" in dtype for dtype in dataset.dtypes):
        found = ", ".join(sorted(set(dataset.dtypes))) or "no bands"
        raise InputError(f"{origin}: holds {found}; expected bands of real numbers")
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
