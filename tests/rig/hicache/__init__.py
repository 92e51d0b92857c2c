"""HiCache's caches on real ranks, without a server: see `ranks`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rig.asking import ask


if TYPE_CHECKING:
    from collections.abc import Sequence

    from rig.environment import Environment


# Seconds in which no rank begins a step: where a hang is expected, and where none is.
HANGS, GOES_ON = 5, 90

# Rank 0 has a write under way, which then arrives; the others have none.
ALONE = [[[["write", 1]], *[[]] * 3], [[["done", 1]], *[[]] * 3], [[]] * 4]
SOAK = {"seed": 1, "steps": 2000, "fails": 0.2, "rest": 12}


def alone(cache: str, stall: float) -> list[dict[str, Any]]:
    """One rank writes, and the others do not: two ranks, and four."""
    common = {"kind": "queues", "cache": cache, "stall": stall}
    return [{**common, "world": world, "script": ALONE} for world in (2, 4)]


def soaks(cache: str) -> list[dict[str, Any]]:
    """Writes fail by chance, on each rank by itself: two ranks, and four."""
    common = {"kind": "queues", "cache": cache, "stall": GOES_ON}
    return [{**common, "world": world, "drawn": SOAK, "tell_all": False} for world in (2, 4)]


def one_waits(release: str, cache: str, *, environment: Environment) -> None:
    """Assert that unpatched one rank waits in the all-reduce, and the others in the next step."""
    for first, *others in run_ranks(release, alone(cache, HANGS), environment=environment):
        assert first["stands"][0] == "all_reduce"
        assert "writing_check" in first["stands"]
        assert all(other["stands"][0] == "broadcast" for other in others)
        assert all("recv_requests" in other["stands"] for other in others)


def all_go_on(release: str, cache: str, patch: str, *, environment: Environment) -> None:
    """Assert that patched all ranks go on, and come to rest without a write under way."""
    asked = [*alone(cache, GOES_ON), *soaks(cache)]
    found = run_ranks(release, asked, environment=environment, patches=patch)
    for first, *others in found[:2]:
        assert first["acked"] == [[], [1], []]
        assert all(other["acked"] == [[], [], []] for other in others)
    for soaked in found[2:]:
        assert [rank["ongoing"] for rank in soaked] == [[]] * len(soaked)
        assert [rank["waited"] for rank in soaked] == [0] * len(soaked)
        assert {rank["entered"] for rank in soaked} == {2012}
        assert len({rank["written"] for rank in soaked}) > 1


def run_ranks(
    release: str,
    scenarios: Sequence[dict[str, Any]],
    *,
    environment: Environment,
    patches: str | None = None,
) -> list[list[dict[str, Any]]]:
    """Return what every rank of each scenario has found, with one release and one selection.

    A rank that was still at it when the time was over says where it `stands`: the functions of its
    main thread, the innermost first.
    """
    (found,) = ask(
        release, "rig.hicache.ranks", scenarios, environment=environment, patches=patches
    )
    ranks: list[list[dict[str, Any]]] = found
    return ranks
