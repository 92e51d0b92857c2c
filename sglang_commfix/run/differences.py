"""What to say where processes of one server run different patches. Loaded only then."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sglang_commfix import SELECT
from sglang_commfix.run import fleet


def between_ranks(store: Any, size: int) -> tuple[bool, str]:
    """Tell whether ranks are proven to differ in the collectives they enter, and in what."""
    there = [rank for rank in range(size) if store.check([f"{rank}"])]
    said = {rank: json.loads(store.get(f"{rank}")) for rank in there}
    groups: dict[str, list[int]] = {}
    for rank, (_, entries, _) in said.items():
        groups.setdefault(json.dumps(entries, sort_keys=True), []).append(rank)
    parts, first = [], said[there[0]][1]
    for ranks in groups.values():
        hosts = ", ".join(dict.fromkeys(said[rank][0] for rank in ranks))
        who = f"rank {', '.join(map(str, ranks))} on {hosts}"
        parts.append(f"{who} runs {words(said[ranks[0]][1], first)}")
    proven = len({matter for _, _, matter in said.values()}) > 1
    if silent := ", ".join(str(rank) for rank in range(size) if rank not in there):
        why = f"it does not have this package, or {SELECT} is not set there"
        parts.append(f"rank {silent} did not say within {fleet.WAIT} s what it runs: {why}")
    return proven, f"ranks of one model run different patches: {'; '.join(parts)}"


def words(entries: Mapping[str, str], other: Mapping[str, str] | None = None) -> str:
    """Name what is in force by its digest, and say how it differs from ``other``."""
    other = entries if other is None else other
    parts = [f"without {name}" for name in other if name not in entries]
    parts += [f"with {name}" for name in entries if name not in other]
    parts += [f"another text of {n}" for n in entries if other.get(n, entries[n]) != entries[n]]
    return f"commfix={fleet.digest(entries)}" + (f" ({', '.join(parts)})" if parts else "")
