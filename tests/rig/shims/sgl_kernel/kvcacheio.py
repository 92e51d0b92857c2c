"""The transfer kernels of the KV cache: see the package."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from . import unavailable


if TYPE_CHECKING:
    from collections.abc import Callable


def __getattr__(name: str) -> Callable[..., NoReturn]:
    if name.startswith("__"):
        raise AttributeError(name)
    return unavailable(f"sgl_kernel.kvcacheio.{name}")
