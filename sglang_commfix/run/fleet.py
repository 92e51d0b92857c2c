"""A fleet runs one text: a child what its parent runs, a rank what the other ranks run."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from operator import itemgetter
from typing import Any

from sglang_commfix import SELECT
from sglang_commfix.files import short_digest
from sglang_commfix.run.plan import Plan


RUNS = f"{SELECT}_RUNS"  # for child processes: what their parent runs, and the sglang it is of
WAIT = 30  # seconds for what other ranks say; they all have just met to make the process group
LINGER = 3  # seconds in which they read it, before rank 0 ends, and with it the store
_TEXT = itemgetter("module", "scope", "operation", "replaces", "text")
# Of initialize_model_parallel(): ranks come late, or not at all, by design (elastic EP), as with
# the back-end mooncake. Those of PyTorch's fake process group are one process.
_ELASTIC = ("recovered_rank", "rank_offset", "max_world_size")


def texts(plan: Plan, *, collective: bool = False) -> dict[str, str]:
    """Return the digest of the edited text of each entry in force, by id.

    ``collective`` leaves out what does not change the collectives that a rank enters.
    """
    return {
        patch["id"]: short_digest(json.dumps([*map(_TEXT, patch["splices"])]).encode())
        for patch in plan.having("apply")
        if patch["collective"] or not collective
    }


def digest(entries: Mapping[str, str]) -> str:
    """Return what two processes have in common that run the same edited text."""
    return short_digest("".join(sorted(entries.values())).encode())[:6] if entries else "none"


def differs_from_parent(plan: Plan) -> str | None:
    """Tell how this process differs from the one that started it, for the same sglang.

    Processes that are started from here on are told what this one runs.
    """
    own, path = texts(plan), str(plan.sglang.path)
    said = os.environ.get(RUNS, "")
    os.environ[RUNS] = json.dumps([path, own])
    try:
        its_path, theirs = json.loads(said)
        if its_path != path or digest(theirs) == digest(own):
            return None
    except (ValueError, TypeError, AttributeError):
        return None
    from sglang_commfix.run.differences import words

    return f"its parent runs {words(theirs)}, but this process {words(own, theirs)}"


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
    if any(map(call.get, _ELASTIC)) or group.get_backend().startswith(("fake", "mooncake")):
        return None
    rank, own, matter = group.get_rank(), texts(plan), texts(plan, collective=True)
    store = group.PrefixStore("sglang-commfix", group.distributed_c10d._get_default_store())  # noqa: SLF001 - no public name
    store.set(f"{rank}", json.dumps([socket.gethostname(), own, digest(matter)]))
    store.add(same := f"runs {digest(own)}", 1)
    if store.add("ranks", 1) == size:  # the last one, for which all others wait, has counted all
        store.set("verdict", "same" if store.add(same, 0) == size else "not the same")
    try:
        store.wait(["verdict"], timedelta(seconds=WAIT))
        if store.get("verdict") == b"same":
            return None
    except Exception:  # noqa: BLE001 - each kind of store has its own
        if not matter:
            return None
    from sglang_commfix.run.differences import between_ranks

    found = between_ranks(store, size)
    time.sleep(0 if rank else LINGER)
    return found
