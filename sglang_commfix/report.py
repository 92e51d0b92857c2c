"""The report of ``sglang-commfix status``, as typed objects and as JSON (schema 1)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sglang_commfix.errors import SourceError
from sglang_commfix.fingerprint import find_scope


if TYPE_CHECKING:
    from collections.abc import Sequence

    from sglang_commfix.guard import Decision, Verdict
    from sglang_commfix.plan import Plan
    from sglang_commfix.register import Edit, Kind

SCHEMA = 1


@dataclass(frozen=True)
class EditReport:
    """One edit of a patch, or one place that a patch would edit.

    Attributes:
        module: name of the module.
        scope: qualified name of the class or function; empty for an edit of the module itself.
        operation: ``replace``, ``before``, ``after`` or ``append``.
        file: the file, relative to the folder that contains the package.
        line: the line (from 1) of the scope in the installed file; ``None`` if it is absent.
        fingerprint: of the scope as installed; ``None`` if it is absent.
        as_in: the releases whose scope has this fingerprint: ``0.5.8 to 0.5.11``.

    """

    module: str
    scope: str
    operation: str
    file: str
    line: int | None
    fingerprint: str | None
    as_in: str


@dataclass(frozen=True)
class PatchReport:
    """What was decided about one patch."""

    id: str
    pr: int | None
    kind: Kind
    title: str
    decision: Verdict
    reason: str
    fixed_in: str
    edits: tuple[EditReport, ...]


@dataclass(frozen=True)
class SglangReport:
    """The sglang that was looked at."""

    version: str
    path: str


@dataclass(frozen=True)
class Report:
    """Everything ``status`` says.

    Attributes:
        sglang: what was looked at.
        select: the value of ``SGLANG_COMMFIX`` that the decisions are for.
        select_from: where it comes from: ``environment``, ``--select`` or ``default``.
        hook: whether the start-up hook ran in this interpreter; ``None`` where that says nothing
            about the sglang that was looked at.
        uninstall: whether no patch is needed by this sglang any more.
        warnings: what would keep the patches from reaching sglang.
        patches: one entry for each patch of the register.

    """

    sglang: SglangReport
    select: str
    select_from: str
    hook: bool | None
    uninstall: bool
    warnings: tuple[str, ...]
    patches: tuple[PatchReport, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as ``status --json`` prints it."""
        return {"schema": SCHEMA, **asdict(self)}

    @property
    def problem(self) -> bool:
        """Whether a selected patch would be refused, or would not reach sglang."""
        decisions = {patch.decision for patch in self.patches}
        return "refused" in decisions or ("apply" in decisions and self.hook is False)


def make_report(
    plan: Plan, *, select_from: str, hook: bool | None, warnings: Sequence[str]
) -> Report:
    """Describe ``plan``."""
    return Report(
        sglang=SglangReport(plan.sglang.version, str(plan.sglang.path)),
        select=plan.settings.select,
        select_from=select_from,
        hook=hook,
        uninstall=plan.uninstall,
        warnings=tuple(warnings),
        patches=tuple(_patch_report(plan, decision) for decision in plan.decisions),
    )


def _patch_report(plan: Plan, decision: Decision) -> PatchReport:
    patch = decision.patch
    scoped = {edit.target: edit for edit in patch.edits if edit.target.scope}
    edits = decision.edits or tuple(scoped.values())
    return PatchReport(
        id=patch.id,
        pr=patch.pr,
        kind=patch.kind,
        title=patch.title,
        decision=decision.verdict,
        reason=decision.reason,
        fixed_in=patch.fixed_in,
        edits=tuple(_edit_report(plan, decision, edit) for edit in edits),
    )


def _edit_report(plan: Plan, decision: Decision, edit: Edit) -> EditReport:
    target = edit.target
    found = decision.found.get(target)
    known = decision.patch.fingerprints
    alike = known.releases_with({target: found}) if found is not None else ()
    file = plan.sglang.file_of(target.module).relative_to(plan.sglang.root).as_posix()
    return EditReport(
        module=target.module,
        scope=target.scope,
        operation=edit.operation,
        file=file,
        line=_line(plan, edit),
        fingerprint=found,
        as_in=known.spans(alike),
    )


def _line(plan: Plan, edit: Edit) -> int | None:
    try:
        tree = plan.sglang.tree(edit.target.module)
        if tree is None:
            return None
        if not edit.target.scope:
            source = plan.sglang.source(edit.target.module)
            return None if source is None else len(source.lines)
        scope = find_scope(tree, edit.target.scope)
    except SourceError:
        return None
    return None if scope is None else scope.lineno
