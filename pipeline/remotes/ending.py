"""The end of a process that had its answers from threads of obstore or Icechunk.

Such a thread hands over an answer by a call into Python, which wakes whoever waits before it has come back itself. If
nothing is left to do then, the process ends meanwhile. Python before 3.14 exits a thread that asks for the interpreter
of an ended process (python/cpython#87135); the way out leads through frames of Rust, and the whole process aborts: exit
code 134, and not a word, after all was done. Neither library can be told to finish (PyO3/pyo3-async-runtimes#40).
"""

import atexit
import sys
import threading
import time
from functools import cache

PATIENCE_S = 5.0
"""How long a call may take to come back; it takes far less than a millisecond of CPU time."""


@cache
def end_after_calls() -> None:
    """Let this process end after the calls that are under way from threads that Python did not start."""
    atexit.register(_await_calls)


def _await_calls() -> None:
    deadline = time.monotonic() + PATIENCE_S
    while _calling() and time.monotonic() < deadline:
        time.sleep(0.001)


def _calling() -> set[int]:
    """Threads in the middle of a call, among those that Python did not start; it may know them as dummies."""
    own = {one.ident for one in threading.enumerate() if not isinstance(one, threading._DummyThread)}
    return {thread for thread in sys._current_frames() if thread not in own}
