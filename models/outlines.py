"""Networks without values: what they are made of, without the memory and the time that their values would take."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_FILLS = frozenset(
    {
        Tensor.add_,
        Tensor.clamp_,
        Tensor.div_,
        Tensor.erfinv_,
        Tensor.fill_,
        Tensor.mul_,
        Tensor.normal_,
        Tensor.uniform_,
        Tensor.zero_,
        nn.init.constant_,
        nn.init.kaiming_uniform_,
        nn.init.normal_,
        nn.init.uniform_,
    }
)
"""What layers are initialised with: each of them leaves shape and kind of a tensor as they are."""


class _Unfilled(TorchFunctionMode):
    """Leaves out what would fill arrays that have no values; torch computes even these shapes in Python, at length."""

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401 - any function of torch
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        given = [*args, *(kwargs or {}).values()]
        if func in _FILLS and given[0].is_meta and not any(isinstance(one, Tensor) for one in given[1:]):
            return given[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def without_values() -> Iterator[None]:
    """Networks that are built here have shapes alone: their arrays lie on the device "meta" and are not initialised."""
    with torch.device("meta"), _Unfilled():
        yield
