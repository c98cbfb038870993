"""A scene that kills the process that works on it is given up after three deaths in turn, and stops nothing else."""

import signal

from cubeloom.catalogs.items import read_catalog
from cubeloom.workflows.status import read_status

from .driver import Fault

DEADLY = Fault(at="cubeloom.pipeline.store.create")


def state_of(out, item):
    (row,) = (row for row in read_status(out).scenes if row.item == item)
    return row.state, row.cause or ""


def test_after_three_deaths_in_turn_the_others_go_on(three, expected, tmp_path):
    out = tmp_path / "out"
    first = read_catalog(three.catalog)[0].id
    for _ in range(3):
        assert three.run(out, "--scenes", 1, fault=DEADLY).code == -signal.SIGKILL
    run = three.run(out)
    assert run.code == 3
    assert "2 published" in run.said
    state, cause = state_of(out, first)
    assert state == "failed"
    assert "3 processes in turn died over this scene" in cause
    assert "3 processes in turn died" in three.run(out).said
    assert three.run(out, "--again").code == 0
    expected.holds(three, out)


def test_a_failure_of_its_own_is_no_death(make_case, tmp_path):
    case = make_case(height=40, width=24)
    (image,) = case.catalog.parent.with_name("in").glob("*/*-SPECTRAL_IMAGE.TIF")
    image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    out, (item,) = tmp_path / "out", read_catalog(case.catalog)
    for _ in range(3):
        for _ in range(2):
            assert case.run(out, fault=DEADLY).code == -signal.SIGKILL
        assert case.run(out).code == 3
        assert "cut short" in state_of(out, item.id)[1]
