"""Networks put to work: one load a process, batches that shrink to the memory there is, and what a run will take.

Graphs and tasks carry handles; a module never leaves the process that loaded it.
"""

import gc
import inspect
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cubeloom.errors import ConfigError, ModelError
from cubeloom.models.registry import create_model, model_card

from .scene import BoolArray
from .tiles import How

Precision = Literal["float32", "bfloat16", "float16"]
Samples = npt.NDArray[np.float32]

LARGEST_BATCH = {"cuda": 32, "cpu": 1}
"""Samples that are tried at once. A processor gains nothing from more than one; each would cost its activations."""

MODELS_HELD = 2
"""Networks that a process keeps loaded on each device."""

_PROBE = 32
"""Side, px, of the sample that a network's memory is measured with."""


@dataclass(frozen=True)
class ModelHandle:
    """A network by name: picklable, small, and the same wherever it is loaded.

    Attributes:
        name: as for `create_model`.
        weights: file or hub source; None for those shipped under the name.
        sha256: digest that the weights must have when they are loaded.
        precision: type of the arithmetic on a GPU; a CPU computes in float32 whatever it says.
        dense: whether it is asked for the last of its feature maps instead of its answer.
    """

    name: str
    weights: str | None
    sha256: str
    precision: Precision = "float32"
    dense: bool = False

    def load(self, device: str) -> torch.nn.Module:
        """The network on a device, in its form for inference; one instance a process, for all threads.

        Raises:
            ModelError: it cannot be loaded, or its file has changed.
        """
        with _LOADING:
            key = (self, device)
            if key not in _LOADED:
                _ask_for_huge_pages()
                if model_card(self.name, self.weights).sha256 != self.sha256:
                    raise ModelError(f"model {self.name}: its weights were changed while the run was using them")
                network = create_model(self.name, self.weights).for_inference().eval()
                _WEIGHT_BYTES[self] = sum(value.nbytes for value in network.state_dict().values())
                network = Dense(network) if self.dense else network
                _LOADED[key] = network.to(device).requires_grad_(False)
                while len(_LOADED) > MODELS_HELD:
                    _LOADED.popitem(last=False)
            _LOADED.move_to_end(key)
            return _LOADED[key]


class Dense(torch.nn.Module):
    """A backbone asked for its last feature map: (N, D, H, W) → (N, C, H / stride, W / stride)."""

    def __init__(self, network: Any) -> None:  # noqa: ANN401 - any with `features` and `levels`
        super().__init__()
        self.network = network
        self.of_batch, self.pair_bytes = network.of_batch, network.pair_bytes
        self.is_told = "valid" in inspect.signature(network.features).parameters

    def forward(self, x: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """The map, float32; `valid` is for backbones that leave out what takes no part."""
        told = {"valid": valid} if self.is_told else {}
        (last,) = self.network.features(x, [len(self.network.levels) - 1], **told)
        return cast("torch.Tensor", last)


def _ask_for_huge_pages() -> None:
    """Let PyTorch take large tensors in pages of 2 MiB, where the system gives them to those who ask.

    It asks the environment once, before its first tensor, so this helps a process whose first tensors are the
    network's. Tensors of 100 MiB, one a thread, were made twice as fast: the rest of the time went into page faults.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


_LOADING = threading.Lock()
_LOADED: "OrderedDict[tuple[ModelHandle, str], torch.nn.Module]" = OrderedDict()
_WEIGHT_BYTES: dict[ModelHandle, int] = {}
_GPU = threading.Lock()
"""One batch at a time on a GPU: two would halve the memory of each."""


@dataclass(frozen=True)
class Rung:
    """A step of the ladder: where a batch is computed, and how many samples it holds."""

    device: str
    batch: int

    def __str__(self) -> str:
        return f"{self.device} x{self.batch}"


def ladder(samples: int, devices: tuple[str, ...] | None = None) -> list[Rung]:
    """What is tried in turn where memory runs out: ever smaller batches, then the next device."""
    rungs = []
    for device in devices or (("cuda", "cpu") if torch.cuda.is_available() else ("cpu",)):
        batch = min(LARGEST_BATCH[device], samples)
        while batch:
            rungs.append(Rung(device, batch))
            batch //= 2
    return rungs


_FITTING: dict[tuple[ModelHandle, tuple[int, ...]], Rung] = {}
"""The rung that samples of a shape fitted on: once memory has run out, it is not tried again for every tile."""


def predict(
    handle: ModelHandle,
    samples: Samples,
    valid: BoolArray | None,
    threads: int = 1,
    lonlat: npt.NDArray[np.float64] | None = None,
) -> tuple[Samples, How]:
    """What a network gives for a batch, whatever the memory: the samples stay as they are, the batch is cut.

    Args:
        handle: the network.
        samples: `(n, ...)` as the network takes them, finite.
        valid: pixels that count, `(n, y, x)`; None where all do. Only networks that take means are told.
        threads: batches under way at once on a CPU, each computed on one thread.
        lonlat: where the middle of each sample lies, degrees, `(n, 2)`; only networks with a prior by place are told.

    Returns:
        What the network gives, `(n, ...)`, and how it was computed.

    Raises:
        ConfigError: not even one sample fits.
        ModelError: the network gives no numbers.
    """
    told = {name: array for name, array in (("valid", valid), ("lonlat", lonlat)) if array is not None}
    rungs = ladder(len(samples))
    key = (handle, samples.shape[1:])
    first = rungs.index(_FITTING[key]) if _FITTING.get(key) in rungs else 0
    made, rung = climb_down(rungs[first:], lambda rung: _run(handle, samples, told, rung, threads))
    if rung != rungs[0]:
        _FITTING[key] = rung
    if made is None:
        shape = " x ".join(map(str, samples.shape[1:]))
        raise ConfigError(
            f"model {handle.name}: one tile of {shape} does not fit the memory, not even on {rungs[-1]}; run on a "
            "machine with more, or take a smaller network"
        )
    if not np.isfinite(made).all():
        raise ModelError(
            f"model {handle.name}: gives NaN or infinity for finite input, computed in {_precision(handle, rung)}; "
            "take precision float32, or other weights"
        )
    wanted = "" if rung == rungs[0] else str(rungs[0])
    return made, How(rung.device, _precision(handle, rung), rung.batch, wanted)


def climb_down(rungs: list[Rung], run: Callable[[Rung], Samples]) -> tuple[Samples | None, Rung]:
    """The first rung on which `run` finds memory enough, and what it gave; None where there is none."""
    for rung in rungs:
        try:
            return run(rung), rung
        except torch.OutOfMemoryError:
            pass  # leaving the handler frees the tensors that the traceback holds
        except RuntimeError as error:
            if "can't allocate memory" not in str(error):  # what the allocator of a CPU says
                raise
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return None, rungs[-1]


def _precision(handle: ModelHandle, rung: Rung) -> Precision:
    return handle.precision if rung.device == "cuda" else "float32"


def _run(
    handle: ModelHandle, samples: Samples, told: Mapping[str, npt.NDArray[Any]], rung: Rung, threads: int
) -> Samples:
    network = handle.load(rung.device)
    asked = inspect.signature(network.forward).parameters
    told = {name: array for name, array in told.items() if name in asked}
    alone = getattr(network, "of_batch", False)  # forms for inference are plain modules, which take each by itself
    batch = 1 if alone else rung.batch  # where samples would change each other each is its own batch

    def forward(first: int) -> Samples:
        _compute_on_one_thread()
        part = slice(first, first + batch)
        with torch.inference_mode(), _arithmetic(handle, rung):
            x = torch.from_numpy(samples[part]).to(rung.device)
            known = {name: torch.from_numpy(array[part]).to(rung.device) for name, array in told.items()}
            answer: Samples = network(x, **known).float().cpu().numpy()
        return answer

    batches = range(0, len(samples), batch)
    if rung.device != "cpu" or threads == 1 or len(batches) == 1:
        return _gathered(len(samples), map(forward, batches))
    with ThreadPoolExecutor(threads) as pool:
        return _gathered(len(samples), pool.map(forward, batches))


def _gathered(count: int, answers: Iterable[Samples]) -> Samples:
    """Answers of batches put together as they come, so that few of them are held twice."""
    made: Samples | None = None
    done = 0
    for answer in answers:
        if len(answer) == count:
            return answer
        if made is None:
            made = np.empty((count, *answer.shape[1:]), np.float32)
        made[done : done + len(answer)] = answer
        done += len(answer)
    assert made is not None
    return made


@contextmanager
def _arithmetic(handle: ModelHandle, rung: Rung) -> Iterator[None]:
    """On a GPU alone, and in the type wanted: float32 is such, not the ten bits that convolutions take by default.

    The layout is the network's own affair: its form for inference knows where `channels_last` pays.
    """
    if rung.device == "cpu":
        yield
        return
    half = handle.precision != "float32"
    cast = torch.autocast("cuda", getattr(torch, handle.precision)) if half else nullcontext()
    with _GPU, torch.backends.cudnn.flags(enabled=True, allow_tf32=half), cast:
        yield


_THREAD = threading.local()


def _compute_on_one_thread() -> None:
    """PyTorch takes one thread for each of ours, which already keep all cores busy; set once in each of them."""
    if not getattr(_THREAD, "set", False):
        torch.set_num_threads(1)
        _THREAD.set = True


def weight_bytes(handle: ModelHandle) -> int:
    """Bytes of a network's weights."""
    handle.load("cpu")
    return _WEIGHT_BYTES[handle]


@cache
def activation_bytes(handle: ModelHandle, leading: tuple[int, ...], multiple: int) -> float:
    """Bytes that a network holds at its peak for every pixel `(y, x)` of a sample, measured on a small one.

    Args:
        handle: the network.
        leading: sizes of a sample's axes before y and x, such as its bands.
        multiple: height and width of a sample are multiples of this.
    """
    side = -(-_PROBE // multiple) * multiple
    network = handle.load("cpu")
    with torch.inference_mode(), _LiveBytes() as live:
        network(torch.zeros(1, *leading, side, side))
    return float(live.peak / side**2)


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call, misc, unused-ignore]
    """Counts the bytes of all tensors that operators make while it is active, and those alive at once."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: nothing is compiled here, and to be skipped by the compiler is to import it, for over a second."""
        return False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._now = 0
        self._users: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor)
        return made

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        pointer, size = storage.data_ptr(), storage.nbytes()
        if pointer not in self._users:
            self._users[pointer] = 0
            self._now += size
            self.peak = max(self.peak, self._now)
        self._users[pointer] += 1
        weakref.finalize(tensor, self._release, pointer, size)

    def _release(self, pointer: int, size: int) -> None:
        self._users[pointer] -= 1
        if not self._users[pointer]:
            del self._users[pointer]
            self._now -= size
