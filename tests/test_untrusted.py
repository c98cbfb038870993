"""Hostile input: each case is refused with one error that names the file, and nothing is written outside."""

import io
import json
import os
import stat
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cubeloom import archives, untrusted
from cubeloom.errors import ConfigError, InputError

XML_ATTACKS = {
    "billion laughs": '<!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><l>&b;</l>',
    "external entity": '<!DOCTYPE l [<!ENTITY a SYSTEM "file:///etc/passwd">]><l>&a;</l>',
    "parameter entity": '<!DOCTYPE l [<!ENTITY % a SYSTEM "http://127.0.0.1/x.dtd"> %a;]><l/>',
    "plain DTD": "<!DOCTYPE l SYSTEM 'l.dtd'><l/>",
    "cut short": "<l><m>",
    "empty": "",
    "wrong encoding": "<?xml version='1.0' encoding='no-such'?><l/>",
}


@pytest.mark.parametrize("attack", XML_ATTACKS)
def test_xml_attack_is_refused(attack: str, tmp_path: Path) -> None:
    path = tmp_path / "METADATA.XML"
    path.write_text(XML_ATTACKS[attack])
    with pytest.raises(InputError, match=r"METADATA\.XML"):
        untrusted.parse_xml(path)
    with pytest.raises(InputError, match="order 7"):
        untrusted.parse_xml(path.read_bytes(), "order 7")


def test_xml_reads_plain_documents_and_refuses_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    document = "<a><b n='1'>ä</b></a>".encode()
    assert untrusted.parse_xml(document).findtext("b") == "ä"
    monkeypatch.setattr(untrusted, "XML_LIMIT", len(document) - 1)
    with pytest.raises(InputError, match="at most"):
        untrusted.parse_xml(document, "x")


@pytest.mark.parametrize("piece", ["<b/>", "<b a='' c=''/>"])
def test_xml_of_too_many_tags_is_refused_before_it_fills_the_memory(piece: str) -> None:
    document = (
        f"<a>{piece * (untrusted.MARKUP_LIMIT // piece.count('=') if '=' in piece else untrusted.MARKUP_LIMIT)}</a>"
    )
    with pytest.raises(InputError, match="more than 4,000,000 tags and attributes"):
        untrusted.parse_xml(document.encode(), "x")


YAML_FAULTS = {
    "a: 1\nb: 2\na: 3\n": (3, "given twice"),
    "x:\n  k: 1\n  k: 2\n": (3, "given twice"),
    "a: &n [1, 2]\nb: *n\n": (2, "aliases"),
    "a: !!python/object/apply:os.system ['true']\n": (1, "tags .*os.system.* are not allowed"),
    "a: [1, 2\nb: 3\n": (2, "expected"),
    "a: !!bool perhaps\n": (1, "tags .* are not allowed"),
    "{[1, 2]: 3}\n": (1, "unhashable"),
    "a: [&a1 [x], &a2 [*a1, *a1], &a3 [*a2, *a2], &a4 [*a3, *a3], &a5 [*a4, *a4], &a6 [*a5, *a5]]\n": (1, "aliases"),
    f"a: 1{':1' * 50_000}\n": (1, "number is too long"),
    f"a: 1{':1' * 50_000}.5\n": (1, "number is too long"),
}


@pytest.mark.parametrize("text", YAML_FAULTS)
def test_yaml_fault_names_file_and_line(text: str) -> None:
    line, what = YAML_FAULTS[text]
    with pytest.raises(ConfigError, match=rf"flow\.yaml, line {line}, .*{what}"):
        untrusted.load_yaml(text, "flow.yaml")


def test_yaml_limits() -> None:
    with pytest.raises(ConfigError, match="nested"):
        untrusted.load_yaml("[" * 20_000, "deep.yaml")
    with pytest.raises(ConfigError, match="at most"):
        untrusted.load_yaml("#" * (untrusted.YAML_LIMIT + 1), "long.yaml")


def test_a_yaml_file_names_itself(tmp_path: Path) -> None:
    path = tmp_path / "flow.yaml"
    path.write_text("a: [1, ä]", "utf-8")
    assert untrusted.read_yaml(path) == {"a": [1, "ä"]}
    path.write_text("a: ä", "latin-1")
    with pytest.raises(ConfigError, match=r"flow\.yaml: .*UTF-8"):
        untrusted.read_yaml(path)
    with path.open("wb") as file:
        file.truncate(2**32)
    with pytest.raises(ConfigError, match=r"flow\.yaml: .*4,294,967,296 bytes"):
        untrusted.read_yaml(path)
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        untrusted.read_yaml(tmp_path / "none.yaml")


PRINTABLE = st.characters(exclude_categories=("C", "Z"), max_codepoint=0xFFFF)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(PRINTABLE),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(PRINTABLE, max_size=5), inner, max_size=3),
        max_leaves=10,
    )
)
def test_yaml_reads_what_json_writes(value: object) -> None:
    assert untrusted.load_yaml(json.dumps(value, ensure_ascii=False), "x") == value


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "item.json"
    path.write_text('{"a": [1, 2.5]}')
    assert untrusted.load_json(path) == {"a": [1, 2.5]}
    for bad in ('{"a": ', "[" * 100_000, "9" * 5000):
        path.write_text(bad)
        with pytest.raises(InputError, match=r"item\.json"):
            untrusted.load_json(path)
    with pytest.raises(InputError, match="at most 10 "):
        untrusted.load_json(path, limit=10)
    with pytest.raises(InputError, match="cannot be read"):
        untrusted.load_json(tmp_path / "none.json")
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(InputError, match="not a file"):
        untrusted.load_json(tmp_path / "pipe.json")


@pytest.mark.parametrize("brackets", ["[]", '{"a":}'])
def test_json_depth_is_limited(brackets: str, tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    head, tail = brackets[:-1], brackets[-1]
    path.write_text(head * untrusted.JSON_DEPTH + "1" + tail * untrusted.JSON_DEPTH)
    value = untrusted.load_json(path)
    for _ in range(untrusted.JSON_DEPTH):
        (value,) = value.values() if isinstance(value, dict) else value
    assert value == 1
    path.write_text(head * (untrusted.JSON_DEPTH + 1) + "1" + tail * (untrusted.JSON_DEPTH + 1))
    with pytest.raises(InputError, match=r"deep\.json: .*nested more than 100 deep"):
        untrusted.load_json(path)


@given(st.text())
def test_safe_name_is_one_component_below_its_folder(name: str) -> None:
    try:
        assert untrusted.safe_name(name) == name
    except InputError:
        return
    target = Path("/root/folder", name)
    assert target.parent == Path("/root/folder")
    assert target.resolve().parent == Path("/root/folder").resolve()
    assert len(name.encode()) <= 200


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "a\\b", "a\0b", "x" * 300, "-rf", ".hidden", "a\n", "ä"]
)
def test_unsafe_name_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="file name"):
        untrusted.safe_name(name)


def test_enmap_names_are_safe() -> None:
    name = "ENMAP01-____L2A-DT0000001867_20220724T104526Z_008_V010302_20230628T165614Z"
    assert untrusted.safe_name(name) == name


def make_zip(path: Path, *members: tuple[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def make_tar(path: Path, *members: tuple[tarfile.TarInfo | str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for member, content in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


BAD_NAMES = ["../x", "a/../../x", "/etc/x", "C:/x", "a\\..\\x"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_climbing_members_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="outside its folder"):
        untrusted.zip_members(make_zip(tmp_path / "p.zip", ("good", b""), (name, b"1")))
    into = tmp_path / "inner"
    into.mkdir()
    with pytest.raises(InputError, match="outside its folder"):
        untrusted.unpack_tar(make_tar(tmp_path / "p.tgz", (name, b"1")), into, lambda _: True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inner", "p.tgz", "p.zip"]


def test_links_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(InputError, match="link"):
        untrusted.zip_members(tmp_path / "p.zip")
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        info = tarfile.TarInfo("link")
        info.type, info.linkname = kind, "/etc/passwd"
        with pytest.raises(InputError, match="link or device"):
            untrusted.unpack_tar(make_tar(tmp_path / "p.tgz", (info, b"")), tmp_path, lambda _: True)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicates_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two members"):
        untrusted.zip_members(make_zip(tmp_path / "p.zip", ("a/b", b"1"), ("a/b", b"2")))
    with pytest.raises(InputError, match="two members"):
        untrusted.unpack_tar(make_tar(tmp_path / "p.tgz", ("a", b"1"), ("./a", b"2")), tmp_path, lambda _: True)


def test_archive_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "RATIO_FLOOR", 10_000)
    zeros = bytes(1_000_000)
    with pytest.raises(InputError, match="unpacks to more"):
        untrusted.zip_members(make_zip(tmp_path / "p.zip", ("zeros", zeros)))
    with pytest.raises(InputError, match="unpacks to more"):
        untrusted.unpack_tar(make_tar(tmp_path / "p.tgz", ("zeros", zeros)), tmp_path, lambda _: False)
    monkeypatch.setattr(archives, "MEMBER_LIMIT", 3)
    with pytest.raises(InputError, match="members"):
        untrusted.zip_members(make_zip(tmp_path / "q.zip", *((f"m{n}", b"") for n in range(4))))


def test_zip_member_that_lies_about_its_size_is_stopped(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "p.zip", ("METADATA.XML", bytes(100_000)))
    with pytest.raises(InputError, match="more than 1,000 bytes"):
        untrusted.read_zip_member(path, "METADATA.XML", limit=1000)


@pytest.mark.parametrize("keep", [0, 20, 60])
def test_cut_archives_are_refused(keep: int, tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(200)
    for path in (make_zip(tmp_path / "p.zip", ("a", content)), make_tar(tmp_path / "p.tgz", ("a", content))):
        path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"p\.zip"):
        untrusted.zip_members(tmp_path / "p.zip")
    with pytest.raises(InputError, match=r"p\.tgz"):
        untrusted.unpack_tar(tmp_path / "p.tgz", tmp_path, lambda _: True)


def test_a_zip_is_read_from_memory_as_from_the_disk(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "p.zip", ("a/b", b"1" * 99), ("c", b""))
    content = path.read_bytes()
    found = [member.filename for member in untrusted.zip_members(content, "it")]
    assert found == [member.filename for member in untrusted.zip_members(path)] == ["a/b", "c"]
    assert untrusted.read_zip_member(content, "a/b", origin="it") == b"1" * 99
    with pytest.raises(InputError, match=r"^it: member 'x' cannot"):
        untrusted.read_zip_member(content, "x", origin="it")
    with pytest.raises(InputError, match=r"^it: not a readable ZIP"):
        untrusted.zip_members(content[:-20], "it")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_only_deflated_zips_are_read(method: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "p.zip", "w", method) as archive:
        archive.writestr("a", b"1" * 1000)
    with pytest.raises(InputError, match=f"'a' is compressed by method {method}"):
        untrusted.zip_members(tmp_path / "p.zip")


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "p.zip", ("a", b"1"))
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="'a' is encrypted"):
        untrusted.zip_members(path)


def test_a_huge_table_of_contents_is_not_read(tmp_path: Path) -> None:
    """Millions of entries of 46 bytes would each become an object of half a kilobyte."""
    path = make_zip(tmp_path / "p.zip", ("a", b"1"))
    content = path.read_bytes()
    start, end = content.rindex(b"PK\1\2"), content.rindex(b"PK\5\6")
    entries = content[start:end] * (archives.DIRECTORY_LIMIT // (end - start) + 1)
    last = bytearray(content[end:])
    last[12:16] = struct.pack("<L", len(entries))
    path.write_bytes(content[:start] + entries + last)
    with pytest.raises(InputError, match="table of contents has 4,19"):
        untrusted.zip_members(path)


def raw_tar(path: Path, *blocks: bytes) -> Path:
    path.write_bytes(b"".join(block + bytes(-len(block) % 512) for block in blocks) + bytes(1024))
    return path


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def refused_tar(path: Path, match: str) -> None:
    into = path.parent / "into"
    into.mkdir(exist_ok=True)
    with pytest.raises(InputError, match=match) as caught:
        untrusted.unpack_tar(path, into, lambda _: True)
    assert path.name in str(caught.value)


def test_tar_headers_that_swallow_memory_are_refused(tmp_path: Path) -> None:
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE):
        path = raw_tar(tmp_path / "p.tar", header("x", 9000, kind), b"x" * 9000, header("a", 1), b"1")
        refused_tar(path, "header of 9,000 bytes; at most 8,192")
    chain = [header("x", 8, tarfile.XHDTYPE), b"8 a=b  \n"] * 5000
    refused_tar(raw_tar(tmp_path / "p.tar", *chain, header("a", 1), b"1"), "recursion|header")


def test_a_tar_member_of_negative_size_does_not_make_room_for_others(tmp_path: Path) -> None:
    refused_tar(raw_tar(tmp_path / "p.tar", header("a", -(10**12)), header("b", 1), b"1"), "not a readable tar")
    size = b"22 size=-100000000000\n"
    path = raw_tar(tmp_path / "q.tar", header("x", len(size), tarfile.XHDTYPE), size, header("a", 1), b"1")
    refused_tar(path, r"q\.tar")


def test_sparse_tar_members_are_refused(tmp_path: Path) -> None:
    """Their maps are lists of any length."""
    refused_tar(raw_tar(tmp_path / "p.tar", header("a", 0, tarfile.GNUTYPE_SPARSE)), "sparse")
    for record in (b"GNU.sparse.map=0,1", b"GNU.sparse.size=1", b"GNU.sparse.major=1\n22 GNU.sparse.minor=0"):
        record = b"%d %s\n" % (len(record.split(b"\n")[0]) + 4, record)
        blocks = header("x", len(record), tarfile.XHDTYPE), record, header("a", 512), b"9" * 512
        refused_tar(raw_tar(tmp_path / "p.tar", *blocks), "sparse")


def test_a_tar_is_never_taken_for_a_shorter_one(tmp_path: Path) -> None:
    """`tarfile` alone ends silently at a damaged header and at a missing end."""
    members = [header("a", 1), b"1", header("b", 1), b"2"]
    whole = raw_tar(tmp_path / "p.tar", *members).read_bytes()
    (tmp_path / "all").mkdir()
    assert len(untrusted.unpack_tar(tmp_path / "p.tar", tmp_path / "all", lambda _: True)) == 2
    damaged = bytearray(whole)
    damaged[1024 + 5] ^= 1
    for content in (bytes(damaged), whole[:1024], whole[:2048], whole[:1300]):
        (tmp_path / "p.tar").write_bytes(content)
        refused_tar(tmp_path / "p.tar", "not a readable tar")
        for path in (tmp_path / "into").iterdir():
            path.unlink()


def test_other_compressions_of_a_tar_are_not_tried(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "p.tar", "w:xz") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    refused_tar(tmp_path / "p.tar", "not a readable tar")


def test_tar_members_that_cannot_both_be_are_refused(tmp_path: Path) -> None:
    refused_tar(make_tar(tmp_path / "p.tgz", ("a", b"1"), ("a/b", b"2")), "cannot both be unpacked")
    refused_tar(make_tar(tmp_path / "q.tgz", ("x" * 300, b"1")), "too long a name")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(names=st.lists(st.text("ab./\\ \x01é", min_size=1, max_size=8), min_size=1, max_size=3, unique=True))
def test_unpacked_files_stay_inside(names: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("root")
    into = root / "into"
    into.mkdir()
    archive = make_tar(root / "p.tgz", *((name, b"x") for name in names))
    try:
        written = untrusted.unpack_tar(archive, into, lambda _: True)
    except (InputError, OSError):
        written = []
    assert all(path.resolve().is_relative_to(into) for path in written)
    assert sorted(path.name for path in root.iterdir()) == ["into", "p.tgz"]


def test_sparse_tiff_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "bomb.tif"
    profile = {"driver": "GTiff", "width": 60_000, "height": 2_000, "count": 120, "dtype": "uint16", "SPARSE_OK": True}
    with rasterio.open(path, "w", tiled=True, blockxsize=2000, blockysize=2000, compress="deflate", **profile):
        pass
    assert path.stat().st_size < 2**20
    with pytest.raises(InputError, match=r"28\.8 GB"):
        untrusted.open_raster(str(path), str(path))


def test_huge_block_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "block.tif"
    profile = {"driver": "GTiff", "width": 40_000, "height": 40_000, "count": 1, "dtype": "uint16", "SPARSE_OK": True}
    with rasterio.open(path, "w", tiled=True, blockxsize=32768, blockysize=32768, compress="deflate", **profile):
        pass
    with pytest.raises(InputError, match="smaller tiles"):
        untrusted.open_raster(str(path), str(path))


@pytest.mark.parametrize("name", ["cube.tif", "cube.bsq", "cube.jp2", "cube.vrt"])
def test_vrt_disguised_never_reads_another_file(name: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.tif"
    with rasterio.open(secret, "w", driver="GTiff", width=4, height=4, count=1, dtype="uint8") as raster:
        raster.write(np.full((1, 4, 4), 7, "uint8"))
    (tmp_path / name).write_text(
        f'<VRTDataset rasterXSize="4" rasterYSize="4"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f"<SourceFilename>{secret}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with rasterio.open(tmp_path / name) as open_by_content:
        assert open_by_content.driver == "VRT"
    with pytest.raises(InputError, match=name):
        untrusted.open_raster(str(tmp_path / name), name)


@pytest.mark.parametrize(
    "name", ["/vsicurl/http://127.0.0.1/x.tif", "/vsis3/bucket/x.tif", "/vsimem/x", "/vsizip/x.zip"]
)
def test_no_virtual_file_system_but_a_zip_is_opened(name: str) -> None:
    with pytest.raises(InputError, match=r"item 5: GDAL's virtual file systems are not read"):
        untrusted.open_raster(name, "item 5")


def test_a_file_named_like_an_order_to_gdal_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = {"driver": "GTiff", "width": 4, "height": 4, "count": 1, "dtype": "uint8"}
    for name, value in {"a.tif": 1, "GTIFF_DIR:1:a.tif": 2}.items():
        with rasterio.open(tmp_path / "new.tif", "w", **profile) as raster:
            raster.write(np.full((1, 4, 4), value, "uint8"))
        (tmp_path / "new.tif").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    with untrusted.open_raster("GTIFF_DIR:1:a.tif", "b") as raster:
        assert (raster.read() == 2).all()


@pytest.mark.parametrize("dtype", ["complex64", "complex_int16"])
def test_complex_numbers_are_refused(dtype: str, tmp_path: Path) -> None:
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", width=4, height=4, count=1, dtype=dtype):
        pass
    with pytest.raises(InputError, match=f"a: holds {dtype}; expected bands of real numbers"):
        untrusted.open_raster(str(tmp_path / "a.tif"), "a")


def test_sidecar_files_do_not_reach_a_geotiff(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with rasterio.open(path, "w", driver="GTiff", width=4, height=4, count=1, dtype="uint8", nodata=3):
        pass
    (tmp_path / "a.tif.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><NoDataValue>9</NoDataValue></PAMRasterBand></PAMDataset>'
    )
    with untrusted.open_raster(str(path), "a") as raster:
        assert raster.nodata == 3
