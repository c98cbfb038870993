"""The structure holds: imports go one way, every package is listed, one module writes Zarr."""

import ast
import tomllib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {
    "models": {"models"},
    "catalogs": {"catalogs"},
    "pipeline": {"pipeline", "models"},
    "workflows": {"workflows", "pipeline", "catalogs", "models"},
}
FREE = {"errors", "guard", "network", "secrets", "untrusted", "__version__"}


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Full names of the modules and members of Cubeloom that a file imports absolutely."""
    return {name for name in all_imported(path) if name.startswith("cubeloom.")}


@pytest.mark.parametrize("folder", ALLOWED)
def test_imports_go_one_way(folder):
    for path in sources(folder):
        used = {name.split(".")[1] for name in imported(path)} - FREE
        assert used <= ALLOWED[folder], f"{path.relative_to(ROOT)} imports {sorted(used - ALLOWED[folder])}"


def test_every_package_is_listed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {"cubeloom"}
    for folder in ALLOWED:
        for init in (ROOT / folder).rglob("__init__.py"):
            found.add("cubeloom." + ".".join(init.parent.relative_to(ROOT).parts))
    assert found == set(project["packages"])


MODULES = {
    "the network": (
        "aiohttp fsspec ftplib http httpx huggingface_hub icechunk obstore pystac_client requests s3fs smtplib socket "
        "ssl urllib.error urllib.request urllib3",
        "cubeloom/guard.py cubeloom/network.py catalogs/access.py catalogs/logins.py catalogs/object_store.py "
        "catalogs/stac_api.py catalogs/transfer.py models/hub.py pipeline/remotes/ workflows/notify.py",
    ),
    "archives": ("tarfile zipfile", "cubeloom/archives.py models/classifiers.py pipeline/simulate/packaging.py"),
    "code in data": ("cloudpickle dill joblib marshal pickle shelve", "models/essaformer_unpickle.py"),
    "XML": ("defusedxml lxml xml.dom xml.etree xml.parsers", "cubeloom/untrusted.py"),
    "processes": ("pty subprocess", "models/essaformer_convert.py"),
}
"""Modules that few may import, and who: files, or folders with a slash behind them."""


@pytest.mark.parametrize("what", MODULES)
def test_dangerous_modules_stay_in_few_hands(what):
    banned, allowed = (set(text.split()) for text in MODULES[what])
    for path in everything():
        place = str(path.relative_to(ROOT))
        if not any(place == one or (one.endswith("/") and place.startswith(one)) for one in allowed):
            used = {
                name for name in all_imported(path) if any(name == one or name.startswith(f"{one}.") for one in banned)
            }
            assert not used, f"{place} imports {sorted(used)}; {what} belongs to {sorted(allowed) or 'nobody'}"


def everything() -> list[Path]:
    return [path for folder in ("cubeloom", *ALLOWED) for path in sources(folder)]


def all_imported(path: Path) -> set[str]:
    """Full names of all modules and members that a file imports absolutely, in functions too."""
    return _imported_in(path.read_text())


@cache
def _imported_in(source: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


STORE = ("pipeline/store.py", "pipeline/chunks.py")


def writes_zarr(name: str, mode: str | None) -> bool:
    last = name.rpartition(".")[2]
    if last in {"to_zarr", "create_array", "create_group", "consolidate_metadata", "require_group", "require_array"}:
        return True
    return name.startswith("zarr.") and "(" not in name and not last[0].isupper() and mode != "r"


CALLS: dict[str, tuple[Callable[[str, str | None], bool], Sequence[str]]] = {
    "writes Zarr": (writes_zarr, STORE),
    "opens a raster unchecked": (
        lambda name, mode: name == "rasterio.open" and mode not in ("w", "r+"),
        ["cubeloom/untrusted.py"],
    ),
    "reads an archive unchecked": (
        lambda name, mode: name in ("zipfile.ZipFile", "tarfile.open") and mode not in ("w", "a"),
        ["cubeloom/archives.py"],
    ),
    "reads YAML unchecked": (
        lambda name, _: name.startswith("yaml.") and "load" in name,
        ["cubeloom/untrusted.py"],
    ),
    "reads weights unchecked": (
        lambda name, _: name in ("torch.load", "torch.jit.load", "torch.hub.load", "safetensors.torch.load_file"),
        ["models/checkpoints.py"],
    ),
    "runs text": (lambda name, _: name in ("eval", "exec", "compile", "os.system", "os.popen", "__import__"), []),
}
"""What only some files may do: told by the full name of what is called and its mode, where that is a literal."""


@pytest.mark.parametrize("what", CALLS)
def test_dangerous_calls_stay_in_few_hands(what):
    forbidden, allowed = CALLS[what]
    for path in everything():
        place = str(path.relative_to(ROOT))
        found = [f"line {line}: {name}" for name, mode, line in calls(path) if forbidden(name, mode)]
        assert not found or place in allowed, f"{place} {what}: {', '.join(found)}"
    for place in allowed:
        assert any(forbidden(name, mode) for name, mode, _ in calls(ROOT / place)) or place in STORE


def calls(path: Path) -> list[tuple[str, str | None, int]]:
    """Name, mode and line of every call in a file."""
    return _calls_in(path.read_text())


@cache
def _calls_in(source: str) -> list[tuple[str, str | None, int]]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            given = [key.value for key in node.keywords if key.arg == "mode"] or node.args[1:2]
            mode = given[0].value if given and isinstance(given[0], ast.Constant) else None
            found.append((ast.unparse(node.func), mode if isinstance(mode, str) else None, node.lineno))
    return found


def test_what_the_rules_forbid_they_find(tmp_path):
    """Without this, a rule might hold because it finds nothing."""
    samples = {
        "writes Zarr": [
            "x.to_zarr(p)",
            "zarr.open_group(p, mode='a')",
            "zarr.open(p)",
            "zarr.save(p, a)",
            "g.create_array(n)",
        ],
        "opens a raster unchecked": ["rasterio.open(p)", "rasterio.open(p, mode)"],
        "reads an archive unchecked": ["zipfile.ZipFile(p)", "tarfile.open(p, 'r:gz')"],
        "reads YAML unchecked": ["yaml.safe_load(t)", "yaml.load(t, Loader=x)"],
        "reads weights unchecked": ["torch.load(p)"],
        "runs text": ["eval(t)", "os.system(t)"],
    }
    harmless = (
        "zarr.open_group(p, mode='r'); rasterio.open(p, 'w'); zipfile.ZipFile(p, 'w'); yaml.safe_dump(d); m.eval()"
    )
    path = tmp_path / "sample.py"
    for what, (forbidden, _) in CALLS.items():
        for sample in samples[what]:
            path.write_text(sample)
            assert any(forbidden(name, mode) for name, mode, _ in calls(path)), sample
        path.write_text(harmless)
        assert not any(forbidden(name, mode) for name, mode, _ in calls(path))


@pytest.mark.parametrize("folder", ALLOWED)
def test_a_folder_is_not_imported_twice(folder, monkeypatch):
    """With the repository root on the path, `import models` must fail instead of making a second copy."""
    import importlib
    import sys

    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.delitem(sys.modules, folder, raising=False)
    with pytest.raises(ImportError, match=f"import cubeloom.{folder}"):
        importlib.import_module(folder)
