"""`writing_check` of HiCache's caches, as it stands in a release, on ranks that are simulated.

Up to its all-reduce the function changes nothing. So each rank is asked twice: first what it brings
to the all-reduce, or whether it returns without; then, with what the ranks have agreed on, to the end.
No torch, no process: every release in both forms takes milliseconds.
"""

from __future__ import annotations

import ast
import random
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

from rig.sources.published import after, plan_for, tree
from sglang_commfix.engine.fingerprint import find_scope, parse


NEUTRAL = 2**31 - 1
ENDS = 12  # steps behind a script in which nothing is begun


class EnteredError(Exception):
    """A rank has come to the all-reduce, with this."""


@dataclass
class Tensor:
    value: int

    def item(self) -> int:
        return self.value


@dataclass
class Copy:
    done: bool = False
    waited: bool = False

    def query(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        self.waited |= not self.done


def torch_with(all_reduce: Callable[..., None]) -> Any:
    return SimpleNamespace(
        int="int32",
        tensor=lambda value, dtype, device: Tensor(value),
        iinfo=lambda dtype: SimpleNamespace(max=NEUTRAL),
        distributed=SimpleNamespace(
            all_reduce=all_reduce, ReduceOp=SimpleNamespace(MIN="min"), get_world_size=None
        ),
    )


@cache
def text_of(release: str, module: str, scope: str, select: str | None) -> str:
    if select is None:
        syntax = tree(release).tree(module)
        assert syntax is not None
    else:
        syntax = parse(after(plan_for(release, select).modules[module]))
    function = find_scope(syntax, scope)
    assert isinstance(function, ast.FunctionDef)
    (copied,) = ast.parse(textwrap.dedent(ast.unparse(function))).body
    assert isinstance(copied, ast.FunctionDef)
    for argument in copied.args.args:
        argument.annotation = None
    copied.returns = None
    return ast.unparse(copied)


@dataclass
class Rank:
    """One rank's cache: what is under way, and what it has acknowledged."""

    text: str
    world: int
    scope: str
    copies: dict[int, Copy] = field(default_factory=dict)
    acked: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cache: Any = SimpleNamespace(
            cache_controller=SimpleNamespace(ack_write_queue=[]),
            ongoing_write_through={},
            enable_storage=False,
            pp_rank=0,
            pp_size=1,
            attn_cp_group=None,
            tp_world_size=self.world,
            tp_group=None,
            dec_lock_ref=lambda node, *_: self.acked.append(node),
            _record_store_event=lambda *_, **__: None,
            _finish_write_through_ack=self._finish,
            _all_reduce=self._reduce,
            _all_reduce_attn_groups=self._reduce,
        )
        self._agreed: int | None = None
        medium = SimpleNamespace(CPU="cpu")
        logger = SimpleNamespace(debug=lambda _: None)
        names = {"torch": torch_with(self._reduce), "StorageMedium": medium, "logger": logger}
        exec(self.text, names)
        self._writing_check: Any = names["writing_check"]

    def _finish(self, node: int, **_: Any) -> None:
        self.cache.ongoing_write_through.pop(node)
        self.acked.append(node)

    def _reduce(self, tensor: Tensor, op: str, group: object = None) -> None:
        if self.world == 1:
            return
        assert op == "min"
        if self._agreed is None:
            raise EnteredError(tensor.value)
        tensor.value = self._agreed

    def write(self, node: int) -> None:
        self.copies[node] = copy = Copy()
        self.cache.cache_controller.ack_write_queue.append((None, copy, [node]))
        unified = self.scope.startswith("Unified")
        self.cache.ongoing_write_through[node] = (node, None) if unified else node

    def brings(self) -> int | None:
        """Return what this rank brings to the all-reduce; None: it returns without."""
        self._agreed = None
        try:
            self._writing_check(self.cache)
        except EnteredError as entered:
            value: int = entered.args[0]
            return value
        return None

    def goes_on(self, agreed: int) -> list[int]:
        """Return what it acknowledges."""
        before = len(self.acked)
        self._agreed = agreed
        self._writing_check(self.cache)
        return self.acked[before:]


class HangError(Exception):
    """Some ranks are in the all-reduce, and the others have returned."""


def ranks(release: str, module: str, scope: str, select: str | None, world: int) -> list[Rank]:
    text = text_of(release, module, scope, select)
    return [Rank(text, world, scope) for _ in range(world)]


def step(group: list[Rank]) -> list[list[int]]:
    """Let every rank call `writing_check`; return what each has acknowledged."""
    brought = [rank.brings() for rank in group]
    entered = [value for value in brought if value is not None]
    if not entered:
        return [[] for _ in group]
    if len(entered) < len(group):
        raise HangError(brought)
    return [rank.goes_on(min(entered)) for rank in group]


def soak(group: list[Rank], *, seed: int, steps: int, fails: float) -> Iterator[list[list[int]]]:
    """Yield what is acknowledged in each step.

    All ranks try to write the same nodes. Each fails by itself, and its copies arrive when they do.
    """
    common = random.Random(seed)
    own = [random.Random(seed * 1000 + rank) for rank in range(len(group))]
    under_way: list[list[Copy]] = [[] for _ in group]
    node = 0
    for number in range(steps + ENDS):
        tried = common.choice((0, 0, 1, 1, 2, 3)) if number < steps else 0
        for at, rank in enumerate(group):
            for one in range(node, node + tried):
                if own[at].random() >= fails:
                    rank.write(one)
                    under_way[at].append(rank.copies[one])
            done = own[at].randint(0, 2) if number < steps else len(under_way[at])
            for copy in under_way[at][:done]:
                copy.done = True
            del under_way[at][:done]
        node += tried
        yield step(group)


@dataclass(frozen=True)
class Function:
    """A cache's `writing_check`, the entry that mends it, and the release that has it mended."""

    patch: str
    module: str
    scope: str
    fixed: str

    def group(self, release: str, select: str | None, world: int = 2) -> list[Rank]:
        return ranks(release, self.module, self.scope, select, world)

    def returns_early(self, release: str) -> None:
        """Assert that unpatched a rank without writes returns in front of the all-reduce."""
        one, other = self.group(release, None)
        one.write(1)
        assert (one.brings(), other.brings()) == (0, None)

    def hangs(self, release: str) -> None:
        """Assert that unpatched the group hangs where writes fail on one rank alone."""
        for world in (2, 4):
            try:
                list(soak(self.group(release, None, world), seed=1, steps=200, fails=0.2))
            except HangError:
                continue
            raise AssertionError(f"{world} ranks went on")

    def holds_nobody_back(self, release: str) -> None:
        """Assert that patched a rank without writes enters, with a value that decides nothing."""
        one, other = self.group(release, self.patch)
        one.write(1)
        one.copies[1].done = True
        assert (one.brings(), other.brings()) == (1, NEUTRAL)
        assert step([one, other]) == [[1], []]
        assert step([one, other]) == [[], []]

    def comes_to_rest(self, release: str, world: int) -> None:
        """Assert that patched no write is left or waited for, whatever fails."""
        for seed in range(5):
            group = self.group(release, self.patch, world)
            list(soak(group, seed=seed, steps=300, fails=0.2))
            for rank in group:
                assert rank.acked == list(rank.copies)
                assert not rank.cache.ongoing_write_through
                assert not any(copy.waited for copy in rank.copies.values())
            assert len({len(rank.copies) for rank in group}) > 1

    def is_as_fixed(self, release: str) -> None:
        """Assert that patched each step is the fixed release's, where all ranks write the same."""
        for seed in range(5):
            ours = list(soak(self.group(release, self.patch, 4), seed=seed, steps=300, fails=0.0))
            theirs = list(soak(self.group(self.fixed, None, 4), seed=seed, steps=300, fails=0.0))
            assert ours == theirs
            assert all(len({tuple(acked) for acked in each}) == 1 for each in ours)

    def is_unchanged_alone(self, release: str) -> None:
        """Assert that patched a group of one does what it did."""
        for fails in (0.0, 0.5):
            before, after = (self.group(release, select, 1) for select in (None, self.patch))
            ours = list(soak(after, seed=1, steps=200, fails=fails))
            assert ours == list(soak(before, seed=1, steps=200, fails=fails))
            assert not after[0].cache.ongoing_write_through


# What is shown of each cache: unpatched the first two, patched the others.
FACTS: dict[str, Callable[[Function, str], None]] = {
    "unpatched a rank without writes returns in front of the all-reduce": Function.returns_early,
    "unpatched the first write that fails on one rank alone can hang the group": Function.hangs,
    "a rank without writes enters and holds nobody back": Function.holds_nobody_back,
    "2 ranks go on whatever fails and no write is left or waited for": partial(
        Function.comes_to_rest, world=2
    ),
    "4 ranks go on whatever fails and no write is left or waited for": partial(
        Function.comes_to_rest, world=4
    ),
    "where all ranks write the same each step is as in the fixed release": Function.is_as_fixed,
    "a group of one does what it did": Function.is_unchanged_alone,
}
