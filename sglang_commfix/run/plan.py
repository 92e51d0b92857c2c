"""What a process runs with: the lock of its tree, a selection from it, and the edited texts."""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sglang_commfix import OFF
from sglang_commfix.errors import CommfixError, SettingsError, SglangNotFoundError
from sglang_commfix.files import KEY, Sglang, splice
from sglang_commfix.run.host import ON, Settings
from sglang_commfix.run.installed import damage


if TYPE_CHECKING:
    from sglang_commfix.lock import Decision, Lock

DEFAULT_KINDS = frozenset({"correctness", "stability"})
SHIPPED = Path(__file__).resolve().parent.parent / "locks"
OWN_NAME = "sglang-commfix.lock.json"


class Module(NamedTuple):
    """A module before and after its edits: its file, both texts, its patches, what they edit."""

    path: Path
    before: bytes
    after: bytes
    patches: tuple[str, ...]
    scopes: tuple[str, ...]
    runs_as: str  # the name under which the edited text is compiled, which tracebacks show


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


def make_plan(sglang: Sglang | None, settings: Settings) -> Plan:
    """Find the lock of ``sglang``, select from it, and put together what each module will run."""
    if sglang is None:
        raise SglangNotFoundError(f"no sglang is installed for {sys.executable}")
    if what := damage():
        raise CommfixError(what)
    own = Path(settings.lock) if settings.lock else sglang.path.parent / OWN_NAME
    if settings.lock or own.exists() or own.is_symlink():  # one that leads nowhere is an error
        from sglang_commfix.run import own_lock

        # If it cannot be used, that is an error: nothing takes its place.
        return select(sglang, settings, own_lock.read(own, sglang, SHIPPED, engine), str(own))
    if lock := _shipped(sglang):
        return select(sglang, settings, lock, "shipped")
    return select(sglang, settings, engine().lock_now(sglang), "engine")


def engine() -> Any:
    """Import the engine: the one place where a server does, for a tree that no lock knows."""
    from sglang_commfix.engine import shipped

    return shipped


def _shipped(sglang: Sglang) -> Lock | None:
    file = SHIPPED / f"{(sglang.digest(KEY) or '')[:16]}.json.gz"
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
    edits = [(p["id"], s) for p in patches if p["decision"] == "apply" for s in p["splices"]]
    modules = {}
    for name in dict.fromkeys(one["module"] for _, one in edits):
        raw = sglang.raw(name) or b""
        own = [(patch, one) for patch, one in edits if one["module"] == name]
        after = splice(raw, [one for _, one in own])
        ids = tuple(dict.fromkeys(patch for patch, _ in own))
        scopes = tuple(dict.fromkeys(one["scope"] for _, one in own if one["scope"]))
        path = sglang.file_of(name)
        modules[name] = Module(path, raw, after, ids, scopes, f"{path} [commfix]")
    return Plan(sglang, settings, lock, origin, patches, modules)


def _falls(patch: Decision, patches: Sequence[Decision], lock: Lock) -> str | None:
    for other in patches if patch["decision"] == "apply" else ():
        pair = {patch["id"], other["id"]}
        if other["id"] in patch["requires"] and other["decision"] not in {"apply", "not-needed"}:
            return f"it requires {other['id']}, which is {other['decision']}"
        if other["decision"] == "apply" and other is not patch:
            touching = [why for one, two, why in lock["conflicts"] if {one, two} == pair]
            if touching or pair & {*patch["conflicts"], *other["conflicts"]}:
                apart = f"it cannot be combined with {other['id']}: take one of them out"
                return touching[0] if touching else apart
    return None


def parse_selection(value: str, patches: Sequence[Decision]) -> tuple[set[str], set[str]]:
    """Turn a value of ``SGLANG_COMMFIX`` into the ids it selects and those it takes out.

    A list of nothing but ``-…`` takes out of the default. What is required is selected, too.
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
            from sglang_commfix import wrong

            raise SettingsError(wrong.in_selection(value, word, patches))
        (excluded if word.startswith("-") else selected).update(groups.get(word, named))
    selected -= excluded
    while new := {r for p in patches if p["id"] in selected for r in p["requires"]} - selected:
        selected |= new
    return selected - excluded, excluded
