"""What a run leaves behind, and what it says, holds no secret of the addresses that it read from."""

import json

import pytest

from cubeloom.catalogs.items import read_catalog
from cubeloom.workflows.run import RunOptions, run
from cubeloom.workflows.schema import load_workflow

SIGNATURE, PASSWORD = "zQ9SIGNATURE9Qz", "zQ9PASSWORD9Qz"


def signed(archive, folder, number: int, credentials: str = ""):
    """A catalog of one scene whose every address grants access by itself."""
    item = archive.offer(number, "2028-02-28T12:00:00Z")
    base = archive.server.url.replace("//", f"//{credentials}") if credentials else archive.server.url
    text = json.dumps(item).replace("@server@", base)
    item = json.loads(text)
    for asset in item["assets"].values():
        asset["href"] += f"?sig={SIGNATURE}&se=2030"
    path = folder / f"{number}.json"
    path.write_text(json.dumps(item))
    return read_catalog(path)


def leaks(*places, text: str = "") -> list[str]:
    """Files at or below some places, and parts of a text, that hold one of the secrets."""
    found = ["what was printed"] if SIGNATURE in text or PASSWORD in text else []
    for path in (path for place in places for path in place.rglob("*")):
        if path.is_file() and any(secret.encode() in path.read_bytes() for secret in (SIGNATURE, PASSWORD)):
            found.append(str(path))
    return found


@pytest.mark.parametrize("fails", [False, True])
def test_signed_addresses_leave_no_trace(archive, tmp_path, capfd, caplog, fails):
    caplog.set_level("DEBUG")
    (tmp_path / "catalog").mkdir()
    items = signed(archive, tmp_path / "catalog", 0)
    if fails:
        for asset in items[0].assets.values():
            path = asset.href.removeprefix(archive.server.url).partition("?")[0]
            archive.server.then(path, *[lambda handler: handler.send(403, b"not you")] * 5)
    result = run(load_workflow("ingest"), items, tmp_path / "out", RunOptions(retries=0))
    assert [scene.state for scene in result.scenes] == ["failed" if fails else "published"]
    if fails:
        assert result.scenes[0].cause
    said = "".join(capfd.readouterr()) + caplog.text + "".join(str(scene.cause) for scene in result.scenes)
    assert leaks(tmp_path / "out", text=said) == []


def test_a_password_in_an_address_leaves_no_trace(archive, tmp_path, capfd, caplog):
    caplog.set_level("DEBUG")
    (tmp_path / "catalog").mkdir()
    items = signed(archive, tmp_path / "catalog", 0, credentials=f"user:{PASSWORD}@")
    result = run(load_workflow("ingest"), items, tmp_path / "out", RunOptions(retries=0))
    said = "".join(capfd.readouterr()) + caplog.text + "".join(str(scene.cause) for scene in result.scenes)
    assert leaks(tmp_path / "out", text=said) == []
