"""The nightly job as a Prefect flow, on Prefect's own server for tests: a task for each scene, the runner's work."""

import json
from datetime import UTC, datetime

import pytest

from cubeloom.catalogs.items import read_catalog
from cubeloom.pipeline.store import COMMIT
from cubeloom.workflows.nightly_job import NightlyJob

pytest.importorskip("prefect")

# Prefect's server and clients leave sockets and event loops to the end of the process.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

UNUSED = ("SCHEDULER", "LATE_RUNS", "FOREMAN", "CANCELLATION_CLEANUP", "PAUSE_EXPIRATIONS", "REPOSSESSOR", "TRIGGERS")
"""What the server does again and again for others than these tests."""
FIRST, SECOND, THIRD = "2024-02-27T08:00:00Z", "2024-02-28T12:00:00Z", "2024-02-29T23:59:59Z"


@pytest.fixture(scope="module", autouse=True)
def _server(tmp_path_factory):
    """A server with a database of its own, and nothing sent to anybody."""
    from prefect.testing.utilities import prefect_test_harness

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DO_NOT_TRACK", "1")
        patch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
        for service in UNUSED:
            patch.setenv(f"PREFECT_SERVER_SERVICES_{service}_ENABLED", "false")
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
        with prefect_test_harness(server_startup_timeout=120):
            yield


@pytest.fixture(scope="module")
def small(tiny):
    """Scenes of one chunk: how large they are is not the point here."""
    return tiny


@pytest.fixture
def job(archive, workflow, tmp_path):
    """What the flow is told."""
    workflow()
    return NightlyJob(
        workflow=str(tmp_path / "test.yaml"),
        search=archive.server.url,
        out=tmp_path / "out",
        since="2024-01-01",
        options={"retries": 1, "scenes": 2},
    )


def night(job):
    """The state in which the flow ends, and the task runs by item: how they ended, and in how many attempts."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    from cubeloom.workflows.prefect_flow import nightly_flow

    state = nightly_flow(job, first_delay_s=0.01, return_state=True)
    with get_client(sync_client=True) as client:
        flow_run = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
        tasks = client.read_task_runs(flow_run_filter=flow_run)
    return state, {task.name: (task.state.type.value, task.run_count) for task in tasks}


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_every_scene_is_a_task_of_one_run_and_its_product_is_that_of_the_command(archive, job, tmp_path):
    items = [archive.offer(number, updated)["id"] for number, updated in enumerate((FIRST, SECOND, THIRD))]
    state, tasks = night(job)
    assert state.is_completed()
    assert tasks == dict.fromkeys(items, ("COMPLETED", 1))
    assert state.result()["counts"] == {"published": 3}
    assert state.result()["watermark"] == THIRD
    assert len(list((job.out / "runs").iterdir())) == 1
    state, tasks = night(job)
    assert state.is_completed()
    assert tasks == {}, "what stands is no task"
    job.model_copy(update={"out": tmp_path / "plain"}).run()
    ours, plain = (commits(out) for out in (job.out, tmp_path / "plain"))
    assert len(ours) == 3
    assert ours == plain


def commits(out):
    return {item.id: (item.product_path / COMMIT).read_bytes() for item in read_catalog(out)}


def test_only_what_may_pass_is_tried_again(archive, job, stac_server):
    """One scene's server is busy for as long as the runner itself would ask; another scene's file is broken."""
    busy, broken, good = archive.offer(0, FIRST), archive.offer(1, SECOND), archive.offer(2, THIRD)
    archive.server.then(busy["assets"]["image"]["href"].removeprefix("@server@"), *[stac_server.answer(503)] * 4)
    cut_short(archive.file(broken))
    state, tasks = night(job)
    assert tasks == {busy["id"]: ("COMPLETED", 2), broken["id"]: ("FAILED", 1), good["id"]: ("COMPLETED", 1)}
    assert state.is_failed()
    assert "1 failed" in state.message or "'failed': 1" in state.message
    mark = json.loads((job.out / ".cubeloom/nightly/test.json").read_text())
    assert [one["watermark"] for one in mark["searches"].values()] == [SECOND]
    [summary] = (job.out / "runs").glob("*/summary.json")
    scenes = {scene["item"]: scene for scene in json.loads(summary.read_text())["scenes"]}
    assert scenes[busy["id"]]["state"] == "published"
    assert "tried again" in scenes[busy["id"]]["warnings"][0]


def test_what_stays_busy_fails_after_its_retries(archive, job, stac_server):
    busy = archive.offer(0, FIRST)
    archive.server.then(busy["assets"]["image"]["href"].removeprefix("@server@"), *[stac_server.answer(503)] * 20)
    state, tasks = night(job)
    assert tasks == {busy["id"]: ("FAILED", 2)}
    assert state.is_failed()


def test_a_search_that_fails_fails_the_flow(archive, job, stac_server):
    archive.server.then("/search", *[stac_server.answer(503)] * 20)
    state, tasks = night(job)
    assert state.is_failed()
    assert tasks == {}


def test_the_deployment_runs_the_same_job_every_night(archive, job):
    from prefect.client.orchestration import get_client
    from prefect.flows import load_flow_from_entrypoint

    from cubeloom.workflows.prefect_flow import deployment, nightly_flow

    archive.offer(0, FIRST)
    made = deployment(job, "02:05").apply()
    with get_client(sync_client=True) as client:
        kept = client.read_deployment(made)
    [schedule] = kept.schedules
    assert (schedule.schedule.cron, schedule.schedule.timezone) == ("5 2 * * *", "UTC")
    assert kept.name == "test"
    loaded = load_flow_from_entrypoint(kept.entrypoint)
    assert loaded.name == nightly_flow.name
    parameters = loaded.validate_parameters(kept.parameters)
    assert parameters["job"] == job
    state = loaded(**parameters, return_state=True)
    assert state.is_completed()
    assert datetime.fromisoformat(state.result()["watermark"]) == datetime(2024, 2, 27, 8, tzinfo=UTC)
