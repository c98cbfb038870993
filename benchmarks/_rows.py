"""Rows of a table that compares two calls."""

import statistics
from collections.abc import Callable
from typing import Any


def compared(
    case: str,
    ours: Callable[[], Any],
    peer: Callable[[], Any],
    clock: Callable[[], float],
    rounds: int,
    scale: float = 1,
) -> tuple[dict[str, Any], Any, Any]:
    """A row of both in turn, with what they gave at the last; `scale` multiplies the peer's seconds."""
    seconds: list[tuple[float, float]] = []
    for _ in range(rounds):
        start = clock()
        theirs = peer()
        between = clock()
        made = ours()
        seconds.append((clock() - between, (between - start) * scale))
    ratio = statistics.median(own / peer for own, peer in seconds)
    row = {
        "case": case,
        "ours_s": statistics.median(own for own, _ in seconds),
        "peer_s": statistics.median(peer for _, peer in seconds),
        "ratio": ratio,
        "faster": 1 / ratio,
        "rounds": rounds,
    }
    return row, made, theirs
