"""Broken documents: whatever is done to a valid one, only a `CubeloomError` comes out of the parser that reads it.

The parsers, the valid documents and the ways to break them are in `tests/fuzz`, where `run.py` goes on for longer.
"""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FUZZ = Path(__file__).resolve().parent / "fuzz"
sys.path.insert(0, str(FUZZ))

import seeds  # noqa: E402
from targets import TARGETS  # noqa: E402
from watch import MisbehavedError, watched  # noqa: E402

EXAMPLES = {"enmap": 30, "zip": 50, "tar": 50, "stac": 30, "sentinel2": 15, "sentinel1": 15, "eopf": 15}
"""Documents by a target's name or its first word, fewer where parsing takes long; 80 for the others. `make soak` takes
many more."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # rasterio logging what is no text
@pytest.mark.parametrize("name", TARGETS)
def test_only_errors_of_ours_come_out(name, tmp_path):
    target = TARGETS[name]
    target.warm(tmp_path / "document")
    accepted = 0

    @settings(
        max_examples=EXAMPLES.get(name, EXAMPLES.get(name.partition("_")[0], 80)),
        deadline=None,  # the time limit is the CPU time that `watched` allows
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False))
    def survives(random):
        nonlocal accepted
        accepted += target.check(target.broken(random), tmp_path / "document")

    survives()
    assert list(tmp_path.iterdir()) == []


def replaced(old: str, new: str) -> Callable[[bytes], bytes]:
    """A change of the first place in a document where a pattern matches, which there must be."""

    def change(document: bytes) -> bytes:
        text, count = re.subn(old, new, document.decode(), count=1)
        assert count == 1
        return text.encode()

    return change


FOUND = {
    "band number": ("enmap_l2a", replaced(r'bandID number="\d+"', 'bandID number="1e300"')),
    "band number 0": ("enmap_l2a", replaced(r'bandID number="\d+"', 'bandID number="0"')),
    "year 1": ("enmap_l2a", replaced(r"startTime>[^<]*", "startTime>0001-01-01T00:00:00+14:00")),
    "year 9999": ("enmap_l2a", replaced(r"startTime>[^<]*", "startTime>9999-12-31T00:00:00Z")),
    "gain beyond float32": ("enmap_l2a", replaced(r"GainOfBand>[^<]*", "GainOfBand>1e300")),
    "width of no band": ("enmap_l2a", replaced(r"FWHMOfBand>[^<]*", "FWHMOfBand>0")),
    "channel of many digits": ("enmap_l2a", replaced(r"(<expectedChannelsList>)[^<]*", rf"\g<1>1,{'9' * 5000}")),
    "corner beyond the globe": ("enmap_l2a", replaced(r'(<latitude unit="DEG">)[^<]*', r"\g<1>1e300")),
    "no text": ("workflow", lambda document: document.replace(b"name", b"\xff", 1)),
    "channels of a list": ("recipe", replaced("in_channels: 2", "in_channels: [2]")),
    "bool of a tag": ("recipe", replaced("swap: false", "swap: !!bool perhaps")),
    "bbox of an endless integer": ("stac_item", replaced(r'"bbox": \[\s*[-\d.]+', f'"bbox": [1{"0" * 400}')),
    "half a character": ("stac_item", replaced(r'"href": "[^"]*METADATA', r'"href": "\\\\ud800')),
    "name of a thousand letters": ("stac_item", replaced(r'"href": "[^"]*METADATA', f'"href": "{"x" * 1000}')),
    "roles of a number": ("stac_item", replaced(r'"roles": \[[^\]]*\]', '"roles": 0.5')),
    "links of a number": ("stac_catalog", replaced(r'"links": \[[\s\S]*\]', '"links": 0.5')),
    "type of a list": ("stac_catalog", replaced(r'"stac_version": "[^"]*"', '"stac_version": []')),
    "nested a thousand deep": ("stac_item", replaced(r'"platform": "[^"]*"', f'"platform": {"[" * 900 + "]" * 900}')),
    "no classes": ("classifier", lambda _: repacked("card.json", replaced(r'"classes"', '"klasses"'))),
    "wavelengths of text": ("classifier", lambda _: repacked("card.json", replaced(r"450.0", '"blue"'))),
    "fewer wavelengths": ("classifier", lambda _: repacked("card.json", replaced(r"450.0,", ""))),
}
"""What was found once, each by a document that must now be refused."""


def repacked(name: str, change: Callable[[bytes], bytes]) -> bytes:
    import io
    import zipfile

    members = seeds.members(seeds.classifiers()[0])
    members[name] = change(members[name])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return buffer.getvalue()


@pytest.mark.parametrize("case", FOUND)
def test_what_was_found_stays_refused(case, tmp_path):
    name, change = FOUND[case]
    target = TARGETS[name]
    changed = []
    for document in target.documents():
        try:
            changed.append(change(document))
        except AssertionError:
            continue
    assert changed, "the change meets no document"
    assert not any(target.check(document, tmp_path / "document") for document in changed)


@pytest.mark.parametrize("act", ["write", "run", "ask", "loop"])
def test_the_watch_sees(act, tmp_path):
    """Without this, the tests above might pass because nothing is watched."""
    folder = tmp_path / "folder"
    folder.mkdir()

    def misbehave() -> None:
        (folder / "fine").write_text("")
        if act == "write":
            (folder / ".." / "evil").write_text("")
        elif act == "run":
            subprocess.run(["true"], check=True)
        elif act == "ask":
            import socket

            socket.getaddrinfo("127.0.0.1", 1)
        else:
            while True:
                pass

    with pytest.raises(MisbehavedError), watched(folder, 0.2):
        misbehave()
    with watched(folder, 5):
        (folder / "fine").unlink()
