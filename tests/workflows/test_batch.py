"""Many tasks, some at once: retries, stops, and the memory they share."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cubeloom.pipeline.memory import BASE_BYTES
from cubeloom.workflows.batch import FIRST_DELAY_S, LONGEST_DELAY_S, Batch, delay_s
from cubeloom.workflows.budget import Budget


def never(number, result, runs):
    return None


def test_every_task_runs_once_and_so_many_at_once():
    running, most, lock = 0, 0, threading.Lock()

    def task(number):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1
        return number

    results = Batch([lambda n=n: task(n) for n in range(12)], 3, never, threading.Event()).run()
    assert results == {n: n for n in range(12)}
    assert most == 3


def test_what_may_pass_is_tried_again_later_while_others_go_on():
    order = []

    def flaky():
        order.append("flaky")
        return len([one for one in order if one == "flaky"])

    def other(name):
        order.append(name)
        return 9

    tasks = [flaky, lambda: other("a"), lambda: other("b")]
    results = Batch(tasks, 1, lambda number, result, runs: 0.05 if result < 3 else None, threading.Event()).run()
    assert results == {0: 3, 1: 9, 2: 9}
    assert order == ["flaky", "a", "b", "flaky", "flaky"], "the others did not wait for it"


def test_delays_grow_up_to_a_limit():
    delays = [delay_s(failures) for failures in range(1, 30)]
    assert delays[:3] == [FIRST_DELAY_S, 2 * FIRST_DELAY_S, 4 * FIRST_DELAY_S]
    assert delays == sorted(delays)
    assert delays[-1] == LONGEST_DELAY_S


def test_a_stop_lets_tasks_end_and_begins_no_other():
    stop = threading.Event()

    def task(number):
        if number == 1:
            stop.set()
        time.sleep(0.05)
        return number

    results = Batch([lambda n=n: task(n) for n in range(10)], 2, never, stop).run()
    assert {0, 1} <= results.keys()
    assert len(results) <= 3


def test_a_stop_ends_the_wait_for_another_try():
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    started = time.monotonic()
    assert Batch([lambda: 0], 2, lambda *_: 60, stop).run() == {0: 0}
    assert time.monotonic() - started < 10


def test_an_error_ends_the_whole_and_comes_out():
    def broken():
        raise RuntimeError("the ledger is gone")

    begun = []
    tasks = [broken, *(lambda n=n: begun.append(n) for n in range(50))]
    with pytest.raises(RuntimeError, match="ledger is gone"):
        Batch(tasks, 1, never, threading.Event()).run()
    assert not begun


def test_the_memory_is_never_exceeded_and_every_scene_gets_its_turn():
    total = BASE_BYTES + 100
    budget, used, most, lock = Budget(total), 0, 0, threading.Lock()

    def scene(needed):
        nonlocal used, most
        with budget.reserved(BASE_BYTES + needed):
            with lock:
                used += needed
                most = max(most, used)
            time.sleep(0.005)
            with lock:
                used -= needed

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(scene, [60, 40, 100, 10, 10, 10, 90, 50, 50, 30] * 3))
    assert most <= 100
    assert most > 60, "small scenes ran side by side"
