"""The report of ``sglang-commfix status``, as typed objects and as JSON (schema 1)."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglang_commfix import FINDER, SELECT
from sglang_commfix.command.which import current_plan, shadowed_by
from sglang_commfix.damage import told
from sglang_commfix.engine import shipped
from sglang_commfix.engine.errors import SourceError
from sglang_commfix.engine.fingerprint import find_scope
from sglang_commfix.engine.register import Target, load, patches_folder
from sglang_commfix.engine.tree import Tree
from sglang_commfix.errors import CommfixError
from sglang_commfix.run import fleet
from sglang_commfix.run.installed import damage
from sglang_commfix.run.plan import DEFAULT_KINDS, parse_selection
from sglang_commfix.wrong import NOT_HOOKED


if TYPE_CHECKING:
    from collections.abc import Sequence

    from sglang_commfix.engine.register import Clause, Edit, Patch, Register
    from sglang_commfix.lock import Decision
    from sglang_commfix.run.plan import Plan

SCHEMA = 1


@dataclass(frozen=True)
class EditReport:
    """One edit of a patch, or one place that a patch would edit.

    Attributes:
        module: name of the module.
        scope: qualified name of the class or function; empty for an edit of the module itself.
        operation: ``replace``, ``before``, ``after`` or ``append``.
        file: the file, relative to the folder that contains the package.
        line: the line (from 1) of the scope in the installed file; ``None`` if it is absent, or
            nothing is to be edited.
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
    kind: str
    title: str
    decision: str
    reason: str
    fixed_in: str | None
    shown: tuple[str, ...]
    edits: tuple[EditReport, ...]


@dataclass(frozen=True)
class SglangReport:
    """The sglang that was looked at."""

    version: str
    path: str


@dataclass(frozen=True)
class Likeness:
    """Which published release a tree is most like, by the files that patches have to do with.

    Attributes:
        release: that release; the newest of those that are equally like it.
        files: how many files it has that are looked at.
        differing: the modules among them whose files differ, or are not there.
        mattering: those of them that differ in something by which a patch is decided.

    """

    release: str
    files: int
    differing: tuple[str, ...]
    mattering: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """Everything ``status`` says.

    Attributes:
        sglang: what was looked at.
        lock: what decided: the file of the user's own lock, ``shipped``, or ``engine`` where no
            lock knows this sglang.
        like: the release that it is most like, where no lock knows this sglang.
        select: the value of ``SGLANG_COMMFIX`` that the decisions are for.
        select_from: where it comes from: ``environment``, ``--select`` or ``default``.
        hook: whether the start-up hook ran in this interpreter; ``None`` where that says nothing
            about the sglang that was looked at.
        machine: whose accelerators this machine has, as far as can be told: ``NVIDIA``, ``AMD`` or
            ``Ascend``. ``None`` where that says nothing about the sglang that was looked at.
        runs: the digest of the edited text, as a server's log line has it; ``none``: nothing is.
        uninstall: whether none of the faults that this version knows is in this sglang.
        warnings: what would keep the patches from reaching sglang.
        patches: one entry for each patch.

    """

    sglang: SglangReport
    lock: str
    like: Likeness | None
    select: str
    select_from: str
    hook: bool | None
    machine: str | None
    runs: str
    uninstall: bool
    warnings: tuple[str, ...]
    patches: tuple[PatchReport, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as ``status --json`` prints it."""
        return {"schema": SCHEMA, **asdict(self)}

    @property
    def elsewhere(self) -> str:
        """Say that the patches to apply were shown on other machines alone; empty if they were not.

        What is shown on CPUs stands for NVIDIA's GPUs, too: the same code runs there.
        """
        applied = [patch for patch in self.patches if patch.decision == "apply"]
        if self.machine in {None, "NVIDIA"} or not applied:
            return ""
        kinds = {kind for patch in applied for kind in patch.shown}
        known = _listed(["CPUs", *(f"NVIDIA {gpu}" for gpu in ("H100", "H200") if gpu in kinds)])
        ids = ", ".join(patch.id for patch in applied)
        return f"this machine has {self.machine}; what is applied was shown on {known} alone: {ids}"

    @property
    def problem(self) -> bool:
        """Whether a selected patch would be refused, or would not reach sglang."""
        decisions = {patch.decision for patch in self.patches}
        return "refused" in decisions or ("apply" in decisions and self.hook is False)


def _listed(words: Sequence[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def accelerator(root: Path = Path("/")) -> str | None:
    """Return whose accelerators the machine has: ``NVIDIA``, ``AMD``, ``Ascend``; or nothing.

    Told by the drivers' files, without a library of theirs.

    Args:
        root: the folder that holds ``dev`` and ``proc``.

    """
    files = {
        "NVIDIA": ("proc/driver/nvidia/version", "dev/nvidiactl"),
        "AMD": ("dev/kfd",),
        "Ascend": ("dev/davinci_manager", "dev/davinci0"),
    }
    found = [name for name, there in files.items() if any((root / one).exists() for one in there)]
    return found[0] if len(found) == 1 else None


def status(sglang_path: str | Path | None = None, select: str | None = None) -> Report:
    """Return what ``sglang-commfix status`` prints, for a program such as an image's CI.

    Nothing of sglang is imported.

    Args:
        sglang_path: a folder that contains the ``sglang`` package, instead of the installed one.
        select: another value than the environment's ``SGLANG_COMMFIX``. With neither, ``1``.

    Raises:
        CommfixError: there is no sglang; a setting or the user's own lock cannot be used; or this
            installation is damaged, so that a server would apply nothing.

    """
    _load_what_a_server_loads()
    plan = current_plan(sglang_path, select)
    select_from = "environment" if os.environ.get(SELECT, "").strip() else "default"
    warnings = []
    hook = FINDER in sys.meta_path if sglang_path is None else None
    if hook is False:
        warnings.append(NOT_HOOKED)
    shadow = shadowed_by() if sglang_path is None else None
    if shadow is not None and shadow.resolve() != plan.sglang.path.resolve():
        warnings.append(
            f"`python -m sglang…` started in this folder would import {shadow}, not the sglang "
            "reported here"
        )
    register, tree = load(), Tree(plan.sglang)
    return Report(
        sglang=SglangReport(tree.says, str(plan.sglang.path)),
        lock=plan.origin,
        like=_likeness(plan, register, tree) if plan.origin == "engine" else None,
        select=plan.settings.select,
        select_from=select_from if select is None else "--select",
        hook=hook,
        machine=accelerator() if sglang_path is None else None,
        runs=fleet.digest(fleet.texts(plan)),
        uninstall=plan.unneeded,
        warnings=tuple(warnings),
        patches=tuple(_patch_report(plan, register, tree, patch) for patch in plan.patches),
    )


def _load_what_a_server_loads() -> None:
    """Find out whether a server could do what is going to be said.

    Raises:
        CommfixError: it could not, since this installation is damaged.

    """
    if what := damage():
        raise CommfixError(what)
    try:
        for name in ("session", "loader", "own_lock"):
            import_module(f"sglang_commfix.run.{name}")
    except Exception as error:
        raise CommfixError(told(error)) from error


def _likeness(plan: Plan, register: Register, tree: Tree) -> Likeness | None:
    digests: dict[str, dict[str, str]] = {}
    for patch in register.patches:
        for releases, decision in shipped.read(patches_folder(), patch):
            for release in releases:
                there = {name: one for name, one in decision["modules"].items() if one is not None}
                digests.setdefault(release, {}).update(there)
    if not digests:
        return None
    known = register.patches[0].fingerprints.releases
    differing = {
        release: [name for name, one in own.items() if plan.sglang.digest(name) != one]
        for release, own in digests.items()
    }
    best = min(digests, key=lambda release: (len(differing[release]), -known.index(release)))
    mattering = {
        clause.target.module
        for entry in register.patches
        for clause in entry.clauses
        if not clause.after  # what an exported patch leaves is in no release
        and _form(tree, clause) != entry.fingerprints.clauses[clause.key][known.index(best)]
    }
    where = tuple(name for name in differing[best] if name in mattering)
    return Likeness(best, len(digests[best]), tuple(differing[best]), where)


def _form(tree: Tree, clause: Clause) -> str | None:
    try:
        return tree.stands(clause).form
    except SourceError:
        return None


def reason_of(plan: Plan, patch: Decision) -> str:
    """Say why, for people: the selection and the other patches counted in."""
    if patch["decision"] == "disabled":
        return _switched_off(plan, patch)
    for other in plan.patches:
        if patch["decision"] == "not-needed" and other["needed"] and patch["pr"] in other["fixes"]:
            return f"{patch['reason']}, with a fault that {other['id']} repairs"
    return patch["reason"]


def _switched_off(plan: Plan, patch: Decision) -> str:
    value = plan.settings.select
    selected, excluded = parse_selection(value, plan.patches)
    why = f"{SELECT}={value} does not select it ({patch['kind']})"
    if patch["id"] in excluded:
        why = f"taken out by {SELECT}={value}"
    elif not selected:
        why = f"everything is switched off ({SELECT}={value})"
    verb = "needs" if patch["kind"] in DEFAULT_KINDS else "can take"
    return f"{why}; {f'this sglang {verb} it' if patch['needed'] else patch['reason']}"


def _patch_report(plan: Plan, register: Register, tree: Tree, patch: Decision) -> PatchReport:
    known = next((entry for entry in register.patches if entry.id == patch["id"]), None)
    places: list[tuple[Target, str, int | None]] = [
        (Target(one["module"], one["scope"]), one["operation"], one["line"])
        for one in patch["splices"]
    ]
    if known is not None and not places:
        scoped = {edit.target: edit for edit in known.edits if edit.target.scope}.values()
        refused = patch["decision"] == "refused"
        places = [(e.target, e.operation, _line(tree, e) if refused else None) for e in scoped]
    return PatchReport(
        id=patch["id"],
        pr=patch["pr"],
        kind=patch["kind"],
        title=patch["title"],
        decision=patch["decision"],
        reason=reason_of(plan, patch),
        fixed_in=patch["fixed_in"],
        shown=() if known is None else known.shown,
        edits=tuple(_edit_report(plan, patch, known, place) for place in places),
    )


def _edit_report(
    plan: Plan,
    decision: Decision,
    known: Patch | None,
    place: tuple[Target, str, int | None],
) -> EditReport:
    target, operation, line = place
    found = decision["found"].get(str(target)) if target.scope else None
    alike = ""
    if known is not None and found is not None and target in known.fingerprints.targets:
        releases = known.fingerprints.releases_with({target: found})
        alike = known.fingerprints.spans(releases)
    file = plan.sglang.file_of(target.module).relative_to(plan.sglang.path.parent).as_posix()
    return EditReport(target.module, target.scope, operation, file, line, found, alike)


def _line(tree: Tree, edit: Edit) -> int | None:
    try:
        syntax = tree.tree(edit.target.module)
        scope = None if syntax is None else find_scope(syntax, edit.target.scope)
    except SourceError:
        return None
    return None if scope is None else scope.lineno
