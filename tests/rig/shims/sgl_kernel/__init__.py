"""Stands in for sgl_kernel, whose binaries need a GPU or a wheel of their own: the names that sglang imports on a CPU.

Calling any of them is an error, so that no answer can come from here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn


if TYPE_CHECKING:
    from collections.abc import Callable


# sglang compares this with the least version it accepts.
__version__ = "999.0.0"


def unavailable(name: str) -> Callable[..., NoReturn]:
    def function(*args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError(f"{name} is not there")

    return function


def __getattr__(name: str) -> Callable[..., NoReturn]:
    # From 0.5.17 on many that are for a CPU alone: for speculation, and to move the KV cache.
    if name in _IMPORTED_BY_NAME or name.endswith("_cpu"):
        return unavailable(f"sgl_kernel.{name}")
    raise AttributeError(name)


_IMPORTED_BY_NAME = ("silu_and_mul", "allreduce")
