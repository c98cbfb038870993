"""Where the files of a Sentinel-2 SAFE product lie: a folder or a ZIP, and the paths that its own documents list."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from cubeloom.errors import InputError
from cubeloom.untrusted import XML_LIMIT, read_zip_member, safe_name, zip_members

from .rasters import RasterFile, file_state

_DOCUMENT = re.compile(r"MTD_MSIL(1C|2A)\.xml")
_PRODUCT = re.compile(r"S2[A-D]_MSIL(1C|2A)_\d{8}T\d{6}_")
_IMAGE_SUFFIX = ".jp2"


@dataclass(frozen=True)
class SafeFiles:
    """The files of one product.

    Attributes:
        path: the product's folder, or the ZIP that holds it.
        document: path of MTD_MSIL1C.xml or MTD_MSIL2A.xml inside the product.
        root: the product's folder inside the ZIP, with a slash behind it; empty for a folder.
        sizes: bytes by member of the ZIP; empty for a folder.
    """

    path: Path
    document: str
    root: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def archive(self) -> Path | None:
        """The ZIP; None for a folder."""
        return self.path if self.sizes else None

    def read(self, name: str) -> bytes:
        """A document by its path inside the product.

        Raises:
            InputError: it is not there, or too large.
        """
        file = self.file(name)
        if file.member:
            return read_zip_member(file.path, file.member)
        if file_state(file.path)[0] > XML_LIMIT:
            raise InputError(f"{file}: the document has more than {XML_LIMIT:,} bytes")
        return file.path.read_bytes()

    def file(self, name: str) -> RasterFile:
        """A file by its path inside the product, which comes from the product's documents: it must stay inside.

        Raises:
            InputError: it is not there, or the path leads elsewhere.
        """
        inside = PurePosixPath(name)
        if inside.is_absolute() or not inside.parts:
            raise InputError(f"{self.path}: lists the file {name[:80]!r}; expected a path inside the product")
        for part in inside.parts:
            safe_name(part, f"{self.path}: part of the path of a listed file")
        if self.sizes:
            member = f"{self.root}{inside}"
            if member not in self.sizes:
                raise self._missing(str(inside))
            return RasterFile(self.path, member, self.sizes[member])
        place = self.path.joinpath(*inside.parts)
        if not place.is_file():
            raise self._missing(str(inside))
        return RasterFile(place)

    def image(self, name: str) -> RasterFile:
        """An image by its path as IMAGE_FILE lists it, without suffix."""
        return self.file(name if PurePosixPath(name).suffix else name + _IMAGE_SUFFIX)

    def has(self, name: str) -> bool:
        """Whether a listed image is there, and not empty: single bands are often fetched alone."""
        try:
            file = self.image(name)
        except InputError:
            return False
        return file.size > 0 if file.member else file_state(file.path)[0] > 0

    def parts(self, documents: Sequence[str], images: Sequence[tuple[str, Path]]) -> list[tuple[str, Path]]:
        """What a scene is read from, each by a name: the ZIP alone, or documents inside the product and its images."""
        if self.archive is not None:
            return [("archive", self.archive)]
        return [*((f"metadata {number}", self.file(name).path) for number, name in enumerate(documents)), *images]

    def _missing(self, name: str) -> InputError:
        return InputError(
            f"{self.path}: {name} is missing, though the product's own metadata list it; fetch the product again"
        )


def recognises(path: Path) -> bool:
    """Whether `path` is a SAFE product of Sentinel-2: its folder, its ZIP, or its MTD_MSIL*.xml.

    Raises:
        InputError: a ZIP named like such a product is damaged or refused.
    """
    if path.is_dir():
        return _document_in(path) is not None
    if path.suffix.lower() == ".zip":
        return path.is_file() and _is_product_zip(path)
    return path.is_file() and _DOCUMENT.fullmatch(path.name) is not None


def find_products(folder: Path) -> Iterator[Path]:
    """Every SAFE product of Sentinel-2 at or below a folder, in the order of their paths; links are not followed."""
    for parent, folders, names in os.walk(folder):
        here = Path(parent)
        if _document_in(here) is not None:
            folders.clear()
            yield here
            continue
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not name.endswith(".zarr"))
        yield from (here / name for name in sorted(names) if _PRODUCT.match(name) and name.lower().endswith(".zip"))


def locate(path: Path) -> SafeFiles:
    """The files of the one product that `path` stands for.

    Args:
        path: the product's folder, its ZIP, or its MTD_MSIL*.xml.

    Raises:
        InputError: none is there, or several are.
    """
    if path.suffix.lower() == ".zip":
        return _locate_in_zip(path)
    folder = path if path.is_dir() else path.parent
    document = path.name if path.is_file() else _document_in(folder)
    if document is None:
        raise InputError(f"{path}: no SAFE product of Sentinel-2; expected MTD_MSIL1C.xml or MTD_MSIL2A.xml in it")
    return SafeFiles(folder, document)


def _document_in(folder: Path) -> str | None:
    names = [name for name in ("MTD_MSIL2A.xml", "MTD_MSIL1C.xml") if (folder / name).is_file()]
    return names[0] if len(names) == 1 else None


def _documents(names: Mapping[str, int]) -> list[PurePosixPath]:
    paths = [PurePosixPath(name) for name in names]
    return [path for path in paths if len(path.parts) <= 2 and _DOCUMENT.fullmatch(path.name)]


def _is_product_zip(path: Path) -> bool:
    if _PRODUCT.match(path.name):
        return True
    try:
        sizes = {member.filename: member.file_size for member in zip_members(path)}
    except InputError:
        return False
    return bool(_documents(sizes))


def _locate_in_zip(path: Path) -> SafeFiles:
    sizes = {member.filename: member.file_size for member in zip_members(path)}
    found = _documents(sizes)
    if len(found) != 1:
        listed = ", ".join(map(str, found)) or "none"
        raise InputError(f"{path}: expected one MTD_MSIL1C.xml or MTD_MSIL2A.xml in this ZIP, found {listed}")
    root = "" if len(found[0].parts) == 1 else f"{found[0].parent}/"
    return SafeFiles(path, found[0].name, root, sizes)
