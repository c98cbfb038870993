"""What imports torchvision can be imported after the cure, whatever torch torchvision was built for."""

import importlib.util
import json
import subprocess
import sys

import pytest

CURE = """
from cubeloom.models.torchvision_cure import make_torchvision_importable
make_torchvision_importable()
make_torchvision_importable()
import torchvision
"""
NEEDS_OPERATOR = """
import torch
@torch.library.register_fake("torchvision::nms")
def shape(dets, scores, iou_threshold):
    return dets.new_empty(0, dtype=torch.long)
"""
FORKS = """
import json, os, sys, torch, traceback
for code, path in json.load(sys.stdin):
    if os.fork() == 0:
        sys.path.insert(0, path)
        try:
            exec(code)
        except Exception as error:
            print(json.dumps(str(error)))
        else:
            print(json.dumps(""))
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""
"""Runs each piece of code in a fork of its own, since an import cannot be undone; torch is imported once for all."""


@pytest.fixture(scope="module")
def errors(tmp_path_factory):
    """What went wrong with torchvision and stand-ins for it, by case; empty where they could be imported."""
    users = [name for name in ("timm", "torchmetrics", "lightning") if importlib.util.find_spec(name)]
    left_alone = f"{CURE}\nassert not hasattr(torch.ops.torchvision, 'nms')"
    cases = {
        "misses its operators": (NEEDS_OPERATOR, "import torchvision"),
        "misses its operators, cured": (NEEDS_OPERATOR, CURE),
        "loads": ("__version__ = '1'", left_alone),
        "fails otherwise": ("raise RuntimeError('the disk is on fire')", CURE),
        "the installed one": (None, f"{CURE}\nimport {', '.join(users)}\nassert torchvision.__version__"),
    }
    told = []
    for content, code in cases.values():
        folder = tmp_path_factory.mktemp("stand_in")
        if content is not None:
            (folder / "torchvision.py").write_text(content)
        told.append((code, str(folder)))
    out = subprocess.run([sys.executable, "-c", FORKS], input=json.dumps(told), capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    return dict(zip(cases, map(json.loads, out.stdout.splitlines()), strict=True))


def test_the_installed_one_loads_and_so_do_its_users(errors):
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    assert errors["the installed one"] == ""


def test_a_torchvision_that_misses_its_operators_loads(errors):
    assert "operator torchvision::nms does not exist" in errors["misses its operators"]
    assert errors["misses its operators, cured"] == ""


def test_one_that_loads_is_left_alone(errors):
    assert errors["loads"] == ""


def test_any_other_error_is_shown(errors):
    assert errors["fails otherwise"] == "the disk is on fire"
