"""The numbers: real decoder layers on real process groups, against one process in float64.

Which release has a fault, and which it is, comes from the register; what shows it, from
`tests/patches/<id>/layers.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from rig.entries import declared
from rig.environment import Environment, RigError
from rig.layers.case import Case, Layout
from rig.layers.process import LayerProcess
from rig.layers.proof import (
    DENSE_WHOLE,
    DP_2,
    DP_2_EP_2,
    DP_4_EP_4,
    NO_GLM4_MOE,
    TP_2,
    TP_2_PP_2,
    glm4_moe,
    gpt_oss,
    qwen3_moe,
)
from rig.layers.side_by_side import LayerObserver
from rig.releases import LAYERS, RELEASES

from sglang_commfix.engine.register import load
from sglang_commfix.run.plan import DEFAULT_KINDS


pytestmark = pytest.mark.servers

# float32 against float64: 1e-6 to 2e-6 were seen, and 2 to 6 where a reduction is done twice.
ROUNDING = 1e-5
FAULT = 1e-1

REGISTER = {patch.id: patch for patch in load().patches}

# What upstream got wrong and no entry mends.
UNMENDED = {
    "all-reduce fused with DP attention, which nobody does unasked": (
        ("0.5.1", "0.5.3.post1", "0.5.3.post3", "0.5.4"),
        Case(DP_2, (4, 1), forward="decode", fusion=True),
    ),
    "GLM-4 MoE blocks that lack an attribute, and die in any layout": (
        (NO_GLM4_MOE,),
        glm4_moe(TP_2, (5,)),
    ),
}

# Beside what the proofs run: every layout that sglang serves without a fault.
LAYOUTS = (
    Case(TP_2, (5,)),
    Case(TP_2, (5,), fusion=True),
    Case(TP_2, (3,), layers="DDD", forward="decode", fusion=True),
    Case(DENSE_WHOLE, (5,)),
    Case(DENSE_WHOLE, (4,), layers="DDS", forward="decode"),
    Case(DP_2_EP_2, (0, 4)),
    Case(DP_2_EP_2, (4, 4), forward="decode"),
    Case(DP_2_EP_2, (4, 1), padding="MAX_LEN"),
    Case(DP_2_EP_2, (3, 0), forward="decode", padding="SUM_LEN"),
    qwen3_moe(TP_2, (5,), fusion=True),
    qwen3_moe(DP_2, (4, 1)),
    qwen3_moe(DP_2_EP_2, (4, 1), padding="SUM_LEN"),
    glm4_moe(DP_2_EP_2, (1, 4)),
    Case(DP_4_EP_4, (3, 0, 5, 2), forward="decode"),
    Case(Layout(tp=4, dp=2), (3, 6)),
    Case(Layout(tp=4, dp=2), (6, 3), forward="decode"),
    Case(Layout(tp=4, dp=2, ep=4), (3, 0)),
    Case(Layout(tp=4, dp=2, moe_dense_tp=1), (6, 3)),
    Case(Layout(tp=4, dp=4, moe_dense_tp=1), (3, 1, 5, 2)),
    Case(Layout(tp=4, ep=2), (7,)),
    qwen3_moe(Layout(tp=4, ep=4), (7,)),
    qwen3_moe(Layout(tp=4, dp=4, ep=2), (1, 2, 0, 3)),
)

# From here on models and parts of them that not every release has.
SINCE_0_5_11 = (
    gpt_oss(TP_2, (5,), fusion=True),
    gpt_oss(DP_2, (4, 1)),
    gpt_oss(Layout(tp=4, ep=2), (7,)),
    Case(TP_2_PP_2, (5,), layers="DSSS"),
    qwen3_moe(TP_2_PP_2, (5,), layers="SSSS", forward="decode"),
    Case(TP_2, (5,), layers="DSSS", capture=(1, 2)),
    glm4_moe(DP_2_EP_2, (1, 4), layers="DSSS", capture=(1, 2)),
    gpt_oss(TP_2, (3,), layers="SSSS", capture=(0, 2), forward="decode"),
    qwen3_moe(TP_2, (5,), layers="SSSS", capture=(0, 1), fusion=True),
    qwen3_moe(TP_2, (5,), layers="SSSS", deepstack=True),
)

# Releases on which entries are tried alone and in pairs: on each of these many have their faults.
COMBINED = ("0.5.12.post1", "0.5.17")

# For the default run: unequal tokens, none at all, and both padding modes.
SOME_RELEASES = ("0.5.10.post1", "0.5.11")
SOME_LAYOUTS = (LAYOUTS[0], LAYOUTS[5], LAYOUTS[7], LAYOUTS[13], LAYOUTS[15], SINCE_0_5_11[3])


def affected(entry: str, releases: str = "") -> list[str]:
    """Those releases of an entry that the rig has; none before the register has the entry."""
    if entry not in REGISTER:
        return []
    wanted = REGISTER[entry].affected & SpecifierSet(releases)
    return [release for release in LAYERS if wanted.contains(release, prereleases=True)]


def representative(entry: str) -> str:
    """A release with the newest text that the entry's edits meet; one that serves, if there is."""
    fingerprints = REGISTER[entry].fingerprints
    edited = {edit.target for edit in REGISTER[entry].edits} & set(fingerprints.targets)
    chosen: dict[tuple[str | None, ...], str] = {}
    for release in affected(entry):
        number = fingerprints.releases.index(release)
        text = tuple(fingerprints.targets[target][number] for target in sorted(edited, key=str))
        if chosen.get(text) not in RELEASES:
            chosen[text] = release
    return list(chosen.values())[-1]


def is_on_by_default(entry: str) -> bool:
    return REGISTER[entry].kind in DEFAULT_KINDS


def selection(entry: str) -> str:
    """What a user puts into SGLANG_COMMFIX to have this entry."""
    return "1" if is_on_by_default(entry) else entry


Wanted = tuple[str | None, Case]


@dataclass(frozen=True)
class Run:
    """One test: a release, and the cases that it looks at, each with the patches selected."""

    release: str
    wanted: tuple[Wanted, ...]
    name: str
    by_default: bool


def proofs(*, repairs: bool) -> list[Run]:
    """Each affected release without and with the patch.

    By default the entry's representative, with its first case there; of what is not on by default,
    if it serves.
    """
    return [
        Run(
            release,
            ((None, proof.case), (selection(entry), proof.case)),
            f"{entry}-{proof.case}",
            release == representative(entry)
            and proof in [one for one in of_entry if release in affected(entry, one.releases)][:1]
            and (is_on_by_default(entry) or release in RELEASES),
        )
        for entry, of_entry in declared("layers.py", "PROOFS")
        for proof in of_entry
        if proof.is_repair == repairs
        for release in affected(entry, proof.releases)
    ]


def each(runs: Iterable[Run]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "run",
        [
            pytest.param(
                run,
                marks=() if run.by_default else pytest.mark.servers_full,
                id=f"{run.release}-{run.name}",
            )
            for run in runs
        ],
    )


@pytest.fixture(scope="module")
def observe(request: pytest.FixtureRequest) -> LayerObserver:
    """Is told by the tests that were selected what there will be to see."""
    found = (getattr(item, "callspec", None) for item in request.session.items)
    runs = [spec.params["run"] for spec in found if spec and "run" in spec.params]
    return LayerObserver(
        (run.release, patches, case)
        for run in runs
        if isinstance(run, Run)
        for patches, case in run.wanted
    )


@each(proofs(repairs=True))
def test_the_output_is_wrong_without_the_patch_and_right_with_it(
    observe: LayerObserver, run: Run
) -> None:
    without, patched = (observe(run.release, *wanted) for wanted in run.wanted)

    assert without.error > FAULT
    assert patched.error < ROUNDING, patched


def combinations() -> list[Run]:
    """Each entry of a release alone, and every pair, on the first case of each entry that has one."""
    runs = []
    for release in COMBINED:
        first = {
            entry: next(p.case for p in of_entry if release in affected(entry, p.releases))
            for entry, of_entry in declared("layers.py", "PROOFS")
            if is_on_by_default(entry)
            and any(p.is_repair and release in affected(entry, p.releases) for p in of_entry)
        }
        for selected in (*itertools.combinations(first, 1), *itertools.combinations(first, 2)):
            words = ",".join(selected)
            wanted = tuple((words, case) for case in first.values())
            runs.append(Run(release, wanted, words, by_default=False))
    return runs


@each(combinations())
def test_whatever_is_selected_mends_its_own_faults_and_no_other(
    observe: LayerObserver, run: Run
) -> None:
    for words, case in run.wanted:
        mended = any(
            case in [proof.case for proof in of_entry]
            for entry, of_entry in declared("layers.py", "PROOFS")
            if words is not None and entry in words.split(",")
        )
        error = observe(run.release, words, case).error
        assert (error < ROUNDING) if mended else (error > FAULT), (str(case), error)


@each(proofs(repairs=False))
def test_other_collectives_yield_the_same_output(observe: LayerObserver, run: Run) -> None:
    without, patched = (observe(run.release, *wanted) for wanted in run.wanted)

    assert without.error < ROUNDING, without
    assert patched.error < ROUNDING, patched
    assert without.collectives != patched.collectives


@each(
    Run(release, (("1", case),), str(case), release in SOME_RELEASES and case in SOME_LAYOUTS)
    for release in LAYERS
    for case in (*LAYOUTS, *SINCE_0_5_11)
    if (release, case.model) != (NO_GLM4_MOE, "glm4-moe")
    if case in LAYOUTS or Version(release) >= Version("0.5.11")
)
def test_every_layout_is_right_with_all_that_is_on_by_default(
    observe: LayerObserver, run: Run
) -> None:
    ((patches, case),) = run.wanted
    outcome = observe(run.release, patches, case)

    assert outcome.error < ROUNDING, outcome


@each(
    Run(release, (("all", case),), name, by_default=False)
    for name, (releases, case) in UNMENDED.items()
    for release in releases
)
def test_a_fault_that_no_patch_mends_is_seen(observe: LayerObserver, run: Run) -> None:
    ((patches, case),) = run.wanted

    assert observe(run.release, patches, case).error > FAULT


def applied_by_default(release: str) -> set[str]:
    return {
        entry
        for entry, patch in REGISTER.items()
        if is_on_by_default(entry) and patch.affected.contains(release, prereleases=True)
    }


@each(
    Run(release, ((None, LAYOUTS[0]), ("1", LAYOUTS[0])), "hook", release in SOME_RELEASES)
    for release in LAYERS
    if applied_by_default(release)
)
def test_the_start_up_hook_patches_sglang_and_without_the_variable_it_does_nothing(
    observe: LayerObserver, run: Run
) -> None:
    (line, *more) = observe.ledger(run.release, "1")
    assert more == []
    applied = line.message.partition("applying ")[2].partition(";")[0]

    assert set(applied.split(", ")) == applied_by_default(run.release)
    assert observe.ledger(run.release, None) == []


@pytest.mark.servers_full
def test_another_sglang_than_the_one_wanted_is_an_error(
    environment: Environment, tmp_path: Path
) -> None:
    without_releases = replace(environment, root=tmp_path)
    without_releases.base.mkdir()
    without_releases.venv.symlink_to(environment.venv)

    with (
        pytest.raises(RigError, match=r"imported from .*, not from .*/0\.5\.1/sglang"),
        LayerProcess("0.5.1", environment=without_releases),
    ):
        pass
