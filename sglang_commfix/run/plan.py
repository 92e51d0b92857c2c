"""What a process runs with: the lock of its tree, a selection from it, and the edited texts."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from sglang_commfix import OFF, SELECT
from sglang_commfix.errors import SettingsError
from sglang_commfix.installed import KEY, Sglang
from sglang_commfix.run.host import ON, Settings
from sglang_commfix.splice import short_digest, splice


if TYPE_CHECKING:
    from sglang_commfix.lock import Decision, Lock

DEFAULT_KINDS = frozenset({"correctness", "stability"})
SHIPPED = Path(__file__).resolve().parent.parent / "locks"
OWN_NAME = "sglang-commfix.lock.json"


class Module(NamedTuple):
    """A module before and after its edits: its file, both texts, and the ids of its patches."""

    path: Path
    before: bytes
    after: bytes
    patches: tuple[str, ...]


class Plan(NamedTuple):
    """What is decided for one sglang under one set of settings, and the text that will run."""

    sglang: Sglang
    settings: Settings
    lock: Lock  # what was selected from
    origin: str  # of the lock: its file, shipped, or engine
    patches: list[Decision]  # one for each entry of the register
    modules: dict[str, Module]  # those that are edited, by name

    def having(self, decision: str) -> list[Decision]:
        """Return the patches about which ``decision`` was made."""
        return [patch for patch in self.patches if patch["decision"] == decision]

    @property
    def unneeded(self) -> bool:
        """Whether none of the known faults is here, but for what is a matter of taste."""
        off = [p["id"] for p in self.having("disabled") if p["kind"] not in DEFAULT_KINDS]
        return all(patch["needed"] is False or patch["id"] in off for patch in self.patches)


def make_plan(sglang: Sglang, settings: Settings) -> Plan:
    """Find the lock of ``sglang``, select from it, and put together what each module will run.

    Raises:
        SettingsError: ``settings`` select what nobody knows.
        LockError: the user's own lock cannot be used. Nothing takes its place.

    """
    own = Path(settings.lock) if settings.lock else sglang.path.parent / OWN_NAME
    if settings.lock or own.exists():
        from sglang_commfix.run import own_lock

        return select(sglang, settings, own_lock.read(own, sglang), str(own))
    if lock := _shipped(sglang):
        return select(sglang, settings, lock, "shipped")
    return select(sglang, settings, engine().lock_now(sglang), "engine")


def engine() -> ModuleType:
    """Import the engine: the one place where a server does, for a tree that no lock knows."""
    from sglang_commfix.engine import shipped

    return shipped


def _shipped(sglang: Sglang) -> Lock | None:
    file = SHIPPED / f"{short_digest(sglang.raw(KEY) or b'')}.json.gz"
    if not file.is_file():
        return None
    lock: Lock = json.loads(zlib.decompress(file.read_bytes(), 31))
    found = {d["id"]: d for d in lock["decisions"] if not sglang.differing(d["modules"])}
    complete = found.keys() == {decision["id"] for decision in lock["decisions"]}
    return {**lock, "decisions": list(found.values())} if complete else None


def select(sglang: Sglang, settings: Settings, lock: Lock, origin: str) -> Plan:
    """Select from ``lock``; what cannot be applied without, or beside, another is refused."""
    selected, _ = parse_selection(settings.select, lock["decisions"])
    patches = [decision.copy() for decision in lock["decisions"]]
    for patch in patches:
        if patch["id"] not in selected and not patch["decision"].startswith("not-"):
            patch["decision"] = "disabled"
    while fallen := [(p, why) for p in patches if (why := _falls(p, patches, lock))]:
        for patch, why in fallen:
            patch["decision"], patch["reason"] = "refused", why
    applied = [(p["id"], s) for p in patches if p["decision"] == "apply" for s in p["splices"]]
    modules = {}
    for name in dict.fromkeys(one["module"] for _, one in applied):
        raw = sglang.raw(name) or b""
        after = splice(raw, [one for _, one in applied if one["module"] == name])
        ids = tuple(dict.fromkeys(patch for patch, one in applied if one["module"] == name))
        modules[name] = Module(sglang.file_of(name), raw, after, ids)
    return Plan(sglang, settings, lock, origin, patches, modules)


def _falls(patch: Decision, patches: Sequence[Decision], lock: Lock) -> str | None:
    for other in patches if patch["decision"] == "apply" else ():
        name, decision = other["id"], other["decision"]
        if name in patch["requires"] and decision not in {"apply", "not-needed"}:
            return f"it requires {name}, which is {decision}"
        if decision == "apply" and name != patch["id"]:
            for one, two, why in lock["conflicts"]:
                if {one, two} == {patch["id"], name}:
                    return why
            if name in patch["conflicts"] or patch["id"] in other["conflicts"]:
                return f"it cannot be combined with {name}: take one of them out"
    return None


def parse_selection(value: str, patches: Sequence[Decision]) -> tuple[set[str], set[str]]:
    """Turn a value of ``SGLANG_COMMFIX`` into the ids it selects and those it takes out.

    Words are ids or PR numbers. A list of nothing but words with a leading ``-`` takes them out of
    the default selection. Selecting a patch selects what it requires.
    """
    words = [word for word in (part.strip().lower() for part in value.split(",")) if word]
    if set(words) <= OFF:
        return set(), set()
    default = {patch["id"] for patch in patches if patch["kind"] in DEFAULT_KINDS}
    groups = {"all": {patch["id"] for patch in patches}} | dict.fromkeys(ON, default)
    selected = set(default) if all(word.startswith("-") for word in words) else set()
    excluded: set[str] = set()
    for word in words:
        bare = word.removeprefix("-").removeprefix("#")
        named = {patch["id"] for patch in patches if bare in {patch["id"], str(patch["pr"])}}
        if not named and word not in groups:
            numbers = [str(patch["pr"]) for patch in patches if patch["pr"] is not None]
            known = ", ".join(dict.fromkeys([*(patch["id"] for patch in patches), *numbers]))
            raise SettingsError(
                f"{SELECT}={value!r}: {word!r} is unknown. "
                f"Known are: 0, off, 1, on, all, {known}; a leading - takes one out"
            )
        (excluded if word.startswith("-") else selected).update(groups.get(word, named))
    selected -= excluded
    while new := {r for p in patches if p["id"] in selected for r in p["requires"]} - selected:
        selected |= new
    return selected - excluded, excluded
