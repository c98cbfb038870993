"""The soak test over a few scenes: most of them broken, each in its own way."""

import importlib.util
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).resolve().parents[1] / "soak.py"


@pytest.fixture(scope="module")
def soak():
    spec = importlib.util.spec_from_file_location("cubeloom_tests_soak", SOAK)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_a_small_catalog_under_kills(soak, nursery, tmp_path):
    def run_for(arguments, seconds):
        child = nursery.start(*arguments)
        return child.wait_or_kill(seconds)

    said = soak.soak(tmp_path, len(soak.HARMS) + 6, len(soak.HARMS), 1, run_for, (0.2, 1.5), least=3)
    print(said)
    assert "6 published, 12 quarantined, ledger exact" in said
