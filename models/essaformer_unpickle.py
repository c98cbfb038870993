"""Read a pickled ESSAformer as tensors, in a process that `essaformer_convert` has shut off; run by it alone.

A pickle names classes and functions and has them called. Here every name means something of ours, and a name that is
not in this file ends the process. So nothing of the file can run, whatever it holds; the bounds are for the case that
this is not so, and for files that are built to fill the memory.
"""

import io
import pickle  # noqa: TID251 - the unpickler below knows only what is needed
import resource
import sys
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from cubeloom.errors import CubeloomError, InputError
from cubeloom.untrusted import read_zip_member, zip_members

LIMIT = 2 * 2**30
"""Bytes of a checkpoint, unpacked; the published one has some 50 MB."""

AUTHORS = {"ESSA", "blockup", "Convup", "Convdown", "PatchEmbed", "PatchUnEmbed", "ESSAttn", "Downsample", "Upsample"}
"""Classes of the authors, in whatever module they lay."""
LAYERS = {"Conv2d", "LeakyReLU", "Dropout2d", "LayerNorm", "Linear", "PixelShuffle", "PixelUnshuffle", "Sequential"}
STORAGES = {"FloatStorage": "<f4", "HalfStorage": "<f2", "DoubleStorage": "<f8"}

DAMAGED = (
    pickle.UnpicklingError, ArithmeticError, AttributeError, EOFError, LookupError, MemoryError,
    OSError, RecursionError, TypeError, ValueError,
)  # fmt: skip
"""What a damaged pickle ends in."""


class Part:
    """Stands for any module: keeps its attributes, does nothing."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Keep what the pickle says."""
        if not isinstance(state, dict):
            raise InputError(f"a module whose state is of type {type(state).__name__}; this is no published checkpoint")
        self.__dict__.update(state)


class Reader(pickle.Unpickler):
    """An unpickler for a module made of the classes above and of tensors."""

    def __init__(self, path: Path, root: str) -> None:
        super().__init__(io.BytesIO(read_zip_member(path, f"{root}data.pkl", LIMIT)))
        self.path, self.root = path, root

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - a class or function of ours
        """What a name stands for here.

        Raises:
            InputError: nothing.
        """
        if name in AUTHORS or (module.startswith("torch.nn.modules.") and name in LAYERS):
            return Part
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        known: dict[str, Any] = {
            "collections.OrderedDict": OrderedDict,
            "__builtin__.set": set,
            "builtins.set": set,
            "torch.nn.parallel.data_parallel.DataParallel": Part,
            "torch.device": _nothing,
            "torch._utils._rebuild_tensor_v2": _tensor,
            "torch._utils._rebuild_parameter": _parameter,
        }
        if f"{module}.{name}" not in known:
            raise InputError(
                f"holds {module}.{name}, which is no part of a published checkpoint; nothing of it was run. The file "
                "is another model's, or was tampered with"
            )
        return known[f"{module}.{name}"]

    def persistent_load(self, told: Any) -> npt.NDArray[Any]:  # noqa: ANN401 - whatever the pickle holds
        """A storage of numbers."""
        kind, dtype, key, _, count = told
        if kind != "storage" or dtype not in STORAGES.values():
            raise InputError(f"holds a {kind} of type {dtype}; expected numbers of floating point")
        numbers = np.frombuffer(read_zip_member(self.path, f"{self.root}data/{key}", LIMIT), dtype)
        if numbers.size != count:
            raise InputError(f"storage {key} holds {numbers.size} numbers instead of {count}")
        return numbers


def _nothing(*_: object) -> None:
    """Stands for what is not needed."""


def _tensor(numbers: npt.NDArray[Any], first: int, shape: tuple[int, ...], steps: tuple[int, ...], *_: object) -> Any:  # noqa: ANN401
    """A tensor on a storage, copied; one that reaches beyond it is an error."""
    last = first + sum((size - 1) * step for size, step in zip(shape, steps, strict=True))
    if min((first, *shape, *steps), default=0) < 0 or (0 not in shape and last >= numbers.size):
        raise InputError(f"a tensor of {shape} reaches beyond its storage of {numbers.size}")
    strides = [step * numbers.itemsize for step in steps]
    return np.lib.stride_tricks.as_strided(numbers[first:], shape, strides).copy()


def _parameter(values: Any, *_: object) -> Any:  # noqa: ANN401
    return values


def state_of(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The tensors of the module in a checkpoint, by name.

    Raises:
        InputError: it is no archive, too large, or holds anything else.
    """
    members = zip_members(path)
    roots = [member.filename.removesuffix("data.pkl") for member in members if member.filename.endswith("data.pkl")]
    if len(roots) != 1 or sum(member.file_size for member in members) > LIMIT:
        raise InputError(
            f"{len(roots)} pickles, {len(members)} members; expected one pickle and {LIMIT:,} bytes at most"
        )
    content = Reader(path, roots[0]).load()
    module = content.get("model") if isinstance(content, dict) else content
    if not isinstance(module, Part):
        raise InputError("no module at the top or under 'model'")
    return dict(_named(module, ""))


def _named(module: Part, prefix: str) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    for held in ("_parameters", "_buffers"):
        for name, values in vars(module).get(held, {}).items():
            if isinstance(values, np.ndarray):
                yield f"{prefix}{name}", values
    for name, part in vars(module).get("_modules", {}).items():
        if isinstance(part, Part):
            yield from _named(part, f"{prefix}{name}.")


def _bound() -> None:
    """Limits that hold for the rest of this process."""
    for what, most in (
        (resource.RLIMIT_AS, 4 * LIMIT),
        (resource.RLIMIT_FSIZE, LIMIT),
        (resource.RLIMIT_CPU, 240),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))


def main() -> None:
    """Read the first file named on the command line, write the second."""
    _bound()
    source, out = map(Path, sys.argv[1:3])
    try:
        save_file(state_of(source), out)
    except CubeloomError as error:
        raise SystemExit(str(error)) from None
    except DAMAGED as error:
        raise SystemExit(f"not a whole checkpoint ({type(error).__name__}: {error})") from None


if __name__ == "__main__":
    main()
