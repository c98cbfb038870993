"""Lets torchvision be imported beside a torch that its wheel was not built for.

The torchvision wheel that Linux gets is built against CUDA; beside a CPU-only torch its compiled operators do not load,
and its import dies where it registers shape functions for two of them. timm, torchmetrics, lightning and peft import
torchvision where they find it, so `make_torchvision_importable` is called before any of them.
"""

import importlib
import importlib.util
import sys
from typing import Any

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_DEFINED: list[Any] = []
"""The library that holds the schemas: they live as long as it does."""


def make_torchvision_importable() -> None:
    """Declare the operators without which torchvision's import dies; nothing where it loads, or is not installed.

    The operators then have a schema and no kernel: whoever calls one gets torch's error that says so.
    """
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        _declare()
        _forget()
        importlib.import_module("torchvision")


def _declare() -> None:
    import torch

    make: Any = torch.library.Library
    library = make("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    _DEFINED.append(library)


def _forget() -> None:
    """Drop what the failed import left, so that the next one starts anew."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
