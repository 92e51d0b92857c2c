"""What shows a fault, and what shows that it is not there, on every published release."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rig.sources.published import RELEASES, plan_for, tree, with_files

from sglang_commfix.engine.guard import as_released, by_statements, decide
from sglang_commfix.engine.register import Fingerprints, Patch, Variant, load


# Forms are the same on every Python, which `tools/locks.py --check` shows there.
pytestmark = [pytest.mark.releases, pytest.mark.one_python]

PATCHES = load().patches
IDS = [patch.id for patch in PATCHES]
each_patch = pytest.mark.parametrize("patch", PATCHES, ids=IDS)


@pytest.mark.parametrize("release", RELEASES)
def test_statements_and_whole_functions_say_the_same(release: str) -> None:
    for patch in PATCHES:
        found = {target: tree(release).fingerprint(target) for target in patch.targets}
        whole = as_released(patch, found)
        assert whole is not None
        finding = by_statements(tree(release), patch, found)
        assert (finding.verdict, finding.edits) == (whole.verdict, whole.edits), patch.id


@each_patch
def test_what_shows_the_fault_is_in_no_release_without_it(patch: Patch) -> None:
    known = patch.fingerprints
    for index, release in enumerate(known.releases):
        faulty = any(
            all(known.clauses[one.key][index] in one.forms(known) for one in variant.clauses)
            for variant in patch.variants
        )
        sound = [
            f"{one.key}: {one.why}"
            for one in patch.sound
            if known.clauses[one.key][index] in one.forms(known)
        ]
        affected = release in patch.affected_releases
        assert not (sound and affected), f"{release} is affected, and is sound by {sound}"
        assert sound or affected, f"{release} is not affected, and no [[sound]] clause stands there"
        # An anchor that only has text put in stands there with the fix, too.
        assert faulty or not affected, f"{release} is affected, and what is edited is not there"


@each_patch
def test_no_variant_asks_for_less_than_another(patch: Patch) -> None:
    """It would be taken where the other's edits do not fit, and leave them out."""
    variants = [set(variant.clauses) for variant in patch.variants]
    assert not any(one < other for one in variants for other in variants)


@each_patch
def test_every_clause_is_there_in_each_of_its_releases(patch: Patch) -> None:
    for clause in (*patch.faulty, *patch.sound):
        if clause.unmentioned:
            continue
        forms = patch.fingerprints.clauses[clause.key]
        for release, form in zip(patch.fingerprints.releases, forms, strict=True):
            if clause.releases.contains(release, True):
                assert form is not None, (clause.key, release)


def without(patch: Patch, release: str) -> Patch:
    """The entry, as if that release had never been read."""
    known = patch.fingerprints
    at = known.releases.index(release)

    def rest(values: tuple[str | None, ...]) -> tuple[str | None, ...]:
        return values[:at] + values[at + 1 :]

    fingerprints = Fingerprints(
        tuple(one for one in known.releases if one != release),
        {target: rest(values) for target, values in known.targets.items()},
        {key: rest(values) for key, values in known.clauses.items()},
    )
    return replace(patch, fingerprints=fingerprints)


# The only release with its fault, or with its fix in that form: nothing in the others tells of it.
ALONE = {
    ("24452-workspace-groups", "0.5.11"),
    ("24785-sum-len-contract", "0.5.11"),
    ("34006-moe-all-to-all-double-reduce", "0.5.21"),
    ("37199-gpt-oss-double-reduce", "0.5.20"),
    # One exit of its own, which no other release has.
    ("pipeline-fusion-workspace", "0.5.5.post1"),
}


@each_patch
def test_each_release_is_decided_by_the_data_of_the_others(patch: Patch) -> None:
    for release in RELEASES:
        rest = without(patch, release)
        finding = by_statements(tree(release), rest, {})
        expected = "apply" if release in patch.affected_releases else "not-needed"
        if (patch.id, release) in ALONE:
            expected = "refused"
        assert finding.verdict == expected, (release, finding.reason)


@each_patch
def test_a_clause_has_a_handful_of_forms_in_all_its_releases(patch: Patch) -> None:
    """Otherwise they would be fingerprints again."""
    for clause in patch.clauses:
        forms = clause.forms(patch.fingerprints)
        print(f"{clause.key}: {len(forms)} forms")
        assert 1 <= len(forms) <= (4 if clause in patch.made else 3)


@pytest.mark.parametrize(
    "release",
    ["0.5.1", "0.5.5.post3", "0.5.9", "0.5.10.post1", "0.5.11", "0.5.12.post1", "0.5.14", "0.5.17"],
)
def test_no_entry_changes_what_another_one_relies_on(release: str) -> None:
    """So they are decided alike, whichever of them are on disk already."""
    concerned = [patch for patch in PATCHES if release in patch.affected_releases]
    for one in concerned:
        modules = plan_for(release, one.id).modules
        after = {name: module.after for name, module in modules.items()}
        edited = with_files(tree(release), after)
        (finding,) = decide(load(), edited, known=[name for name in IDS if name != one.id])
        assert finding.verdict == "not-needed", finding.reason
        for other in concerned:
            if other is one or other.id in one.requires:
                continue
            variant = Variant(other.edits_for(release), other.faulty_in(release))
            for clause in variant.clauses:
                before = tree(release).stands(clause).form
                assert edited.stands(clause).form == before, (one.id, other.id, clause.key)
