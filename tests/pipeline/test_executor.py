"""What every executor keeps to: order, limits, stop, and errors that come through whole."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cubeloom.errors import ConfigError, Stopped, StoreError
from cubeloom.pipeline.executor import Executor, Threads, open_executor

KINDS = {"threads": None, "processes": "processes"}


@pytest.fixture(scope="module", params=KINDS)
def shared(request, worker_module) -> Iterator[Executor]:
    with open_executor(2, KINDS[request.param]) as executor:
        yield executor


@pytest.fixture
def executor(shared) -> Iterator[Executor]:
    yield shared
    shared.stop.clear()


def test_results_come_in_the_order_of_their_arguments(executor, worker_module):
    assert list(executor.map(worker_module.slow_first, range(60))) == list(range(60))


def test_completed_tasks_do_not_wait_for_a_slow_one(executor, worker_module):
    numbers = [number for number, result in executor.completed(worker_module.slow_first, range(30)) if number == result]
    assert sorted(numbers) == list(range(30))
    assert numbers[0] != 0


def test_common_arguments_go_before_the_tasks_own(executor, worker_module):
    assert list(executor.map(worker_module.described, [1, 2], common=("tile",))) == ["tile 1", "tile 2"]


def test_arguments_are_taken_as_they_are_needed(executor):
    taken = []

    def numbers():
        for number in range(10**9):
            taken.append(number)
            yield number

    results = executor.completed(abs, numbers())
    next(results)
    results.close()
    assert len(taken) < 100


def test_no_more_than_so_many_are_under_way(executor, worker_module, tmp_path):
    begun = [
        len(list(tmp_path.glob("*.begun"))) - done
        for done, _ in enumerate(executor.map(worker_module.marked, range(4), at_once=1, common=(tmp_path, 0.02)), 1)
    ]
    assert begun == [0] * 4


def test_a_single_task(executor, worker_module):
    assert executor.submit(worker_module.described, "tile", 3).result() == "tile 3"


def test_nothing_to_do(executor):
    assert list(executor.map(abs, [])) == []


def files(folder: Path, kind: str) -> set[str]:
    return {path.stem for path in folder.glob(f"*.{kind}")}


def test_a_stop_ends_what_runs_gives_its_results_and_begins_nothing(executor, worker_module, tmp_path):
    given = set()
    at_stop: set[str] = set()

    def stop_soon():
        while len(files(tmp_path, "ended")) < 2:
            time.sleep(0.01)
        executor.stop.set()
        time.sleep(0.2)  # what was about to begin has begun
        at_stop.update(files(tmp_path, "begun"))

    stopper = threading.Thread(target=stop_soon)
    stopper.start()
    with pytest.raises(Stopped):  # noqa: PT012 - what came before it counts
        for number, _ in executor.completed(worker_module.marked, range(40), common=(tmp_path, 0.8)):
            given.add(str(number))
    stopper.join()
    assert given == files(tmp_path, "ended") == files(tmp_path, "begun")
    late = 0 if executor.shares_memory else executor.workers  # each may begin one while the word is on its way
    assert len(given - at_stop) <= late


def test_a_stop_after_the_last_task_is_none(executor):
    results = executor.completed(abs, [-1])
    assert next(results) == (-1, 1)
    executor.stop.set()
    assert list(results) == []


def test_stopped_before_the_first_task(executor, worker_module, tmp_path):
    executor.stop.set()
    with pytest.raises(Stopped):
        list(executor.map(worker_module.marked, range(3), common=(tmp_path, 0)))
    assert not files(tmp_path, "begun")


def test_an_error_on_purpose_comes_through_with_its_cause(executor, worker_module):
    with pytest.raises(StoreError, match="chunk 3 cannot be written") as caught:
        list(executor.map(worker_module.refused, range(9)))
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == 28


def test_any_other_error_comes_through_too(executor, worker_module):
    with pytest.raises(ZeroDivisionError):
        list(executor.map(worker_module.divided, [0]))


def test_whoever_leaves_early_leaves_no_task_running(executor, worker_module, tmp_path):
    """The staging folder is removed when a scene fails: nothing may write there any more."""
    results = executor.completed(worker_module.marked, range(40), common=(tmp_path, 0.3))
    next(results)
    results.close()
    begun = files(tmp_path, "begun")
    assert begun == files(tmp_path, "ended")
    time.sleep(0.4)
    assert begun == files(tmp_path, "begun")
    assert list(executor.map(abs, [-2])) == [2], "the executor goes on"


def test_linear_algebra_takes_one_thread_a_task(executor, worker_module):
    assert set().union(*executor.map(worker_module.blas_threads, range(4))) <= {1}
    assert worker_module.blas_threads(0) <= {1}, "nor more in the runner, which settles statistics meanwhile"


def test_several_scenes_share_an_executor(executor, worker_module):
    made: dict[str, list[str]] = {}

    def scene(name: str) -> None:
        made[name] = list(executor.map(worker_module.described, range(20), common=(name,)))

    threads = [threading.Thread(target=scene, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == {name: [f"{name} {number}" for number in range(20)] for name in "abc"}


def test_threads_by_default():
    with open_executor(3) as executor:
        assert isinstance(executor, Threads)
        assert (executor.workers, executor.shares_memory, executor.dashboard) == (3, True, "")


@pytest.mark.parametrize("scheduler", ["process", "localhost:8786", "/no/such/file.json"])
def test_a_scheduler_that_is_none(scheduler):
    with pytest.raises(ConfigError, match="expected 'processes', an address"), open_executor(2, scheduler):
        pass
