"""The version guard: one decision for each patch, from what the files hold.

Version strings lie, so the source decides: the fingerprints of everything that a patch edits or
relies on are looked up among those of the published releases.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from packaging.version import Version

from sglang_commfix import __version__
from sglang_commfix.engine.errors import AnchorError, SourceError
from sglang_commfix.engine.fingerprint import find_scope, fingerprint, parse
from sglang_commfix.engine.rewrite import Place, find_anchor, find_results, take_out


if TYPE_CHECKING:
    import ast
    from collections.abc import Collection, Mapping, Sequence

    from sglang_commfix.engine.register import Edit, Patch, Register, Target
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

    """

    patch: Patch
    verdict: Verdict
    reason: str
    found: Mapping[Target, str | None]
    edits: tuple[Edit, ...] = ()
    needed: bool | None = None

    def refused(self, reason: str) -> Finding:
        """Return the same decision, refused."""
        return replace(self, verdict="refused", reason=reason, edits=())


def decide(
    register: Register, tree: Tree, allow: Collection[str] = (), known: Collection[str] = ()
) -> list[Finding]:
    """Find out for each patch of the register, but those ``known``, whether this tree needs it."""
    guard = _Guard(register, tree)
    wanted = [patch for patch in register.patches if patch.id not in known]
    return [guard.decide(patch, patch.id in allow) for patch in wanted]


class _Guard:
    def __init__(self, register: Register, tree: Tree) -> None:
        self.register = register
        self.tree = tree
        self._unpatched: _Unpatched | None = None

    def decide(self, patch: Patch, allowed: bool) -> Finding:
        found: dict[Target, str | None] = {}
        try:
            for target in patch.targets:
                found[target] = self.tree.fingerprint(target)
        except SourceError as error:
            return Finding(patch, "refused", f"{error}. Reinstall sglang", found)
        decision = self._absent(patch, found) or self._known(patch, found)
        return decision or self._unknown(patch, found, allowed)

    def _absent(self, patch: Patch, found: Mapping[Target, str | None]) -> Finding | None:
        """Decide if this sglang has nothing of what the patch would edit.

        Nothing is left to be done then, unless this is one of the releases that have it all, and a
        file is missing; or a witness is still as it is where the fault is, so that what is edited
        may have been moved or renamed.
        """
        edited = [edit.target for edit in patch.edits if edit.target.scope]
        if any(found[target] is not None for target in edited):
            return None
        version = self.tree.version
        if version is not None and patch.affected.contains(version, True):
            missing = ", ".join(str(target) for target in dict.fromkeys(edited))
            reason = f"sglang {version} should have {missing}, and has not. Reinstall sglang"
            return Finding(patch, "refused", reason, found)
        if doubt := _left_behind(patch, found):
            return Finding(patch, "refused", doubt, found)
        if version is not None and version >= Version(patch.fixed_in):
            reason = _fixed_since(patch)
        else:
            reason = "what the patch is for is not in this sglang"
        return Finding(patch, "not-needed", reason, found, needed=False)

    def _known(self, patch: Patch, found: Mapping[Target, str | None]) -> Finding | None:
        """Decide if the targets are those of a published release."""
        releases = patch.fingerprints.releases_with(found)
        affected = [release for release in releases if patch.affected.contains(release, True)]
        if affected:
            like = patch.fingerprints.spans(affected)
            reason = f"the source is that of sglang {like}, which has the fault"
            edits = patch.edits_for(affected[0])
            return Finding(patch, "apply", reason, found, edits, needed=True)
        if not releases:
            return None
        if Version(releases[0]) >= Version(patch.fixed_in):
            reason = _fixed_since(patch)
        else:
            like = patch.fingerprints.spans(releases)
            reason = f"the source is that of sglang {like}, which does not have the fault"
        return Finding(patch, "not-needed", reason, found, needed=False)

    def _unknown(self, patch: Patch, found: Mapping[Target, str | None], allowed: bool) -> Finding:
        if self._unpatched is None:
            self._unpatched = _Unpatched(self.register, self.tree)
        if patch.id in self._unpatched.patches:
            reason = "the file on disk is patched already, as `sglang-commfix export` would"
            return Finding(patch, "not-needed", reason, found, needed=False)
        before = {target: self._unpatched.fingerprint(target) for target in found}
        if before != found and (decision := self._known(patch, before)):
            return replace(decision, found=found)
        unknown = self._what_is_unknown(patch, found)
        if not allowed:
            return Finding(
                patch,
                "refused",
                f"{unknown}. If the fault is here, make a lock of this sglang with "
                f"`sglang-commfix lock --allow {patch.id}`, and keep it if what "
                f"`sglang-commfix diff {patch.id}` shows then is right",
                found,
            )
        variants = [edits for edits in patch.variants() if self._matches(edits)]
        if len(variants) != 1:
            return Finding(
                patch,
                "refused",
                f"{unknown}, and the text to be changed is not there exactly once",
                found,
            )
        return Finding(patch, "apply", f"allowed although {unknown}", found, variants[0])

    def _what_is_unknown(self, patch: Patch, found: Mapping[Target, str | None]) -> str:
        known, version = patch.fingerprints, self.tree.version
        oldest = known.releases[0]
        who = f"sglang-commfix {__version__} knows"
        if version is not None and version < Version(oldest):
            return f"sglang {version} is older than {oldest}, the oldest release that {who}"
        says = f"this sglang says it is {self.tree.says}"
        if version is None:
            says = "this sglang does not say which version it is"
        odd = [t for t, value in found.items() if value not in known.targets.get(t, ())]
        if odd:
            return f"{', '.join(map(str, odd))} is not as in any release that {who} ({says})"
        like = "; ".join(
            f"{target} as in {known.spans(known.releases_with({target: value}))}"
            for target, value in found.items()
        )
        return f"no release that {who} has all of this together: {like} ({says})"

    def _matches(self, edits: Sequence[Edit]) -> bool:
        for edit in edits:
            try:
                tree = self.tree.tree(edit.target.module)
                if tree is None:
                    return False
                if edit.operation != "append":
                    find_anchor(tree, edit)
            except (AnchorError, SourceError):
                return False
        return True


class _Unpatched:
    """The installed source with every exported patch taken out again.

    Attributes:
        patches: ids of the patches that are on disk: without them, their targets are those of a
            release that they affect.

    """

    def __init__(self, register: Register, tree: Tree) -> None:
        self._tree_as_installed = tree
        self._trees: dict[str, ast.Module] = {}
        candidates = list(register.patches)
        while True:
            self._trees.clear()
            there = [patch for patch in reversed(candidates) if self._take_out(patch)]
            recognised = [patch for patch in candidates if patch in there and self._affects(patch)]
            if len(recognised) == len(candidates):
                break
            candidates = recognised
        self.patches = {patch.id for patch in recognised}

    def fingerprint(self, target: Target) -> str | None:
        """Return the fingerprint of ``target`` without the patches; ``None`` if it is absent."""
        tree = self._tree(target.module)
        scope = None if tree is None else find_scope(tree, target.scope)
        return None if scope is None else fingerprint(scope)

    def _tree(self, module: str) -> ast.Module | None:
        return self._trees.get(module) or self._tree_as_installed.tree(module)

    def _take_out(self, patch: Patch) -> bool:
        for edits in patch.variants():
            places: list[Place] = []
            try:
                for module in dict.fromkeys(edit.target.module for edit in edits):
                    tree = self._own_tree(module)
                    places += find_results(tree, [e for e in edits if e.target.module == module])
            except (AnchorError, SourceError):
                continue
            take_out(places)
            return True
        return False

    def _own_tree(self, module: str) -> ast.Module:
        """Parse ``module`` anew, so that it can be changed."""
        source = self._tree_as_installed.source(module)
        if source is None:
            raise SourceError(f"there is no {module}")
        if module not in self._trees:
            self._trees[module] = parse(source)
        return self._trees[module]

    def _affects(self, patch: Patch) -> bool:
        try:
            found = {target: self.fingerprint(target) for target in patch.targets}
        except SourceError:
            return False
        releases = patch.fingerprints.releases_with(found)
        return any(patch.affected.contains(release, True) for release in releases)


def _fixed_since(patch: Patch) -> str:
    return f"sglang has the fix since {patch.fixed_in}"


def _left_behind(patch: Patch, found: Mapping[Target, str | None]) -> str | None:
    """Say which witness is as it is where the fault is, although nothing to be edited is there."""
    known = patch.fingerprints
    if known.releases_with(found):
        return None
    for target in patch.witnesses:
        alike = known.releases_with({target: found[target]}) if found[target] else ()
        faulty = [release for release in alike if release in patch.affected_releases]
        if faulty:
            edited = ", ".join({str(edit.target): None for edit in patch.edits if edit.find})
            like = f"{target} is as in {known.spans(faulty)}, which has the fault"
            return f"{edited} is not there, but {like}: the code may have been moved or renamed"
    return None
