"""Where the ``.pth`` file is not read: the plugin entry point, and ``sglang-commfix run``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import packaging
import pytest
from rig.site import Site
from rig.stand_in import FILE

import sglang_commfix
from sglang_commfix.command import launcher


SHOW = "from sglang.srt.layers import communicator as c; print(hasattr(c, '__commfix__'))"
VERIFY = "import sglang.srt.layers.communicator\nfrom sglang_commfix.run.session import verify\nverify()\n"
SHIM = Path(sglang_commfix.__file__).parent / "run" / "shim"
# What a `pip install --target` gives: packages on PYTHONPATH, and no file read at start.
PACKAGES = [str(Path(m.__file__).parents[1]) for m in (sglang_commfix, packaging)]  # type: ignore[arg-type]
WITHOUT_SITE = f"import sys; sys.path += {PACKAGES!r}\n"


class TestPlugin:
    def test_it_is_silent_where_all_is_well(self, site: Site) -> None:
        assert len(site.run(VERIFY).stderr.splitlines()) == 1
        assert site.run(VERIFY, select=None).stderr == ""

    def test_it_says_loudly_that_the_hook_did_not_run(self, site: Site) -> None:
        result = site.run(WITHOUT_SITE + VERIFY, "-S")
        assert (
            "ERROR sglang-commfix: SGLANG_COMMFIX=1 is set, but NOTHING IS PATCHED" in result.stderr
        )
        assert "sglang-commfix run -- COMMAND" in result.stderr

    @pytest.mark.parametrize("strict", ["1", "nonsense"])
    def test_under_strict_it_ends_the_process(self, site: Site, strict: str) -> None:
        result = site.run(WITHOUT_SITE + VERIFY, "-S", check=False, SGLANG_COMMFIX_STRICT=strict)
        assert result.returncode == 78

    def test_it_says_which_module_runs_unpatched(self, site: Site) -> None:
        code = (
            "import sglang.srt.layers.communicator as c\nc.LayerCommunicator.should_fuse = print\n"
        )
        result = site.run(code + VERIFY)
        assert "sglang.srt.layers.communicator runs UNPATCHED" in result.stderr

    def test_sglang_finds_it_by_its_entry_point(self) -> None:
        from importlib.metadata import entry_points

        (entry,) = (
            e for e in entry_points(group="sglang.srt.plugins") if e.name == "sglang_commfix"
        )
        assert entry.value == "sglang_commfix.run.session:verify"


class TestRun:
    def command(self, site: Site, *words: str, **options: object) -> str:
        command = [sys.executable, "-m", "sglang_commfix", "run", "--", *words]
        return site.command(command, **options).stdout  # type: ignore[arg-type]

    def test_a_python_without_pth_files_is_reached(self, site: Site) -> None:
        """As a fresh interpreter sees it whose site-packages do not hold this package."""
        bare = [sys.executable, "-I", "-S", "-c"]
        code = f"""
import os, sys
sys.path += {PACKAGES!r}
os.environ["PYTHONPATH"] = os.pathsep.join({PACKAGES!r} + [{str(site.root)!r}])
from sglang_commfix.run.embed import add_shim
add_shim()
os.execv(sys.executable, [sys.executable, "-c", {SHOW!r}])
"""
        result = site.command([*bare, code])
        assert result.stdout == "True\n"

    def test_it_sets_the_variable_unless_it_is_set(self, site: Site) -> None:
        assert self.command(site, sys.executable, "-c", SHOW, select=None) == "True\n"
        assert self.command(site, sys.executable, "-c", SHOW, select="0") == "False\n"

    def test_the_hidden_sitecustomize_runs_as_well(self, site: Site) -> None:
        file = site.root / "sitecustomize.py"
        file.write_text(file.read_text() + "\nprint('theirs', __name__)\n")
        out = self.command(site, sys.executable, "-c", SHOW)
        assert out.splitlines()[-2:] == ["theirs sitecustomize", "True"]

    def test_the_exit_status_is_the_commands(self, site: Site) -> None:
        words = [sys.executable, "-m", "sglang_commfix", "run", sys.executable, "-c", "exit(7)"]
        assert site.command(words, check=False).returncode == 7

    @pytest.mark.parametrize(
        "options",
        [["-S"], ["-uS"], ["-S", "-u"], ["-IS"], ["-X", "utf8", "-S"], ["-Wignore", "-S"]],
    )
    def test_without_site_no_hook_starts_so_that_option_is_left_out(
        self, site: Site, options: list[str]
    ) -> None:
        show = f"import sys; sys.path.insert(0, {str(site.root)!r})\n"
        show += f"exec(open({str(site.root / 'sitecustomize.py')!r}).read())\n{SHOW}"
        command = [sys.executable, "-m", "sglang_commfix", "run", "--", sys.executable]
        result = site.command([*command, *options, "-c", show])
        assert result.stdout == "True\n"
        assert "-S is left out, since Python starts no hook without site" in result.stderr

    def test_words_behind_pythons_own_options_are_left_alone(self, site: Site) -> None:
        code = "import sys; print(sys.argv[1:])"
        assert self.command(site, sys.executable, "-c", code, "-S") == "['-S']\n"
        assert self.command(site, "echo", "-S") == "-S\n"

    @pytest.mark.parametrize(
        ("given", "run"),
        [
            (["python", "-S", "a.py", "-S"], ["python", "a.py", "-S"]),
            (["python3.11", "-BS", "-m", "m", "-S"], ["python3.11", "-B", "-m", "m", "-S"]),
            (["python", "-Sc", "pass"], ["python", "-c", "pass"]),
            (["python", "-W", "error", "-S", "-"], ["python", "-W", "error", "-"]),
            (["python", "-XS", "-S"], ["python", "-XS"]),
            (["python"], ["python"]),
            (["env", "-S", "python"], ["env", "-S", "python"]),
        ],
    )
    def test_only_pythons_own_option_is_left_out(self, given: list[str], run: list[str]) -> None:
        assert launcher._with_site(given) == run

    @pytest.mark.parametrize("option", ["-I", "-E", "-IS"])
    def test_a_python_that_cannot_find_the_hook_is_refused(self, site: Site, option: str) -> None:
        words = ["-m", "sglang_commfix", "run", "--", "python0", option, "x.py"]
        result = site.command([sys.executable, *words], check=False)
        assert result.returncode == 2
        assert f"python0 {option} keeps Python from finding the start-up hook" in result.stderr

    @pytest.mark.parametrize(
        ("words", "status", "message"),
        [
            ([], 2, "run needs a command"),
            (["--"], 2, "run needs a command"),
            (["--", "no-such-command"], 1, "no-such-command cannot be started: No such file"),
        ],
    )
    def test_a_command_that_cannot_be_run_is_one_clear_line(
        self, site: Site, words: list[str], status: int, message: str
    ) -> None:
        result = site.command([sys.executable, "-m", "sglang_commfix", "run", *words], check=False)
        assert result.returncode == status
        assert len(result.stderr.splitlines()) == 1
        assert message in result.stderr

    def test_a_python_that_lacks_the_package_says_so_and_runs_on(self, site: Site) -> None:
        environ = {"PYTHONPATH": os.pathsep.join([str(SHIM), str(site.root)])}
        code = "import sys; sys.path[:] = [p for p in sys.path if 'commfix' not in p]; print(1)"
        lacking = site.root / "sglang_commfix"
        lacking.mkdir()
        (lacking / "__init__.py").write_text("raise ImportError('not here')")
        command = [
            sys.executable,
            "-I",
            "-S",
            "-c",
            f"""
import os, subprocess, sys
os.environ["PYTHONPATH"] = {os.pathsep.join([str(SHIM), str(site.root)])!r}
subprocess.run([sys.executable, "-c", {code!r}])
""",
        ]
        result = site.command(command, **environ)
        assert result.stdout == "1\n"
        assert "cannot import sglang_commfix (not here); sglang runs as installed" in result.stderr


def test_the_readme_shows_the_whole_start_up_file() -> None:
    root = Path(__file__).parents[2]
    readme = (root / "README.md").read_text()
    line = (root / "startup" / "sglang_commfix.pth").read_text()
    assert f"here is all of it:\n\n```text\n{line}```\n" in readme
    assert "[one file](sglang_commfix/__init__.py) of fewer than 100 lines" in readme
    assert (root / "sglang_commfix" / "__init__.py").read_text().count("\n") < 100


def test_status_always_tells_whether_the_hook_runs(site: Site) -> None:
    words = ["-m", "sglang_commfix", "status"]
    assert "the start-up hook runs" in site.command([sys.executable, *words]).stdout
    code = WITHOUT_SITE + f"exec(open({str(site.root / 'sitecustomize.py')!r}).read())\n"
    code += "from sglang_commfix.command.cli import main; main(['status'])"
    out = site.run(code, "-S").stdout
    assert "THE START-UP HOOK DOES NOT RUN" in out
    assert "WARNING: the start-up hook did not run in this Python" in out
    assert FILE in out


@pytest.mark.parametrize("select", [None, "1"])
def test_status_imports_what_a_server_does_of_ours_but_neither_sglang_nor_torch(
    site: Site, select: str | None
) -> None:
    code = """
import sys
from sglang_commfix.command.cli import main
assert main(["status"]) == 0
print([name for name in ("sglang", "torch", "wrapt", "sglang_commfix.run.session") if name in sys.modules])
"""
    result = site.run(code, select=select)
    assert result.stdout.splitlines()[-1] == "['wrapt', 'sglang_commfix.run.session']"
    assert result.stderr == ""
