"""Fixtures for all tests."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real scenes beside the checkout; tests that need it skip where it is missing."""
    folder = Path(os.environ.get("CUBELOOM_SHARED", ROOT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"the real scenes are not at {folder}; set CUBELOOM_SHARED to the folder that holds data/")
    return folder
