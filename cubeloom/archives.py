"""ZIP and tar archives from outside: each member is checked, and an archive with one bad member is refused as a whole.

Nothing is repaired or renamed. All that takes archives apart is here; `cubeloom.untrusted` gives it on.
"""

import io
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Self

from cubeloom.errors import InputError

READ_LIMIT = 64 * 2**20
"""Bytes of one member that is read into memory."""
MEMBER_LIMIT = 10_000
"""Members of one archive."""
UNPACKED_LIMIT = 64 * 2**30
"""Bytes of one archive when unpacked."""
RATIO_LIMIT = 200
"""How many times larger than the archive its content may be ..."""
RATIO_FLOOR = 100 * 2**20
"""... once the content exceeds this many bytes: an all-zero quality mask rightly packs 1000 to 1."""
DIRECTORY_LIMIT = 4 * 2**20
"""Bytes of the table of contents of a ZIP, which is read at once and then takes ten times its size."""
HEADER_LIMIT = 8 * 2**10
"""Bytes of a tar's header for a long name and the like; Python 3.11.7 takes quadratic time for them."""
PATH_LIMIT = 255
"""Bytes of one component of a member's name, as file systems have it."""


def zip_members(source: Path | bytes, origin: str = "") -> list[zipfile.ZipInfo]:
    """The files in a ZIP archive, once all its members have passed the limits.

    Args:
        source: the archive, or the file that holds it.
        origin: name for messages; the path where `source` is one.

    Raises:
        InputError: not a ZIP, or an absolute or climbing name, a link, a name twice, encryption, an exotic compression,
            too many members, or too much content.
    """
    origin = origin or str(source)
    try:
        with _ContentsReader(_open(source)) as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
        guard = _ArchiveGuard(origin, _size(source))
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"{origin}: not a readable ZIP archive ({error}); it may be cut short") from None
    for member in members:
        if stat.S_ISLNK(member.external_attr >> 16):
            raise InputError(f"{origin}: member {member.filename!r} is a link; links in archives are refused")
        if member.flag_bits & 1:
            raise InputError(
                f"{origin}: member {member.filename!r} is encrypted; unpack the archive and read the folder"
            )
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(
                f"{origin}: member {member.filename!r} is compressed by method {member.compress_type}; expected deflate"
            )
        guard.admit(member.orig_filename, member.file_size)
    return [member for member in members if not member.is_dir()]


def read_zip_member(source: Path | bytes, name: str, limit: int = READ_LIMIT, origin: str = "") -> bytes:
    """The content of one member of a ZIP archive that `zip_members` has passed.

    At most `limit` bytes of it, measured while unpacking.

    Raises:
        InputError: the member is larger, or damaged.
    """
    origin = origin or str(source)
    try:
        with _open(source) as file, zipfile.ZipFile(file) as archive, archive.open(name) as member:
            data = member.read(limit + 1)
    except (zipfile.BadZipFile, zlib.error, KeyError, OSError, EOFError, NotImplementedError, ValueError) as error:
        raise InputError(f"{origin}: member {name!r} cannot be unpacked ({error})") from None
    if len(data) > limit:
        raise InputError(f"{origin}: member {name!r} has more than {limit:,} bytes")
    return data


def _open(source: Path | bytes) -> io.BufferedIOBase:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _size(source: Path | bytes) -> int:
    return len(source) if isinstance(source, bytes) else source.stat().st_size


class _ContentsReader(io.BufferedReader):
    """A file of which `zipfile` reads the table of contents, in one piece that takes ten times its size in memory."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > DIRECTORY_LIMIT:
            raise zipfile.BadZipFile(f"its table of contents has {size:,} bytes; at most {DIRECTORY_LIMIT:,} are read")
        return super().read(size)


def unpack_tar(path: Path, into: Path, wanted: Callable[[str], bool]) -> list[Path]:
    """Unpack the wanted members of a tar archive (plain or gzip) in one pass.

    Args:
        path: the archive.
        into: existing empty folder.
        wanted: tells by a member's name whether to unpack it; all members are checked.

    Returns:
        The files written, all below `into`.

    Raises:
        InputError: as `zip_members`; sizes are those met while streaming. A damaged or missing header is an error too,
            so that an archive is never taken for a shorter one.
        OSError: the files cannot be written.
    """
    guard, written = _ArchiveGuard(str(path), path.stat().st_size), []
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"  # nothing else is tried: xz may ask for gigabytes to unpack a few bytes
    try:
        with tarfile.open(path, "r|gz" if packed else "r|", tarinfo=_TarMember) as archive:
            for member in archive:
                guard.admit(member.name, member.size)
                if member.isdir():
                    continue
                if not member.isreg():
                    raise InputError(f"{path}: member {member.name!r} is a link or device, which archives may not hold")
                content = archive.extractfile(member)
                if content is not None and wanted(member.name):
                    written.append(_write(content, into / PurePosixPath(member.name)))
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise InputError(f"{path}: two members cannot both be unpacked ({error})") from None
    except (tarfile.TarError, zlib.error, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"{path}: not a readable tar archive ({error}); it may be cut short") from None
    return written


class _TarMember(tarfile.TarInfo):
    """A member whose headers are bounded, and whose damaged header is no silent end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if member.size < 0 or (member.type in _EXTENDED_HEADERS and member.size > HEADER_LIMIT):
            raise tarfile.HeaderError(f"a header of {member.size:,} bytes; at most {HEADER_LIMIT:,} are read")
        return member

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the mark at the end of every archive
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None

    def _no_sparse(self, *_: object) -> None:
        raise tarfile.ReadError("sparse members are refused")

    _proc_sparse = _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _no_sparse


_EXTENDED_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
"""Headers that hold names and the like of the next member, and are read into memory."""


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
    """Checks the members of one archive of `packed` bytes one after the other."""

    def __init__(self, origin: str, packed: int) -> None:
        self.origin, self.names, self.size = origin, set[str](), 0
        self.cap = min(UNPACKED_LIMIT, max(RATIO_FLOOR, RATIO_LIMIT * packed))

    def admit(self, name: str, size: int) -> None:
        """Take one more member into account, or refuse the archive."""
        plain = PurePosixPath(name)
        climbs = ".." in plain.parts or name.startswith("/") or re.match("[A-Za-z]:", name)
        if climbs or "\\" in name or "\0" in name or not name:
            raise InputError(f"{self.origin}: member {name!r} would be unpacked outside its folder; archive refused")
        if any(len(part.encode(errors="surrogateescape")) > PATH_LIMIT for part in plain.parts):
            raise InputError(f"{self.origin}: member {name[:80]!r}... has too long a name; archive refused")
        if str(plain) in self.names:
            raise InputError(f"{self.origin}: two members are named {name!r}; archive refused")
        self.names.add(str(plain))
        self.size += size
        if len(self.names) > MEMBER_LIMIT:
            raise InputError(f"{self.origin}: more than {MEMBER_LIMIT:,} members; archive refused")
        if self.size > self.cap or size < 0:
            raise InputError(
                f"{self.origin}: unpacks to more than {self.cap:,} bytes ({RATIO_LIMIT} times its size, at most "
                f"{UNPACKED_LIMIT:,}); archive refused"
            )
