"""A user's own lock, in a process: taken whole, or not at all, and never replaced by the engine."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from rig.site import Site, make_site
from rig.stand_in import FILE, MODULE, Upstream, edit, in_doubt, patch

from sglang_commfix.run.plan import OWN_NAME


SHOW = """
from sglang.srt.layers import communicator as c
print(getattr(c, "__commfix__", None))
"""
PATCHED, UNPATCHED = "('1-guard',)\n", "None\n"
LOCK = [sys.executable, "-m", "sglang_commfix", "lock"]


def make(site: Site, *options: str, check: bool = True) -> Path:
    site.command([*LOCK, *options], check=check)
    return site.root / OWN_NAME


def change(file: Path, **changes: Any) -> None:
    """Change the only decision in the lock."""
    lock = json.loads(file.read_text())
    lock["decisions"][0] |= changes
    file.write_text(json.dumps(lock))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What the command writes for a site, wherever the site lies."""
    return make(make_site(tmp_path_factory.mktemp("made"))).read_bytes()


@pytest.fixture
def lock(site: Site, made: bytes) -> Path:
    """The lock beside the site's sglang."""
    file = site.root / OWN_NAME
    file.write_bytes(made)
    return file


@pytest.fixture
def edited(site: Site) -> Site:
    """A site whose function no release has so: the guard refuses it."""
    file = site.root / "sglang" / FILE
    file.write_text(in_doubt(file.read_text()))
    return site


def test_a_lock_is_the_same_wherever_sglang_lies(site: Site, made: bytes) -> None:
    assert make(site).read_bytes() == made


@pytest.mark.usefixtures("lock")
def test_the_lock_beside_sglang_decides_and_the_engine_is_not_asked(site: Site) -> None:
    (site.register / "1-guard" / "patch.toml").write_text("the engine would choke on this")
    code = "import sglang_commfix.run.plan as p\n"
    code += f"p.engine = lambda: type('E', (), {{'index': lambda: {{'modules': [{MODULE!r}], "
    code += "'entries': []}})\n"
    assert site.run(code + SHOW).stdout == PATCHED


def test_what_its_owner_allowed_is_applied(edited: Site) -> None:
    assert edited.run(SHOW).stdout == UNPATCHED
    make(edited, "--allow", "1")
    result = edited.run(SHOW, SGLANG_COMMFIX_STRICT="1")
    assert result.stdout == PATCHED
    assert len(result.stderr.splitlines()) == 1


def test_it_may_lie_anywhere_and_the_variable_names_it(site: Site, tmp_path: Path) -> None:
    """As on a read-only root, or in a container with a mounted configuration."""
    file = tmp_path / "etc" / "lock.json"
    file.parent.mkdir()
    site.command([*LOCK, "-o", str(file)])
    assert not (site.root / OWN_NAME).exists()
    os.chmod(file, 0o444)
    change_of_code = site.root / "sglang" / FILE
    change_of_code.write_text(change_of_code.read_text() + "\n# later\n")
    assert site.run(SHOW).stdout == PATCHED  # decided anew
    result = site.run(SHOW, SGLANG_COMMFIX_LOCK=str(file))
    assert result.stdout == UNPATCHED  # it is not the lock of this tree any more
    assert f"{file} is not the lock of this sglang: {change_of_code} differs" in result.stderr


def damage_tree(site: Site, file: Path) -> str:
    (site.root / "sglang" / FILE).open("a").write("# edited\n")
    return f"is not the lock of this sglang: {site.root / 'sglang' / FILE} differs"


def damage_digest(site: Site, file: Path) -> str:
    change(file, modules={MODULE: "0" * 64})
    return "is not the lock of this sglang"


def damage_truncate(site: Site, file: Path) -> str:
    file.write_text(file.read_text()[:-100])
    return "is not JSON"


def damage_schema(site: Site, file: Path) -> str:
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema": 2}))
    return "schema is 2, this version reads 1"


def damage_type(site: Site, file: Path) -> str:
    change(file, requires="24785")
    return "decisions[0]: requires is '24785', which should be a list"


def damage_unknown_key(site: Site, file: Path) -> str:
    change(file, run="rm")
    return "decisions[0]: 'run' is unknown; there may be id, pr, kind"


def damage_verdict(site: Site, file: Path) -> str:
    change(file, decision="maybe")
    return "decision is 'maybe'"


def damage_foreign_module(site: Site, file: Path) -> str:
    change(file, modules={MODULE: None, "os": None})
    return "no patch has to do with os"


def damage_path(site: Site, file: Path) -> str:
    lock = json.loads(file.read_text())
    lock["decisions"][0]["splices"][0]["module"] = "sglang...etc.passwd"
    file.write_text(json.dumps(lock))
    return "no patch has to do with sglang...etc.passwd"


def damage_splice(site: Site, file: Path) -> str:
    lock = json.loads(file.read_text())
    lock["decisions"][0]["splices"][0]["stop"] += 10
    file.write_text(json.dumps(lock))
    return f"{MODULE}: the lock does not fit its bytes"


def damage_beyond(site: Site, file: Path) -> str:
    lock = json.loads(file.read_text())
    lock["decisions"][0]["splices"][0] |= {"start": 10**9, "stop": 10**9}
    file.write_text(json.dumps(lock))
    return f"{MODULE}: the lock does not fit its bytes"


def damage_a_list(site: Site, file: Path) -> str:
    file.write_text("[]")
    return "it is [], which should be a table of schema, made_by"


def damage_remove(site: Site, file: Path) -> str:
    file.unlink()
    file.mkdir()
    return "cannot be read"


DAMAGES = [value for name, value in sorted(globals().items()) if name.startswith("damage_")]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__[7:])
def test_a_lock_that_does_not_fit_applies_nothing_names_the_file_and_ends_a_strict_process(
    site: Site, lock: Path, damage: Any
) -> None:
    message = damage(site, lock)
    result = site.run(SHOW)
    assert result.stdout == UNPATCHED
    assert len(result.stderr.splitlines()) == 1
    assert "ERROR sglang-commfix: " in result.stderr
    assert message in result.stderr
    assert "Nothing is applied" in result.stderr
    result = site.run(SHOW, check=False, SGLANG_COMMFIX_STRICT="1")
    assert (result.returncode, result.stdout) == (78, "")


def test_a_variable_that_names_a_missing_file_is_an_error(site: Site, tmp_path: Path) -> None:
    missing = tmp_path / "missing.json"
    result = site.run(SHOW, SGLANG_COMMFIX_LOCK=str(missing))
    assert result.stdout == UNPATCHED
    assert f"{missing} cannot be read: No such file or directory. Make it with" in result.stderr
    result = site.run(
        SHOW, check=False, SGLANG_COMMFIX_LOCK=str(missing), SGLANG_COMMFIX_STRICT="1"
    )
    assert result.returncode == 78


@pytest.mark.usefixtures("lock")
def test_entries_that_are_newer_than_the_lock_are_named_and_the_lock_stays_valid(
    site: Site,
) -> None:
    newer = patch("2-newer", edit=[edit(find="return size > 0", before="pass")])
    Upstream().register(site.register, patch(), newer)
    result = site.run(SHOW, SGLANG_COMMFIX_STRICT="1")
    assert result.stdout == PATCHED
    assert "applying 1-guard; not in your lock: 2-newer" in result.stderr
    result = site.run(SHOW, select="1,2-newer", SGLANG_COMMFIX_STRICT="1")
    assert result.stdout == PATCHED
    assert "not in your lock: 2-newer" in result.stderr


@pytest.mark.usefixtures("lock")
def test_hashed_and_spliced_are_the_same_bytes_read_once(site: Site) -> None:
    code = f"""
    import pathlib
    original, read = pathlib.Path.read_bytes, []
    def read_bytes(self):
        read.append(self.name)
        return original(self)
    pathlib.Path.read_bytes = read_bytes
    import sglang.srt
    print(read.count({Path(FILE).name!r}))
    """
    assert site.run(code).stdout == "1\n"


def test_an_embedder_may_name_it_and_gets_the_error_at_once(site: Site, lock: Path) -> None:
    code = f"""
    import os, sglang_commfix
    from sglang_commfix.errors import LockError
    plan = sglang_commfix.activate(lock={str(lock)!r})
    print(plan.origin, os.environ["SGLANG_COMMFIX_LOCK"])
    """
    assert site.run(code, select=None).stdout == f"{lock} {lock}\n"
    lock.write_text("{")
    code = code.replace("plan = ", "try: plan = ").replace(
        "print(", "except LockError as error: print(error)\n    else: print("
    )
    out = site.run(code, select=None).stdout
    assert out.startswith(f"{lock} is not JSON")


def spliced(file: Path, **changes: Any) -> None:
    """Change the only splice in the lock."""
    lock = json.loads(file.read_text())
    lock["decisions"][0]["splices"][0] |= changes
    file.write_text(json.dumps(lock))


def hostile_encoding(site: Site, file: Path) -> str:
    spliced(file, encoding="nonsense")
    return f"{file}: 1-guard cannot be made: unknown encoding: nonsense"


def hostile_codec(site: Site, file: Path) -> str:
    spliced(file, encoding="undefined")
    return f"{file}: 1-guard cannot be made: "


def hostile_text(site: Site, file: Path) -> str:
    spliced(file, text=["\ud800"])
    return f"{file}: 1-guard cannot be made: 'utf-8' codec can't encode"


def hostile_twice(site: Site, file: Path) -> str:
    lock = json.loads(file.read_text())
    file.write_text(json.dumps({**lock, "decisions": lock["decisions"] * 2}))
    return f"{file}: 1-guard is in it more than once"


def hostile_nothing(site: Site, file: Path) -> str:
    change(file, splices=[])
    return f"{file}: 1-guard is to be applied, and edits nothing"


def hostile_conflicts(site: Site, file: Path) -> str:
    file.write_text(json.dumps(json.loads(file.read_text()) | {"conflicts": [["1-guard"]]}))
    return f"{file}: conflicts should hold lists of two entries and the reason"


def hostile_fifo(site: Site, file: Path) -> str:
    file.unlink()
    os.mkfifo(file)
    return f"{file} cannot be read: it is no regular file of at most 2 MB. Make it with"


def hostile_link(site: Site, file: Path) -> str:
    """As where the volume is not mounted that holds the lock."""
    file.unlink()
    file.symlink_to(site.root / "nowhere.json")
    return f"{file} cannot be read: No such file or directory. Make it with"


def hostile_loop(site: Site, file: Path) -> str:
    file.unlink()
    file.symlink_to(file)
    return f"{file} cannot be read: Too many levels of symbolic links. Make it with"


def hostile_length(site: Site, file: Path) -> str:
    file.write_text(file.read_text() + " " * (2 << 20))
    return f"{file} cannot be read: it is no regular file of at most 2 MB. Make it with"


def hostile_depth(site: Site, file: Path) -> str:
    file.write_text("[" * 100000)
    return f"{file} is not JSON"


def hostile_number(site: Site, file: Path) -> str:
    file.write_text('{"schema": ' + "1" * 100000 + "}")
    return str(file)


def hostile_mode(site: Site, file: Path) -> str:
    file.chmod(0o666)
    return (
        f"{file} may be written by more people (mode 666) than sglang, and holds what your servers "
        f"run: chmod go-w {file}"
    )


def hostile_group(site: Site, file: Path) -> str:
    file.chmod(0o664)
    return f"{file} may be written by more people (mode 664) than sglang"


def hostile_folder(site: Site, file: Path) -> str:
    site.root.chmod(0o777)
    return f"{site.root} may be written by more people (mode 777) than sglang"


HOSTILE = [value for name, value in sorted(globals().items()) if name.startswith("hostile_")]


@pytest.mark.parametrize("harm", HOSTILE, ids=lambda harm: harm.__name__[8:])
def test_a_hostile_lock_is_one_line_with_its_file_and_applies_nothing(
    site: Site, lock: Path, harm: Any
) -> None:
    message = harm(site, lock)
    result = site.run(SHOW)
    assert result.stdout == UNPATCHED
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr
    assert "Nothing is applied" in result.stderr
    assert site.run(SHOW, check=False, SGLANG_COMMFIX_STRICT="1").returncode == 78
    result = site.command([sys.executable, "-m", "sglang_commfix", "status"], check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert message in result.stderr


@pytest.mark.parametrize(
    ("sglang", "folder", "mode"),
    [
        (0o777, 0o777, 0o666),  # whoever may write the lock may write sglang
        (0o775, 0o775, 0o664),  # a umask of 002
        (0o755, 0o1777, 0o644),  # /tmp: others may write there, but nothing in its place
        (0o755, 0o755, 0o600),
    ],
)
def test_a_lock_that_no_more_people_may_write_than_sglang_is_used(
    site: Site, lock: Path, sglang: int, folder: int, mode: int
) -> None:
    (site.root / "sglang").chmod(sglang)
    site.root.chmod(folder)
    lock.chmod(mode)
    assert site.run(SHOW).stdout == PATCHED


def test_a_lock_is_written_for_its_owner_alone_to_write_and_its_folder_is_looked_at(
    site: Site,
) -> None:
    program = "import os, sys; os.umask(0); from sglang_commfix.command.cli import main; main()"
    file = site.root / OWN_NAME
    code = f"import sys; sys.argv = ['', 'lock']\n{program}"
    site.command([sys.executable, "-c", code])
    assert file.stat().st_mode & 0o777 == 0o644
    site.root.chmod(0o777)
    result = site.command([*LOCK], check=False)
    assert result.returncode == 1
    assert f"chmod go-w {site.root}" in result.stderr
