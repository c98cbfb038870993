"""Changes to valid documents, as an attacker, a bad disk or a hasty editor makes them.

Every function takes a `random.Random`, which may be one that Hypothesis steers, and gives a new document.
"""

import gzip
import io
import json
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from copy import deepcopy
from random import Random
from typing import Any
from xml.etree import ElementTree  # noqa: TID251 - to break documents, not to read foreign ones

Mutation = Callable[[Random, bytes], bytes]

TEXTS = (
    *("", " ", "0", "-1", "1", "17", "1e308", "1e999", "-1e999", "nan", "inf", "1e-320", "2147483648", "0x10", "1_0"),
    *("-9223372036854775809", "9" * 400, "9" * 5000, "1:1:1.5", "٣", "NA", "-999", "true", "null", "~", "<<", "="),
    *("x" * 300, "ä", "\u202e", "../../etc/passwd", "/etc/passwd", "a\\b", "file:///etc/passwd", "http://[", "."),
    *("/vsicurl/http://127.0.0.1/x.tif", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2024-02-30"),
    *("%00", "%ff", "[", "{", "- ", ": ", "#", "|", "*a", "&a b", "!!python/name:os.system", "1,2,3", "L1B", "L2A"),
)
"""What is put in the place of a word or number."""

LEAVES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**64), 10**400, 0.5, 1e308, -1e-320, float("nan"), float("inf")),
    *("\ud800", "a\0b", [], {}, [[]], [None], {"": None}, ["a", 1], {"a": {"b": []}}, [1, 2, 3, 4], [1e400] * 6),
    *TEXTS,
)
"""What is put in the place of a value in a tree."""

_TOKEN = re.compile(rb"[-+]?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|[A-Za-z_]+|\s+|.", re.DOTALL)


def some(random: Random, most: int) -> range:
    """As many rounds as a draw says, 1 to `most`, few more often than many."""
    return range(random.choice([1, 1, 1, 2, 2, random.randint(1, most)]))


def flip(random: Random, document: bytes) -> bytes:
    """Bytes changed, cut out, put in, doubled, or the end cut off."""
    data = bytearray(document)
    for _ in some(random, 8):
        at = random.randint(0, len(data))
        length = random.choice([1, 1, 2, 4, random.randint(0, 64), random.randint(0, max(1, len(data)))])
        action = random.randint(0, 4)
        if action == 0 and at < len(data):
            data[at] ^= 1 << random.randint(0, 7)
        elif action == 1:
            del data[at : at + length]
        elif action == 2:
            data[at:at] = random.choice([b"\0", b"\xff", b"<", b'"', b"\n", b"\xc3", bytes(8), b"\xff" * 4]) * min(
                length, 9
            )
        elif action == 3:
            data[at:at] = data[at : at + length]
        else:
            other = random.randint(0, len(data))
            data[at : at + length] = data[other : other + length]
        if random.randint(0, 30) == 0:
            del data[at:]
    return bytes(data)


def reword(random: Random, document: bytes) -> bytes:
    """Words and numbers of a text replaced, left out, doubled or moved."""
    tokens = _TOKEN.findall(document)
    for _ in some(random, 6):
        if not tokens:
            break
        at, action = random.randrange(len(tokens)), random.randint(0, 5)
        if action <= 2:
            tokens[at] = random.choice(TEXTS).encode(errors="surrogatepass")
        elif action == 3:
            del tokens[at : at + random.choice([1, 1, 3, 20])]
        elif action == 4:
            tokens[at:at] = tokens[at : at + random.choice([1, 3, 20])]
        else:
            tokens[at] = tokens[random.randrange(len(tokens))]
    return b"".join(tokens)


def regrow(random: Random, tree: Any) -> Any:
    """Values of a tree of lists and dictionaries replaced, left out, renamed, moved or nested."""
    for _ in some(random, 5):
        places = _places(tree)
        if not places:
            return deepcopy(random.choice(LEAVES))
        holder, key = _one(random, places, lambda place: place[1])
        action = random.randint(0, 6)
        if action <= 3:
            holder[key] = deepcopy(random.choice(LEAVES))  # which may be grown in its turn, even into itself
        elif action == 4:
            del holder[key]
        elif action == 5 and isinstance(holder, dict):
            holder[random.choice([*TEXTS, *map(str, holder)])] = holder.pop(key)
        else:
            source, other = _one(random, places, lambda place: place[1])
            holder[key] = json.loads(json.dumps(source[other])) if random.randint(0, 1) else [holder[key]]
    return tree


def _one(random: Random, members: Sequence[Any], name: Callable[[Any], object]) -> Any:
    """One of some members, those whose name many share no more often than others."""
    named: dict[object, list[Any]] = {}
    for member in members:
        named.setdefault(name(member), []).append(member)
    return random.choice(random.choice(list(named.values())))


def _places(tree: Any) -> list[tuple[Any, Any]]:
    found = []
    pending = [tree]
    while pending:
        value = pending.pop()
        if isinstance(value, dict | list):
            keys = list(value) if isinstance(value, dict) else range(len(value))
            found += [(value, key) for key in keys]
            pending += [value[key] for key in keys]
    return found


def regrow_json(random: Random, document: bytes) -> bytes:
    """A JSON document with another tree."""
    return json.dumps(regrow(random, json.loads(document))).encode()


def regrow_xml(random: Random, document: bytes) -> bytes:
    """An XML document with elements replaced, left out, doubled, renamed or moved."""
    root = ElementTree.fromstring(document)
    for _ in some(random, 5):
        parents = [element for element in root.iter() if len(element)]
        element = _one(random, list(root.iter()), lambda element: element.tag)
        action = random.randint(0, 6)
        if action <= 2:
            element.text = random.choice(TEXTS)
        elif action == 3 and element.attrib:
            element.set(random.choice(list(element.attrib)), random.choice(TEXTS))
        elif parents:
            parent = _one(random, parents, lambda element: element.tag)
            child = _one(random, parent, lambda element: element.tag)
            if action == 4:
                parent.remove(child)
            elif action == 5:
                parent.append(child)
            else:
                child.tag = element.tag
    return ElementTree.tostring(root)


def rewrite_zip(change: Mutation, names: str = "") -> Mutation:
    """A mutation of the content of one member of a ZIP whose name matches `names`, which is packed anew."""

    def mutate(random: Random, document: bytes) -> bytes:
        with zipfile.ZipFile(io.BytesIO(document)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        chosen = random.choice([name for name in members if re.search(names, name)])
        members[chosen] = change(random, members[chosen])
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in members.items():
                archive.writestr(zipfile.ZipInfo(name), content)
        return buffer.getvalue()

    return mutate


_ENTRY = (
    (4, "<H"),
    (8, "<H"),
    (10, "<H"),
    (16, "<L"),
    (20, "<L"),
    (24, "<L"),
    (28, "<H"),
    (30, "<H"),
    (32, "<H"),
    (38, "<L"),
    (42, "<L"),
)
"""Fields of an entry in a ZIP's table of contents: versions, flags, method, CRC, sizes, lengths, attributes, offset."""
_END = ((4, "<H"), (8, "<H"), (10, "<H"), (12, "<L"), (16, "<L"), (20, "<H"))
_NAMES = (b"../x", b"/etc/x", b"a\\b", b"a\0b", b"\xff\xfe", b"C:x", b"", b"x/", b"METADATA.XML")


def damage_zip(random: Random, document: bytes) -> bytes:
    """Fields and names of a ZIP's table of contents changed, its members left as they are."""
    data = bytearray(document)
    for _ in some(random, 4):
        kind, fields = random.choice(
            [
                (b"PK\1\2", _ENTRY),
                (b"PK\1\2", _ENTRY),
                (b"PK\5\6", _END),
                (b"PK\3\4", ((6, "<H"), (8, "<H"), (26, "<H"), (28, "<H"))),
            ]
        )
        starts = [found.start() for found in re.finditer(re.escape(kind), data)]
        if not starts:
            break
        start = random.choice(starts)
        if kind == b"PK\1\2" and random.randint(0, 3) == 0:
            name = random.choice(_NAMES)
            data[start + 46 : start + 46 + len(name)] = name
            continue
        offset, form = random.choice(fields)
        value = random.choice(
            [0, 1, 2, 8, 12, 14, 0x41ED, 0xA1ED0000, 0xFFFF, 0xFFFFFFFF, random.randint(0, 2**32 - 1)]
        )
        if start + offset + 4 <= len(data):
            struct.pack_into(form, data, start + offset, value % (1 << 8 * struct.calcsize(form)))
    return bytes(data)


_TAR_FIELDS = ((0, 100), (100, 8), (124, 12), (156, 1), (157, 100), (257, 8), (345, 155))
"""Offset and length of a tar header's name, mode, size, type, link, magic and prefix."""


def damage_tar(random: Random, document: bytes) -> bytes:
    """Headers of a tar changed with their checksums kept right, or new ones put in; packed again if it was."""
    packed = document.startswith(b"\x1f\x8b")
    data = bytearray(gzip.decompress(document) if packed else document)
    for _ in some(random, 4):
        starts = [found.start() - 257 for found in re.finditer(rb"ustar", data)]
        if not starts:
            break
        start = random.choice(starts)
        if random.randint(0, 3) == 0:
            data[start:start] = _new_member(random)
            continue
        offset, length = random.choice(_TAR_FIELDS)
        value = random.choice(
            [
                b"../x",
                b"/etc/x",
                b"a",
                b"\xff" * 12,
                b"\x80" + b"\x7f" * 11,
                b"7" * 11,
                b"",
                b"0000017",
                b"x",
                b"1",
                b"2",
                b"5",
                b"L",
                b"K",
                b"S",
                b"g",
            ]
        )
        data[start + offset : start + offset + length] = value[:length].ljust(length, b"\0")
        block = data[start : start + 512]
        block[148:156] = b" " * 8
        data[start + 148 : start + 156] = b"%06o\0 " % sum(block)
    return gzip.compress(bytes(data), 1) if packed else bytes(data)


def _new_member(random: Random) -> bytes:
    """A member with an odd type or an extended header."""
    info = tarfile.TarInfo(random.choice(["x", "../x", "a/b", "x" * 150, "ENMAP-METADATA.XML"]))
    info.type = random.choice([*tarfile.SUPPORTED_TYPES, tarfile.XHDTYPE, tarfile.XGLTYPE, b"?"])
    keyword = random.choice(
        ["path", "size", "hdrcharset", "GNU.sparse.map", "GNU.sparse.size", "GNU.sparse.major", "uid"]
    )
    record = f" {keyword}={random.choice(TEXTS[:40])}\n".encode()
    content = random.choice(
        [b"", str(len(record) + 2).encode() + record, random.choice(TEXTS[:40]).encode(), bytes(600)]
    )
    info.size = len(content)
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


def damage_safetensors(random: Random, document: bytes) -> bytes:
    """The JSON in front of the tensors changed, and its length kept right or not."""
    size = int.from_bytes(document[:8], "little")
    head = regrow_json(random, document[8 : 8 + size])
    length = random.choice([len(head)] * 6 + [0, 2**63, len(head) + 1])
    return length.to_bytes(8, "little") + head + document[8 + size :]


def any_of(*mutations: Mutation) -> Mutation:
    """One of several mutations, or two after each other where the first leaves what the second needs."""

    def mutate(random: Random, document: bytes) -> bytes:
        for _ in range(random.choice([1, 1, 1, 2])):
            chosen = random.choice(mutations)
            try:
                document = chosen(random, document)
            except Exception:  # noqa: BLE001 - no longer a document of the kind that this one takes apart
                document = flip(random, document)
        return document

    return mutate


def spliced(documents: Sequence[bytes]) -> Mutation:
    """The beginning of one document and the end of another."""

    def mutate(random: Random, document: bytes) -> bytes:
        other = random.choice(documents)
        return document[: random.randint(0, len(document))] + other[random.randint(0, len(other)) :]

    return mutate
