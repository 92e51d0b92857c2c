"""A child process runs what its parent runs, of the same sglang, or says that it does not.

What ranks say to each other is in tests/servers/test_fleet.py, on real process groups. Here are the
orders in which they may say it.
"""

from __future__ import annotations

import json
import sys
import textwrap
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rig.site import PATCHED, SHOW, Site, make_site
from rig.stand_in import FILE, FIXED, dedented, patch

from sglang_commfix.run import fleet


def parent(child: str, between: str = "") -> str:
    """A program that imports sglang, then starts one that does the same."""
    return f"""\
import os, subprocess, sys
{SHOW}
sys.stdout.flush()
{between}
done = subprocess.run([sys.executable, "-c", {child!r}])
print("child:", done.returncode)
"""


def digests(log: str) -> list[str]:
    return [word.strip(";") for word in log.split() if word.startswith("commfix=")]


def test_the_log_line_has_the_digest_of_the_edited_text(site: Site) -> None:
    result = site.run(parent(SHOW))
    one, other = digests(result.stderr)
    assert one == other
    assert len(one) == len("commfix=3fa2c1")
    assert result.stdout == f"{PATCHED}{PATCHED}child: 0\n"


def test_it_is_the_same_for_another_entry_with_the_same_text(tmp_path: Path) -> None:
    one = make_site(tmp_path / "one")
    renamed = patch("2-the-same", kind="stability", title="another title")
    other = make_site(tmp_path / "other", renamed)
    assert digests(one.run(SHOW).stderr) == digests(other.run(SHOW).stderr)


def test_it_is_none_where_nothing_is_applied(site: Site) -> None:
    (site.root / "sglang" / FILE).write_text(dedented(FIXED))
    assert digests(site.run(SHOW).stderr) == ["commfix=none"]


@pytest.mark.parametrize(
    "between",
    [
        "os.environ['SGLANG_COMMFIX'] = '1,-1'",
        f"open(sys.modules['sglang.srt.layers.communicator'].__file__, 'w').write({dedented(FIXED)!r})",
    ],
    ids=["another selection", "another sglang in the same place"],
)
def test_a_child_that_runs_something_else_is_an_error(site: Site, between: str) -> None:
    before = (site.root / "sglang" / FILE).read_text()
    for strict, status in (("0", 0), ("1", 78)):
        (site.root / "sglang" / FILE).write_text(before)
        result = site.run(parent(SHOW, between), SGLANG_COMMFIX_STRICT=strict)
        assert f"child: {status}\n" in result.stdout
        (error,) = [line for line in result.stderr.splitlines() if " ERROR " in line]
        assert "its parent runs commfix=" in error
        assert "but this process commfix=none (without 1-guard)" in error


def test_a_child_with_another_sglang_is_not_judged(site: Site, tmp_path: Path) -> None:
    other = make_site(tmp_path / "other", files={FILE: FIXED})
    between = f"os.environ['PYTHONPATH'] = {str(other.root)!r}"
    result = site.run(parent(SHOW, between), SGLANG_COMMFIX_STRICT="1")
    assert "child: 0\n" in result.stdout
    assert " ERROR " not in result.stderr


@pytest.mark.parametrize(
    "value", ["", "{", "[]", "null", "3", json.dumps({"sglang": 1}), json.dumps({"entries": []})]
)
def test_a_value_that_is_not_ours_is_passed_over(site: Site, value: str) -> None:
    result = site.run(SHOW, SGLANG_COMMFIX_RUNS=value, SGLANG_COMMFIX_STRICT="1")
    assert (result.stdout, " ERROR " in result.stderr) == (PATCHED, False)


def test_children_of_multiprocessing_say_nothing_of_it(site: Site) -> None:
    code = f"""\
import multiprocessing

def child():
{textwrap.indent(SHOW, "    ")}

if __name__ == "__main__":
    import sglang.srt
    for method in ("spawn", "fork", "forkserver"):
        one = multiprocessing.get_context(method).Process(target=child)
        one.start()
        one.join()
"""
    result = site.run(code, SGLANG_COMMFIX_STRICT="1")
    assert result.stdout == PATCHED * 3
    assert " ERROR " not in result.stderr


# A process group of which this is the first of two ranks; the other one runs nothing.
GROUP = """
import json, sys, types
class Store:
    values = {"1": json.dumps(["there", {}, "none"])}
    def set(self, name, value): self.values[name] = value
    def add(self, name, more):
        self.values[name] = self.values.get(name, 1 if name == "ranks" else 0) + more
        return self.values[name]
    def get(self, name): return self.values[name]
    def check(self, names): return all(name in self.values for name in names)
    def wait(self, names, limit): assert self.check(names)
up = []
sys.modules["torch.distributed"] = types.SimpleNamespace(
    is_initialized=lambda: bool(up), get_world_size=lambda: 2, get_rank=lambda: 0,
    get_backend=lambda: "gloo", PrefixStore=lambda _, store: store,
    distributed_c10d=types.SimpleNamespace(_get_default_store=Store),
)
from sglang_commfix.run import fleet
fleet.LINGER = 0
from sglang.srt.distributed.parallel_state import initialize_model_parallel
import sglang.srt.layers.communicator
for group in ([], [1]):
    up[:] = group
    try:
        print(initialize_model_parallel(2))
    except Exception as error:
        print(type(error).__name__)
"""


def test_ranks_compare_whenever_their_groups_come_up_not_the_first_time_alone(
    tmp_path: Path,
) -> None:
    files = {
        "srt/distributed/parallel_state.py": "def initialize_model_parallel(size):\n    return size\n"
    }
    result = make_site(tmp_path, files=files).run(GROUP)
    assert result.stdout == "2\nMixedFleetError\n"
    assert "ranks of one model run different patches: rank 0 on " in result.stderr


class Store:
    """A store of a process group that lets ranks have their turns in a given order, while it lasts."""

    def __init__(self, turns: Sequence[int], rank: threading.local) -> None:
        self.turns, self.rank = list(turns), rank
        self.values: dict[str, Any] = {}
        self.changed = threading.Condition()

    def _is_next(self) -> bool:
        return not self.turns or self.turns[0] == self.rank.number

    def _turn(self, name: str, value: Any) -> Any:
        with self.changed:
            # A rank whose turns are over, and one that waits, holds nobody up.
            if not self.changed.wait_for(self._is_next, timeout=0.05):
                self.turns.clear()
            self.values[name] = value(self.values.get(name, 0))
            del self.turns[:1]
            self.changed.notify_all()
            return self.values[name]

    def set(self, name: str, value: str) -> None:
        self._turn(name, lambda _: value.encode())

    def add(self, name: str, more: int) -> int:
        return self._turn(name, lambda before: before + more)

    def get(self, name: str) -> bytes:
        return self.values[name]

    def check(self, names: list[str]) -> bool:
        return all(name in self.values for name in names)

    def wait(self, names: list[str], limit: timedelta) -> None:
        with self.changed:
            if not self.changed.wait_for(lambda: self.check(names), limit.total_seconds()):
                raise TimeoutError


def compared(texts: Sequence[str], turns: Sequence[int]) -> list[Any]:
    """What each rank finds, if it runs this text, and they have their turns in this order."""
    rank = threading.local()
    store = Store(turns, rank)
    group = SimpleNamespace(
        is_initialized=lambda: True,
        get_world_size=lambda: len(texts),
        get_rank=lambda: rank.number,
        get_backend=lambda: "gloo",
        PrefixStore=lambda _, inner: inner,
        distributed_c10d=SimpleNamespace(_get_default_store=lambda: store),
    )

    def find(number: int) -> Any:
        rank.number = number
        splice = dict.fromkeys(("module", "scope", "operation", "replaces"), "") | {
            "text": texts[number]
        }
        patch = {"id": "1-guard", "collective": True, "splices": [splice]}
        plan: Any = SimpleNamespace(having=lambda _: [patch])
        return fleet.differs_from_ranks(plan, {})

    with (
        mock.patch.dict(sys.modules, {"torch.distributed": group}),
        mock.patch.object(fleet, "LINGER", 0),
        ThreadPoolExecutor(len(texts)) as pool,
    ):
        return list(pool.map(find, range(len(texts))))


RANKS = st.integers(2, 4)
ORDERS = RANKS.flatmap(
    lambda size: st.tuples(st.just(size), st.lists(st.integers(0, size - 1), max_size=4 * size))
)


@given(ORDERS)
def test_ranks_that_run_the_same_agree_in_whatever_order_they_say_it(
    order: tuple[int, list[int]],
) -> None:
    size, turns = order
    assert compared(["same"] * size, turns) == [None] * size


@given(ORDERS)
def test_a_rank_that_runs_something_else_is_found_in_whatever_order(
    order: tuple[int, list[int]],
) -> None:
    size, turns = order
    for proven, what in compared(["other"] + ["same"] * (size - 1), turns):
        assert proven
        assert "another text of 1-guard" in what
