"""What imports torchvision can be imported after the cure, whatever torch torchvision was built for."""

import importlib.util
import os
import subprocess
import sys
import textwrap

import pytest

CURED = """
import sys, torch
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


def python(code, path=None):
    """Run in an interpreter of its own: an import cannot be undone."""
    env = {**os.environ, "PYTHONPATH": str(path or "")}
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=env, capture_output=True, text=True)


@pytest.fixture
def stand_in(tmp_path):
    """A torchvision with this code in it."""

    def make(code):
        (tmp_path / "torchvision").mkdir()
        (tmp_path / "torchvision/__init__.py").write_text(textwrap.dedent(code))
        return tmp_path

    return make


def test_the_installed_one_loads_and_so_do_its_users():
    users = [name for name in ("timm", "torchmetrics", "lightning") if importlib.util.find_spec(name)]
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    ended = python(f"{CURED}\nimport {', '.join(users)}\nassert torchvision.__version__")
    assert ended.returncode == 0, ended.stderr


def test_a_torchvision_that_misses_its_operators_loads(stand_in):
    path = stand_in(NEEDS_OPERATOR)
    assert "operator torchvision::nms does not exist" in python("import torchvision", path).stderr
    ended = python(CURED, path)
    assert ended.returncode == 0, ended.stderr


def test_one_that_loads_is_left_alone(stand_in):
    ended = python(f"{CURED}\nassert not hasattr(torch.ops.torchvision, 'nms')", stand_in("__version__ = '1'"))
    assert ended.returncode == 0, ended.stderr


def test_any_other_error_is_shown(stand_in):
    ended = python(CURED, stand_in("raise RuntimeError('the disk is on fire')"))
    assert ended.returncode == 1
    assert "the disk is on fire" in ended.stderr
