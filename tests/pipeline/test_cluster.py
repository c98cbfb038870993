"""Products made on a Dask cluster of two processes: the same bytes, whatever befalls the workers."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path

import dask
import psutil
import pytest
from distributed import Client, LocalCluster

from cubeloom.errors import ConfigError, RetryableError, Stopped
from cubeloom.pipeline import cluster, memory, store
from cubeloom.pipeline.engine import execute, quiet, run_to_store
from cubeloom.pipeline.executor import Executor, Threads, open_executor
from cubeloom.pipeline.grids import tile
from cubeloom.pipeline.journal import MemoryJournal
from cubeloom.pipeline.plan import Plan, make_plan
from cubeloom.pipeline.readers import open_source
from cubeloom.pipeline.readers.base import SceneSource
from cubeloom.pipeline.scene import spec_of
from cubeloom.pipeline.simulate import simulate_scene
from cubeloom.pipeline.stages import Denoise, Destripe, Mask

pytestmark = pytest.mark.usefixtures("forked_workers")
ROWS, COLS = 300, 200


@pytest.fixture(scope="module")
def product(tmp_path_factory) -> Path:
    return simulate_scene(tmp_path_factory.mktemp("in"), seed=4, height=ROWS, width=COLS, n_vnir=9, n_swir=8).path


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Denoise:
    """Weights of a registered family, random: workers know no toys."""
    from cubeloom.models.registry import create_model, model_card, save_model

    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    told = {"tag": "random", "name": "hsdt_s.random", "transform": "eigenimages", "tile": 64, "halo": 8}
    card = model_card("hsdt_s", None, in_channels=2).model_copy(update=told)
    save_model(create_model("hsdt_s", None, in_channels=2), path, card)
    return Denoise(method="network", model="hsdt_s", weights=str(path), rank=4)


@pytest.fixture(scope="module", autouse=True)
def _small_blocks() -> Iterator[None]:
    """Statistics and steps in blocks of 128 px."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "LARGEST_BLOCK", 128)
        yield


@pytest.fixture(scope="module")
def plan(product, _small_blocks) -> Plan:
    """From the product's own files."""
    return make_plan(open_source(product), [Mask(), Destripe(), Denoise(method="subspace")], workers=2)


@pytest.fixture(scope="module")
def expected(plan, tmp_path_factory) -> dict[str, str]:
    """What two threads make of the plan."""
    return made_by_threads(plan, tmp_path_factory.mktemp("expected") / "two.zarr")


@pytest.fixture(scope="module")
def executor(forked_workers) -> Iterator[Executor]:
    with open_executor(2, "processes") as processes:
        yield processes


def made(plan: Plan, staged: Path, executor: Executor, **how) -> dict[str, str]:
    """The sha256 of every chunk, of the metadata too, as the commit record has them."""
    execute(plan, staged, how.pop("journal", MemoryJournal()), executor, quiet, **how)
    commit = json.loads((staged / store.COMMIT).read_text())
    return commit["chunks"] | commit["metadata"]


def made_by_threads(plan: Plan, staged: Path) -> dict[str, str]:
    with Threads(2) as threads:
        return made(plan, staged, threads)


def workers(executor: Executor) -> dict[str, int]:
    return executor.client.run(os.getpid)


def test_a_cluster_makes_the_same_bytes(plan, executor, expected, tmp_path):
    noted = {}

    def note(phase, window, seconds, nbytes):
        noted.setdefault(phase, []).append((window, seconds, nbytes))

    on_cluster = made(plan, tmp_path / "cluster.zarr", executor, noted=note)
    with Threads(1) as one:
        assert made(plan, tmp_path / "one.zarr", one) == on_cluster
    assert expected == on_cluster
    assert {window for window, _, _ in noted["steps"]} == set(plan.missing({}).steps)
    for _, seconds, nbytes in noted["steps"]:
        assert seconds.keys() == {"read", "mask", "destripe", "denoise", "write"}
        assert min(seconds.values()) > 0
        assert nbytes >= 0
    for _, seconds, _ in noted["ingest"]:
        assert seconds.keys() == {"read", "write"}
    assert sum(nbytes for _, _, nbytes in noted["steps"]) > 0
    assert {"destripe statistics 1/1", "denoise statistics 2/2"} <= noted.keys()


def test_a_worker_killed_from_outside_changes_no_byte(plan, executor, expected, tmp_path):
    """Once the first block is done, both workers are at the next ones: one of them is shot."""
    before = workers(executor)
    shot: list[int] = []

    def shoot(phase: str, *_) -> None:
        if phase == "steps" and not shot:
            busy = [address for address, keys in executor.client.processing().items() if keys]
            shot.append(before[busy[0]])
            os.kill(shot[0], signal.SIGKILL)

    survived = made(plan, tmp_path / "shot.zarr", executor, noted=shoot)
    executor.client.wait_for_workers(2, timeout=30)
    assert shot[0] not in workers(executor).values()
    assert survived == expected


def test_workers_killed_in_mid_task_change_no_byte(plan, executor, worker_module, tmp_path):
    """By their own tasks: between the variables of a block that is ingested, in statistics, in a step."""
    known = (getattr(plan.source, field.name) for field in fields(plan.source))
    source = worker_module.Shot(*known, tmp_path / "read")
    shot = make_plan(source, [*plan.stages, worker_module.ShotStage(flags=tmp_path)], workers=2)
    shot = replace(shot, ingest_shape=(256, 256))
    survived = made(shot, tmp_path / "shot.zarr", executor)
    assert all((tmp_path / where).exists() for where in ("read", "measure", "apply"))
    assert survived == made_by_threads(shot, tmp_path / "threads.zarr")


def test_a_worker_killed_among_the_tiles_of_a_network_changes_no_byte(network, executor, worker_module, tmp_path):
    narrow = simulate_scene(tmp_path / "in", seed=4, height=200, width=60, n_vnir=9, n_swir=8).path
    told = {name: getattr(network, name) for name in type(network).model_fields}
    stages = [Mask(), worker_module.ShotNetwork(**told, flag=tmp_path / "infer")]
    shot = make_plan(open_source(narrow), stages, workers=2)
    survived = made(shot, tmp_path / "shot.zarr", executor)
    assert (tmp_path / "infer").exists()
    assert survived == made_by_threads(shot, tmp_path / "threads.zarr")


def test_a_task_that_kills_every_worker_can_be_tried_again(plan, worker_module, tmp_path):
    """Named by scene and block, and not a hang."""
    stored = tmp_path / "in.zarr"
    run_to_store(plan.source, [], stored)
    source = open_source(stored)
    fatal = make_plan(worker_module.Fatal(source.path, "", source.spec), [Mask()], workers=2)
    last = max(window for window in fatal.missing({}).ingest)
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        open_executor(2, "processes") as executor,
        pytest.raises(RetryableError) as caught,
    ):
        execute(fatal, tmp_path / "out.zarr", MemoryJournal(), executor, quiet)
    assert str(caught.value).startswith(
        f"{source.spec.scene_id}: ingest_task {last}: every worker that took it died, 2"
    )
    assert "tcp://127.0.0.1:" in str(caught.value)


def test_a_stopped_run_goes_on_where_it_was(plan, executor, expected, tmp_path):
    journal = MemoryJournal()
    done = []

    def stop(phase, window, seconds, nbytes):
        if phase == "steps":
            done.append(window)
            executor.stop.set()

    with pytest.raises(Stopped):
        execute(plan, tmp_path / "out.zarr", journal, executor, quiet, stop)
    executor.stop.clear()
    left = plan.missing(journal.chunks())
    assert set(left.steps) == set(plan.missing({}).steps) - set(done)
    assert left.steps
    assert not left.ingest
    again = []
    whole = made(plan, tmp_path / "out.zarr", executor, journal=journal, noted=lambda *what: again.append(what[:2]))
    assert not {window for phase, window in again if phase == "steps"} & set(done)
    assert whole == expected


def test_few_tasks_go_to_different_workers(executor, worker_module, tmp_path):
    """Also where their number does not make Dask queue them: what they share draws them nowhere."""
    shared = os.urandom(2**20)
    executor.client.wait_for_workers(2, timeout=60)  # one may still be starting after the tests that kill them
    for turn in range(3):
        folder = tmp_path / str(turn)
        folder.mkdir()
        assert all(executor.map(worker_module.meet, [0, 1], common=(shared, folder, 2)))


def test_a_scene_in_memory_does_not_travel(executor, make_scene, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "LARGEST_COMMON", 2**20)
    scene = make_scene(height=300, width=280)
    with pytest.raises(ConfigError, match=r"\d MiB in common, and at most 1 MiB travel .* from files"):
        run_to_store(SceneSource(scene, spec_of(scene)), [Mask()], tmp_path / "s.zarr", executor=executor)


def test_workers_of_another_version_are_refused(executor, monkeypatch):
    other = {**cluster.versions(), "numpy": "1.0"}
    monkeypatch.setattr(cluster, "versions", lambda: other)
    with pytest.raises(ConfigError, match=r"worker on .*: has numpy 2[.0-9]*, expected 1\.0\. .* same environment"):
        list(executor.map(abs, [1]))


class CountingProxy:
    """Passes a TCP port on to another one, and counts the bytes of clients' requests."""

    def __init__(self, port: int) -> None:
        self.target, self.sent = port, 0
        self.server = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self.server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.server.accept()
            except OSError:
                return
            behind = socket.create_connection(("127.0.0.1", self.target))
            threading.Thread(target=self._pass, args=(client, behind, True), daemon=True).start()
            threading.Thread(target=self._pass, args=(behind, client, False), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        with closing(source), suppress(OSError):  # one side has gone
            while data := source.recv(2**16):
                self.sent += len(data) * counted
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.server.close()


@contextmanager
def counted(executor: Executor) -> Iterator[tuple[Executor, Callable[[], int]]]:
    """The cluster of `executor` by way of a proxy, and the bytes sent to its scheduler so far."""
    port = int(executor.client.scheduler.address.rpartition(":")[2])
    with closing(CountingProxy(port)) as proxy, open_executor(2, proxy.address) as through:
        yield through, lambda: proxy.sent


def test_a_task_is_sent_in_few_bytes_and_what_they_share_once(executor, worker_module):
    """Measured on the wire: all that a client says to its scheduler."""
    shared = os.urandom(2**20)
    with counted(executor) as (through, sent):
        cost = {}
        for number in (30, 230):
            before = sent()
            windows = list(tile((128 * number, 128), (128, 128)))
            assert set(through.map(worker_module.size, windows, common=(shared,))) == {(2**20, 128)}
            cost[number] = sent() - before
    assert 2**20 < cost[30] < 1.2 * 2**20
    assert (cost[230] - cost[30]) / 200 < 2000


def test_the_graph_of_a_product_holds_no_pixels(plan, executor, tmp_path):
    pieces = []
    with counted(executor) as (through, sent):
        before = sent()
        made(plan, tmp_path / "out.zarr", through, noted=lambda *piece: pieces.append(piece[0]))
        total = sent() - before
    pixels = ROWS * COLS * 2 * len(plan.source.spec.bands)
    maps = len(set(pieces)) + 4  # overviews of two factors, and the verification in parts
    assert total < 2000 * 2 * len(pieces) + 40_000 * maps < pixels / 3


SCRIPT = """
import os, signal, sys, threading, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import marking
from cubeloom.errors import Stopped
from cubeloom.pipeline.executor import open_executor

if __name__ == "__main__":
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with open_executor(2, "processes", stop) as executor:
        print(*executor.client.run(os.getpid).values(), flush=True)
        try:
            for number, _ in executor.completed(marking.marked, range(100), common=(Path(sys.argv[2]), 0.5)):
                print(number, flush=True)
        except Stopped:
            print("stopped", flush=True)
    print("closed", flush=True)
"""


@pytest.fixture
def script(tmp_path) -> Iterator[subprocess.Popen]:
    """A process of its own group with a cluster of its own; prints the workers' ids, then the tasks that ended."""
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, tmp_path / "script.py", Path(__file__).parent, tmp_path]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    with process:
        yield process
        process.kill()


def test_a_signal_to_all_processes_lets_the_workers_finish(script, tmp_path):
    """A terminal and a service manager signal the workers too: what they are at must not be lost."""
    pids = [int(pid) for pid in script.stdout.readline().split()]
    first = script.stdout.readline().strip()
    os.killpg(script.pid, signal.SIGTERM)
    out = script.stdout.read()
    script.wait(timeout=10)
    ended = {path.stem for path in tmp_path.glob("*.ended")}
    assert script.returncode == 0
    assert {first, *out.split()} == ended | {"stopped", "closed"}
    assert {path.stem for path in tmp_path.glob("*.begun")} == ended
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_workers_do_not_outlive_a_killed_runner(script):
    pids = [int(pid) for pid in script.stdout.readline().split()]
    script.kill()
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(pid) for pid in pids):
        assert time.monotonic() < deadline, "workers linger"
        time.sleep(0.05)


def test_an_error_closes_the_cluster_at_once():
    environment = dict(os.environ)
    with pytest.raises(ZeroDivisionError), open_executor(2, "processes") as executor:  # noqa: PT012
        pids = list(workers(executor).values())
        started = time.monotonic()
        raise ZeroDivisionError
    assert time.monotonic() - started < 10
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert dict(os.environ) == environment


@pytest.fixture
def running_cluster(tmp_path, worker_module) -> Iterator[tuple[Path, subprocess.Popen]]:
    """A scheduler and a worker as one starts them by hand; the path of the scheduler file."""
    file = tmp_path / "scheduler.json"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    module = [sys.executable, "-m", "distributed.cli"]
    processes = [
        subprocess.Popen([f"{command}", *rest], env=environment, stderr=subprocess.DEVNULL)
        for command, *rest in (
            [*module[:2], "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
             "--dashboard-address", "127.0.0.1:0", "--scheduler-file", str(file)],
            [*module[:2], "distributed.cli.dask_worker", "--scheduler-file", str(file), "--nthreads", "2",
             "--no-nanny", "--no-dashboard", "--host", "127.0.0.1"],
        )
    ]  # fmt: skip
    yield file, processes[0]
    for process in processes:
        process.kill()
        process.wait()


def test_a_cluster_that_runs_already(running_cluster, worker_module, tmp_path):
    """By its scheduler file, by its address, by a client; and what happens when its scheduler dies."""
    file, scheduler = running_cluster
    while not file.exists():
        time.sleep(0.05)
    with open_executor(9, str(file)) as executor:
        assert list(executor.map(abs, [-1, 2])) == [1, 2]
        assert executor.workers == 2, "the workers that it has"
        address = executor.client.scheduler.address
    with Client(address, set_as_default=False) as client, open_executor(9, client) as executor:
        assert list(executor.map(abs, [-3])) == [3]
    with open_executor(9, address) as executor, pytest.raises(RetryableError, match="is its scheduler up"):  # noqa: PT012
        for number, _ in executor.completed(worker_module.marked, range(40), common=(tmp_path, 0.2)):
            if number == 1:
                scheduler.kill()


def test_a_cluster_without_workers_is_waited_for_but_not_for_ever(monkeypatch):
    monkeypatch.setattr(cluster, "_LOOK_S", 0.1)
    monkeypatch.setattr(cluster, "WORKERLESS_S", 0.5)
    with (
        LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0") as empty,
        Client(empty, set_as_default=False) as client,
        open_executor(2, client) as executor,
    ):
        assert executor.workers == 1, "plans need one"
        with pytest.raises(RetryableError, match=r"no worker for \d+ s; start some"):
            list(executor.map(abs, [-1]))
        monkeypatch.setattr(cluster, "WORKERLESS_S", 60)
        threading.Timer(0.5, executor.stop.set).start()
        with pytest.raises(Stopped):
            list(executor.map(abs, [-1]))
        executor.stop.clear()
        threading.Timer(0.5, empty.scale, [1]).start()
        assert list(executor.map(abs, [-1])) == [1]


def test_a_scheduler_that_does_not_answer():
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(RetryableError, match=f"{address}: no Dask scheduler answers"),
        open_executor(2, address),
    ):
        pass
