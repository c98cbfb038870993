"""How far a nightly job has worked a catalog off: kept in one small file, replaced whole.

The watermark is a moment of the catalog's own time, the `updated` of its items, and never the clock of this machine:
everything that the catalog had changed up to it is settled here. Beside it stand the scenes that have no product, so
that one that can have none is not fetched every night, and one that fails is tried again for some nights only.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cubeloom.catalogs.documents import write_json_atomic
from cubeloom.errors import StoreError
from cubeloom.untrusted import load_json


@dataclass(frozen=True)
class Trouble:
    """A scene without a product.

    Attributes:
        request: digest of its files and of the workflow, so that a changed scene begins anew; empty where not known.
        state: `failed` or `invalid`.
        nights: on how many nights it failed.
    """

    request: str
    state: str
    nights: int


@dataclass(frozen=True)
class Mark:
    """The state of one search.

    Attributes:
        begun: where the first night began, UTC; nothing before it is searched.
        updated: the watermark, UTC.
        troubles: the scenes found last that have no product, by id.
    """

    begun: datetime
    updated: datetime
    troubles: Mapping[str, Trouble] = field(default_factory=dict)

    def since(self, overlap: timedelta) -> datetime:
        """Where a search begins that looks `overlap` further back than the watermark."""
        return max(self.begun, self.updated - overlap)


def search_key(provider: str, query: Mapping[str, Any]) -> str:
    """Names a search in the file: another area or provider has a watermark of its own."""
    text = json.dumps([provider, query], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_mark(path: Path, key: str) -> Mark | None:
    """The state of a search, or None where there is none yet.

    Raises:
        StoreError: the file holds something else.
    """
    found = _searches(path).get(key)
    if found is None:
        return None
    try:
        begun, updated = (datetime.fromisoformat(found[name]).astimezone(UTC) for name in ("begun", "watermark"))
        return Mark(begun, updated, {item: Trouble(**trouble) for item, trouble in found["troubles"].items()})
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise _unreadable(path, repr(error)) from None


def write_mark(path: Path, key: str, mark: Mark, search: Mapping[str, Any]) -> None:
    """Replace the state of a search; the file is the old one or the new one, also after a power cut.

    Args:
        path: the file.
        key: see `search_key`.
        mark: the new state.
        search: what was searched, for people who look into the file.
    """
    state = {
        "begun": utc_text(mark.begun),
        "watermark": utc_text(mark.updated),
        "troubles": {item: vars(trouble) for item, trouble in sorted(mark.troubles.items())},
        "search": json.loads(json.dumps(search, default=str)),
    }
    write_json_atomic(path, {"searches": {**_searches(path), key: state}})


def parse_time(text: object) -> datetime | None:
    """A moment in UTC from RFC 3339, or None; without an offset it is UTC."""
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError:  # the year 1 or 9999, moved beyond it by its offset
        return None


def utc_text(moment: datetime) -> str:
    """A moment as RFC 3339 in UTC."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _searches(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    content = load_json(path)
    searches = content.get("searches") if isinstance(content, dict) else None
    if not isinstance(searches, dict):
        raise _unreadable(path, "it has no 'searches'")
    return searches


def _unreadable(path: Path, why: str) -> StoreError:
    return StoreError(
        f"{path}: this is not the state of a nightly job: {why}; move it away, and give --since where to begin again"
    )
