"""What a parser does besides parsing: files written, processes started, connections opened, time taken."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGING: dict[str, tuple[tuple[int, int | None], ...]] = {
    "os.mkdir": ((0, 2),),
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.truncate": ((0, None),),
    "os.chmod": ((0, 2),),
    "os.symlink": ((1, 2),),
    "os.link": ((1, 3),),
    "os.rename": ((0, 2), (1, 3)),
}
"""Events, with the positions of the paths that are changed and of the open folders these are relative to."""
_FORBIDDEN = ("subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "socket.", "pickle.find_class")

_SERVING = "zarr"
"""Threads that were there before, and read for whoever asks, have names that begin so."""

_watched: Path | None = None
_others: set[int | None] = set()
"""Threads that were there before: what another test has left behind asks the network when it likes."""
_seen: list[str] = []


class MisbehavedError(AssertionError):
    """A parser wrote elsewhere, ran something, asked the network, or took too long."""


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched is None or threading.get_ident() in _others:
        return
    if event.startswith(_FORBIDDEN):
        _seen.append(f"{event}{arguments!r:.200}")
    elif event == "open":
        path, mode, flags = arguments
        if (mode and set(mode) & set("wax+")) or (flags or 0) & _WRITING:
            _note(event, path, -1)
    for path, folder in _CHANGING.get(event, ()):
        _note(event, arguments[path], -1 if folder is None else arguments[folder])


def _note(event: str, path: object, folder: int) -> None:
    if isinstance(path, int) or _watched is None:
        return
    base = os.getcwd() if folder == -1 else os.readlink(f"/proc/self/fd/{folder}")  # noqa: PTH109, PTH115
    place = os.path.normpath(os.path.join(base, os.fsdecode(path)))  # noqa: PTH118 - no lookups inside an audit hook
    if not Path(place).is_relative_to(_watched) and place != os.devnull:
        _seen.append(f"{event} {place}")


sys.addaudithook(_hook)


def _too_long(*_: object) -> None:
    raise MisbehavedError("took too long")


@contextmanager
def watched(folder: Path, seconds: float) -> Iterator[None]:
    """Let no file be written outside `folder`, nothing be run or asked of the network, and no more CPU time be taken.

    By this thread, and by those that it starts.

    Raises:
        MisbehavedError: any of it happened.
    """
    global _watched, _others
    _seen.clear()
    present = (one for one in threading.enumerate() if one is not threading.current_thread())
    _others = {one.ident for one in present if not one.name.startswith(_SERVING)}
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # what is imported on the way is not the parser's
    previous = signal.signal(signal.SIGPROF, _too_long)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    _watched = Path(os.path.abspath(folder))  # noqa: PTH100
    try:
        yield
    finally:
        _watched = None
        sys.dont_write_bytecode = writes
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
        if _seen:
            raise MisbehavedError("; ".join(_seen))
