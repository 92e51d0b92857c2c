"""The version guard: one decision for each patch, from what the files hold.

Version strings lie, so the source decides, and it is asked twice. What shows the fault, and what
shows that it is not there, are statements: a tree may have been edited anywhere else. The second
opinion are the fingerprints of whole functions, where they are those of a published release; the
two must not disagree.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from packaging.version import Version

from sglang_commfix import __version__
from sglang_commfix.engine.errors import AnchorError, SourceError
from sglang_commfix.engine.fingerprint import find_scope
from sglang_commfix.engine.register import parsed
from sglang_commfix.engine.reliance import is_denial
from sglang_commfix.engine.rewrite import anchors_in, find_anchor


if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from sglang_commfix.engine.register import Clause, Edit, Patch, Register, Target, Variant
    from sglang_commfix.engine.tree import Tree

Verdict = Literal["apply", "not-needed", "refused"]


@dataclass(frozen=True)
class Finding:
    """What happens to one patch, and why.

    Attributes:
        patch: the entry of the register.
        verdict: as in the table of decisions in ``docs/architecture.md``.
        reason: one line for people.
        found: the fingerprint of each target (``None``: absent), as far as they could be read.
        edits: the edits to be made; empty unless the verdict is ``apply``.
        needed: whether this sglang has the fault, whatever was selected; ``None``: unknown.
        released: whether everything that it edits is as in a published release.

    """

    patch: Patch
    verdict: Verdict
    reason: str
    found: Mapping[Target, str | None]
    edits: tuple[Edit, ...] = ()
    needed: bool | None = None
    released: bool = False

    def refused(self, reason: str) -> Finding:
        """Return the same decision, refused."""
        return replace(self, verdict="refused", reason=reason, edits=())


def decide(
    register: Register, tree: Tree, allow: Collection[str] = (), known: Collection[str] = ()
) -> list[Finding]:
    """Find out for each patch of the register, but those ``known``, whether this tree needs it."""
    wanted = [patch for patch in register.patches if patch.id not in known]
    return [_decide(tree, patch, patch.id in allow) for patch in wanted]


def _decide(tree: Tree, patch: Patch, allowed: bool) -> Finding:
    found: dict[Target, str | None] = {}
    try:
        for target in patch.targets:
            found[target] = tree.fingerprint(target)
        finding = by_statements(tree, patch, found)
    except SourceError as error:
        return Finding(patch, "refused", f"{error}. Reinstall sglang", found)
    whole = as_released(patch, found)
    if whole is not None and (finding.verdict, finding.edits) == (whole.verdict, whole.edits):
        return whole
    if whole is not None and finding.verdict != "refused":
        return finding.refused(f"{whole.reason}, but {finding.reason}")
    if finding.verdict == "refused":
        return _let_through(tree, finding, allowed)
    return finding


def as_released(patch: Patch, found: Mapping[Target, str | None]) -> Finding | None:
    """Decide by the fingerprints of whole functions, if a published release has all of them."""
    known = patch.fingerprints
    releases = known.releases_with(found)
    affected = [release for release in releases if patch.affected.contains(release, True)]
    if affected:
        reason = f"the source is that of sglang {known.spans(affected)}, which has the fault"
        edits = patch.edits_for(affected[0])
        return Finding(patch, "apply", reason, found, edits, needed=True, released=True)
    if not releases:
        return None
    if patch.is_fixed_in(releases[0]):
        reason = f"sglang has the fix since {patch.fixed_in}"
    else:
        like = known.spans(releases)
        reason = f"the source is that of sglang {like}, which does not have the fault"
    return Finding(patch, "not-needed", reason, found, needed=False, released=True)


def by_statements(tree: Tree, patch: Patch, found: Mapping[Target, str | None]) -> Finding:
    """Decide by the statements that show the fault, or show that it is not there.

    Raises:
        SourceError: a file cannot be read or parsed, or a scope is defined more than once.

    """
    return _Statements(tree, patch, found).decide()


class _Statements:
    """What one tree shows about one fault, statement by statement."""

    def __init__(self, tree: Tree, patch: Patch, found: Mapping[Target, str | None]) -> None:
        self._tree = tree
        self._patch = patch
        self._found = found
        self._known = patch.fingerprints

    def decide(self) -> Finding:
        patch = self._patch
        if missing := self._missing():
            return self._finding("refused", missing)
        for variant in patch.variants:
            if all(self._is_made(edit) for edit in variant.edits):
                reason = "what it puts in is there already, as after `sglang-commfix export`"
                return self._finding("not-needed", reason, needed=False)
        faulty = next((one for one in patch.variants if not any(self._odd(one))), None)
        sound = next((one for one in patch.sound if self._is_sound(one)), None)
        if sound is None:
            if faulty is None:
                return self._finding("refused", self._doubt())
            return self._finding("apply", self._like(faulty), needed=True, edits=faulty.edits)
        why = f"{sound.why} ({self._place(sound)})"
        # Where new text is only put in, its anchor stands there with the fix as well as without.
        if faulty is None or all(edit.operation != "replace" for edit in faulty.edits):
            return self._finding("not-needed", why, needed=False)
        return self._finding("refused", f"the fault is there, and so is what excludes it: {why}")

    def _finding(
        self,
        verdict: Verdict,
        reason: str,
        *,
        needed: bool | None = None,
        edits: tuple[Edit, ...] = (),
    ) -> Finding:
        return Finding(self._patch, verdict, reason, self._found, edits, needed)

    def _missing(self) -> str | None:
        """Say so if this is one of the releases that have the fault, and a file is not there."""
        version = self._tree.version
        if version is None or not self._patch.affected.contains(version, True):
            return None
        gone = [name for name in self._patch.modules if self._tree.source(name) is None]
        edited = {edit.target.module for edit in self._patch.edits_for(str(version))}
        other_side = {clause.target.module for clause in self._patch.faulty_in(str(version))}
        if not set(gone) & (edited | other_side):
            return None
        return f"sglang {version} should have {', '.join(gone)}, and has not. Reinstall sglang"

    def _is_there(self, clause: Clause) -> bool:
        return self._tree.stands(clause).form in clause.forms(self._known)

    def _has_new_text(self, edit: Edit) -> bool:
        """Tell whether the new text is where the edit puts it, in whatever form.

        Beside an anchor that is kept, denials may stand between the two: those of other entries.
        """
        tree = self._tree.tree(edit.target.module)
        scope = tree and find_scope(tree, edit.target.scope)
        if scope is None:
            return False
        new = anchors_in(scope, edit.added)
        if not edit.keeps:
            return bool(new)
        pairs = [(old, one) for old in anchors_in(scope, edit.anchor) for one in new]
        if edit.operation == "before":
            pairs = [(one, old) for old, one in pairs]
        return any(
            first.suite is second.suite
            and first.stop <= second.start
            and all(map(is_denial, first.suite[first.stop : second.start]))
            for first, second in pairs
        )

    def _is_sound(self, clause: Clause) -> bool:
        """Tell whether a clause is there, and nothing that an edit replaces stands beside it."""
        own = parsed(clause.find)
        beside = [edit for edit in self._patch.edits if edit.target == clause.target]
        replaced = [edit for edit in beside if edit.operation == "replace"]
        return self._is_there(clause) and not any(self._still(edit, own) for edit in replaced)

    def _still(self, edit: Edit, text: list[ast.stmt]) -> bool:
        """Tell whether an edit's anchor stands anywhere but in ``text``, which may repeat it."""
        repeated = anchors_in(ast.Module(text, []), edit.anchor)
        return len(self._tree.stands(edit.clause).lines) > len(repeated)

    def _is_made(self, edit: Edit) -> bool:
        """Tell whether the new text is where the edit puts it."""
        if edit.operation == "append":
            tree = self._tree.tree(edit.target.module)
            return tree is not None and len(anchors_in(tree, edit.added)) == 1
        if not edit.keeps and self._still(edit, edit.added):
            return False
        return self._is_there(edit.made(self._patch.id)) and self._has_new_text(edit)

    def _odd(self, variant: Variant) -> Iterator[str]:
        """Yield what keeps ``variant`` of the fault from being there."""
        for edit in variant.edits:
            if edit.operation != "append" and self._has_new_text(edit):
                yield f"{edit.target} has the new text already"
        for clause in variant.clauses:
            if not self._is_there(clause):
                yield self._instead(clause)

    def _instead(self, clause: Clause) -> str:
        """Say what is there in place of a clause."""
        what, stands = clause.target, self._tree.stands(clause)
        lines = ", ".join(map(str, stands.lines))
        if clause.unmentioned:
            return f"{what} mentions {' or '.join(clause.unmentioned)}"
        if self._tree.tree(what.module) is None:
            return f"there is no {what.module}"
        if not what.scope:
            return f"what the new text takes from {what} is bound as in no release"
        if not clause.find:
            return f"there is no {what}"
        if stands.form is not None:
            return f"what line {lines} relies on in {what} is as in no release with the fault"
        if lines:
            return f"what it looks for stands in {what} more than once (lines {lines})"
        return f"what it looks for stands nowhere in {what}"

    def _like(self, variant: Variant) -> str:
        known = self._known
        stands = {clause.key: self._tree.stands(clause).form for clause in variant.clauses}
        alike = [
            release
            for index, release in enumerate(known.releases)
            if self._patch.affected.contains(release, True)
            and all(known.clauses[key][index] == form for key, form in stands.items())
        ]
        like = f"as in sglang {known.spans(alike)}" if alike else "as in releases with the fault"
        changed = [
            target
            for target, value in self._found.items()
            if not known.releases_with({target: value})
        ]
        if not changed:
            return f"{like} where it matters"
        return f"{like} where it matters; {', '.join(map(str, changed))} changed elsewhere"

    def _place(self, clause: Clause) -> str:
        lines = self._tree.stands(clause).lines
        if clause.unmentioned:
            return f"{clause.target} does not mention {' or '.join(clause.unmentioned)}"
        return f"{clause.target}, line {lines[0]}"

    def _doubt(self) -> str:
        """Say where this tree is neither faulty nor sound, for the variant that is nearest."""
        version, oldest = self._tree.version, self._known.releases[0]
        if version is not None and version < Version(oldest) and not version.is_devrelease:
            who = f"sglang-commfix {__version__} knows"
            return f"sglang {version} is older than {oldest}, the oldest release that {who}"
        for clause in self._patch.clauses:
            stands = self._tree.stands(clause)
            if stands.anew and stands.form not in self._known.clauses[clause.key]:
                lines = ", ".join(map(str, stands.anew))
                return f"line {lines} may bind {clause.target} to code that no edit reaches"
        variants = (list(self._odd(variant)) for variant in self._patch.variants)
        odd = min(variants, key=len, default=[])
        more = f", and {len(odd) - 2} more" if len(odd) > 2 else ""
        says = f"this sglang says it is {self._tree.says}"
        if version is None:
            says = "this sglang does not say which version it is"
        return f"neither the fault nor its fix is known here: {'; '.join(odd[:2])}{more} ({says})"


def _let_through(tree: Tree, finding: Finding, allowed: bool) -> Finding:
    """Apply what was refused, if its owner allows it and every anchor is there exactly once."""
    patch = finding.patch
    if not allowed:
        return finding.refused(
            f"{finding.reason}. If the fault is here, make a lock of this sglang with "
            f"`sglang-commfix lock --allow {patch.id}`, and keep it if what "
            f"`sglang-commfix diff {patch.id}` shows then is right"
        )
    variants = [one.edits for one in patch.variants if _anchored(tree, one.edits)]
    if len(set(variants)) != 1:
        return finding.refused(
            f"{finding.reason}, and the text to be changed is not there exactly once"
        )
    reason = f"allowed although {finding.reason}"
    return replace(finding, verdict="apply", reason=reason, edits=variants[0])


def _anchored(tree: Tree, edits: Sequence[Edit]) -> bool:
    for edit in edits:
        try:
            module = tree.tree(edit.target.module)
            if module is None:
                return False
            if edit.operation != "append":
                find_anchor(module, edit)
        except (AnchorError, SourceError):
            return False
    return True
