"""An installation that is damaged, or whose dependencies somebody has taken the name of."""

from __future__ import annotations

import gzip
import os
import shutil
import sys
from base64 import urlsafe_b64encode
from hashlib import sha256
from pathlib import Path

import pytest
from rig.site import Site, make_site
from rig.stand_in import FAULTY, in_doubt

import sglang_commfix
from sglang_commfix.files import KEY
from sglang_commfix.run.installed import damage


SHOW = """
from sglang.srt.layers import communicator as c
print(getattr(c, "__commfix__", None))
"""
PATCHED, UNPATCHED = "('1-guard',)\n", "None\n"
STATUS = [sys.executable, "-m", "sglang_commfix", "status"]
PACKAGE = Path(sglang_commfix.__file__).parent


def said(site: Site, message: str, *, status: int = 1) -> None:
    """The command says it in one line, and nothing else."""
    result = site.command(STATUS, check=False)
    assert (result.returncode, result.stdout) == (status, ""), result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr


def harmless(site: Site, message: str) -> None:
    """A server runs as installed, and says it in one line; under strict it ends."""
    result = site.run(SHOW)
    assert result.stdout == UNPATCHED
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert message in result.stderr
    assert "Nothing is applied" in result.stderr
    result = site.run(SHOW, check=False, SGLANG_COMMFIX_STRICT="1")
    assert (result.returncode, result.stdout) == (78, "")


PRETENDERS = {
    "packaging/__init__.py": "",
    "packaging/__init__.py of another package": "import absent",
    "packaging.py": "",
}


@pytest.mark.parametrize(("name", "text"), PRETENDERS.items(), ids=PRETENDERS)
def test_what_has_taken_the_name_of_packaging_is_named(site: Site, name: str, text: str) -> None:
    file = site.root / name.partition(" ")[0]
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    # Another start-up hook would have imported the register, and the engine with it.
    code = (site.root / "sitecustomize.py").read_text().replace("import sglang_commfix.eng", "# ")
    lines = [line for line in code.splitlines() if "_register" not in line]
    (site.root / "sitecustomize.py").write_text("\n".join(lines))
    taken = site.root / "packaging" if "/" in name else file
    message = (
        f"{taken} has taken the name of packaging, which sglang-commfix needs: rename it, or start "
        "where Python does not find it first"
    )
    said(site, message)
    harmless(site, message)


def test_a_folder_of_that_name_without_code_hides_nothing(site: Site) -> None:
    (site.root / "packaging").mkdir()
    assert site.run(SHOW).stdout == PATCHED
    assert site.command(STATUS).returncode == 0


def test_status_is_not_content_where_a_server_could_not_load_wrapt(site: Site) -> None:
    (site.root / "wrapt.py").write_text("")
    said(site, f"{site.root / 'wrapt.py'} has taken the name of wrapt")


def test_status_is_not_content_where_wrapt_is_missing(site: Site) -> None:
    """As in `pip install --no-deps`: the command runs, and no server would."""
    with (site.root / "sitecustomize.py").open("a") as file:
        file.write(
            "import importlib.machinery as m\n"
            "find = m.PathFinder.find_spec\n"
            "hidden = lambda name, *rest: None if name == 'wrapt' else find(name, *rest)\n"
            "m.PathFinder.find_spec = staticmethod(hidden)\n"
        )
    said(site, "wrapt is not installed, and sglang-commfix needs it: pip install wrapt")


@pytest.fixture
def copied(tmp_path: Path) -> Site:
    """A site whose processes run a copy of the package, with a RECORD beside it."""
    site = make_site(tmp_path)
    copy = site.root / "sglang_commfix"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    record(site.root)
    assert site.run(SHOW).stdout == PATCHED
    assert site.command(STATUS).returncode == 0
    return site


def record(folder: Path, version: str = "0.1.0") -> Path:
    files = [file for file in (folder / "sglang_commfix").rglob("*") if file.is_file()]
    lines = ["sglang_commfix.pth,sha256=x,1", "sglang_commfix/__pycache__/lock.pyc,,"]
    for file in files:
        digest = urlsafe_b64encode(sha256(file.read_bytes()).digest()).decode().rstrip("=")
        name = file.relative_to(folder).as_posix()
        lines.append(f"{name},sha256={digest},{file.stat().st_size}")
    info = folder / f"sglang_commfix-{version}.dist-info"
    info.mkdir()
    (info / "RECORD").write_text("\n".join(lines) + "\n")
    return info


@pytest.mark.parametrize(
    "name",
    ["run/session.py", "run/loader.py", "run/own_lock.py", "engine/guard.py", "command/cli.py"],
)
def test_status_is_not_content_where_a_module_of_ours_is_cut_short(copied: Site, name: str) -> None:
    shutil.rmtree(copied.root / "sglang_commfix-0.1.0.dist-info")
    file = copied.root / "sglang_commfix" / name
    file.write_text(file.read_text()[:700] + "\ndef (")
    said(copied, "the installation is damaged (SyntaxError: ")
    said(copied, "pip install --force-reinstall sglang-commfix")


def test_an_incomplete_installation_is_said_by_status(copied: Site) -> None:
    (copied.root / "sglang_commfix" / "lock.py").write_text(
        (PACKAGE / "lock.py").read_text() + "# changed\n"
    )
    said(
        copied,
        f"the installation is damaged: {copied.root / 'sglang_commfix' / 'lock.py'} is missing or "
        "has changed: pip install --force-reinstall sglang-commfix",
    )


@pytest.mark.parametrize("what", ["changed", "missing"])
def test_a_server_with_an_incomplete_installation_applies_nothing_and_strict_ends_it(
    copied: Site, what: str
) -> None:
    # A file that the process itself never reads: an entry, say, that was not unpacked any more.
    file = copied.root / "sglang_commfix" / "command" / "series.py"
    file.unlink() if what == "missing" else file.write_text("# changed\n")
    harmless(copied, f"the installation is damaged: {file} is missing or has changed")
    code = "import sglang_commfix; sglang_commfix.activate()"
    assert "CommfixError: the installation is damaged" in copied.run(code, check=False).stderr


class TestDamage:
    @pytest.fixture
    def package(self, tmp_path: Path) -> Path:
        package = tmp_path / "sglang_commfix"
        (package / "patches" / "1-guard").mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (package / "patches" / "1-guard" / "locks.json.gz").write_bytes(gzip.compress(b"{}"))
        return package

    def test_without_a_record_there_is_nothing_to_compare(self, package: Path) -> None:
        assert damage(package) is None
        info = record(package.parent)
        (info / "RECORD").unlink()
        assert damage(package) is None

    def test_a_record_that_does_not_list_the_package_is_that_of_an_editable_installation(
        self, package: Path
    ) -> None:
        info = record(package.parent)
        (info / "RECORD").write_text("sglang_commfix.pth,sha256=x,1\n")
        assert damage(package) is None

    def test_what_is_as_recorded_is_whole(self, package: Path) -> None:
        record(package.parent)
        assert damage(package) is None

    def test_a_missing_file_is_named(self, package: Path) -> None:
        record(package.parent)
        file = package / "patches" / "1-guard" / "locks.json.gz"
        file.unlink()
        assert f"{file} is missing or has changed" in (damage(package) or "")

    def test_a_file_that_was_cut_short_is_named(self, package: Path) -> None:
        record(package.parent)
        file = package / "patches" / "1-guard" / "locks.json.gz"
        file.write_bytes(file.read_bytes()[:-4])
        assert f"{file} is missing or has changed" in (damage(package) or "")

    def test_lines_of_a_record_that_are_not_about_the_package_are_passed_over(
        self, package: Path
    ) -> None:
        """An empty line at the end, say, which pip passes over as well."""
        file = record(package.parent) / "RECORD"
        file.write_bytes(b"not a line of three\ncaf\xe9,,\n" + file.read_bytes() + b"\n")
        assert damage(package) is None
        (package / "__init__.py").write_text("# changed")
        assert "__init__.py is missing or has changed" in (damage(package) or "")

    def test_an_empty_folder_of_another_version_is_no_installation(self, package: Path) -> None:
        record(package.parent)
        (package.parent / "sglang_commfix-0.0.9.dist-info").mkdir()
        assert damage(package) is None

    def test_what_an_upgrade_leaves_that_was_killed_is_said(self, package: Path) -> None:
        """As pip 23 leaves it: the old version set aside, the new one half there, no RECORD."""
        aside = record(package.parent).rename(package.parent / "~glang_commfix-0.1.0.dist-info")
        message = f"an installation was interrupted, and left {aside}: pip install --force-rein"
        assert (damage(package) or "").startswith(message)
        (package.parent / "sglang_commfix-0.2.0.dist-info").mkdir()
        assert (damage(package) or "").startswith(message)
        (package.parent / "sglang_commfix-0.2.0.dist-info").rmdir()
        record(package.parent)  # once it is through, what was left does no harm
        assert damage(package) is None

    def test_two_versions_at_once_are_named(self, package: Path) -> None:
        record(package.parent)
        record(package.parent, "0.2.0")
        assert damage(package) == (
            "two versions are installed at once, sglang_commfix-0.1.0.dist-info and "
            f"sglang_commfix-0.2.0.dist-info in {package.parent}: pip install --force-reinstall "
            "sglang-commfix"
        )


def test_a_shipped_lock_that_was_cut_short_applies_nothing(site: Site) -> None:
    runner = site.root / Path(*KEY.split(".")).with_suffix(".py")
    runner.parent.mkdir()
    (runner.parent / "__init__.py").touch()
    runner.write_text("x = 1\n")
    shipped = site.register / "no locks"
    shipped.mkdir()
    name = sha256(runner.read_bytes()).hexdigest()[:16]
    (shipped / f"{name}.json.gz").write_bytes(gzip.compress(b"{}")[:-6])
    harmless(site, "")


@pytest.mark.parametrize("name", ["locks.json", "locks.json.gz"])
def test_decisions_that_were_cut_short_are_named(site: Site, name: str) -> None:
    file = site.register / "1-guard" / name
    file.write_bytes(gzip.compress(b"{}")[:-6])
    message = f"{file} is damaged"
    said(site, message)
    harmless(site, message)


def test_a_fifo_in_place_of_a_module_keeps_no_server_waiting(site: Site) -> None:
    file = site.root / "sglang" / "srt" / "layers" / "communicator.py"
    file.unlink()
    os.mkfifo(file)
    result = site.run("import sglang.srt.layers")
    assert f"{file} cannot be read: it is no regular file of at most 2 MB" in result.stderr


def test_a_codec_that_raises_costs_the_entries_of_that_file_alone(site: Site) -> None:
    file = site.root / "sglang" / "srt" / "layers" / "communicator.py"
    file.write_text("# coding: idna\n" + in_doubt(FAULTY))
    result = site.run("import sglang.srt")
    assert "1-guard is refused: " in result.stderr
    assert f"{file} cannot be decoded: " in result.stderr
