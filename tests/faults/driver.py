"""The command line in child processes that meet a fault at a chosen point; the product knows nothing of it.

`Nursery` keeps a process that has imported everything and forks a child for every run, so that one costs tenths of a
second. A child's fault is set up before the command begins: a function wrapped so that the process gets a signal
before or after its n-th call, the n-th file operation under the output directory, a limit on the size of files, a
clock that is wrong.

Run as a program, this file is the nursery: it reads requests from stdin, and answers on stdout.
"""

import gc
import importlib
import json
import os
import pkgutil
import platform
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, tzinfo
from functools import partial, wraps
from itertools import count
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Fault:
    """What happens to a child.

    Attributes:
        at: dotted name of a function or method; what happens happens there; by default the process gets `number`.
        when: `before` or `after` the call.
        nth: which call, from 1.
        number: the signal.
        operation: before which change of a file below `below` it is killed, from 1; 0 for none, -1 to count them.
        below: the folder whose file operations count.
        largest_file: bytes that a file may have, from the beginning or from `at` on; 0 for no limit.
        torn: die at that limit, in the middle of the write, instead of seeing an error.
        clock_s: what is added to the time of day: an entry for every look at the clock in turn, the last one stays.
        host: name of the machine; empty for its own.
        largest_block: pixels on a side of a block; 0 for the program's own choice.
    """

    at: str = ""
    when: str = "before"
    nth: int = 1
    number: int = signal.SIGKILL
    operation: int = 0
    below: str = ""
    largest_file: int = 0
    torn: bool = False
    clock_s: tuple[float, ...] = ()
    host: str = ""
    largest_block: int = 128


NONE = Fault()


class Child:
    """A command under way."""

    def __init__(self, nursery: "Nursery", pid: int, pipe: Path) -> None:
        self.nursery, self.pid = nursery, pid
        self.code: int | None = None
        self._words: list[bytes] = []
        self._listener = threading.Thread(target=self._listen, args=(pipe,), daemon=True)
        self._listener.start()

    def _listen(self, pipe: Path) -> None:
        with pipe.open("rb", buffering=0) as file:
            while words := file.read(2**16):
                self._words.append(words)

    def poll(self) -> int | None:
        """How it ended, negative for a signal; None while it runs."""
        if self.code is None:
            self.code = self.nursery.ask({"poll": self.pid})["code"]
        return self.code

    def wait(self, timeout_s: float = 60.0) -> int:
        """Wait for its end."""
        self._await_end(timeout_s)
        if (code := self.poll()) is None:
            os.kill(self.pid, signal.SIGKILL)
            raise AssertionError(f"still at it after {timeout_s} s:\n{self.said}")
        return code

    def wait_or_kill(self, seconds: float) -> int | None:
        """How it ended by itself; None where it was killed after so long."""
        self._await_end(seconds)
        self.send(signal.SIGKILL)
        return None if self.wait() == -signal.SIGKILL else self.code

    def _await_end(self, seconds: float) -> None:
        """Sleep until it has ended, or for so long; to ask again and again would take time from what is asked about."""
        if self.code is None:
            end = os.pidfd_open(self.pid)  # the nursery reaps it only when it is asked, so the number is still its own
            try:
                select.select([end], [], [], seconds)
            finally:
                os.close(end)

    def wait_stopped(self) -> None:
        """Wait until SIGSTOP has stopped it."""
        while Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            assert self.poll() is None, f"it ended before:\n{self.said}"
            time.sleep(0.005)

    def send(self, number: int) -> None:
        """Send it a signal."""
        if self.poll() is None:
            os.kill(self.pid, number)

    @property
    def said(self) -> str:
        """What it wrote to stdout and stderr."""
        if self.code is not None:
            self._listener.join(timeout=5)
        return b"".join(self._words).decode(errors="replace")


class Nursery:
    """Starts children; a context manager.

    Args:
        folder: for what they write.
        also: modules that its children need beside `IMPORTED`.
    """

    def __init__(self, folder: Path, *also: str) -> None:
        self.folder = folder
        self._numbers = count()
        self._lock = threading.Lock()
        loopback = {"CUBELOOM_HOSTS": "http://127.0.0.1", "CUBELOOM_PRIVATE": "1"}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **loopback}
        self._process = subprocess.Popen(
            [sys.executable, __file__, *also], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __enter__(self) -> "Nursery":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """One request and its answer."""
        assert self._process.stdin
        assert self._process.stdout
        with self._lock:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def start(self, *arguments: object, fault: Fault = NONE, program: str = "cubeloom") -> Child:
        """Start `cubeloom` with arguments, or one of the `PROGRAMS` of this file."""
        pipe = self.folder / str(next(self._numbers))
        os.mkfifo(pipe)
        words = [str(argument) for argument in arguments]
        answer = self.ask({"program": program, "arguments": words, "fault": asdict(fault), "pipe": str(pipe)})
        return Child(self, answer["pid"], pipe)

    def run(self, *arguments: object, fault: Fault = NONE) -> Child:
        """Start `cubeloom` and wait for its end."""
        child = self.start(*arguments, fault=fault)
        child.wait()
        return child

    @contextmanager
    def watching(self, out: Path) -> Iterator[None]:
        """A reader in another process that looks at an output directory again and again meanwhile.

        Raises:
            AssertionError: at the end, with what it saw that no reader must see.
        """
        child = self.start(out, program="reader")
        try:
            while "reading" not in child.said:
                time.sleep(0.002)
            yield
        finally:
            child.send(signal.SIGTERM)
            child.wait()
        assert child.code == 0, child.said
        looks = int(child.said.split()[-2])
        assert looks > 0, "the reader never looked"


def _read(arguments: Sequence[str]) -> int:
    from reader import read_until_stopped  # beside this file, which is the program

    return read_until_stopped(Path(arguments[0]))


def _cubeloom(arguments: Sequence[str]) -> int:
    from cubeloom.workflows.cli import main

    sys.argv = ["cubeloom", *arguments]
    try:
        main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


PROGRAMS: dict[str, Callable[[Sequence[str]], int]] = {"cubeloom": _cubeloom, "reader": _read}


def main() -> None:
    """Fork a child for every request until stdin ends."""
    _import_everything(sys.argv[1:])
    running: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            running.discard(pid)
            answer: dict[str, Any] = {"code": os.waitstatus_to_exitcode(status) if pid else None}
        else:
            if not (pid := os.fork()):
                os._exit(_child(request))
            running.add(pid)
            answer = {"pid": pid}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    for pid in running:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


IMPORTED = (
    "cubeloom.catalogs.access",
    "cubeloom.catalogs.download",
    "cubeloom.pipeline.readers.enmap",
    "cubeloom.pipeline.readers.eopf",
    "cubeloom.pipeline.readers.sentinel1",
    "cubeloom.pipeline.simulate",
    "cubeloom.workflows.batch",
    "cubeloom.workflows.cli",
    "cubeloom.workflows.inspect",
    "cubeloom.workflows.run",
    "cubeloom.workflows.summary",
    "distributed",
    "imagecodecs._deflate",
    "imagecodecs._imcd",
    "matplotlib.backends.backend_agg",
    "odc.geo.xr",
    "pyarrow.pandas_compat",
    "rasterio.shutil",
    "reader",
)
"""All that a run imports, and this program's own."""

QUICKER = (
    (
        "cubeloom.workflows.summary",
        "SAMPLED_SCENES",
        {"published": 0, "unchanged": 0},
    ),  # to draw a report's spectra takes longer than a tiny scene
    ("cubeloom.workflows.batch", "FIRST_DELAY_S", 0.05),
)
"""Settings of modules for all children."""


def _import_everything(also: Sequence[str]) -> None:
    for name in (*IMPORTED, *also):
        importlib.import_module(name)
    for dotted, name, value in QUICKER:
        setattr(sys.modules[dotted], name, value)
    sys.modules["cubeloom.catalogs.access"].Access.__init__.__kwdefaults__["pause"] = 0.01
    sys.modules["PIL.Image"].init()  # imports a module for every format
    sys.modules["cubeloom.workflows.report"].page_template()
    sys.modules["cubeloom.workflows.summary"].versions()
    typer = sys.modules["typer.main"]
    commands = typer.get_command(sys.modules["cubeloom.workflows.cli"].app)  # else made anew for every child
    typer.get_command = lambda _: commands  # type: ignore[attr-defined]
    gc.collect()
    gc.freeze()  # else the first collection in a child would copy all that it shares with this process


def _child(request: Mapping[str, Any]) -> int:
    """In the child: the command with its output in a file."""
    code = 1
    try:
        os.setsid()
        pipe = os.open(request["pipe"], os.O_WRONLY)  # no file: those have a limit in some tests
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (pipe, 1), (pipe, 2)):
            os.dup2(source, target)
        os.close(pipe)
        _set_up(Fault(**request["fault"]))
        code = PROGRAMS[request["program"]](request["arguments"])
        sys.stderr.writelines(f"{tell()}\n" for tell in AT_END)
    except BaseException:  # noqa: BLE001 - the test sees it
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return code


def _set_up(fault: Fault) -> None:
    if fault.largest_block:
        sys.modules["cubeloom.pipeline.memory"].LARGEST_BLOCK = fault.largest_block  # type: ignore[attr-defined]
    if fault.operation:
        _kill_at_operation(fault)
    if fault.clock_s:
        _turn_clock(fault.clock_s)
    if fault.host:
        platform.node = lambda: fault.host
    if fault.at:
        _meet_at(fault, partial(_limit, fault) if fault.largest_file else lambda: os.kill(os.getpid(), fault.number))
    elif fault.largest_file:
        _limit(fault)


def _limit(fault: Fault) -> None:
    """From now on the disk takes no more."""
    if fault.torn:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
    resource.setrlimit(resource.RLIMIT_FSIZE, (fault.largest_file, fault.largest_file))


def _meet_at(fault: Fault, meet: Callable[[], None]) -> None:
    owner_name, _, name = fault.at.rpartition(".")
    owner = pkgutil.resolve_name(owner_name)
    original = getattr(owner, name)
    calls, lock = count(1), threading.Lock()

    @wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with lock:
            due = next(calls) == fault.nth
        if due and fault.when == "before":
            meet()
        result = original(*args, **kwargs)
        if due and fault.when == "after":
            meet()
        return result

    _replace_everywhere(owner, name, original, wrapped)


def _replace_everywhere(owner: Any, name: str, original: object, new: object) -> None:
    """Also in the modules that imported it by its name."""
    setattr(owner, name, new)
    for module in [one for key, one in sys.modules.items() if key.partition(".")[0] == "cubeloom"]:
        if getattr(module, name, None) is original:
            setattr(module, name, new)


_CHANGING = frozenset({"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"})


def _kill_at_operation(fault: Fault) -> None:
    """Kill this process before its n-th change of a folder below `below`; -1 only counts, and tells at the end."""
    numbers, lock = count(1), threading.Lock()
    done = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal done
        if event == "open":
            changes = isinstance(args[2], int) and bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        else:
            changes = event in _CHANGING
        if changes and not isinstance(args[0], int) and _is_below(os.fsdecode(args[0]), fault.below):
            with lock:
                done = next(numbers)
                if done == fault.operation:
                    os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    if fault.operation < 0:
        AT_END.append(lambda: f"file operations: {done}")


AT_END: list[Callable[[], str]] = []
"""What a child tells when its command has come to its end."""


def _is_below(path: str, folder: str) -> bool:
    """While a folder is removed, what is in it goes by names relative to a descriptor."""
    return path.startswith(folder) or not Path(path).is_absolute()


def _turn_clock(offsets: Sequence[float]) -> None:
    """Let the time of day be wrong, by another amount at every look."""
    real, looks, lock = time.time, count(), threading.Lock()

    def wrong() -> float:
        with lock:
            return real() + offsets[min(next(looks), len(offsets) - 1)]

    class Wrong(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.fromtimestamp(wrong(), tz)

    _replace_everywhere(time, "time", real, wrong)
    time.time_ns = lambda: int(wrong() * 1e9)
    for module in [one for key, one in sys.modules.items() if key.partition(".")[0] == "cubeloom"]:
        if getattr(module, "datetime", None) is datetime:
            module.datetime = Wrong  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
