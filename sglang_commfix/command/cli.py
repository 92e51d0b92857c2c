"""The command ``sglang-commfix``.

Exit status: 0 fine, 1 a selected patch would be refused or would not reach sglang, 2 usage,
3 no sglang found.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import sglang_commfix
from sglang_commfix import SELECT, wrong
from sglang_commfix.command import launcher, write_lock
from sglang_commfix.command.diff import unified_diff
from sglang_commfix.command.report import reason_of, status
from sglang_commfix.command.series import write_series
from sglang_commfix.command.which import current_plan, which_sglang
from sglang_commfix.engine.register import load
from sglang_commfix.engine.tree import Tree
from sglang_commfix.errors import CommfixError, SettingsError, SglangNotFoundError
from sglang_commfix.run.host import LOCK, read_settings
from sglang_commfix.run.own_lock import read_json
from sglang_commfix.run.plan import DEFAULT_KINDS, OWN_NAME, SHIPPED, Plan, parse_selection, select


if TYPE_CHECKING:
    from collections.abc import Sequence

    from sglang_commfix.command.report import PatchReport, Report
    from sglang_commfix.engine.register import Avoidance, Patch
    from sglang_commfix.files import Sglang

OK, REFUSED, USAGE, NO_SGLANG = 0, 1, 2, 3
_TEXTS = (
    ("Symptom", "symptom"),
    ("Cause", "cause"),
    ("Who is hit", "hits"),
    ("What is changed", "change"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.function(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader (`| head`) has what it wanted; keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except SettingsError as error:
        return _complain(error, USAGE)
    except SglangNotFoundError as error:
        return _complain(error, NO_SGLANG)
    except CommfixError as error:
        return _complain(error, REFUSED)


def _complain(error: CommfixError, status: int) -> int:
    print(f"sglang-commfix: {error}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sglang-commfix",
        description="Upstream communication fixes for the installed sglang.",
        epilog="exit status: 0 fine, 1 a selected patch would be refused or would not reach "
        "sglang, 2 usage, 3 no sglang found",
    )
    parser.add_argument("--version", action="version", version=sglang_commfix.__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    where = argparse.ArgumentParser(add_help=False)
    where.add_argument(
        "--sglang-path",
        metavar="DIR",
        type=Path,
        help="a folder that contains the sglang package, instead of the installed one",
    )
    which = argparse.ArgumentParser(add_help=False)
    which.add_argument(
        "patches", nargs="*", metavar="PATCH", help="an id or a PR number; default: as selected"
    )
    selection = argparse.ArgumentParser(add_help=False)
    selection.add_argument(
        "--select",
        metavar="WORDS",
        help=f"another value than the environment's {SELECT} (with neither: 1)",
    )
    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="print JSON (schema 1)")

    def add(
        name: str,
        function: object,
        text: str,
        parents: Sequence[argparse.ArgumentParser] = (),
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, parents=list(parents))
        command.set_defaults(function=function)
        return command

    add(
        "status", _status, "what would be applied here, and why", [where, selection, which, as_json]
    )
    add(
        "diff",
        _diff,
        "the unified diff that importing sglang amounts to",
        [where, selection, which],
    )
    export = add(
        "export",
        _export,
        "write that diff for `patch -p1` or `git apply`",
        [where, selection, which],
    )
    output = export.add_mutually_exclusive_group(required=True)
    output.add_argument("-o", "--output", metavar="FILE", type=Path, help="one diff")
    output.add_argument(
        "--series", metavar="DIR", type=Path, help="one diff for each patch, and a script `apply`"
    )
    lock = add("lock", _lock, "write the lock of this sglang, for you to read", [where, selection])
    lock.add_argument("-o", "--output", metavar="FILE", type=Path, help="default: beside sglang")
    lock.add_argument(
        "--allow",
        metavar="PATCH",
        action="append",
        default=[],
        help="apply it although the source is unknown, if its text is there exactly once",
    )
    lock.add_argument(
        "--check", action="store_true", help="write nothing; 1 if it would be another lock"
    )
    explain = add("explain", _explain, "symptom, cause and remedy of one patch", [as_json])
    explain.add_argument("patch", metavar="PATCH", help="an id or a PR number")
    run = add("run", _run, "run COMMAND with the hook where Python does not read the .pth file")
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    return parser


def _status(arguments: argparse.Namespace) -> int:
    report = status(arguments.sglang_path, _selection(arguments))
    if arguments.patches:
        named = {patch.id for word in arguments.patches for patch in _named(word)}
        shown = tuple(patch for patch in report.patches if patch.id in named)
        report = replace(report, patches=shown, uninstall=False)
    if arguments.json:
        print(json.dumps(report.as_dict(), indent=2))
    else:
        print(_status_text(report))
    return REFUSED if report.problem else OK


def _status_text(report: Report) -> str:
    origin = {
        "environment": f"{SELECT}={report.select}",
        "--select": f"as with {SELECT}={report.select}",
        "default": f"{SELECT} is not set: nothing is applied. Shown is what {SELECT}=1 would do",
    }[report.select_from]
    hook = {
        True: "; the start-up hook runs",
        False: "; THE START-UP HOOK DOES NOT RUN",
        None: "",
    }[report.hook]
    lines = [f"sglang {report.sglang.version} at {report.sglang.path}{_like(report)}"]
    lines.append(f"{origin}{hook}")
    lines.append(
        {
            "shipped": "Decided by the lock of this release, which is part of sglang-commfix",
            "engine": "Decided now: no lock knows these files. `sglang-commfix lock` makes one"
            if SHIPPED.is_dir()
            else "Decided now, by a checkout of sglang-commfix",
        }.get(report.lock, f"Decided by your lock, {report.lock}")
    )
    lines.append(f"Each process logs commfix={report.runs}")
    for patch in report.patches:
        lines += ["", *_patch_text(patch)]
    lines += ["", *(f"WARNING: {warning}" for warning in report.warnings)]
    lines += [f"NOTE: {report.elsewhere}"] if report.elsewhere else []
    lines.append(_advice(report))
    return "\n".join(lines)


def _like(report: Report) -> str:
    if report.like is None:
        return ""
    like, count = report.like, len(report.like.differing)
    where = f", {len(like.mattering)} of them where it matters" if count else ""
    return f"\nlike {like.release}; of the {like.files} files looked at {count} differ{where}"


def _patch_text(patch: PatchReport) -> list[str]:
    pr = "" if patch.pr is None else f"PR #{patch.pr}, "
    fixed = f"fixed in {patch.fixed_in}" if patch.fixed_in else "fixed in no release yet"
    lines = [
        f"{patch.decision:<10}  {patch.id}  ({pr}{patch.kind}, {fixed})",
        f"    {patch.title}",
        *_wrapped(patch.reason),
    ]
    for edit in patch.edits if patch.decision in {"apply", "refused"} else ():
        line = "" if edit.line is None else f":{edit.line}"
        what = f"{edit.scope} " if edit.scope else "appended code "
        found = ""
        if edit.scope:
            known = edit.as_in or "no published release"
            found = "absent" if edit.fingerprint is None else f"{edit.fingerprint}, as in {known}"
        lines.append(f"      {edit.file}{line}  {what}{found}".rstrip())
    return list(dict.fromkeys(lines))  # two edits of one function have one place


def _wrapped(text: str, indent: str = "    ") -> list[str]:
    """Wrap at spaces alone: what is to be pasted into a shell stays whole."""
    return textwrap.wrap(
        text,
        96,
        initial_indent=indent,
        subsequent_indent=" " * len(indent),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _advice(report: Report) -> str:
    if report.uninstall:
        known = (
            f"{len(report.patches)} faults that sglang-commfix {sglang_commfix.__version__} knows"
        )
        return f"None of the {known} is here"
    counts = [
        f"{sum(patch.decision == decision for patch in report.patches)} {words}"
        for decision, words in (
            ("apply", "to apply"),
            ("not-needed", "not needed"),
            ("refused", "refused"),
            ("disabled", "switched off"),
            ("not-in-lock", "not in your lock"),
        )
        if decision != "not-in-lock"
        or "not-in-lock" in {patch.decision for patch in report.patches}
    ]
    return ", ".join(counts)


def _named(word: str) -> tuple[Patch, ...]:
    """Return the patches that a PATCH of the command line names."""
    register = load()
    patches = register.matching(word.lower())
    if not patches:
        known = wrong.words((patch.id, patch.pr) for patch in register.patches)
        raise SettingsError(f"{word!r} is unknown. Known are: {known}")
    return patches


def _selection(arguments: argparse.Namespace) -> str | None:
    """Return what to select: patches named on the command line count alone."""
    if arguments.patches and arguments.select is not None:
        raise SettingsError("--select and PATCH both say what to apply: give one of them")
    for word in arguments.patches:
        _named(word)
    words: str | None = ",".join(arguments.patches) or arguments.select
    return words


def _diff(arguments: argparse.Namespace) -> int:
    plan = current_plan(arguments.sglang_path, _selection(arguments))
    sys.stdout.buffer.write(unified_diff(plan))
    return _tell(plan)


def _export(arguments: argparse.Namespace) -> int:
    plan = current_plan(arguments.sglang_path, _selection(arguments))
    target = arguments.output or arguments.series
    status = _tell(plan)
    ids = ", ".join(patch["id"] for patch in plan.having("apply"))
    if not ids:
        why = "nothing is left to write" if status == REFUSED else "nothing is needed here"
        print(f"{why}: {target} is not written", file=sys.stderr)
        return status
    root = plan.sglang.path.parent
    try:
        if arguments.series:
            write_series(plan, target)
            how = f"{target / 'apply'} {root}"
        else:
            target.write_bytes(unified_diff(plan))
            how = f"patch -p1 -d {root} < {target}"
    except OSError as error:
        raise SettingsError(f"{target} cannot be written: {error.strerror}") from error
    print(f"{target}: {ids} for sglang {Tree(plan.sglang).says}")
    print(f"apply with: {how}")
    return status


def _tell(plan: Plan) -> int:
    """Say on standard error what is not in the diff; return the exit status."""
    selected, _ = parse_selection(plan.settings.select, plan.patches)
    for patch in plan.patches:
        left_out = patch["decision"] in {"not-needed", "not-in-lock"} and patch["id"] in selected
        if patch["decision"] == "refused" or left_out:
            print(f"{patch['id']}: {patch['decision']}: {reason_of(plan, patch)}", file=sys.stderr)
    return REFUSED if plan.having("refused") else OK


def _lock(arguments: argparse.Namespace) -> int:
    sglang = which_sglang(arguments.sglang_path)
    file = arguments.output or write_lock.place_of(sglang)
    settings = read_settings(select=arguments.select or os.environ.get(SELECT, "").strip() or "1")
    if arguments.check:
        return _check_lock(file, sglang)
    allow = [patch.id for word in arguments.allow for patch in _named(word)]
    lock = write_lock.make(sglang, allow)
    plan = select(sglang, settings, lock, str(file))
    write_lock.write(lock, file)
    read_json(file, sglang)  # as a server will
    print(f"{file}: the lock of sglang {lock['sglang']} at {sglang.path}")
    for patch in plan.patches:
        print(f"{patch['decision']:<10}  {patch['id']}: {reason_of(plan, patch)}")
    if file.resolve() != (sglang.path.parent / OWN_NAME).resolve():
        print(f"It counts where {LOCK}={file} is set")
    print("It decides what your servers run: read it, and keep it where only you can write")
    return REFUSED if plan.having("refused") else OK


def _check_lock(file: Path, sglang: Sglang) -> int:
    found = list(write_lock.differences(file, sglang))
    for line in found:
        print(f"{file}: {line}", file=sys.stderr)
    if not found:
        print(f"{file} is the lock of the sglang at {sglang.path}")
    return REFUSED if found else OK


def _explain(arguments: argparse.Namespace) -> int:
    patches = _named(arguments.patch)
    if arguments.json:
        print(json.dumps({"schema": 1, "patches": [_explained(p) for p in patches]}, indent=2))
    else:
        print("\n\n".join(_explanation(patch) for patch in patches))
    return OK


def _explained(patch: Patch) -> dict[str, object]:
    return {
        "id": patch.id,
        "pr": patch.pr,
        "kind": patch.kind,
        "title": patch.title,
        "affected": patch.range,
        "fixed_in": patch.fixed_in,
        "fixes": list(patch.fixes),
        "links": list(patch.links),
        "edits": sorted({str(edit.target) for edit in patch.edits}),
        "differences": [difference.why for difference in patch.differences],
        **{name: getattr(patch, name) for _, name in _TEXTS},
        "meets": [{**one.table, "words": list(one.words)} for one in patch.meets],
        "avoid": [_avoided(patch, one) for one in patch.avoid],
        "shown": list(patch.shown),
        "drop": load().drop(patch),
    }


def _avoided(patch: Patch, one: Avoidance) -> dict[str, object]:
    releases = [r for r in patch.affected_releases if one.releases.contains(r, prereleases=True)]
    spans = patch.fingerprints.spans(releases)
    return {"what": one.what, "flags": dict(one.flags), "releases": spans, "cost": one.cost}


def _explanation(patch: Patch) -> str:
    lines = [f"{patch.id}  ({patch.kind})", patch.title, ""]
    lines += [f"Affected: sglang {patch.range}    Fixed in: {patch.fixed_in or 'no release yet'}"]
    if patch.fixes:
        pulls = ", ".join(f"#{pr}" for pr in patch.fixes)
        lines += [f"Repairs upstream's own version of: {pulls}"]
    for heading, name in _TEXTS:
        lines += ["", heading, textwrap.indent(getattr(patch, name), "    ")]
    lines += ["", *_launches(patch), "", "Shown on", *_wrapped(patch.shown_on)]
    lines += ["", "When to drop it", f"    {load().drop(patch)}"]
    if patch.differences:
        lines += ["", "Where it decides differently from upstream"]
        lines += [textwrap.indent(difference.why, "    ") for difference in patch.differences]
    lines += ["", "Upstream", *(f"    {link}" for link in patch.links)]
    return "\n".join(lines)


def _launches(patch: Patch) -> list[str]:
    """Say which launches have to do with it, and what they can do without this package."""
    gains = patch.kind not in DEFAULT_KINDS
    lines = ["Which launches gain by it" if gains else "Which launches meet it"]
    lines.append("    Those of which all of this holds" + (":" if len(patch.meets) == 1 else ","))
    for at, one in enumerate(patch.meets):
        lines += [] if at == 0 else ["    or all of this,"]
        for words in one.words:
            lines += _wrapped(words, "      - ")
    if patch.avoid:
        lines += ["", "Without this package"]
    for way in patch.avoid:
        said = _avoided(patch, way)
        cost = f". The price: {way.cost}" if way.cost else ""
        lines += _wrapped(f"{way.what} ({said['releases']}){cost}", "    ")
    return lines


def _run(arguments: argparse.Namespace) -> int:
    command = arguments.command
    if command[:1] == ["--"]:
        command = command[1:]
    if not command:
        raise SettingsError("run needs a command: sglang-commfix run -- COMMAND")
    launcher.run(command)
    return OK
