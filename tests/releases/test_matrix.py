"""The register against every published release from 0.5.1 on."""

from __future__ import annotations

import ast
import builtins
import itertools
import json
import subprocess
import symtable
from pathlib import Path

import patch_table
import pytest
from fingerprints import fingerprints_of
from generated import wrapped
from packaging.version import Version
from rig.sources.published import RELEASES, after, before, copied, findings, plan_for, tree

from sglang_commfix.command.cli import main
from sglang_commfix.command.report import reason_of
from sglang_commfix.engine.fingerprint import find_scope, fingerprint, normal_form, parse
from sglang_commfix.engine.register import Edit, Target, load
from sglang_commfix.engine.rewrite import anchors_in
from sglang_commfix.run.plan import parse_selection


# That every Python finds the same forms and splices, `tools/locks.py --check` shows there.
pytestmark = [pytest.mark.releases, pytest.mark.one_python]

IDS = [patch.id for patch in load().patches]
AFFECTED = {patch.id: patch.affected_releases for patch in load().patches}
SOME = [
    "0.5.1",
    "0.5.6.post2",
    "0.5.9",
    "0.5.10.post1",
    "0.5.11",
    "0.5.12.post1",
    "0.5.14",
    "0.5.17",
]


def test_the_register_knows_every_release_in_order() -> None:
    assert len(RELEASES) >= 42
    assert sorted(RELEASES, key=Version) == RELEASES
    assert {"0.5.1", "0.5.3.post3", "0.5.12.post1", "0.5.23"} <= set(RELEASES)


@pytest.mark.parametrize("release", RELEASES)
def test_every_release_is_decided_as_its_version_says(release: str) -> None:
    plan = plan_for(release)
    assert tree(release).says == release
    for patch in plan.patches:
        expected = "apply" if release in AFFECTED[patch["id"]] else "not-needed"
        assert patch["decision"] == expected, patch["reason"]


@pytest.mark.parametrize("release", RELEASES)
def test_the_fingerprints_on_record_are_those_of_the_release(release: str) -> None:
    there = fingerprints_of(tree(release), load().patches)
    for patch in load().patches:
        known = patch.fingerprints
        for name, values in (known.targets | known.clauses).items():
            assert there[str(name)] == values[RELEASES.index(release)]


def test_no_affected_release_looks_like_one_that_is_not() -> None:
    for patch in load().patches:
        for release in AFFECTED[patch.id]:
            index = RELEASES.index(release)
            found = {t: values[index] for t, values in patch.fingerprints.targets.items()}
            alike = patch.fingerprints.releases_with(found)
            assert set(alike) <= set(AFFECTED[patch.id])
            assert len({patch.edits_for(one) for one in alike}) == 1


@pytest.mark.parametrize("release", SOME)
def test_any_selection_can_be_applied(release: str) -> None:
    """Two edits overlap or do not, whatever else is applied: pairs stand for all selections."""
    concerned = [name for name in IDS if release in AFFECTED[name]]
    for count in (1, 2, len(concerned)):
        for ids in itertools.combinations(concerned, count):
            plan = plan_for(release, ",".join(ids))
            assert not plan.having("refused")
            applied = {patch["id"] for patch in plan.having("apply")}
            wanted, _ = parse_selection(",".join(ids), plan.patches)
            assert applied == {name for name in wanted if release in AFFECTED[name]}


@pytest.mark.parametrize("release", RELEASES)
def test_the_edited_files_compile_and_are_the_old_ones_once_the_edits_are_taken_out(
    release: str,
) -> None:
    plan = plan_for(release)
    for name, module in plan.modules.items():
        compile(module.after, name, "exec", dont_inherit=True)
        edited, genuine = parse(after(module)), normal_form(parse(before(module)))
        assert normal_form(edited) != genuine
        # What was put in last comes out first: of two texts at one place, the inner one.
        for patch in reversed(plan.having("apply")):
            for edit in findings(release)[patch["id"]].edits:
                if edit.target.module == name:
                    take_out(edited, edit)
        assert normal_form(edited) == genuine


def take_out(tree: ast.Module, edit: Edit) -> None:
    """Put the anchor back where the edit has been made."""
    if edit.operation == "append":
        assert [*map(normal_form, tree.body[-len(edit.added) :])] == [*map(normal_form, edit.added)]
        del tree.body[-len(edit.added) :]
        return
    scope = find_scope(tree, edit.target.scope)
    assert scope is not None
    (place,) = anchors_in(scope, edit.added)
    place.suite[place.start : place.stop] = [] if edit.keeps else edit.anchor


@pytest.mark.parametrize("release", RELEASES)
def test_every_name_in_the_new_text_is_bound_where_it_is_put(release: str) -> None:
    plan = plan_for(release)
    tables = {
        name: symtable.symtable(after(module).text, name, "exec")
        for name, module in plan.modules.items()
    }
    for patch in plan.having("apply"):
        for edit in findings(release)[patch["id"]].edits:
            table = tables[edit.target.module]
            bound = set(dir(builtins)) | _bound(table)
            for name in edit.target.scope.split(".") if edit.target.scope else []:
                table = next(t for t in table.get_children() if t.get_name() == name)
            bound |= _bound(table) if table.get_type() == "function" else set()
            for added in edit.added:
                own = {n.arg for n in ast.walk(added) if isinstance(n, ast.arg)}
                loops = [n.target for n in ast.walk(added) if isinstance(n, ast.comprehension)]
                own |= {n.id for loop in loops for n in ast.walk(loop) if _stores(n)}
                loaded = {n.id for n in ast.walk(added) if _loads(n)}
                if edit.operation == "append":
                    own |= {n.id for n in ast.walk(added) if _stores(n)} | _imported(added)
                    own |= {n.name for n in ast.walk(added) if isinstance(n, ast.ExceptHandler)}
                assert loaded <= bound | own, (release, patch["id"])


def _bound(table: symtable.SymbolTable) -> set[str]:
    return {
        symbol.get_name()
        for symbol in table.get_symbols()
        if symbol.is_assigned() or symbol.is_imported() or symbol.is_parameter()
    }


def _loads(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)


def _stores(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


def _imported(node: ast.AST) -> set[str]:
    imports = (n for n in ast.walk(node) if isinstance(n, ast.Import | ast.ImportFrom))
    return {alias.asname or alias.name for one in imports for alias in one.names}


@pytest.mark.parametrize(
    ("patch", "scope", "fixed"),
    [
        ("24785-sum-len-contract", "should_use_reduce_scatter", "0.5.12"),
        ("19918-scattered-mlp-fusion", "should_fuse_mlp_allreduce_with_next_layer", "0.5.13"),
    ],
)
def test_the_last_affected_release_becomes_what_upstream_published_next(
    patch: str, scope: str, fixed: str
) -> None:
    target = Target("sglang.srt.layers.communicator", f"LayerCommunicator.{scope}")
    plan = plan_for(AFFECTED[patch][-1], patch)
    patched = find_scope(parse(after(plan.modules[target.module])), target.scope)
    assert patched is not None
    assert fingerprint(patched) == tree(fixed).fingerprint(target)


@pytest.mark.parametrize("release", SOME)
def test_an_exported_diff_turns_the_files_into_what_the_loader_runs(
    release: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site, other = copied(release, tmp_path / "site"), copied(release, tmp_path / "other")
    plan = plan_for(release)
    diff = tmp_path / "fixes.patch"
    assert main(["export", "--select", "all", "--sglang-path", str(site), "-o", str(diff)]) == 0
    for folder, tool in (site, "patch -p1 --fuzz=0 -i"), (other, "git apply --verbose"):
        subprocess.run([*tool.split(), str(diff)], cwd=folder, check=True, capture_output=True)
        for module in plan.modules.values():
            file = folder / module.path.relative_to(plan.sglang.path.parent)
            assert file.read_bytes() == module.after
    capsys.readouterr()
    assert main(["status", "--json", "--select", "all", "--sglang-path", str(site)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {patch["decision"] for patch in report["patches"]} == {"not-needed"}
    assert report["uninstall"]


@pytest.mark.parametrize("release", ["0.5.1", "0.5.10.post1", "0.5.11"])
def test_an_exported_series_turns_the_files_into_what_the_loader_runs(
    release: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site, series = copied(release, tmp_path / "site"), tmp_path / "series"
    plan = plan_for(release)
    words = ["--select", "all", "--sglang-path", str(site)]
    assert main(["export", *words, "--series", str(series)]) == 0
    named = [line.partition("-")[2] for line in (series / "series").read_text().split()]
    assert named == [f"{patch['id']}.patch" for patch in plan.having("apply")]
    subprocess.run([series / "apply", site], check=True, capture_output=True)
    for module in plan.modules.values():
        file = site / module.path.relative_to(plan.sglang.path.parent)
        assert file.read_bytes() == module.after
    capsys.readouterr()
    assert main(["status", "--json", *words]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {patch["decision"] for patch in report["patches"]} == {"not-needed"}


def test_the_tables_in_the_docs_are_current() -> None:
    root = Path(__file__).parents[2]
    assert (root / "patches" / "README.md").read_text() == wrapped(patch_table.render(load()))
    releases = wrapped(patch_table.render_releases(load()))
    assert (root / "docs" / "releases.md").read_text() == releases
    patches = wrapped(patch_table.render_patches(load(), root / "tests" / "patches"))
    assert (root / "docs" / "patches.md").read_text() == patches
    readme = (root / "README.md").read_text()
    assert readme == patch_table.render_readme(load(), readme)


@pytest.mark.parametrize("release", RELEASES)
def test_the_table_of_releases_says_what_is_decided(release: str) -> None:
    plan = plan_for(release)
    for patch in plan.patches:
        state = patch_table.state(load(), load()[patch["id"]], release)
        reason = reason_of(plan, patch)
        repaired = "with a fault that" in reason
        assert repaired == state.startswith("*faulty*")
        assert (patch["decision"] == "apply") == (state == "**apply**")
        if state in {"*sound*", "*fixed*"}:
            never = "does not have the fault" in reason
            assert never == (state == "*sound*")
