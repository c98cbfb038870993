"""The log of a run: lines of JSON for scripts, and the same in words for people.

`log.jsonl` holds one object a line: `time` (UTC), `event`, and what belongs to it. `run.log` holds the lines that the
console showed. No secret gets into either.
"""

import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from cubeloom.pipeline.grids import Window
from cubeloom.secrets import redact, redact_values


class RunLog:
    """Two files in the folder of a run, written line by line, so that a kill costs no line before it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._events = (folder / "log.jsonl").open("a", encoding="utf-8")
        self._words = (folder / "run.log").open("a", encoding="utf-8")

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._events.close()
        self._words.close()

    def event(self, event: str, **facts: Any) -> None:  # noqa: ANN401 - any JSON values
        """Add a line of JSON."""
        known = json.loads(json.dumps(facts, default=str))
        line = json.dumps({"time": _now(), "event": event, **redact_values(known)})
        with self._lock:
            self._events.write(line + "\n")
            self._events.flush()

    def say(self, words: str) -> None:
        """Add a line in words."""
        with self._lock:
            self._words.write(f"{_now()} {redact(words)}\n")
            self._words.flush()

    def block(self, item: str, phase: str, window: Window, seconds: dict[str, float], nbytes: int) -> None:
        """Add what one block took: seconds of every step, and the bytes it left."""
        at = [window.row, window.col, window.height, window.width]
        spent = {step: round(one, 6) for step, one in seconds.items()}
        self.event("block", item=item, phase=phase, window=at, seconds=spent, bytes=nbytes)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
