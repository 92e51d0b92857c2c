"""Stands in for sgl_kernel, whose binaries need a GPU: the names that sglang imports on a CPU.

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
        raise NotImplementedError(f"{name} needs a GPU")

    return function


def __getattr__(name: str) -> Callable[..., NoReturn]:
    if name in _IMPORTED_BY_NAME:
        return unavailable(f"sgl_kernel.{name}")
    raise AttributeError(name)


_IMPORTED_BY_NAME = ("silu_and_mul", "allreduce")
