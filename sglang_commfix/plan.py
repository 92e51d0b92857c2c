"""The plan: what is decided for each patch, and the text that each edited module will run.

A plan is made from files alone, before any module of sglang runs, so that a patch is applied whole
or not at all, in every module it touches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sglang_commfix.errors import AnchorError, CommfixError, SourceError
from sglang_commfix.guard import Decision, decide
from sglang_commfix.register import DEFAULT_KINDS
from sglang_commfix.rewrite import Change, OverlapError, locate, rewrite


if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sglang_commfix.installed import Sglang
    from sglang_commfix.register import Register
    from sglang_commfix.settings import Settings
    from sglang_commfix.source import Source


@dataclass(frozen=True)
class Rewritten:
    """A module before and after its edits.

    Attributes:
        before: the file as installed.
        after: the text to be run in its place.
        patches: ids of the patches whose edits it holds, in their order.

    """

    before: Source
    after: Source
    patches: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """All decisions for one sglang under one set of settings, and their outcome."""

    sglang: Sglang
    settings: Settings
    decisions: tuple[Decision, ...]
    modules: Mapping[str, Rewritten]

    def having(self, verdict: str) -> list[Decision]:
        """Return the decisions with ``verdict``."""
        return [decision for decision in self.decisions if decision.verdict == verdict]

    @property
    def uninstall(self) -> bool:
        """Whether this sglang needs no patch any more, of those that are not a matter of taste."""
        return all(
            decision.needed is False
            or (decision.verdict == "disabled" and decision.patch.kind not in DEFAULT_KINDS)
            for decision in self.decisions
        )


def make_plan(register: Register, sglang: Sglang, settings: Settings) -> Plan:
    """Decide, then edit the text of every module concerned."""
    decisions = [
        _selected(decision, settings)
        for decision in decide(register, sglang, settings.allow_unknown)
    ]
    while True:
        decisions = _stand_or_fall(decisions)
        try:
            modules = _rewrite(sglang, decisions)
        except _FallError as fall:
            decisions = [
                decision.refused(fall.reason) if decision.patch.id in fall.patches else decision
                for decision in decisions
            ]
        else:
            return Plan(sglang, settings, tuple(decisions), modules)


class _FallError(Exception):
    """Some patches cannot be applied after all."""

    def __init__(self, patches: Sequence[str], reason: str) -> None:
        self.patches = patches
        self.reason = reason
        super().__init__(reason)


def _selected(decision: Decision, settings: Settings) -> Decision:
    patch = decision.patch
    if patch.id in settings.selected or decision.verdict == "not-needed":
        return decision
    if patch.id in settings.excluded:
        why = f"taken out by SGLANG_COMMFIX={settings.select}"
    elif not settings.selected:
        why = f"everything is switched off (SGLANG_COMMFIX={settings.select})"
    else:
        why = f"SGLANG_COMMFIX={settings.select} does not select it ({patch.kind})"
    verb = "needs" if patch.kind in DEFAULT_KINDS else "can take"
    fault = f"this sglang {verb} it" if decision.needed else decision.reason
    return decision.disabled(f"{why}; {fault}")


def _stand_or_fall(decisions: list[Decision]) -> list[Decision]:
    """Refuse what requires a refused or disabled patch, and what conflicts with an applied one."""
    while True:
        verdicts = {decision.patch.id: decision.verdict for decision in decisions}
        result = []
        for decision in decisions:
            reason = _falls(decision, verdicts, decisions)
            result.append(decision.refused(reason) if reason else decision)
        if result == decisions:
            return result
        decisions = result


def _falls(
    decision: Decision, verdicts: Mapping[str, str], decisions: Sequence[Decision]
) -> str | None:
    if decision.verdict != "apply":
        return None
    patch = decision.patch
    for required in patch.requires:
        if verdicts[required] in {"refused", "disabled"}:
            return f"it requires {required}, which is {verdicts[required]}"
    for other in decisions:
        named = other.patch.id in patch.conflicts or patch.id in other.patch.conflicts
        if named and other.verdict == "apply":
            return f"it cannot be combined with {other.patch.id}: take one of them out"
    return None


def _rewrite(sglang: Sglang, decisions: Sequence[Decision]) -> dict[str, Rewritten]:
    applied = [decision for decision in decisions if decision.verdict == "apply"]
    edits = [(d.patch.id, edit) for d in applied for edit in d.edits]
    modules: dict[str, Rewritten] = {}
    for module in dict.fromkeys(edit.target.module for _, edit in edits):
        own = [(patch, edit) for patch, edit in edits if edit.target.module == module]
        patches = list(dict.fromkeys(patch for patch, _ in own))
        # For the source of a release, tests have shown that the result compiles.
        known = all(d.needed for d in applied if d.patch.id in patches)
        source, tree = sglang.source(module), sglang.tree(module)
        if source is None or tree is None:
            raise _FallError(patches, f"there is no {module}. Reinstall sglang")
        changes: list[Change] = []
        for patch, edit in own:
            try:
                changes.append(locate(tree, patch, edit))
            except (AnchorError, SourceError) as error:
                raise _FallError([patch], str(error)) from error
        try:
            after = rewrite(source, tree, changes, compiled=not known)
        except OverlapError as error:
            raise _FallError(error.patches, str(error)) from error
        except CommfixError as error:
            raise _FallError(patches, str(error)) from error
        modules[module] = Rewritten(source, after, tuple(patches))
    return modules
