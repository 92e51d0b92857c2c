"""Source that nobody should write, and a register that is damaged: said, bounded, nothing else lost."""

from __future__ import annotations

import ast
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rig.stand_in import (
    FAULTY,
    FILE,
    MODULE,
    Upstream,
    dedented,
    edit,
    patch,
    plan,
    reason,
    toml,
    verdicts,
)

from sglang_commfix.engine.errors import RegisterError
from sglang_commfix.engine.fingerprint import all_suites
from sglang_commfix.engine.register import Register, load_folder
from sglang_commfix.engine.rewrite import anchors_in
from sglang_commfix.errors import SglangNotFoundError
from sglang_commfix.files import find_sglang


TEXT = dedented(FAULTY)
OTHER = "sglang.srt.layers.other"
EDITS = {
    "1-after": edit(),
    "2-before": edit(find="size = batch.size", before="pass"),
    "3-replace": edit(find="return size > 0", replace="return size > 2"),
}


@pytest.fixture
def register(tmp_path: Path, upstream: Upstream) -> Register:
    patches = [patch(name, edit=[one]) for name, one in EDITS.items()]
    return upstream.register(tmp_path / "patches", *patches)


def holding(tmp_path: Path, text: str | bytes, file: str = FILE) -> Path:
    """Write an sglang whose module has exactly these bytes."""
    path = tmp_path / "site" / "sglang" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return tmp_path / "site"


SUITES = """
def f():
    try:
        a = 0
    except E:
        a = 1
    else:
        a = 2
    finally:
        a = 3
    try:
        pass
    except* E:
        a = 4
    match a:
        case 1:
            a = 5
    def g():
        a = 6
"""


@pytest.mark.skipif("sys.version_info < (3, 11)", reason="except* is 3.11's")
def test_every_suite_is_met_once() -> None:
    tree = ast.parse(SUITES)
    assert [len(anchors_in(tree, ast.parse(f"a = {n}").body)) for n in range(7)] == [1] * 7
    lines = [suite[0].lineno for suite in all_suites(tree)]
    assert sorted(lines) == sorted(set(lines))


NEUTRAL = {
    "lone CR": TEXT.replace("\n", "\r"),
    "lone CR, two statements a line": TEXT.replace(
        "size = batch.size  # tokens", "size = batch.size; pass"
    )
    .replace("size > 0", "size > 0; pass")
    .replace("\n", "\r"),
    "CRLF": TEXT.replace("\n", "\r\n"),
    **{
        f"a backslash and a blank line, {end!r}": TEXT.replace("size > 0\n", "size > 0 \\\n\n")
        .replace("return 1\n", "return 1 \\\n    \n")
        .replace("\n", end)
        for end in ("\n", "\r\n", "\r")
    },
}


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("text", NEUTRAL.values(), ids=NEUTRAL)
def test_neutral_source_is_edited(tmp_path: Path, register: Register, text: str, name: str) -> None:
    made = plan(register, holding(tmp_path, text), name)
    assert verdicts(made)[name] == "apply", reason(made, name)
    compile(made.modules[MODULE].after, "m.py", "exec")


def test_the_line_of_an_edit_is_counted_in_a_file_with_lone_crs(
    tmp_path: Path, register: Register
) -> None:
    made = plan(register, holding(tmp_path, TEXT.replace("\n", "\r")), "3-replace")
    (splice,) = next(p for p in made.patches if p["id"] == "3-replace")["splices"]
    assert splice["at"] == TEXT.splitlines().index("        return size > 0") + 1


def two_files(tmp_path: Path, upstream: Upstream) -> Register:
    """A register with one entry in the module, and one in another."""
    for files in upstream.releases.values():
        files[OTHER] = files[MODULE]
    sound = [{"module": OTHER, "unmentioned": ["should_fuse"], "why": "nothing is fused"}]
    other = patch("2-other", edit=[edit(module=OTHER)], sound=sound)
    holding(tmp_path, TEXT, "srt/layers/other.py")
    return upstream.register(tmp_path / "patches", patch(), other)


HOSTILE = {
    "idna": (b"# coding: idna\n" + TEXT.encode(), "communicator.py cannot be decoded: "),
    "undefined": (b"# coding: undefined\n" + TEXT.encode(), "cannot be decoded: "),
    "punycode": (b"# coding: punycode\n" + TEXT.encode(), "cannot be decoded: "),
    "rot13": (b"# coding: rot13\n" + TEXT.encode(), "is not a text encoding"),
    "no codec": (b"# coding: none\n" + TEXT.encode(), "unknown encoding: none"),
    "lossy": (b"# coding: unicode_escape\n" + TEXT.encode(), "loses bytes"),
    "NUL": (TEXT.encode() + b"\0", "cannot be parsed"),
    **{
        f"{depth} operators": (TEXT.encode() + b"z = q" + b" + q" * depth, "")
        for depth in (300, 500, 700, 900, 950, 990, 1000, 3000)
    },
    **{
        f"{depth} branches": (
            TEXT.encode() + b"if x:\n    y = 1\n" + b"elif x:\n    y = 1\n" * depth,
            "",
        )
        for depth in (300, 900, 990, 1500)
    },
}


@pytest.mark.parametrize(("raw", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_file_that_cannot_be_taken_apart_costs_its_own_entries_alone(
    tmp_path: Path, upstream: Upstream, raw: bytes, message: str
) -> None:
    register = two_files(tmp_path, upstream)
    made = plan(register, holding(tmp_path, raw))
    assert verdicts(made)["2-other"] == "apply"
    if message:
        assert verdicts(made)["1-guard"] == "refused"
        assert message in reason(made)


def a_fifo(file: Path) -> None:
    os.mkfifo(file)


def a_folder(file: Path) -> None:
    file.mkdir()


def a_long_file(file: Path) -> None:
    file.write_text(TEXT + "# a comment\n" * (1 << 18))


def a_link_to_a_device(file: Path) -> None:
    file.symlink_to("/dev/zero")


@pytest.mark.parametrize("put", [a_fifo, a_folder, a_long_file, a_link_to_a_device])
def test_what_is_no_file_to_be_read_is_said_and_keeps_nothing_waiting(
    tmp_path: Path, upstream: Upstream, put: Callable[[Path], None]
) -> None:
    register = two_files(tmp_path, upstream)
    file = tmp_path / "site" / "sglang" / FILE
    put(file)
    made = plan(register, tmp_path / "site")
    assert verdicts(made) == {"1-guard": "refused", "2-other": "apply"}
    message = f"{file} cannot be read: it is no regular file of at most 2 MB. "
    assert message in reason(made)


def test_sglang_in_an_archive_is_not_told_to_be_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holding(tmp_path, TEXT)
    (tmp_path / "site" / "sglang" / "__init__.py").touch()
    archive = tmp_path / "sglang.zip"
    shutil.make_archive(str(archive.with_suffix("")), "zip", tmp_path / "site")
    monkeypatch.syspath_prepend(str(archive))
    with pytest.raises(SglangNotFoundError) as caught:
        find_sglang()
    message = f"{archive}/sglang/__init__.py, which is in an archive, where no file of it can be "
    assert f"{message}read: install it unpacked" in str(caught.value)


def wrong(key: str, value: Any) -> dict[str, Any]:
    return patch(**{key: value})


CLAUSE = {"module": MODULE, "scope": "f", "why": ""}
ENTRIES = [
    (wrong("id", 7), "id is 7, which should be str"),
    (wrong("pr", "7"), "pr is '7', which should be int"),
    (wrong("pr", True), "pr is True, which should be int"),
    (wrong("order", 1.5), "order is 1.5, which should be int"),
    (wrong("kind", ["correctness"]), "kind is ['correctness'], which is none of correctness, "),
    (wrong("affected", 1.1), "affected is 1.1, which should be str"),
    (wrong("affected", "banana"), "affected: Invalid specifier: 'banana'"),
    (wrong("fixed_in", "banana"), "fixed_in is 'banana', which is not in releases.json"),
    (wrong("fixed_in", 1.3), "fixed_in is 1.3, which should be str"),
    (wrong("links", "https://…"), "links is 'https://…', which should be a list"),
    (wrong("links", [7]), "links[0] is 7, which should be str"),
    (wrong("fixes", ["7"]), "fixes[0] is '7', which should be int"),
    (wrong("requires", "2-more"), "requires is '2-more', which should be a list"),
    (wrong("conflicts", [2]), "conflicts[0] is 2, which should be str"),
    (wrong("title", False), "title is False, which should be str"),
    (wrong("kinds", "x"), "'kinds' is unknown; there may be id, kind, collective"),
    (wrong("edit", []), "an entry edits something"),
    (wrong("edit", "x"), "edit is 'x', which should be a list"),
    (wrong("edit", [7]), "edit[0] is 7, which should be a table of module, scope, find"),
    (wrong("edit", [edit(find=["x"])]), "edit[0]: find is ['x'], which should be str"),
    (wrong("edit", [edit(given=["x"])]), "edit[0]: given is ['x'], which should be a dict"),
    (wrong("edit", [edit(given={"x": 1})]), "edit[0]: given['x'] is 1, which should be str"),
    (wrong("edit", [edit(finds="x")]), "edit[0]: 'finds' is unknown; there may be module, scope"),
    (wrong("edit", [edit(), edit(find="(:", after="x")]), "edit[1]: find: "),
    (wrong("edit", [edit(find="x", after="(:")]), "edit[0]: after: "),
    (wrong("edit", [edit(find="x\0", after="y")]), "edit[0]: find: "),
    (wrong("edit", [edit(releases="some")]), "edit[0]: releases: Invalid specifier"),
    (wrong("sound", [CLAUSE | {"releases": ">1."}]), "sound[0]: releases: Invalid specifier"),
    (wrong("faulty", [CLAUSE | {"why": 1}]), "faulty[0]: why is 1, which should be str"),
    (wrong("faulty", [{"module": MODULE}]), "faulty[0]: 'why' is missing"),
    (wrong("beside", [{"id": "1-guard"}]), "beside[0]: 'when' is missing"),
    (wrong("difference", [{"decision": "d", "when": "(", "why": ""}]), "difference[0]: when: "),
]


@pytest.mark.parametrize(("data", "message"), ENTRIES, ids=[text for _, text in ENTRIES])
def test_what_is_wrong_in_an_entry_is_said_with_file_and_key(
    tmp_path: Path, upstream: Upstream, data: dict[str, Any], message: str
) -> None:
    upstream.register(tmp_path)
    file = tmp_path / "1-guard" / "patch.toml"
    file.write_text(toml(data))
    with pytest.raises(RegisterError) as caught:
        load_folder(tmp_path)
    assert str(caught.value).startswith(f"{file}: {message}")


FINGERPRINTS = {
    "[]": "it is [], which should be a dict",
    '{"m:f": "x"}': "['m:f'] is 'x', which should be a list",
    '{"m:f": [["1.0", "1.3", 7]]}': "['m:f'][0][2] is 7, which should be str or null",
    '{"m:f": [["1.0", "1.3"]]}': "m:f: ['1.0', '1.3'] is no run from a release to a release",
    '{"m:f": [[null, null, null]]}': "m:f: [None, None, None] is no run from a release to",
    '{"m:f": [["1.3", "1.0", "x"]]}': "m:f: 1.3 to 1.0 does not follow the run before it",
    '{"m:f": [["1.0", "1.1", "x"]]}': "m:f: it does not cover every release in releases.json",
    "{": "is not JSON",
    "[" * 100000: "is not JSON",
    "\udcff": "is not JSON",
}


@pytest.mark.parametrize(("text", "message"), FINGERPRINTS.items(), ids=FINGERPRINTS.values())
def test_what_is_wrong_in_fingerprints_is_said_with_file_and_key(
    tmp_path: Path, upstream: Upstream, text: str, message: str
) -> None:
    upstream.register(tmp_path)
    file = tmp_path / "1-guard" / "fingerprints.json"
    file.write_text(text, errors="surrogateescape")
    with pytest.raises(RegisterError) as caught:
        load_folder(tmp_path)
    assert str(caught.value).startswith(f"{file}")
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["{", "{}", "[1]", "[" * 100000])
def test_what_is_wrong_in_the_list_of_releases_is_said_with_its_file(
    tmp_path: Path, upstream: Upstream, text: str
) -> None:
    upstream.register(tmp_path)
    (tmp_path / "releases.json").write_text(text)
    with pytest.raises(RegisterError, match=f"^{tmp_path / 'releases.json'}"):
        load_folder(tmp_path)


@pytest.mark.parametrize("text", ["id =", "x = " + "[" * 100000, "\udcff"])
def test_an_entry_that_is_no_toml_is_named(tmp_path: Path, upstream: Upstream, text: str) -> None:
    upstream.register(tmp_path)
    file = tmp_path / "1-guard" / "patch.toml"
    file.write_text(text, errors="surrogateescape")
    with pytest.raises(RegisterError) as caught:
        load_folder(tmp_path)
    assert str(caught.value).startswith(f"{file}: ")
