"""Weights on disk: hashed before anything parses them, read without running code, checked key by key."""

import hashlib
import io
import re
import warnings
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cubeloom.errors import InputError, ModelError
from cubeloom.untrusted import zip_members

if TYPE_CHECKING:
    from torch import Tensor, nn

    StateDict = dict[str, Tensor]

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt")
FILE_LIMIT = 16 * 2**30
"""Bytes of a weights' file, packed and unpacked."""
KEY_PATHS = ("net", "state_dict", "model")
"""Where checkpoints keep the network's weights beside an optimiser's state."""
WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DataParallel and torch.compile put before every key."""
HARMLESS = (Namespace,)
"""Types, beside tensors and plain values, of which a checkpoint may hold some: a program's arguments, here unused."""
SHOWN = 3
"""Keys that a message names of each kind of mismatch."""


def weights_digest(path: Path) -> str:
    """Hex SHA-256 of a weights' file.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"weights {path}: {error.strerror or error}") from None


def read_weights(path: Path, sha256: str) -> "StateDict":
    """The tensors of a weights' file by key, on the CPU; nothing in the file is run.

    The file is read once, so what is parsed is what was hashed. Of a checkpoint the part under one of `KEY_PATHS` is
    taken, and prefixes of wrappers around the network are dropped. Of several state dicts, and nothing else, all are
    taken, each behind its name.

    Args:
        path: `.safetensors`, or `.pt`, `.pth`, `.ckpt` as `torch.save` writes them.
        sha256: hex digest that the file must have.

    Raises:
        ModelError: another digest, a damaged file, one that holds more than tensors and plain values, or values
            that no network can have.
    """
    content = _read(path)
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ModelError(
            f"weights {path}: sha256 is {found}, expected {sha256}; the file was changed or cut short: fetch it again"
        )
    parse = _parse_safetensors if path.suffix.lower() == ".safetensors" else _parse_torch
    size = _unpacked_size(content, path)
    state = _unwrapped(parse(content, path), path)
    _require_plain(state, size, path)
    return state


def load_strictly(network: "nn.Module", state: "StateDict", origin: str) -> None:
    """Copy weights into a network whose keys and shapes must be exactly theirs; into one on `meta` too.

    A missing `num_batches_tracked` is let pass: older batch norms had none, and inference does not read it.

    Args:
        network: where to.
        state: weights by key.
        origin: the weights in the user's words, for messages.

    Raises:
        ModelError: keys or shapes differ; names the first few of each kind.
    """
    expected = network.state_dict()
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in expected]
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    if any(kinds.values()):
        listed = "; ".join(f"{len(keys)} {kind}: {_first(keys)}" for kind, keys in kinds.items() if keys)
        raise ModelError(
            f"weights {origin} are of another architecture than {type(network).__name__}, or of other settings: "
            f"{listed} (of {len(expected)} keys)"
        )
    if any(value.is_meta for value in expected.values()):
        state = {key: _own(state.get(key), value) for key, value in expected.items()}
        network.load_state_dict(state, assign=True)
    else:
        network.load_state_dict(state, strict=False)  # checked above, but for what may be missing


def _own(value: "Tensor | None", expected: "Tensor") -> "Tensor":
    """A copy of a weight, of the network's type; zeros for a missing one."""
    import torch

    if value is None:
        return torch.zeros_like(expected, device="cpu")
    return value.detach().to(expected.dtype, copy=True)


def write_weights(network: "nn.Module", path: Path) -> str:
    """Write a network's weights as safetensors, replacing the file whole; returns its hex SHA-256."""
    from safetensors.torch import save

    content = save({key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)
    return hashlib.sha256(content).hexdigest()


def _read(path: Path) -> bytes:
    if path.suffix.lower() not in SUFFIXES:
        raise ModelError(f"weights {path}: suffix {path.suffix!r} is not known; expected {', '.join(SUFFIXES)}")
    try:
        with path.open("rb") as file:
            content = file.read(FILE_LIMIT + 1)
    except OSError as error:
        raise ModelError(f"weights {path}: {error.strerror or error}") from None
    if len(content) > FILE_LIMIT:
        raise ModelError(f"weights {path}: more than {FILE_LIMIT:,} bytes, which are not read")
    return content


def _parse_safetensors(content: bytes, path: Path) -> Any:  # noqa: ANN401 - checked by the caller
    from safetensors.torch import load

    try:
        return load(content)
    except Exception as error:  # its own error, and what torch says to shapes and types that cannot be
        raise ModelError(f"weights {path}: not a whole safetensors file ({error}); fetch it again") from error


def _parse_torch(content: bytes, path: Path) -> Any:  # noqa: ANN401 - checked by the caller
    import torch

    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(HARMLESS)):
            warnings.simplefilter("ignore")  # a TorchScript archive is announced by a warning, then refused
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)  # noqa: TID251 - this is it
    except Exception as error:
        if "eights only" in str(error) or "weights_only" in str(error):
            found = re.search(r"GLOBAL ([\w.]+)", str(error))
            raise ModelError(
                f"weights {path}: holds {f'the type {found[1]}' if found else 'more than tensors'}, which would run "
                "code of the file's author, so it is not loaded. Whole modules are never taken: ask for the state "
                "dict, or save it where you trust the file: safetensors.torch.save_file(model.state_dict(), ...)"
            ) from None
        first = str(error).partition("\n")[0]
        raise ModelError(f"weights {path}: not a whole PyTorch checkpoint ({first}); fetch it again") from error


def _unpacked_size(content: bytes, path: Path) -> int:
    """Bytes of a checkpoint when unpacked, which must be within the limit."""
    if not content.startswith(b"PK\3\4"):
        return len(content)  # the format before PyTorch 1.6 is no archive; torch.load tells the rest
    try:
        size = sum(member.file_size for member in zip_members(content, "its archive"))
    except InputError as error:
        raise ModelError(f"weights {path}: not a whole PyTorch checkpoint ({error}); fetch it again") from None
    if size > FILE_LIMIT:
        raise ModelError(f"weights {path}: unpacks to {size:,} bytes; at most {FILE_LIMIT:,} are read")
    return size


def _unwrapped(content: Any, path: Path) -> "StateDict":  # noqa: ANN401
    for key in KEY_PATHS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if isinstance(content, Mapping) and content and all(map(_is_state_dict, content.values())):
        content = {f"{part}.{key}": value for part, state in content.items() for key, value in state.items()}
    if not _is_state_dict(content):
        keys = _first(list(map(str, content))) if isinstance(content, Mapping) else type(content).__name__
        raise ModelError(
            f"weights {path}: no state dict at the top or under {' or '.join(KEY_PATHS)}; found {keys}. Save "
            "model.state_dict()"
        )
    state: StateDict = dict(content)
    while prefix := next((one for one in WRAPPERS if all(key.startswith(one) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _is_state_dict(content: Any) -> bool:  # noqa: ANN401
    from torch import Tensor

    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    )


def _require_plain(state: "StateDict", size: int, path: Path) -> None:
    """Refuse what loads but is no weight: sparse, quantised or absent values, and values that are not finite.

    A tensor of more bytes than the file, `size` when unpacked, is one number repeated, or memory never written to.
    """
    import torch

    odd = [key for key, value in state.items() if not _is_dense(value)]
    if odd:
        raise ModelError(f"weights {path}: {_first(odd)} are not dense tensors; save them as such")
    large = [key for key, value in state.items() if value.nbytes > size]
    if large:
        raise ModelError(f"weights {path}: {_first(large)} have more bytes than the file's {size:,}; save them whole")
    broken = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if broken:
        raise ModelError(f"weights {path}: NaN or infinity in {_first(broken)}; the training that made them diverged")


def _is_dense(value: "Tensor") -> bool:
    """Whether a tensor is an array of numbers in memory, of a type that networks have."""
    import torch

    known = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.uint8)
    integers = (torch.int8, torch.int16, torch.int32, torch.int64)
    placed = value.layout == torch.strided and value.device.type == "cpu"
    return placed and not value.is_quantized and not value.is_nested and value.dtype in (*known, *integers)


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:SHOWN]) + (", ..." if len(keys) > SHOWN else "")
