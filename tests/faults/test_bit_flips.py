"""One bit that changes on the disk is found by `cubeloom validate`, which names the file."""

import shutil

import pytest

from cubeloom.pipeline import store


@pytest.fixture(scope="module")
def pristine(one, expected):
    """An output directory whose product is whole."""
    return expected.out(one)


@pytest.fixture
def out(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "out")


def product_of(out):
    (product,) = out.glob("scenes/*/*.zarr")
    return product


def flip(path, share=0.0, after=b""):
    """Change one bit of the byte that lies at a share of the file, or right after some words."""
    content = bytearray(path.read_bytes())
    content[content.index(after) + len(after) if after else int(share * (len(content) - 1))] ^= 4
    path.write_bytes(content)


def validated(cli, path):
    """How `cubeloom validate` ended, and all that it said."""
    ended = cli("validate", path)
    return ended.code, ended.out + ended.err


def test_what_is_whole_is_valid(cli, out):
    assert validated(cli, out)[0] == 0
    assert validated(cli, product_of(out))[0] == 0


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    "key", ["reflectance/c/0/1/0", "denoised/c/0/4/0", "wavelength/c/0", "zarr.json", "reflectance/zarr.json"]
)
def test_a_flip_in_a_product(key, share, cli, out):
    product = product_of(out)
    flip(product / key, share)
    for path in (product, out):
        code, said = validated(cli, path)
        assert code == 3, said
        assert key in said
        assert "Traceback" not in said


@pytest.mark.parametrize("after", [b'"identity": "', b'"scene_id": "', b'"stage": "', b'"chunks": {\n  "', b'": "'])
def test_a_flip_in_the_commit_record(after, cli, out):
    """Also where the record says nothing that could be held against the product's files."""
    flip(product_of(out) / store.COMMIT, after=after)
    code, said = validated(cli, out)
    assert code == 3, said
    assert store.COMMIT in said
    assert "Traceback" not in said


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_flip_in_the_commit_record_of_a_store_alone(share, cli, out):
    flip(product_of(out) / store.COMMIT, share)
    code, said = validated(cli, product_of(out))
    assert code == 3, said
    assert product_of(out).name in said


def test_a_file_that_is_missing_or_too_many(cli, out):
    product = product_of(out)
    (product / "reflectance/c/0/2/0").rename(product / "reflectance/c/0/2/9")
    code, said = validated(cli, out)
    assert code == 3
    assert "reflectance/c/0/2/0 is missing" in said
    assert "reflectance/c/0/2/9 is not part of the product" in said
