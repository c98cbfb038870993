"""Decoded tiles of images and chunks of arrays, each decoded once however many windows it lies in."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from threading import Lock

from cubeloom.pipeline.encoding import Array
from cubeloom.pipeline.grids import Shape, Window


class TileCache:
    """The tiles last used, up to so many bytes; may be used by several threads.

    Whoever asks for a tile that another thread is decoding waits for it.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.forget()

    def forget(self) -> None:
        """Start anew, as a child process must: it may have been forked while the lock was held."""
        self.held = 0
        self._lock = Lock()
        self._tiles: OrderedDict[Hashable, Future[Array]] = OrderedDict()

    def get(self, key: Hashable, decode: Callable[[], Array]) -> Array:
        """The tile of a key, decoded where it is not kept; read-only."""
        with self._lock:
            known = self._tiles.get(key)
            if known is not None:
                self._tiles.move_to_end(key)
            else:
                made = self._tiles[key] = Future()
        if known is not None:
            return known.result()
        try:
            tile = decode()
        except BaseException as error:
            with self._lock:
                self._tiles.pop(key, None)
            made.set_exception(error)
            raise
        tile.flags.writeable = False
        made.set_result(tile)
        self._keep(tile.nbytes)
        return tile

    def _keep(self, nbytes: int) -> None:
        """Count a tile in, and let the oldest go; those being decoded stay."""
        with self._lock:
            self.held += nbytes
            for key in list(self._tiles):
                if self.held <= self.limit:
                    break
                if self._tiles[key].done():
                    self.held -= self._tiles.pop(key).result().nbytes


def touched(window: Window, edge: Shape, shape: Shape) -> list[Window]:
    """The tiles of `edge`, cut at the edge of an image of `shape`, that a window lies in."""
    rows, cols = (
        range(first - first % step, stop, step)
        for first, stop, step in zip((window.row, window.col), window.stop, edge, strict=True)
    )
    return [
        Window(row, col, min(edge[0], shape[0] - row), min(edge[1], shape[1] - col)) for row in rows for col in cols
    ]
