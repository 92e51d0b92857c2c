"""A fleet runs one text: a child what its parent runs, a rank what the other ranks run."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sglang_commfix import SELECT
from sglang_commfix.files import short_digest
from sglang_commfix.run.plan import Plan


if TYPE_CHECKING:
    from sglang_commfix.lock import Splice

RUNS = f"{SELECT}_RUNS"  # for child processes: what their parent runs, and the sglang it is of
WAIT = 30  # seconds for what other ranks say; they all have just met to make the process group
LINGER = 3  # seconds in which they read it, before rank 0 ends, and with it the store
# Of initialize_model_parallel(): ranks come late, or not at all, by design (elastic EP).
_ELASTIC = ("recovered_rank", "rank_offset", "max_world_size")


def texts(plan: Plan, *, collective: bool = False) -> dict[str, str]:
    """Return the digest of the edited text of each entry in force, by id.

    ``collective`` leaves out what does not change the collectives that a rank enters.
    """
    return {
        patch["id"]: short_digest(json.dumps([_text(one) for one in patch["splices"]]).encode())
        for patch in plan.having("apply")
        if patch["collective"] or not collective
    }


def _text(one: Splice) -> list[object]:
    return [one["module"], one["scope"], one["operation"], one["replaces"], one["text"]]


def digest(entries: Mapping[str, str]) -> str:
    """Return what two processes have in common that run the same edited text."""
    return short_digest("".join(sorted(entries.values())).encode())[:6] if entries else "none"


def differs_from_parent(plan: Plan) -> str | None:
    """Tell how this process differs from the one that started it, for the same sglang.

    Processes that are started from here on are told what this one runs.
    """
    own, path = texts(plan), str(plan.sglang.path)
    said = os.environ.get(RUNS, "")
    os.environ[RUNS] = json.dumps({"sglang": path, "entries": own})
    try:
        there = json.loads(said)
        theirs, same = dict(there["entries"]), there["sglang"] == path
    except (ValueError, TypeError, KeyError):
        return None
    if not same or digest(theirs) == digest(own):
        return None
    return f"its parent runs {_words(theirs)}, but this process {_words(own, theirs)}"


def differs_from_ranks(plan: Plan, call: Mapping[str, object]) -> tuple[bool, str] | None:
    """Compare with the other ranks, through the store of the process group: no collective.

    Args:
        plan: what this rank runs.
        call: the named arguments of sglang's ``initialize_model_parallel``.

    Returns:
        Whether ranks are proven to differ in the collectives they enter, and what is wrong;
        ``None`` where nothing is.

    """
    group: Any = sys.modules.get("torch.distributed")
    if not group or not group.is_initialized() or (size := group.get_world_size()) == 1:
        return None
    if any(map(call.get, _ELASTIC)) or "mooncake" in group.get_backend():
        return None
    rank, own = group.get_rank(), texts(plan)
    store = group.PrefixStore("sglang-commfix", group.distributed_c10d._get_default_store())  # noqa: SLF001 - no public name
    matter = texts(plan, collective=True)
    store.set(f"{rank}", json.dumps([socket.gethostname(), own, digest(matter)]))
    same = store.add(f"runs {digest(own)}", 1)
    if store.add("ranks", 1) == size:  # the last one, for which all others wait
        store.set("verdict", "null" if same == size else json.dumps(_difference(store, size)))
    try:
        store.wait(["verdict"], timedelta(seconds=WAIT))
        found: tuple[bool, str] | None = json.loads(store.get("verdict"))
    except Exception:  # noqa: BLE001 - each kind of store has its own
        found = _silence(store, size, own) if matter else None
    if found and rank == 0:
        time.sleep(LINGER)
    return found


def _silence(store: Any, size: int, own: Mapping[str, str]) -> tuple[bool, str]:
    silent = ", ".join(str(rank) for rank in range(size) if not store.check([f"{rank}"]))
    why = f"it does not have this package, or {SELECT} is not set there"
    what = f"rank {silent} did not say within {WAIT} s what it runs: {why}"
    return False, f"{what}. This rank runs {_words(own)}"


def _difference(store: Any, size: int) -> tuple[bool, str]:
    said = [json.loads(store.get(f"{rank}")) for rank in range(size)]
    groups: dict[str, list[int]] = {}
    for rank, (_, entries, _) in enumerate(said):
        groups.setdefault(json.dumps(entries, sort_keys=True), []).append(rank)
    parts, first = [], said[0][1]
    for ranks in groups.values():
        hosts = ", ".join(dict.fromkeys(said[rank][0] for rank in ranks))
        who = f"rank {', '.join(map(str, ranks))} on {hosts}"
        parts.append(f"{who}: {_words(said[ranks[0]][1], None if 0 in ranks else first)}")
    proven = len({matter for _, _, matter in said}) > 1
    return proven, f"ranks of one model run different patches. {'; '.join(parts)}"


def _words(entries: Mapping[str, str], other: Mapping[str, str] | None = None) -> str:
    other = entries if other is None else other
    parts = [f"without {name}" for name in other if name not in entries]
    parts += [f"with {name}" for name in entries if name not in other]
    parts += [f"another text of {n}" for n in entries if other.get(n, entries[n]) != entries[n]]
    return f"commfix={digest(entries)}" + (f" ({', '.join(parts)})" if parts else "")
