"""Fixtures for stages and readers."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import xarray as xr

from cubeloom.pipeline.blocks import plan_chain, run_chain
from cubeloom.pipeline.encoding import Array
from cubeloom.pipeline.grids import tile
from cubeloom.pipeline.readers.base import SceneSource
from cubeloom.pipeline.scene import spec_of
from cubeloom.pipeline.stages.base import Stage

BlockRunner = Callable[[xr.Dataset, Stage, int], dict[str, Array]]


@pytest.fixture
def run_in_blocks() -> BlockRunner:
    """Run a stage without statistics block by block, as a batch run does, and put the blocks together."""

    def run(scene: xr.Dataset, stage: Stage, edge: int) -> dict[str, Array]:
        spec = spec_of(scene)
        source, specs = SceneSource(scene, spec), plan_chain(spec, [stage])
        whole = {
            name: np.empty(specs[-1].sizes(name), variable.encoding.decoded_dtype)
            for name, variable in specs[-1].variables.items()
        }
        for core in tile(spec.shape, (edge, edge)):
            block = run_chain(source, [stage], specs, [{}], core)[-1]
            for name, array in whole.items():
                array[(..., *block.core.slices)] = block.inner(block[name])
        return whole

    return run


@pytest.fixture(scope="session")
def worker_module() -> ModuleType:
    """The module `cluster_tasks`, in a place where the workers of a cluster, which inherit the path, find it too."""
    sys.path.insert(0, str(Path(__file__).parent))
    return importlib.import_module("cluster_tasks")


@pytest.fixture(scope="module")
def forked_workers(worker_module: ModuleType) -> Iterator[None]:
    """Workers are forked from a process that has imported all, as in Dask's own tests, and start in no time.

    Those of other tests are spawned, as for users: of `test_executor`, of scripts, of runs and of the fault suite.
    """
    import dask
    from distributed.utils import get_mp_context

    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        get_mp_context().set_forkserver_preload(["distributed", "cubeloom.pipeline.engine", "torch", "cluster_tasks"])
        yield
