"""The register: every patch this package knows, read from ``patches/*/patch.toml``.

The register is data. This module gives it types, checks that it is whole, and says nothing about
any installed sglang.
"""

from __future__ import annotations

import ast
import json
import sys
import textwrap
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from itertools import compress, groupby, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, cast

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from sglang_commfix.check import misshapen
from sglang_commfix.engine.conditions import (
    Answer,
    Condition,
    Facts,
    Launch,
    Value,
    WhenTable,
    judge,
    read_facts,
    written,
)
from sglang_commfix.engine.errors import RegisterError
from sglang_commfix.files import short_digest


if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_T = TypeVar("_T")
Kind = Literal["correctness", "stability", "performance", "feature"]
Operation = Literal["replace", "before", "after", "append"]

# On what an entry has been shown: real code of releases in several processes, or in servers.
Platform = Literal["cpu ranks", "cpu server", "H100", "H200"]
SHOWN_ON: dict[Platform, str] = {
    "cpu ranks": "real code in several ranks on CPUs",
    "cpu server": "real servers on CPUs",
    "H100": "NVIDIA H100",
    "H200": "NVIDIA H200",
}

_OPERATIONS: tuple[Operation, ...] = ("replace", "before", "after", "append")
_TEXTS = ("title", "seen", "flags", "symptom", "cause", "hits", "change")


class _Place(TypedDict):
    module: str


class _EditTable(_Place, total=False):
    scope: str
    find: str
    replace: str
    before: str
    after: str
    append: str
    releases: str
    given: dict[str, str]


class _Shown(_Place):
    why: str


class _ClauseTable(_Shown, total=False):
    scope: str
    find: str
    unmentioned: list[str]
    releases: str
    given: dict[str, str]
    after: str


class _Decided(TypedDict):
    decision: str
    when: str
    why: str


class _DifferenceTable(_Decided, total=False):
    releases: str


class _BesideTable(TypedDict):
    id: str
    when: str


class _AvoidTable(TypedDict, total=False):
    flags: dict[str, bool | int | str]
    what: str
    releases: str
    cost: str


class _Told(TypedDict):
    id: str
    kind: Kind
    collective: bool
    affected: str
    links: list[str]
    title: str
    seen: str
    flags: str
    symptom: str
    cause: str
    hits: str
    change: str
    shown: list[Platform]
    meets: list[WhenTable]
    edit: list[_EditTable]


class _Table(_Told, total=False):
    """``patch.toml``; ``CONTRIBUTING.md`` says what each key is for."""

    order: int
    pr: int
    fixed_in: str
    fixes: list[int]
    requires: list[str]
    conflicts: list[str]
    faulty: list[_ClauseTable]
    sound: list[_ClauseTable]
    difference: list[_DifferenceTable]
    beside: list[_BesideTable]
    avoid: list[_AvoidTable]


def parsed(text: str) -> list[ast.stmt]:
    """Return the statements of a piece of the register. They are not to be changed."""
    return list(_parsed(text))


@cache
def _parsed(text: str) -> tuple[ast.stmt, ...]:
    return tuple(ast.parse(text).body)


@cache
def _covered(releases: SpecifierSet, among: tuple[str, ...]) -> tuple[bool, ...]:
    """Tell of each of ``among`` whether it is one of ``releases``."""
    return tuple(releases.contains(release, prereleases=True) for release in among)


@dataclass(frozen=True, order=True)
class Target:
    """A class or function of sglang: module and qualified name (empty: the module itself)."""

    module: str
    scope: str

    def __str__(self) -> str:
        return f"{self.module}:{self.scope}" if self.scope else self.module


@dataclass(frozen=True)
class Edit:
    """One change inside one target.

    Attributes:
        target: where the anchor is looked for. For ``append``, a module.
        operation: what happens to the anchor (``append``: added behind the module's last line).
        find: the anchor, one or more neighbouring statements. Empty for ``append``.
        text: the new statements, without indentation.
        releases: the affected releases that take this variant of the edit.
        given: names that are taken as they come, however they are defined.

    """

    target: Target
    operation: Operation
    find: str
    text: str
    releases: SpecifierSet
    given: tuple[str, ...]

    @property
    def anchor(self) -> list[ast.stmt]:
        """The statements to look for."""
        return parsed(self.find)

    @property
    def added(self) -> list[ast.stmt]:
        """The new statements."""
        return parsed(self.text)

    @cached_property
    def clause(self) -> Clause:
        """What has to be there for the edit to do what it does on a release."""
        return Clause(
            self.target, self.find, self.text, self.keeps, True, self.given, (), "", self.releases
        )

    @property
    def keeps(self) -> bool:
        """Whether the anchor stays where it is."""
        return self.operation in {"before", "after"}

    def made(self, patch_id: str) -> Clause:
        """What is there once the edit has been made, as by ``export``."""
        return replace(self.clause, find=self.text, after=patch_id)


@dataclass(frozen=True)
class Clause:
    """One thing that shows the fault to be there, or not to be there.

    It is *there* in a tree if what it names stands in its scope exactly once, in a form that one of
    ``releases`` has; see :mod:`sglang_commfix.engine.reliance` for what a form is.

    Attributes:
        target: the scope; a module for appended text, and for names mentioned nowhere in it.
        find: the statements. Empty: that the scope exists.
        text: new text at that place; empty where the place is only looked at.
        kept: whether new text leaves ``find`` where it is.
        deep: whether the definitions count that reach it. Not for what shows the fault not to be
            there: it is enough that the statements are there, and reached as in a release.
        given: names whose definitions do not count.
        unmentioned: names none of which occurs anywhere in the scope, which is there; or in the
            module, which may be absent.
        why: what it shows, for people. Empty for edits.
        releases: the published releases in which it is there.
        after: the id of the entry that has to be on disk for it to be there, as after ``export``.

    """

    target: Target
    find: str
    text: str
    kept: bool
    deep: bool
    given: tuple[str, ...]
    unmentioned: tuple[str, ...]
    why: str
    releases: SpecifierSet
    after: str = ""

    @cached_property
    def key(self) -> str:
        """Its name in ``fingerprints.json``."""
        what = [
            self.find,
            self.text,
            self.kept,
            self.deep,
            self.given,
            self.unmentioned,
            self.after,
        ]
        return f"{self.target} #{short_digest(json.dumps(what).encode())[:8]}"

    def forms(self, known: Fingerprints) -> frozenset[str]:
        """Return the forms that it has in its releases."""
        if self.unmentioned:
            return frozenset({"unmentioned"})  # so it is, whether a release has it or not
        own = compress(known.clauses[self.key], _covered(self.releases, known.releases))
        return frozenset(value for value in own if value is not None)


@dataclass(frozen=True)
class Difference:
    """A decision of the patched release that is not upstream's, on purpose.

    Attributes:
        decision: which decision, by the name of its suite in ``tests/rig/decisions/product.py``.
        when: the cases, as a Python expression over the axes of that suite.
        why: the reason, for people.
        releases: the affected releases where it is so.

    """

    decision: str
    when: str
    why: str
    releases: SpecifierSet


@dataclass(frozen=True)
class Beside:
    """Another entry's fault, which the same launch may meet where this one is fixed.

    Attributes:
        id: that entry.
        when: which launches, as the end of a sentence: ``with pipeline stages``.

    """

    id: str
    when: str


@dataclass(frozen=True)
class Avoidance:
    """What keeps a launch from meeting the fault, without this package.

    Attributes:
        flags: what to add to the launch, by the names of sglang's ServerArgs. Empty: see ``what``.
        what: the same in words.
        releases: the affected releases in which it does.
        cost: what is lost by it; empty where that goes without saying.

    """

    flags: Mapping[str, Value]
    what: str
    releases: SpecifierSet
    cost: str


@dataclass(frozen=True)
class Fingerprints:
    """What the published releases hold, for the targets of one patch.

    Attributes:
        releases: every release that was read, oldest first.
        targets: for each target, its fingerprint in each of ``releases`` (``None``: absent).
        clauses: for each clause, by its key, its form in each (``None``: not there exactly once).

    """

    releases: tuple[str, ...]
    targets: Mapping[Target, tuple[str | None, ...]]
    clauses: Mapping[str, tuple[str | None, ...]]

    def releases_with(self, found: Mapping[Target, str | None]) -> tuple[str, ...]:
        """Return the releases in which every target is exactly as ``found``."""
        return tuple(
            release
            for index, release in enumerate(self.releases)
            if all(self.targets[target][index] == value for target, value in found.items())
        )

    def spans(self, releases: Sequence[str]) -> str:
        """Write ``releases`` as runs of neighbours: ``0.5.8 to 0.5.11, 0.5.14``."""
        runs = []
        for wanted, run in groupby(self.releases, key=lambda release: release in releases):
            members = list(run)
            if wanted:
                runs.append(" to ".join(dict.fromkeys([members[0], members[-1]])))
        return ", ".join(runs)


@dataclass(frozen=True)
class Patch:
    """An entry of the register. The texts are for people; see ``CONTRIBUTING.md``.

    ``fixed_in`` is the first release with a fix, if there is one.
    ``collective`` tells whether it changes which collectives a rank enters, over what group, or
    how large they are: ranks of one model then have to agree about it.
    ``fixes`` holds the numbers of the upstream pull requests whose published version has the fault.
    ``faulty`` is what has to be there for the fault, beside what is edited, and ``sound`` what
    shows, each by itself, that it is not.
    ``meets`` says which launches have to do with it, each condition by itself; for an entry that
    mends nothing, which gain by it. ``shown`` is on what it was shown.
    """

    id: str
    order: int
    pr: int | None
    kind: Kind
    affected: SpecifierSet
    fixed_in: str | None
    fixes: tuple[int, ...]
    links: tuple[str, ...]
    requires: tuple[str, ...]
    conflicts: tuple[str, ...]
    collective: bool
    edits: tuple[Edit, ...]
    faulty: tuple[Clause, ...]
    sound: tuple[Clause, ...]
    differences: tuple[Difference, ...]
    beside: tuple[Beside, ...]
    meets: tuple[Condition, ...]
    avoid: tuple[Avoidance, ...]
    shown: tuple[Platform, ...]
    fingerprints: Fingerprints
    title: str
    seen: str
    flags: str
    symptom: str
    cause: str
    hits: str
    change: str

    @property
    def range(self) -> str:
        """The affected releases as a specifier, its lower end first."""
        return written(self.affected)

    @property
    def shown_on(self) -> str:
        """Say on what it was shown."""
        return ", ".join(SHOWN_ON[one] for one in self.shown)

    def answer(self, launch: Launch) -> Answer:
        """Return what is known of whether a launch meets it."""
        known = launch.release is not None
        if known and not self.affected.contains(launch.release or "", prereleases=True):
            return Answer.NOT
        return min(Answer.MEETS if known else Answer.UNKNOWN, judge(self.meets, launch))

    def is_fixed_in(self, release: str) -> bool:
        """Tell whether ``release`` is one of those from the first with a fix on."""
        return self.fixed_in is not None and Version(release) >= Version(self.fixed_in)

    @cached_property
    def targets(self) -> tuple[Target, ...]:
        """The scopes that are fingerprinted whole: what is edited, and what shows the fault."""
        scopes = [edit.target for edit in self.edits if edit.target.scope]
        scopes += [clause.target for clause in self.faulty if clause.target.scope]
        return tuple(dict.fromkeys(scopes))

    @cached_property
    def clauses(self) -> tuple[Clause, ...]:
        """Everything whose form is looked at."""
        return (*(edit.clause for edit in self.edits), *self.faulty, *self.sound, *self.made)

    @cached_property
    def made(self) -> tuple[Clause, ...]:
        """What shows that it is on disk already: what is left of each edit that has a scope."""
        return tuple(edit.made(self.id) for edit in self.edits if edit.target.scope)

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """Every module that it edits, or that it is decided by."""
        return tuple(dict.fromkeys(clause.target.module for clause in self.clauses))

    @cached_property
    def digest(self) -> str:
        """What tells whether decisions about it, and texts, were made from it as it is."""
        edits = [
            [str(e.target), e.operation, e.find, e.text, sorted(map(str, e.releases))]
            for e in self.edits
        ]
        targets = {str(target): values for target, values in self.fingerprints.targets.items()}
        known = [self.fingerprints.releases, targets, self.fingerprints.clauses]
        clauses = [
            [one.key, one.why, sorted(map(str, one.releases))]
            for one in (*self.faulty, *self.sound)
        ]
        everything = [self.fixed_in, self.range, edits, known, clauses]
        return short_digest(json.dumps(everything, sort_keys=True).encode())

    @cached_property
    def affected_releases(self) -> tuple[str, ...]:
        """The published releases that have the fault, oldest first."""
        known = self.fingerprints.releases
        return tuple(compress(known, _covered(self.affected, known)))

    def edits_for(self, release: str) -> tuple[Edit, ...]:
        """Return the edits that ``release`` takes."""
        return tuple(edit for edit in self.edits if edit.releases.contains(release, True))

    def faulty_in(self, release: str) -> tuple[Clause, ...]:
        """Return what has to be there in ``release`` beside what is edited."""
        return tuple(one for one in self.faulty if one.releases.contains(release, True))

    @cached_property
    def variants(self) -> tuple[Variant, ...]:
        """The distinct sets of edits that affected releases take, and what shows the fault.

        Releases that take the same edits and show the fault by the same clauses are one variant.
        """
        return tuple(
            dict.fromkeys(
                Variant(self.edits_for(release), self.faulty_in(release))
                for release in self.affected_releases
            )
        )


@dataclass(frozen=True)
class Variant:
    """One form of a fault: what is edited, and what has to be there beside it."""

    edits: tuple[Edit, ...]
    faulty: tuple[Clause, ...]

    @property
    def clauses(self) -> tuple[Clause, ...]:
        """All that has to be there."""
        return (*(edit.clause for edit in self.edits), *self.faulty)


@dataclass(frozen=True)
class Register:
    """All patches, in the order in which their edits are applied."""

    patches: tuple[Patch, ...]

    def __post_init__(self) -> None:
        ids = [patch.id for patch in self.patches]
        for patch in self.patches:
            after = [clause.after for clause in patch.sound if clause.after]
            beside = [other.id for other in patch.beside]
            for other in (*patch.requires, *patch.conflicts, *after, *beside):
                if other not in ids:
                    raise RegisterError(f"{patch.id}: it names {other}, which is not in patches/")
            for repair in self.repairs_of(patch):
                both = set(patch.affected_releases) & set(repair.affected_releases)
                if both:
                    raise RegisterError(
                        f"{repair.id}: it fixes upstream's version of #{patch.pr}, which sglang "
                        f"{patch.fingerprints.spans(tuple(both))} has not: {patch.id} brings it"
                    )

    def __getitem__(self, patch_id: str) -> Patch:
        return next(patch for patch in self.patches if patch.id == patch_id)

    def matching(self, word: str) -> tuple[Patch, ...]:
        """Return the patches that an id or a PR number (``24785``, ``#24785``) names."""
        pr = word.removeprefix("#")
        return tuple(p for p in self.patches if word == p.id or pr == str(p.pr))

    def repairs_of(self, patch: Patch) -> tuple[Patch, ...]:
        """Return the patches that fix upstream's published version of ``patch``."""
        return tuple(p for p in self.patches if patch.pr in p.fixes and patch.pr != p.pr)

    def safe(self, patch: Patch) -> tuple[tuple[str | None, str], ...]:
        """Return the first releases in which nothing of the register meets a launch that it hits.

        The first for launches as such, each further one for those of its words: ``("0.5.21", "with
        pipeline stages")``. ``None``: no release yet.
        """
        known = patch.fingerprints.releases
        fixed = [release for release in known if patch.is_fixed_in(release)]
        found = {"": next(iter(fixed), None)}
        for when in dict.fromkeys(beside.when for beside in patch.beside):
            met = {r for b in patch.beside if b.when == when for r in self[b.id].affected_releases}
            found[when] = next((release for release in fixed if release not in met), None)
        first = found[""]
        return tuple((r, when) for when, r in found.items() if not when or r != first)

    def drop(self, patch: Patch) -> str:
        """Say when an entry can go."""
        (fixed_in, _), *others = self.safe(patch)
        if fixed_in is None:
            return "Not yet: no release has a fix."
        more = "".join(f"; {when}, {release or 'not yet'}" for release, when in others)
        return f"When sglang is {fixed_in} or newer{more}."


def patches_folder() -> Path:
    """Return ``patches/``: inside the package where it is installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "patches"
    return inside if inside.is_dir() else package.parent / "patches"


@cache
def facts() -> Facts:
    """Load what conditions may name.

    Raises:
        RegisterError: the installation is damaged.

    """
    return load_facts(patches_folder() / "launches.toml")


def load_facts(file: Path) -> Facts:
    """Read ``launches.toml``.

    Raises:
        RegisterError: it cannot be used.

    """
    try:
        return read_facts(tomllib.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise RegisterError(f"{file}: {error}") from error


@cache
def load() -> Register:
    """Load this package's own register.

    Raises:
        RegisterError: the installation is damaged.

    """
    return load_folder(patches_folder())


def load_folder(folder: Path, *, complete: bool = True) -> Register:
    """Load a register from a folder of ``<PR>-<slug>/patch.toml`` files.

    Unless ``complete``, fingerprints may be missing: the tool that writes them starts here.
    """
    patches = [_load_patch(file, complete) for file in folder.glob("*/patch.toml")]
    if not patches:
        raise RegisterError(f"{folder} holds no patches: reinstall sglang-commfix")
    return Register(tuple(sorted(patches, key=lambda patch: (patch.order, patch.id))))


def _load_patch(file: Path, complete: bool) -> Patch:
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
        if wrong := misshapen(data, _Table):
            raise RegisterError(f"{file}: {wrong}")
        patch = _patch(file.parent, data)
        if complete:
            _check_fingerprints(patch)
        return patch
    except (OSError, ValueError, SyntaxError, RecursionError) as error:
        raise RegisterError(f"{file}: {error}") from error


def _check_fingerprints(patch: Patch) -> None:
    known = patch.fingerprints
    wanted = {*map(str, patch.targets), *(clause.key for clause in patch.clauses)}
    if missing := wanted - {*map(str, known.targets), *known.clauses}:
        names = ", ".join(sorted(missing))
        raise ValueError(f"fingerprints.json lacks {names}: run tools/fingerprints.py --offline")


def _patch(folder: Path, data: dict[str, Any]) -> Patch:
    if data["id"] != folder.name:
        raise ValueError(f"id {data['id']!r} is not the folder's name")
    affected = _named("affected", lambda: SpecifierSet(data["affected"]))
    fingerprints = _fingerprints(folder)
    edits = _each(data, "edit", lambda item: _edit(folder, item, affected))
    if not edits:
        raise ValueError("an entry edits something")
    _check_anchors(edits)
    return Patch(
        id=data["id"],
        order=data.get("order", 0),
        pr=data.get("pr"),
        kind=data["kind"],
        affected=affected,
        fixed_in=_fixed_in(data.get("fixed_in"), fingerprints.releases),
        fixes=tuple(data.get("fixes", ())),
        links=tuple(data["links"]),
        requires=tuple(data.get("requires", ())),
        conflicts=tuple(data.get("conflicts", ())),
        collective=data["collective"],
        edits=edits,
        faulty=_each(data, "faulty", lambda item: _clause(item, affected, deep=True)),
        sound=_each(data, "sound", lambda item: _clause(item, SpecifierSet(), deep=False)),
        differences=_each(data, "difference", lambda item: _difference(item, affected)),
        beside=_each(data, "beside", lambda item: Beside(item["id"], item["when"])),
        meets=_meets(data),
        avoid=_each(data, "avoid", lambda item: _avoid(item, affected)),
        shown=_shown(data),
        fingerprints=fingerprints,
        **{name: data[name].strip() for name in _TEXTS},
    )


def _named(key: str, read: Callable[[], _T]) -> _T:
    """Name the key in what is wrong with its value."""
    try:
        return read()
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{key}: {error}") from error


def _each(
    data: Mapping[str, Any], key: str, read: Callable[[dict[str, Any]], _T]
) -> tuple[_T, ...]:
    """Read every table of a name."""
    tables = enumerate(data.get(key, ()))
    return tuple(_named(f"{key}[{at}]", partial(read, item)) for at, item in tables)


def _fixed_in(release: str | None, releases: Sequence[str]) -> str | None:
    if release is not None and release not in releases:
        raise ValueError(f"fixed_in is {release!r}, which is not in releases.json")
    return release


def _check_anchors(edits: Sequence[Edit]) -> None:
    """Refuse two edits at one place: once exported, they could not be told apart any more."""
    for index, edit in enumerate(edits):
        for other in edits[:index]:
            place = (other.target, other.find, other.releases)
            if place == (edit.target, edit.find, edit.releases):
                raise ValueError(f"two edits of {edit.target} have one anchor: make them one")


def _target(item: Mapping[str, Any]) -> Target:
    return Target(item["module"], item.get("scope", ""))


def _edit(folder: Path, item: dict[str, Any], affected: SpecifierSet) -> Edit:
    operations = [name for name in _OPERATIONS if name in item]
    if len(operations) != 1:
        raise ValueError(f"an edit has exactly one of {', '.join(_OPERATIONS)}")
    operation = operations[0]
    target = _target(item)
    if (operation == "append") == bool(target.scope):
        raise ValueError("append goes with a module, every other operation with a scope")
    if operation == "append":
        find = ""
        text = (folder / item["append"]).read_text(encoding="utf-8").strip("\r\n") + "\n"
    else:
        find = _statements(item["find"])
        text = _statements(item[operation])
    if not text.isascii():
        raise ValueError("the new text is not ASCII, which some encodings cannot hold")
    _named("find", lambda: ast.parse(find))
    _named(operation, lambda: ast.parse(text))
    releases = _releases(item, affected)
    return Edit(target, operation, find, text, releases, tuple(sorted(item.get("given", {}))))


def _clause(item: Mapping[str, Any], releases: SpecifierSet, *, deep: bool) -> Clause:
    target = _target(item)
    unmentioned = tuple(item.get("unmentioned", ()))
    if not (unmentioned or target.scope) or (unmentioned and "find" in item):
        raise ValueError(f"{target}: a clause has a scope, and `find` or not, or `unmentioned`")
    find = _statements(item["find"]) if "find" in item else ""
    _named("find", lambda: ast.parse(find))
    releases = _releases(item, releases)
    why, after = item["why"].strip(), item.get("after", "")
    given = tuple(sorted(item.get("given", {})))
    return Clause(target, find, "", True, deep, given, unmentioned, why, releases, after)


def _difference(item: Mapping[str, Any], affected: SpecifierSet) -> Difference:
    _named("when", lambda: ast.parse(item["when"], mode="eval"))
    releases = _releases(item, affected)
    return Difference(item["decision"], item["when"], item["why"].strip(), releases)


def _meets(data: Mapping[str, Any]) -> tuple[Condition, ...]:
    if not data["meets"]:
        raise ValueError("an entry says when its fault is met")
    return _each(data, "meets", lambda item: facts().condition(cast("WhenTable", item)))


def _shown(data: Mapping[str, Any]) -> tuple[Platform, ...]:
    if not data["shown"]:
        raise ValueError("shown is empty: an entry was shown on ranks, in a server or on a GPU")
    return tuple(data["shown"])


def _avoid(item: Mapping[str, Any], affected: SpecifierSet) -> Avoidance:
    flags = item.get("flags", {})
    if ("what" in item) == bool(flags):
        raise ValueError("what avoids a fault are flags, or is said in `what`")
    facts().launch(flags)
    said = ", ".join(_as_typed(name, value) for name, value in flags.items())
    what = item.get("what", said)
    return Avoidance(flags, what, _releases(item, affected), item.get("cost", ""))


def _as_typed(name: str, value: bool | int | str) -> str:
    flag = f"--{name.replace('_', '-')}"
    return f"`{flag}`" if value is True else f"`{flag} {value}`"


def _releases(item: Mapping[str, Any], default: SpecifierSet) -> SpecifierSet:
    if "releases" not in item:
        return default
    return _named("releases", lambda: SpecifierSet(item["releases"]))


def _statements(text: str) -> str:
    return textwrap.dedent(text).strip("\r\n") + "\n"


def _fingerprints(folder: Path) -> Fingerprints:
    """Read ``fingerprints.json``: for each target and clause, runs of releases with one value."""
    file = folder / "fingerprints.json"
    releases = _json(folder.parent / "releases.json", list[str])
    if not file.is_file():
        return Fingerprints(tuple(releases), {}, {})
    targets: dict[Target, tuple[str | None, ...]] = {}
    clauses: dict[str, tuple[str | None, ...]] = {}
    for name, runs in _json(file, dict[str, list[list[str | None]]]).items():
        try:
            values = tuple(_values(releases, runs))
        except ValueError as error:
            raise RegisterError(f"{file}: {name}: {error}") from error
        if "#" in name:
            clauses[name] = values
        else:
            module, _, scope = name.partition(":")
            targets[Target(module, scope)] = values
    return Fingerprints(tuple(releases), targets, clauses)


def _json(file: Path, wanted: Any) -> Any:
    try:
        data = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RegisterError(f"{file} is not JSON: {error}") from error
    if wrong := misshapen(data, wanted):
        raise RegisterError(f"{file}: {wrong}")
    return data


def _values(releases: Sequence[str], runs: Sequence[Sequence[str | None]]) -> Iterator[str | None]:
    """Yield a value for each release."""
    done = 0
    for run in runs:
        first, last, value = run if len(run) == 3 else (None, None, None)
        if first not in releases or last not in releases:
            raise ValueError(f"{run} is no run from a release to a release, and a value")
        start, stop = releases.index(first), releases.index(last) + 1
        if start != done or start >= stop:
            raise ValueError(f"{first} to {last} does not follow the run before it")
        yield from repeat(value, stop - start)
        done = stop
    if done != len(releases):
        raise ValueError("it does not cover every release in releases.json")
