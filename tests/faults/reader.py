"""What any reader of an output directory may rely on, at every moment."""

import hashlib
import json
import os
import signal
import sqlite3
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cubeloom.errors import StoreError
from cubeloom.pipeline import store

IGNORED_PROPERTIES = ("created", "updated")


def breaches(out: Path) -> Iterator[str]:
    """What a reader sees that no reader must see: products that are not whole, documents that are not.

    A product is what an item points to, and every `.zarr` folder among the scenes.
    """
    pointed: set[Path] = set()
    for path in sorted(out.glob("scenes/*/*.json")):
        before = path.read_text()
        found = list(item_breaches(path))
        if path.read_text() == before:  # else it was replaced meanwhile, and the old version may be gone
            yield from found
        pointed |= {product_of(path)} if not found else set()
    for product in sorted({path.resolve() for path in out.glob("scenes/*/*.zarr")} - pointed):
        found = list(store_breaches(product))
        if product.exists():  # else it went, as a whole
            yield from found
    for document in [*out.glob("collections/*.json"), *out.glob("catalog.json")]:
        yield from document_breaches(document)


def product_of(item: Path) -> Path:
    """The store that an item points to."""
    return (item.parent / json.loads(item.read_text())["assets"]["product"]["href"]).resolve()


def item_breaches(path: Path) -> Iterator[str]:
    """An item must parse, its files must be there, its commit record be the one it names, its product whole."""
    content = path.read_text()
    try:
        document = json.loads(content)
        assets = {key: path.parent / asset["href"] for key, asset in document["assets"].items()}
        commit = assets["commit"].read_bytes()
    except (ValueError, KeyError, OSError) as error:
        yield f"{path}: {type(error).__name__}: {error}"
        return
    if not document["assets"]["commit"]["file:checksum"].endswith(hashlib.sha256(commit).hexdigest()):
        yield f"{path}: another commit record than the one it names"
    yield from (f"{path}: {key} is not there" for key, asset in assets.items() if not asset.exists())
    yield from store_breaches(assets["product"])


def store_breaches(product: Path) -> Iterator[str]:
    """A product must have its commit record and agree with it."""
    try:
        store.verify(product)
    except (StoreError, OSError) as error:
        yield f"{product}: {error}"


def document_breaches(path: Path) -> Iterator[str]:
    """A document must parse, and what it links to must be there."""
    try:
        links = json.loads(path.read_text())["links"]
    except (ValueError, KeyError) as error:
        yield f"{path}: {error}"
        return
    for link in links:
        if link["rel"] in ("item", "child") and not (path.parent / link["href"]).exists():
            yield f"{path}: links to {link['href']}, which is not there"


def stamps(out: Path) -> dict[str, tuple[int, int, int]]:
    """Inode, size and time of the last change of all that readers look at: where these stay, nothing has changed."""
    folders, found = [str(out)], dict[str, tuple[int, int, int]]()
    while folders:
        try:
            for entry in os.scandir(folders.pop()):
                status = entry.stat(follow_symlinks=False)
                found[entry.path] = (status.st_ino, status.st_size, status.st_ctime_ns)
                if entry.is_dir(follow_symlinks=False) and entry.name not in HIDDEN:
                    folders.append(entry.path)
        except FileNotFoundError:  # it went meanwhile, which the next walk tells
            continue
    return found


HIDDEN = (".cubeloom", "runs")
"""Folders of an output directory that are none of a reader's business."""


def read_until_stopped(out: Path) -> int:
    """Look whenever something has changed, until SIGTERM; tell what was wrong, and how often it was looked."""
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    sys.stdout.write("reading\n")
    sys.stdout.flush()
    looks, wrong = 0, list[str]()
    known: deque[object] = deque([None, None, None], maxlen=3)
    while not wrong and (not stopped or not looks):
        began = time.monotonic()
        known.append(stamps(out))
        if known[0] != known[1] or known[1] != known[2]:  # once more after a change: a clock of files ticks coarsely
            wrong = list(breaches(out))
            looks += 1
        time.sleep(0.002 + 3 * (time.monotonic() - began))  # most of the time is left to those it looks at
    sys.stdout.write("\n".join([*wrong, f"{looks} looks"]) + "\n")
    return int(bool(wrong))


def leftovers(out: Path) -> list[str]:
    """What is there that a finished run must not leave."""
    own = out / ".cubeloom"
    left = [*own.glob("staging/*"), *own.glob("trash/*"), *own.glob("inputs/*"), *own.glob("quarantine/*")]
    left += [path for path in out.rglob("*") if path.name.endswith((".partial", ".part"))]
    left += [path for path in out.glob("scenes/*/*") if path.suffix not in (".json", ".zarr", ".quicklooks")]
    left += [path for path in out.glob("scenes/*/*.quicklooks") if not path.with_suffix(".zarr").exists()]
    return [str(path) for path in left] + rows_left(out)


def rows_left(out: Path) -> list[str]:
    """Blocks that the ledger still remembers, and scenes that are not at their end."""
    with sqlite3.connect(f"file:{out / '.cubeloom/ledger.sqlite'}?mode=ro", uri=True) as db:
        tables = {name: db.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in TABLES}
        open_scenes = db.execute("SELECT item, state FROM scene WHERE state != 'succeeded'").fetchall()
    db.close()
    return [f"ledger: {rows} rows of {name}" for name, rows in tables.items() if rows] + list(map(str, open_scenes))


TABLES = ("chunk", "block", "statistics")


def content(item: Path) -> dict[str, Any]:
    """An item but for its times, with the commit record of its product: what two runs must agree on."""
    document = json.loads(item.read_text())
    for name in IGNORED_PROPERTIES:
        document["properties"].pop(name)
    return {"item": document, "commit": (product_of(item) / store.COMMIT).read_text()}


def contents(out: Path) -> dict[str, dict[str, Any]]:
    """All that a reader gets from an output directory."""
    return {str(path.relative_to(out)): content(path) for path in sorted(out.glob("scenes/*/*.json"))}
