"""Kills among many products: an older version under a newer one, what a policy drops, an index that others stand in."""

import signal

import pytest

from cubeloom.catalogs.items import read_catalog
from cubeloom.pipeline import store
from cubeloom.pipeline.store import read_commit
from cubeloom.workflows.layout import Layout
from cubeloom.workflows.status import read_status

from .driver import Fault
from .reader import breaches, contents, leftovers

OTHER = ("--set", "mask.dilate=3")


def products(out):
    return sorted(out.glob("scenes/*/*.zarr"))


@pytest.mark.parametrize(
    ("at", "when", "nth"),
    [
        ("cubeloom.pipeline.store.publish", "before", 1),
        ("cubeloom.pipeline.store.publish", "after", 1),
        ("os.fsync", "after", 1),
        ("pathlib.Path.replace", "after", 1),
    ],
)
def test_readers_get_the_old_version_or_the_new_one(at, when, nth, one, expected, tmp_path):
    out = expected.copy(one, tmp_path / "out")
    before = contents(out)
    with one.nursery.watching(out):
        assert one.run(out, *OTHER, fault=Fault(at=at, when=when, nth=nth)).code == -signal.SIGKILL
        between = contents(out)
        assert one.run(out, *OTHER).code == 0
    after = contents(out)
    assert after != before
    assert between == (after if at.endswith("replace") else before)
    assert len(products(out)) == 2
    assert not leftovers(out)


@pytest.mark.parametrize(
    ("at", "when"),
    [
        ("cubeloom.workflows.sweep.drop_versions", "before"),
        ("pathlib.Path.unlink", "before"),
        ("cubeloom.workflows.layout.Layout.discard", "before"),
        ("pathlib.Path.rename", "before"),
        ("cubeloom.workflows.layout.Layout.discard", "after"),
        ("cubeloom.workflows.sweep.drop_versions", "after"),
    ],
)
def test_a_kill_while_an_old_version_is_dropped(at, when, one, expected, tmp_path):
    """The old version is whole or gone, and can be made again."""
    out = expected.copy(one, tmp_path / "out")
    nth = 2 if at.endswith("rename") else 1  # the first one publishes the new version
    with one.nursery.watching(out):
        killed = one.run(out, *OTHER, "--keep", 1, fault=Fault(at=at, when=when, nth=nth))
        assert killed.code == -signal.SIGKILL, killed.said
        assert one.run(out, *OTHER, "--keep", 1).code == 0
        assert len(products(out)) == 1
        back = one.run(out, "--keep", 1)
        assert back.code == 0, back.said
    expected.holds(one, out)
    assert len(products(out)) == 1


def test_a_second_run_killed_before_its_index_is_listed_by_the_third(three, expected, tmp_path):
    out = tmp_path / "out"
    assert three.run(out, "--limit", 1).code == 0
    assert len(read_catalog(out)) == 1
    killed = three.run(out, fault=Fault(at="cubeloom.workflows.run.write_index"))
    assert killed.code == -signal.SIGKILL, killed.said
    assert three.run(out).code == 0
    assert len(read_catalog(out)) == 3
    expected.holds(three, out)


def test_going_back_to_the_version_that_stands_drops_the_one_under_way(one, expected, tmp_path):
    out = expected.copy(one, tmp_path / "out")
    killed = one.run(out, *OTHER, fault=Fault(at="cubeloom.pipeline.store.seal"))
    assert killed.code == -signal.SIGKILL, killed.said
    assert one.run(out).code == 0
    (row,) = read_status(out).scenes
    assert row.identity == read_commit(products(out)[0])["identity"]
    assert one.run(out).code == 0
    expected.holds(one, out)


def test_a_scene_that_was_mended_leaves_the_quarantine_also_after_a_kill(nursery, expected, make_case, tmp_path):
    case = make_case(height=40, width=24)
    (image,) = case.catalog.parent.with_name("in").glob("*/*-SPECTRAL_IMAGE.TIF")
    content = image.read_bytes()
    image.write_bytes(content[:1000])
    out = tmp_path / "out"
    assert case.run(out).code == 3
    assert leftovers(out)
    image.write_bytes(content)
    killed = case.run(out, fault=Fault(at="cubeloom.workflows.ledger.Ledger.end", when="after"))
    assert killed.code == -signal.SIGKILL, killed.said
    assert case.run(out).code == 0
    expected.holds(case, out)


def test_a_kill_while_damaged_staging_is_thrown_away(nursery, expected, make_case, tmp_path):
    """The first run finds a chunk damaged and dies while it clears up; the next one begins anew."""
    case = make_case()
    out = tmp_path / "out"
    assert case.run(out, fault=Fault(at="cubeloom.pipeline.store.seal")).code == -signal.SIGKILL
    (staged,) = Layout(out).stagings()
    chunk = max((path for path in staged.glob("reflectance/c/**/*") if path.is_file()), key=lambda p: p.stat().st_size)
    chunk.write_bytes(chunk.read_bytes()[::-1])
    killed = case.run(out, fault=Fault(at="os.rmdir", nth=3))
    assert killed.code == -signal.SIGKILL, killed.said
    assert not (out / "scenes").exists()
    assert case.run(out).code == 0
    expected.holds(case, out)


def test_a_damaged_store_is_not_taken_for_a_product(one, expected, tmp_path):
    """The reader of these tests can tell: otherwise nothing else here could fail."""
    out = expected.copy(one, tmp_path / "out")
    (product,) = products(out)
    chunk = next(path for path in product.glob("reflectance/c/**/*") if path.is_file())
    content = chunk.read_bytes()
    chunk.write_bytes(content[:-1])
    assert any("reflectance/c/" in breach for breach in breaches(out))
    chunk.write_bytes(content)
    assert not list(breaches(out))
    (product / store.COMMIT).rename(tmp_path / "taken away")
    assert list(breaches(out))
    with pytest.raises(AssertionError, match="looks"), one.nursery.watching(out):
        pass
