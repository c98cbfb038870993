"""Hostile input: each case is refused with one error that names the file, and nothing is written outside."""

import io
import json
import stat
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cubeloom import untrusted
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


YAML_FAULTS = {
    "a: 1\nb: 2\na: 3\n": (3, "given twice"),
    "x:\n  k: 1\n  k: 2\n": (3, "given twice"),
    "a: &n [1, 2]\nb: *n\n": (2, "aliases"),
    "a: !!python/object/apply:os.system ['true']\n": (1, "could not determine a constructor"),
    "a: [1, 2\nb: 3\n": (2, "expected"),
    "{[1, 2]: 3}\n": (1, "unhashable"),
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
    monkeypatch.setattr(untrusted, "RATIO_FLOOR", 10_000)
    zeros = bytes(1_000_000)
    with pytest.raises(InputError, match="unpacks to more"):
        untrusted.zip_members(make_zip(tmp_path / "p.zip", ("zeros", zeros)))
    with pytest.raises(InputError, match="unpacks to more"):
        untrusted.unpack_tar(make_tar(tmp_path / "p.tgz", ("zeros", zeros)), tmp_path, lambda _: False)
    monkeypatch.setattr(untrusted, "MEMBER_LIMIT", 3)
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


def test_sidecar_files_do_not_reach_a_geotiff(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with rasterio.open(path, "w", driver="GTiff", width=4, height=4, count=1, dtype="uint8", nodata=3):
        pass
    (tmp_path / "a.tif.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><NoDataValue>9</NoDataValue></PAMRasterBand></PAMDataset>'
    )
    with untrusted.open_raster(str(path), "a") as raster:
        assert raster.nodata == 3
