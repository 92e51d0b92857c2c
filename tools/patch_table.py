"""Write pages from the register: ``patches/README.md``, ``docs/patches.md``, ``docs/releases.md``.

And the README's tables.

``python tools/patch_table.py`` writes them, ``--check`` fails if they are not current.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from generated import bring_up_to_date, read_register, wrapped
from packaging.version import Version

from sglang_commfix.engine.register import facts
from sglang_commfix.run.plan import DEFAULT_KINDS


if TYPE_CHECKING:
    from collections.abc import Sequence

    from sglang_commfix.engine.register import Avoidance, Patch, Register

_HEAD = """\
# The register

Made by `python tools/patch_table.py` from the data in this folder; a test keeps it current.

Each patch is a folder: `patch.toml` holds the entry and its edits, longer added code stands beside
it as a Python file, `fingerprints.json` says what every published release holds at the places
concerned, and `locks.json` what is decided there, with the text that will run. `releases.json`
lists those releases, `keys.json` the digest by which a server finds their locks, and
`launches.toml` what the conditions of entries may name.
[CONTRIBUTING.md](../CONTRIBUTING.md) says how to add one.

| patch | upstream | kind | sglang | fixed in | edits | decided by |
|---|---|---|---|---|---|---|
"""


_RELEASES_HEAD = """\
# Releases and patches

Made by `python tools/patch_table.py`; a test compares every cell with the decision on the source of
the published release.

## Where to go

The first release that has the fix, and nothing else of this register that such a launch would meet.
A launch that a later column names has to go further.

"""

_STATES_HEAD = """
## What each release has

**apply**: the release has the fault, or lacks what the patch brings. *fixed*: it has upstream's
version. *faulty*: it has upstream's version, with a fault that the patch named beside it repairs.
*sound*: it has the code, but not the fault. A release that is not named: what the patch is for is
not there.

"""

_BY_RELEASE_HEAD = """
## What is applied to each release

On by default, and then what is applied when it is named, or with `SGLANG_COMMFIX=all`.

"""


def render_releases(register: Register) -> str:
    """Return the text of ``docs/releases.md``."""
    links = {p.id: f"[{p.id}](../patches/{p.id}/patch.toml)" for p in register.patches}
    safe: list[tuple[str, ...]] = [("patch", "has the fault", "safe from", "but")]
    states: list[tuple[str, ...]] = [("patch", "apply", "fixed", "sound")]
    for patch in register.patches:
        (first, _), *others = register.safe(patch)
        known = patch.fingerprints
        but = "; ".join(f"{when}: {release or 'no release yet'}" for release, when in others)
        affected = known.spans(patch.affected_releases)
        safe.append((links[patch.id], affected, first or "no release yet", but))
        of = {release: state(register, patch, release) for release in known.releases}
        cells = [
            known.spans([release for release, what in of.items() if what == wanted])
            for wanted in ("**apply**", "*fixed*", "*sound*")
        ]
        for what in dict.fromkeys(what for what in of.values() if what.startswith("*faulty*")):
            faulty = known.spans([r for r, one in of.items() if one == what])
            cells[1] = f"{what} {faulty}; {cells[1]}"
        states.append((links[patch.id], *cells))
    rows: list[tuple[str, ...]] = [("sglang", "on by default", "when named")]
    for release in register.patches[0].fingerprints.releases:
        applied = [p for p in register.patches if release in p.affected_releases]
        default = [p.id for p in applied if p.kind in DEFAULT_KINDS]
        named = [p.id for p in applied if p.kind not in DEFAULT_KINDS]
        rows.append((release, ", ".join(default), ", ".join(named)))
    return "".join(
        f"{head}{_table(cells)}"
        for head, cells in (
            (_RELEASES_HEAD, safe),
            (_STATES_HEAD, states),
            (_BY_RELEASE_HEAD, rows),
        )
    )


_PATCHES_HEAD = """\
# The patches

Made by `python tools/patch_table.py` from `patches/<id>/patch.toml`, and from `evidence.md`
beside the tests of each; a test keeps it current. `sglang-commfix explain ID` prints the same
without the evidence. [Which release to go to](releases.md) has a page of its own, and so has
[what was shown on GPUs](gpus.md).

Figures "2 x H200" were measured on unpatched published releases, with small models of real
architecture (DeepSeek-V3-like, four layers, the first dense, random bfloat16 weights). |Δlogp| is
the change of a prompt token's log-probability against the same model on 0.5.11 with `--tp 1`,
over 2839 prompt tokens; *greedy* is how many of 96 generated tokens agree before the first that
differs. A correct `--tp 2` run gives a mean of 0.05 to 0.08, and single values up to 3.5 where an
expert is routed differently: read mean and median.

Beside the evidence below, each patch is proven so: every release is decided as its version says
(`tests/releases`); decisions are compared with those of the first fixed upstream release, over
the whole product of modes, in the real modules (`tests/servers/test_decisions.py`); real decoder
layers on 2 and 4 real ranks compute what one process does in float64, and do not where a
correctness entry is left out (`tests/servers/test_layers.py`); real servers in all layouts answer
as one rank does (`tests/servers/test_layouts.py`).
"""

_FUSION_HEAD = """
## When FlashInfer's all-reduce fusion is on

By itself it is on for these models, on these machines, in a launch as the last column says, with
`--tp-size` above 1. 0.5.10 and 0.5.10.post1 leave it off with `--attn-cp-size` above 1. From 0.5.10
on `--enforce-disable-flashinfer-allreduce-fusion` keeps it off, and from 0.5.12 on
`--enable-deterministic-inference` does. It can be asked for, for any model, by
`--enable-flashinfer-allreduce-fusion`; from 0.5.14 on also by
`--flashinfer-allreduce-fusion-backend`. sm120 are Blackwell's cards for workstations.

"""

_SECTIONS = (
    ("Symptom", "symptom"),
    ("Who is hit", "hits"),
    ("Cause", "cause"),
    ("Change", "change"),
)


def render_patches(register: Register, evidence: Path) -> str:
    """Return the text of ``docs/patches.md``; ``evidence`` holds a folder for each entry."""
    return (
        _PATCHES_HEAD
        + _fusion(register)
        + "".join(
            _section(register, patch, (evidence / patch.id / "evidence.md").read_text("utf-8"))
            for patch in _newest_first(register)
        )
    )


def _fusion(register: Register) -> str:
    known = register.patches[0].fingerprints
    rows: list[tuple[str, ...]] = [("sglang", "models", "machines", "launched with")]
    for one in facts().facts["flashinfer_fusion_by_itself"].when:
        releases = [r for r in known.releases if one.releases.contains(r, prereleases=True)]
        models = dict.fromkeys(facts().called[name] for name in one.architectures)
        flags = [str(part) for part in one.flags if str(part) != "`--tp-size` > 1"]
        flags += [one.also] if one.also else []
        rows.append(
            (known.spans(releases), ", ".join(models), ", ".join(one.machines), "; ".join(flags))
        )
    return f"{_FUSION_HEAD}{_table(rows)}"


def _section(register: Register, patch: Patch, evidence: str) -> str:
    affected = patch.fingerprints.spans(patch.affected_releases)
    texts = [f"**{name}.** {getattr(patch, key)}" for name, key in _SECTIONS]
    texts += [*_launches(patch), f"**Shown on.** {_sentence(patch.shown_on)}"]
    links = ", ".join(f"[{_name_of(link)}]({link})" for link in patch.links)
    parts = [
        f"\n## {patch.id}",
        f"{patch.title}. A patch of kind *{patch.kind}* for {affected}.",
        *texts,
        evidence.strip(),
        f"**When it can go.** {register.drop(patch)}",
        f"**Upstream.** {links}." if links else "**Upstream.** Not reported.",
    ]
    return "\n\n".join(parts) + "\n"


def _launches(patch: Patch) -> list[str]:
    """Say which launches have to do with it, and what they can do without this package."""
    gains = "gains by it" if patch.kind not in DEFAULT_KINDS else "meets it"
    listed = "\n".join(f"- {'; '.join(one.words)}" for one in patch.meets)
    of_what = "this" if len(patch.meets) == 1 else "one line"
    texts = [f"**A launch {gains}** if all of {of_what} holds:", listed]
    if patch.avoid:
        ways = "; or ".join(_way(patch, one) for one in patch.avoid)
        texts.append(f"**Without this package.** {_sentence(ways)}")
    return texts


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _way(patch: Patch, one: Avoidance) -> str:
    releases = [r for r in patch.affected_releases if one.releases.contains(r, prereleases=True)]
    cost = f"; the price: {one.cost}" if one.cost else ""
    return f"{one.what} ({patch.fingerprints.spans(releases)}){cost}"


def _name_of(link: str) -> str:
    return f"#{link.rpartition('/')[2]}" if link.rpartition("/")[2].isdecimal() else link


def _newest_first(register: Register) -> list[Patch]:
    """Return those first that are on by default, then those whose releases are the newest."""
    return sorted(
        register.patches,
        key=lambda p: (p.kind in DEFAULT_KINDS, Version(p.affected_releases[-1]), p.id),
        reverse=True,
    )


# What somebody with an incident looks for: the first of these words in `seen` decides.
_SEEN = {
    "wrong": "Wrong answers",
    "hang": "It hangs",
    "dies": "It dies",
    "slow": "It is slow",
}


def render_readme(register: Register, text: str) -> str:
    """Return the README with its tables made anew: faults by symptom, and what is optional."""
    faults: dict[str, list[tuple[str, ...]]] = {heading: [] for heading in _SEEN.values()}
    gains = []
    for patch in sorted(_newest_first(register), key=lambda patch: patch.seen):
        affected = patch.fingerprints.spans(patch.affected_releases)
        link = f"[`{patch.id}`](docs/patches.md#{patch.id})"
        if patch.kind in DEFAULT_KINDS:
            faults[_heading(patch)].append((patch.seen, patch.flags, affected, link))
        else:
            gains.append((patch.seen, patch.flags, affected, f"{link} ({patch.kind})"))
    links = [f"[{heading}](#{heading.lower().replace(' ', '-')})" for heading in faults]
    parts = [" ·\n".join(links) + "\n"]
    for heading, rows in faults.items():
        head = ("what you see", "launch flags", "releases", "patch")
        parts.append(f"### {heading}\n\n{_table([head, *rows])}")
    head = ("what it brings", "launch flags", "releases", "patch")
    for name, content in {"faults": "\n".join(parts), "gains": _table([head, *gains])}.items():
        begin = f"<!-- {name}: by tools/patch_table.py -->\n"
        before, _, rest = text.partition(begin)
        _, end, after = rest.partition("<!-- end -->")
        text = f"{before}{begin}\n{content}\n{end}{after}"
    return text


def _heading(patch: Patch) -> str:
    for word, heading in _SEEN.items():
        if word in patch.seen:
            return heading
    raise SystemExit(
        f"patches/{patch.id}/patch.toml: `seen` has none of the words {', '.join(_SEEN)}, by which"
        " the README's tables sort it"
    )


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    head, *body = rows
    lines = [head, ("---",) * len(head), *body]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def state(register: Register, patch: Patch, release: str) -> str:
    """Return what ``docs/releases.md`` says of a patch in a release."""
    if patch.affected.contains(release, True):
        return "**apply**"
    index = patch.fingerprints.releases.index(release)
    edited = {edit.target for edit in patch.edits if edit.target.scope}
    if all(patch.fingerprints.targets[target][index] is None for target in edited):
        return ""
    if not patch.is_fixed_in(release):
        return "*sound*"
    repairs = [p.id for p in register.repairs_of(patch) if release in p.affected_releases]
    return f"*faulty*: {', '.join(repairs)}" if repairs else "*fixed*"


def render(register: Register) -> str:
    """Return the text of ``patches/README.md``."""
    rows = "".join(_row(patch) for patch in register.patches)
    details = "".join(f"\n**{patch.id}**: {patch.title}.\n" for patch in register.patches)
    return f"{_HEAD}{rows}{details}"


def _row(patch: Patch) -> str:
    affected = patch.affected_releases
    pr = next((link for link in patch.links if link.endswith(f"/pull/{patch.pr}")), None)
    cells = [
        f"[{patch.id}]({patch.id}/patch.toml)",
        f"[#{patch.pr}]({pr})" if pr else "none",
        patch.kind,
        f"{patch.fingerprints.spans(affected)} ({len(affected)} in all)",
        patch.fixed_in or "no release yet",
        _cell(dict.fromkeys(str(edit.target) for edit in patch.edits)),
        _cell(dict.fromkeys(str(one.target) for one in (*patch.faulty, *patch.sound))),
    ]
    return f"| {' | '.join(cells)} |\n"


def _cell(names: dict[str, None]) -> str:
    return "<br>".join(f"`{name}`" for name in names)


def main() -> int:
    """Write or check the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if not current")
    arguments = parser.parse_args()
    root = Path(__file__).resolve().parent.parent
    register = read_register(root / "patches")
    texts = {
        root / "patches" / "README.md": wrapped(render(register)),
        root / "docs" / "releases.md": wrapped(render_releases(register)),
        root / "docs" / "patches.md": wrapped(render_patches(register, root / "tests" / "patches")),
        root / "README.md": render_readme(register, (root / "README.md").read_text("utf-8")),
    }
    return bring_up_to_date(texts, check=arguments.check)


if __name__ == "__main__":
    sys.exit(main())
