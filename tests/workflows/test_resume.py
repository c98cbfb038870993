"""A run that is killed goes on where it was, and makes the same bytes as one that was not."""

import functools
import multiprocessing
import os
import shutil
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from cubeloom.catalogs.items import read_catalog
from cubeloom.pipeline import memory, store
from cubeloom.pipeline.simulate import simulate_scene
from cubeloom.workflows.cli import main
from cubeloom.workflows.inspect import validate_path
from cubeloom.workflows.layout import Layout
from cubeloom.workflows.ledger import Ledger
from cubeloom.workflows.run import RunOptions, run
from cubeloom.workflows.scan import scan
from cubeloom.workflows.schema import load_workflow
from cubeloom.workflows.status import read_status

CHAIN = """
name: resumed
steps:
  - mask
  - destripe
  - denoise: {method: subspace}
  - superres: {scale: 2}
"""


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A scene of many blocks: its catalog, its only item, and the workflow's file."""
    folder = tmp_path_factory.mktemp("resume")
    simulate_scene(folder / "in", height=520, width=140, n_vnir=4, n_swir=4, seed=9, layout="strips")
    catalog = scan(folder / "in", folder / "catalog").catalog
    workflow = folder / "resumed.yaml"
    workflow.write_text(CHAIN)
    return catalog, read_catalog(catalog)[0], workflow


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of one chunk in this process, as `run_it` makes them in another."""
    monkeypatch.setattr(memory, "LARGEST_BLOCK", 128)


@pytest.fixture(scope="module")
def undisturbed(scene, tmp_path_factory):
    """The product of a run that nobody stopped, with large blocks."""
    _, item, workflow = scene
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    (result,) = run(load_workflow(str(workflow)), [item], out, RunOptions(2)).scenes
    assert result.state == "published"
    return result


def run_it(scene, out: Path) -> None:
    """The run, for a process of its own, in blocks of one chunk."""
    catalog, _, workflow = scene
    memory.LARGEST_BLOCK = 128
    sys.argv = ["cubeloom", "run", *map(str, (workflow, "--catalog", catalog, "--out", out, "--workers", 1))]
    main()


def counts(out: Path) -> tuple[int, int]:
    """Rows of finished blocks and of statistics in the ledger, as another process sees them."""
    path = Layout(out).ledger
    if not path.is_file():
        return 0, 0
    try:
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)
        try:
            return tuple(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("block", "statistics"))
        finally:
            db.close()
    except sqlite3.OperationalError:  # the tables are not there yet
        return 0, 0


def stop_when(process: BaseProcess, out: Path, reached: Callable[[int, int], bool], how: int) -> None:
    """Send a signal as soon as the ledger says so, and wait for the end."""
    deadline = time.monotonic() + 120
    while not reached(*counts(out)):
        assert process.is_alive(), "it ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, how)
    process.join(60)


POINTS: dict[str, Callable[[int, int], bool]] = {
    "while it is ingested": lambda blocks, statistics: blocks >= 1,
    "during statistics": lambda blocks, statistics: statistics >= 3,
    "among the steps": lambda blocks, statistics: blocks >= 5,
}


@pytest.fixture(scope="module")
def killed_at(scene, tmp_path_factory):
    """Gives a folder for each of `POINTS`: what a run left that was killed there. Not to be changed."""
    context = multiprocessing.get_context("fork")  # a process that has all imported, which takes longer than the run

    @functools.cache
    def killed(point: str) -> Path:
        out = tmp_path_factory.mktemp("killed") / "out"
        process = context.Process(target=run_it, args=(scene, out))
        process.start()
        stop_when(process, out, POINTS[point], signal.SIGKILL)
        assert process.exitcode == -signal.SIGKILL
        return out

    return killed


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_run_resumes_and_makes_the_same_bytes(point, scene, killed_at, undisturbed, small_blocks, tmp_path):
    _, item, workflow = scene
    out = Path(shutil.copytree(killed_at(point), tmp_path / "out"))
    assert_nothing_is_visible(out)
    with Ledger(Layout(out).ledger) as ledger:
        (row,) = ledger.scenes()
        standing = dict(ledger.journal(row.identity).chunks())
    assert row.state == "processing"
    assert standing
    stamps = chunk_stamps(out, standing)

    result = run(load_workflow(str(workflow)), [item], out, RunOptions(1))
    (resumed,) = result.scenes
    assert resumed.state == "published"
    assert 0 < resumed.resumed_blocks < resumed.blocks
    kept = {resumed.product / key: stamp for key, stamp in stamps.items()}
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "blocks that stood were done again"
    assert (resumed.product / store.COMMIT).read_bytes() == (undisturbed.product / store.COMMIT).read_bytes()
    assert list(validate_path(out))
    assert resumed.product.name == undisturbed.product.name
    with Ledger(Layout(out).ledger) as ledger:
        (row,) = ledger.scenes()
        assert (row.state, row.attempts) == ("succeeded", 2)
        assert ledger.journal(row.identity).chunks() == {}


@pytest.fixture
def killed(killed_at, tmp_path):
    """A copy of what a run left that was killed among the steps, to go on from."""
    return Path(shutil.copytree(killed_at("among the steps"), tmp_path / "out"))


def assert_nothing_is_visible(out: Path) -> None:
    assert not (out / "catalog.json").exists()
    assert not (out / "scenes").exists()
    assert not list((out / "runs").glob("*/report.html"))


def chunk_stamps(out: Path, chunks: dict[str, str]) -> dict[str, int]:
    """When each chunk was written that has a file in staging."""
    (staged,) = (out / ".cubeloom" / "staging").iterdir()
    return {key: (staged / key).stat().st_mtime_ns for key, sha256 in chunks.items() if sha256}


def test_a_resumed_run_may_use_other_blocks_and_threads(scene, undisturbed, killed):
    _, item, workflow = scene
    (resumed,) = run(load_workflow(str(workflow)), [item], killed, RunOptions(2)).scenes
    assert resumed.state == "published"
    assert (resumed.product / store.COMMIT).read_bytes() == (undisturbed.product / store.COMMIT).read_bytes()


def test_sigterm_ends_the_run_with_143_and_keeps_its_blocks(scene, undisturbed, forked, tmp_path):
    _, item, workflow = scene
    out = tmp_path / "out"
    started = forked(run_it, scene, out)
    stop_when(started.process, out, POINTS["while it is ingested"], signal.SIGTERM)
    assert started.end() == 143
    assert "stopped by SIGTERM; a run keeps its finished blocks" in started.errors
    assert "Traceback" not in started.errors
    assert read_catalog(out) == []
    assert not (out / "scenes").exists()
    found = read_status(out)
    assert (found.counts(), found.running) == ({"aborted": 1}, False)
    assert found.to_json()["scenes"][0]["blocks_done"] > 0
    (resumed,) = run(load_workflow(str(workflow)), [item], out).scenes
    assert resumed.resumed_blocks > 0
    assert (resumed.product / store.COMMIT).read_bytes() == (undisturbed.product / store.COMMIT).read_bytes()


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_and_block_sizes_do_not_show_in_the_product(workers, scene, undisturbed, small_blocks, tmp_path):
    _, item, workflow = scene
    (result,) = run(load_workflow(str(workflow)), [item], tmp_path, RunOptions(workers)).scenes
    assert result.blocks > undisturbed.blocks
    assert (result.product / store.COMMIT).read_bytes() == (undisturbed.product / store.COMMIT).read_bytes()


def test_staging_without_a_ledger_is_made_anew(scene, undisturbed, killed):
    """Someone removed the ledger: what stands in staging cannot be trusted."""
    _, item, workflow = scene
    for file in Layout(killed).ledger.parent.glob("ledger.sqlite*"):
        file.unlink()
    (result,) = run(load_workflow(str(workflow)), [item], killed).scenes
    assert result.resumed_blocks == 0
    assert (result.product / store.COMMIT).read_bytes() == (undisturbed.product / store.COMMIT).read_bytes()


def test_a_ledger_without_staging_is_forgotten(scene, undisturbed, killed, tmp_path):
    """Someone cleared staging: what the ledger says of it counts no more."""
    _, item, workflow = scene
    (staged,) = (killed / ".cubeloom" / "staging").iterdir()
    staged.rename(tmp_path / "moved away")
    (result,) = run(load_workflow(str(workflow)), [item], killed).scenes
    assert result.resumed_blocks == 0
    assert (result.product / store.COMMIT).read_bytes() == (undisturbed.product / store.COMMIT).read_bytes()


def test_a_chunk_that_was_damaged_in_staging_is_not_published(scene, killed):
    _, item, workflow = scene
    (staged,) = (killed / ".cubeloom" / "staging").iterdir()
    chunk = max(staged.glob("reflectance/c/*/*/*"), key=lambda path: path.stat().st_size)
    chunk.write_bytes(chunk.read_bytes()[::-1])
    result = run(load_workflow(str(workflow)), [item], killed)
    assert result.exit_code == 3
    assert "reflectance/c/" in result.scenes[0].cause
    assert not (killed / "scenes").exists()
    (again,) = run(load_workflow(str(workflow)), [item], killed).scenes
    assert again.state == "published", "a failure of the store's own must not stay for ever"


def test_an_abandoned_attempt_leaves_nothing_behind(scene, killed):
    _, item, workflow = scene
    assert len(list((killed / ".cubeloom" / "staging").iterdir())) == 1
    (result,) = run(load_workflow(str(workflow), ["mask.dilate=2"]), [item], killed).scenes
    assert result.state == "published"
    assert not list((killed / ".cubeloom" / "staging").iterdir())
    with Ledger(Layout(killed).ledger) as ledger:
        assert [row.state for row in ledger.scenes()] == ["succeeded"]
