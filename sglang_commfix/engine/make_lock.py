"""Make the lock of a tree: source → fingerprint → guard → rewrite, the outcome as plain data."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from sglang_commfix import __version__
from sglang_commfix.engine.errors import AnchorError, SourceError
from sglang_commfix.engine.fingerprint import find_scope
from sglang_commfix.engine.guard import decide
from sglang_commfix.engine.rewrite import placed, rewrite, splices_of
from sglang_commfix.errors import CommfixError
from sglang_commfix.files import KEY, short_digest, splice
from sglang_commfix.lock import SCHEMA, Decision, Lock, Splice


if TYPE_CHECKING:
    import ast
    from collections.abc import Collection, Mapping, Sequence

    from sglang_commfix.engine.guard import Finding
    from sglang_commfix.engine.register import Edit, Patch, Register
    from sglang_commfix.engine.rewrite import TextSplice
    from sglang_commfix.engine.source import Source
    from sglang_commfix.engine.tree import Tree


def make_lock(
    register: Register,
    tree: Tree,
    allow: Collection[str] = (),
    known: Mapping[str, Decision] | None = None,
) -> Lock:
    """Decide about every entry of ``register``, selected or not, for the files of ``tree``.

    Args:
        register: the entries.
        tree: the sglang.
        allow: ids that its owner lets through where the guard refuses them, if every anchor is
            there exactly once.
        known: decisions that hold for these files already, by id.

    """
    known = known or {}
    findings = {f.patch.id: f for f in decide(register, tree, allow, known.keys())}
    decisions = [
        known.get(patch.id) or _decision(tree, findings[patch.id]) for patch in register.patches
    ]
    _refuse_what_cannot_be_made_at_once(tree, findings, decisions)
    return {
        "schema": SCHEMA,
        "made_by": __version__,
        "sglang": tree.says,
        "allowed": sorted(allow),
        "conflicts": conflicts(decisions),
        "decisions": decisions,
    }


def entry_of(patch: Patch) -> Decision:
    """Return an entry's own words and numbers, with nothing decided."""
    return {
        "id": patch.id,
        "pr": patch.pr,
        "kind": patch.kind,
        "title": patch.title,
        "fixed_in": patch.fixed_in,
        "fixes": list(patch.fixes),
        "requires": list(patch.requires),
        "conflicts": list(patch.conflicts),
        "collective": patch.collective,
        "modules": {},
        "decision": "not-in-lock",
        "reason": "",
        "needed": None,
        "found": {},
        "splices": [],
    }


def _decision(tree: Tree, finding: Finding) -> Decision:
    splices: list[Splice] = []
    if finding.verdict == "apply":
        try:
            splices = _splices(tree, finding)
        except CommfixError as error:
            finding = finding.refused(str(error))
    modules = {name: tree.sglang.digest(name) for name in finding.patch.modules}
    if not any(modules.values()):
        modules[KEY] = tree.sglang.digest(KEY)  # that nothing is there proves nothing by itself
    return {
        **entry_of(finding.patch),
        "modules": modules,
        "decision": finding.verdict,
        "reason": finding.reason,
        "needed": finding.needed,
        "found": {str(target): value for target, value in finding.found.items()},
        "splices": splices,
    }


def _splices(tree: Tree, finding: Finding) -> list[Splice]:
    """Make the edits of one patch, check them, and return them as splices of the files' bytes."""
    result = []
    for module in dict.fromkeys(edit.target.module for edit in finding.edits):
        source, syntax = tree.source(module), tree.tree(module)
        if source is None or syntax is None:
            raise SourceError(f"there is no {module}. Reinstall sglang")
        edits = [edit for edit in finding.edits if edit.target.module == module]
        changes = [placed(syntax, finding.patch.id, edit) for edit in edits]
        # For the source of a release, tests have shown that the result compiles.
        after = rewrite(source, syntax, changes, compiled=not finding.released)
        own = [
            _splice(source, syntax, edit, one)
            for edit, one in zip(edits, splices_of(source, changes), strict=True)
        ]
        if splice(source.raw, own) != after.raw:
            raise AnchorError(f"{source.path}: {source.encoding} text cannot be edited as bytes")
        result += own
    return result


def _refuse_what_cannot_be_made_at_once(
    tree: Tree, findings: Mapping[str, Finding], decisions: Sequence[Decision]
) -> None:
    """Check that all edits of one file, made at once, mean what they mean one by one.

    Patches that touch the same text are never made at once. Those ``known`` are left out: their
    file is that of a published release, for which tests have shown every combination.
    """
    apart = {name for *pair, _ in conflicts(decisions) for name in pair}
    own = [d for d in decisions if d["id"] in findings.keys() - apart and d["splices"]]
    for module in dict.fromkeys(one["module"] for d in own for one in d["splices"]):
        here = [d for d in own if any(one["module"] == module for one in d["splices"])]
        try:
            _make_at_once(tree, module, [findings[d["id"]] for d in here], here)
        except CommfixError as error:
            for decision in here:
                decision["decision"], decision["reason"] = "refused", str(error)
                decision["splices"] = []


def _make_at_once(
    tree: Tree, module: str, findings: Sequence[Finding], decisions: Sequence[Decision]
) -> None:
    source, syntax = tree.source(module), tree.tree(module)
    if source is None or syntax is None:
        raise SourceError(f"there is no {module}. Reinstall sglang")
    edits = [(f.patch.id, e) for f in findings for e in f.edits if e.target.module == module]
    changes = [placed(syntax, name, edit) for name, edit in edits]
    splices = [one for d in decisions for one in d["splices"] if one["module"] == module]
    if rewrite(source, syntax, changes, compiled=False).raw != splice(source.raw, splices):
        raise AnchorError(f"{source.path}: the edits of several patches cannot be made at once")


def _splice(source: Source, syntax: ast.Module, edit: Edit, one: TextSplice) -> Splice:
    start, stop = source.offset_in_bytes(one.start), source.offset_in_bytes(one.stop)
    anchor = [source.offset_in_bytes(offset) for offset in one.anchored]
    scope = find_scope(syntax, edit.target.scope) if edit.target.scope else None
    return {
        "module": edit.target.module,
        "scope": edit.target.scope,
        "operation": edit.operation,
        "line": len(source.lines) if scope is None else scope.lineno,
        "at": source.lineno(one.start),
        "start": start,
        "stop": stop,
        "rank": one.rank,
        "anchor": anchor,
        "replaces": short_digest(source.raw[start:stop]),
        "encoding": "utf-8" if source.encoding == "utf-8-sig" else source.encoding,
        "text": one.text.splitlines(keepends=True),
    }


def conflicts(decisions: Sequence[Decision]) -> list[list[str]]:
    """Return the pairs of entries that touch the same text, each with the reason."""
    pairs = []
    for one, other in combinations(decisions, 2):
        for first in one["splices"]:
            touching = [second for second in other["splices"] if _collide(first, second)]
            if touching:
                line = max(first, touching[0], key=lambda splice: splice["start"])["at"]
                why = f"{one['id']} and {other['id']} both change line {line}"
                pairs.append([one["id"], other["id"], why])
                break
    return pairs


def _collide(one: Splice, other: Splice) -> bool:
    """Tell whether one replaces what the other replaces or is anchored on."""
    return one["module"] == other["module"] and (_spoils(one, other) or _spoils(other, one))


def _spoils(one: Splice, other: Splice) -> bool:
    if one["start"] == one["stop"]:
        return other["start"] < one["start"] < other["stop"]
    begin, end = other["anchor"]
    return one["start"] < end and begin < one["stop"]
