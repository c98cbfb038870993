"""The structure holds: imports go one way, every package is listed, one module writes Zarr."""

import ast
import tomllib
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
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("cubeloom.")}


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


def test_only_the_store_writes_zarr():
    writers = {"to_zarr", "create_array", "create_group", "consolidate_metadata"}
    for folder in ALLOWED:
        for path in sources(folder):
            used = {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
            assert not used & writers or path.name == "store.py", f"{path.relative_to(ROOT)} writes Zarr"


@pytest.mark.parametrize("folder", ALLOWED)
def test_a_folder_is_not_imported_twice(folder, monkeypatch):
    """With the repository root on the path, `import models` must fail instead of making a second copy."""
    import importlib
    import sys

    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.delitem(sys.modules, folder, raising=False)
    with pytest.raises(ImportError, match=f"import cubeloom.{folder}"):
        importlib.import_module(folder)
