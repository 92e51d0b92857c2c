"""Writes down which collective each step of a layer calls, and on which group."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_OPERATIONS = (
    "all_reduce",
    "_all_reduce_in_place",
    "_all_reduce_out_place",
    "quant_all_reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "reduce_scatterv",
    "all_gather",
    "all_gather_into_tensor",
    "all_gatherv",
    "cp_all_gather_into_tensor_async",
    "broadcast",
)


class Recorder:
    """Only the outermost call counts: sglang's collectives call one another."""

    def __init__(self) -> None:
        self._steps: dict[str, list[str]] | None = None
        self._step = ""
        self._depth = 0

    def instrument(self, group_coordinator: Any) -> None:
        """Record the collectives of every group; takes the class."""
        for name in _OPERATIONS:
            operation = getattr(group_coordinator, name, None)
            if operation is not None:
                setattr(group_coordinator, name, self._recorded(name, operation))

    @contextlib.contextmanager
    def into(self, steps: dict[str, list[str]]) -> Iterator[None]:
        """Record into this, by step; outside of it nothing is recorded."""
        self._steps = steps
        try:
            yield
        finally:
            self._steps = None

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Everything within belongs to this step of the layer."""
        before, self._step = self._step, name
        try:
            yield
        finally:
            self._step = before

    def note(self, operation: str, group: str) -> None:
        if self._steps is not None and self._depth == 0:
            self._steps.setdefault(self._step, []).append(f"{operation} {group}")

    def _recorded(self, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(operation)
        def wrapper(group: Any, *args: Any, **kwargs: Any) -> Any:
            if group.world_size > 1:
                self.note(name.strip("_"), group.unique_name.partition(":")[0])
            self._depth += 1
            try:
                return operation(group, *args, **kwargs)
            finally:
                self._depth -= 1

        return wrapper
