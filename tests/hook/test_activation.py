"""When the patches are applied, and in which processes."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import packaging
import pytest
from rig.site import PATCHED, SHOW, UNPATCHED, Site
from rig.stand_in import FILE, in_doubt

import sglang_commfix


# Measuring coverage imports modules of its own at start.
UNMEASURED = {"COVERAGE_PROCESS_START": "", "COVERAGE_PROCESS_CONFIG": ""}


def test_with_the_variable_the_fault_is_gone_and_one_line_says_so(site: Site) -> None:
    result = site.run(SHOW)
    assert result.stdout == PATCHED
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert "INFO sglang-commfix: sglang 1.1 at" in lines[0]
    assert lines[0].endswith("applying 1-guard")


@pytest.mark.parametrize("value", [None, "", "0", "off", " OFF "])
def test_without_the_variable_nothing_happens(site: Site, value: str | None) -> None:
    result = site.run(SHOW, select=value)
    assert (result.stdout, result.stderr) == (UNPATCHED, "")


def test_without_the_variable_a_start_imports_nothing_beyond_the_package_itself(site: Site) -> None:
    code = "import sys; print([m for m in sys.modules if 'commfix' in m or m in ('wrapt', 'ast', 'logging')])"
    bare = Site(site.root.parent, site.register)  # no sitecustomize there
    assert bare.run(code, select=None, **UNMEASURED).stdout == "['sglang_commfix']\n"


def test_with_the_variable_a_start_that_needs_no_sglang_imports_no_more(site: Site) -> None:
    code = "import sys; print([m for m in sys.modules if 'commfix' in m or m == 'wrapt'])"
    bare = Site(site.root.parent, site.register)
    assert bare.run(code, select="1", **UNMEASURED).stdout == "['sglang_commfix']\n"


def test_the_gate_is_read_when_sglang_is_imported_not_when_python_starts(site: Site) -> None:
    head = "import os; os.environ['SGLANG_COMMFIX'] = '1'\n"
    assert site.run(head + SHOW, select=None).stdout == PATCHED


def test_looking_for_sglang_does_not_close_the_gate(site: Site) -> None:
    head = """\
import importlib.util, os
assert importlib.util.find_spec('sglang')
os.environ['SGLANG_COMMFIX'] = '1'
"""
    assert site.run(head + SHOW, select=None).stdout == PATCHED


def test_a_variable_that_is_set_before_the_first_edited_module_is_soon_enough(site: Site) -> None:
    head = "import os, sglang.srt\nos.environ['SGLANG_COMMFIX'] = '1'\n"
    assert site.run(head + SHOW, select=None).stdout == PATCHED


@pytest.mark.parametrize(("strict", "status"), [("0", 0), ("1", 78)])
def test_a_variable_that_is_set_too_late_is_an_error(site: Site, strict: str, status: int) -> None:
    code = """\
import os, sglang.srt.layers.communicator
os.environ['SGLANG_COMMFIX'] = '1'
try:
    import sglang.srt.anything
except ImportError:
    pass
"""
    result = site.run(code, select=None, check=False, SGLANG_COMMFIX_STRICT=strict)
    assert "communicator ran before SGLANG_COMMFIX was set" in result.stderr
    assert (result.returncode, result.stderr.count("\n")) == (status, 1)


@pytest.mark.parametrize(
    "options", [["-I"], ["-E"], ["-s"], ["-O"], ["-OO"], ["-B"], ["-X", "utf8"]]
)
def test_interpreter_options_do_not_matter(site: Site, options: list[str]) -> None:
    # -I and -E ignore PYTHONPATH: the program finds the stand-in by itself.
    head = f"""\
import sys; sys.path.insert(0, {str(site.root)!r})
exec(open({str(site.root / "sitecustomize.py")!r}).read())
"""
    assert site.run(head + SHOW, *options).stdout == PATCHED


def test_without_site_nothing_is_applied(site: Site) -> None:
    result = site.run(SHOW, "-S")
    assert (result.stdout, result.stderr) == (UNPATCHED, "")


def test_the_pth_line_may_run_twice(site: Site) -> None:
    head = """\
import sys, sglang_commfix
sglang_commfix.init(); sglang_commfix.init()
assert sum(type(f).__name__ == "StartupFinder" for f in sys.meta_path) == 1
"""
    result = site.run(head + SHOW)
    assert result.stdout == PATCHED
    assert len(result.stderr.splitlines()) == 1


CHILDREN = """
import multiprocessing, os, sys

def child():
    {body}

if __name__ == "__main__":
    {before}
    context = multiprocessing.get_context({method!r})
    process = context.Process(target=child)
    process.start()
    process.join()
    sys.exit(process.exitcode)
"""
BODY = "; ".join(line for line in SHOW.strip().splitlines() if not line.startswith("class"))
BODY = BODY.replace(
    "(Self, Batch)", "(type('S', (), {'scattered': True}), type('B', (), {'size': 1}))"
)


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_children_are_patched_and_say_so_themselves(site: Site, method: str) -> None:
    result = site.run(CHILDREN.format(method=method, body=BODY, before="pass"))
    assert result.stdout == PATCHED
    assert len(result.stderr.splitlines()) == 1


def test_a_forked_child_of_a_patched_process_is_patched_without_a_line_of_its_own(
    site: Site,
) -> None:
    code = CHILDREN.format(method="fork", body=BODY, before="import sglang.srt.layers.communicator")
    result = site.run(code)
    assert result.stdout == PATCHED
    assert len(result.stderr.splitlines()) == 1


def test_a_grandchild_process_is_patched(site: Site) -> None:
    (site.root / "show.py").write_text(SHOW)
    code = (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import show'], check=True)"
    )
    assert site.run(code).stdout == PATCHED


def test_threads_that_import_at_once_get_one_decision_and_one_line(site: Site) -> None:
    code = """
    import sys, threading
    sys.setswitchinterval(1e-6)
    barrier, seen = threading.Barrier(16), []
    def work(number):
        barrier.wait()
        if number % 2:
            import sglang.srt.layers.communicator as c
        else:
            from sglang.srt import layers
            import sglang.srt.layers.communicator as c
        seen.append(c.__commfix__)
    threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
    [t.start() for t in threads]; [t.join() for t in threads]
    print(len(seen), set(seen))
    """
    result = site.run(code)
    assert result.stdout == "16 {('1-guard',)}\n"
    assert len(result.stderr.splitlines()) == 1


def test_a_process_that_imports_only_the_top_of_sglang_says_nothing(site: Site) -> None:
    result = site.run("import sglang; print(sglang.__name__)")
    assert (result.stdout, result.stderr) == ("sglang\n", "")


def test_runpy_runs_the_patched_module(site: Site) -> None:
    result = site.command([sys.executable, "-m", "sglang.srt.layers.communicator"])
    assert result.returncode == 0
    assert "applying 1-guard" in result.stderr


class TestActivate:
    def test_it_patches_this_process_and_its_children(self, site: Site) -> None:
        (site.root / "show.py").write_text(SHOW)
        code = """
        import subprocess, sys, sglang_commfix
        sglang_commfix.activate()
        sglang_commfix.activate()
        import show
        subprocess.run([sys.executable, "-c", "import show"], check=True)
        """
        assert site.run(code, select=None, PYTHONUNBUFFERED="1").stdout == PATCHED * 2

    def test_it_works_after_sglang_itself_but_no_target_is_imported(self, site: Site) -> None:
        head = "import sglang.srt, sglang_commfix\nsglang_commfix.activate()\n"
        assert site.run(head + SHOW, select=None).stdout == PATCHED

    @pytest.mark.parametrize("value", ["0", "off", "No"])
    def test_who_has_switched_it_off_by_the_variable_keeps_it_off(
        self, site: Site, value: str
    ) -> None:
        head = "import os, sglang_commfix; plan = sglang_commfix.activate(strict=True)\n"
        tail = "print({p['decision'] for p in plan.patches}, os.environ['SGLANG_COMMFIX'])\n"
        result = site.run(head + tail + SHOW, select=value)
        assert result.stdout == f"{{'disabled'}} {value}\n{UNPATCHED}"
        given = "import sglang_commfix; sglang_commfix.activate('1')\n"
        assert site.run(given + SHOW, select=value).stdout == PATCHED

    def test_it_is_an_error_once_a_target_is_imported(self, site: Site) -> None:
        code = "import sglang.srt.layers.communicator, sglang_commfix\nsglang_commfix.activate()"
        result = site.run(code, select=None, check=False)
        assert result.returncode == 1
        assert (
            "AlreadyImportedError: sglang.srt.layers.communicator runs already, unpatched: "
            "call sglang_commfix.activate() before sglang is imported" in result.stderr
        )

    def test_other_settings_than_those_in_force_are_an_error(self, site: Site) -> None:
        code = "import sglang.srt, sglang_commfix\nsglang_commfix.activate('0')"
        result = site.run(code, check=False)
        assert (
            "AlreadyImportedError: sglang is imported, and patched as SGLANG_COMMFIX=1"
            in result.stderr
        )

    def test_a_setting_that_cannot_be_used_changes_nothing(self, site: Site) -> None:
        code = """
        import os, sglang_commfix
        try:
            sglang_commfix.activate("nonsense")
        except ValueError as error:
            pass
        except Exception as error:
            print(type(error).__name__, "SGLANG_COMMFIX" in os.environ)
        """
        assert site.run(code, select=None).stdout == "SettingsError False\n"

    def test_children_are_reached_where_no_pth_file_is_read(self, site: Site) -> None:
        (site.root / "show.py").write_text(SHOW)
        code = f"""
        import os, subprocess, sys
        sys.path += {[str(Path(m.__file__).parents[1]) for m in (sglang_commfix, packaging)]!r}
        exec(open({str(site.root / "sitecustomize.py")!r}).read())
        import sglang_commfix
        assert sglang_commfix.FINDER not in sys.meta_path
        sglang_commfix.activate()
        import show
        print(os.environ["PYTHONPATH"].split(os.pathsep)[0])
        """
        shim = Path(site.run(code, "-S", select=None).stdout.splitlines()[1])
        assert (shim / "sitecustomize.py").is_file()


class TestStrict:
    def refused(self, site: Site) -> None:
        file = site.root / "sglang" / FILE
        file.write_text(in_doubt(file.read_text()))

    def test_a_refused_patch_leaves_sglang_as_installed_and_says_so(self, site: Site) -> None:
        self.refused(site)
        result = site.run(
            "import sglang.srt.layers.communicator as c; print(hasattr(c, '__commfix__'))"
        )
        assert result.stdout == "False\n"
        assert "ERROR sglang-commfix: 1-guard is refused: " in result.stderr
        assert "applying nothing; REFUSED: 1-guard" in result.stderr

    def test_under_strict_it_ends_the_process_before_the_runtime_is_imported(
        self, site: Site
    ) -> None:
        self.refused(site)
        code = "import sglang; print('top', flush=True); import sglang.srt; print('never')"
        result = site.run(code, check=False, SGLANG_COMMFIX_STRICT="1")
        assert (result.returncode, result.stdout) == (78, "top\n")
        assert (
            "SGLANG_COMMFIX_STRICT=1 and 1 of the selected patches cannot be applied"
            in result.stderr
        )

    def test_swallowing_the_exit_does_not_help(self, site: Site) -> None:
        self.refused(site)
        code = """
        try:
            import sglang.srt
        except BaseException:
            pass
        import sglang.srt.layers
        """
        assert site.run(code, check=False, SGLANG_COMMFIX_STRICT="1").returncode == 78

    def test_it_ends_the_process_from_a_thread(self, site: Site) -> None:
        self.refused(site)
        code = """
        import threading, time
        threading.Thread(target=__import__, args=("sglang.srt",)).start()
        time.sleep(60)
        """
        assert site.run(code, check=False, SGLANG_COMMFIX_STRICT="1").returncode == 78

    def test_it_ends_a_spawned_child_with_its_status(self, site: Site) -> None:
        self.refused(site)
        code = CHILDREN.format(method="spawn", body=BODY, before="pass")
        assert site.run(code, check=False, SGLANG_COMMFIX_STRICT="1").returncode == 78

    def test_a_patch_that_is_not_needed_is_fine(self, site: Site) -> None:
        file = site.root / "sglang" / FILE
        file.write_text(
            file.read_text().replace(
                "return size > 0",
                "if self.scattered is True:\n            return False\n        return size > 0",
            )
        )
        result = site.run(SHOW, SGLANG_COMMFIX_STRICT="1")
        assert result.stdout == PATCHED
        assert "applying nothing; not needed: 1-guard; none of the 1 faults" in result.stderr
        assert "none of the 1 faults that this version knows is here" in result.stderr

    @pytest.mark.parametrize(
        ("select", "environ"),
        [
            ("nonsense", {}),
            ("1", {"SGLANG_COMMFIX_LOG": "loud"}),
            ("1", {"SGLANG_COMMFIX_ALLOW_UNKNOWN": "9"}),
        ],
    )
    def test_an_unusable_setting_applies_nothing_and_under_strict_ends_the_process(
        self, site: Site, select: str, environ: dict[str, str]
    ) -> None:
        result = site.run(SHOW, select=select, **environ)
        assert result.stdout == UNPATCHED
        assert len(result.stderr.splitlines()) == 1
        assert "Nothing is applied" in result.stderr
        result = site.run(SHOW, select=select, check=False, SGLANG_COMMFIX_STRICT="1", **environ)
        assert (result.returncode, result.stdout) == (78, "")

    def test_a_strict_setting_that_cannot_be_read_is_taken_for_one(self, site: Site) -> None:
        result = site.run(SHOW, check=False, SGLANG_COMMFIX_STRICT="ja")
        assert result.returncode == 78
        assert "SGLANG_COMMFIX_STRICT='ja' is neither" in result.stderr


class TestFailuresOfOurOwn:
    def test_a_damaged_register_leaves_sglang_as_installed(self, site: Site) -> None:
        (site.register / "1-guard" / "patch.toml").write_text("id = ")
        result = site.run(SHOW)
        assert result.stdout == UNPATCHED
        assert len(result.stderr.splitlines()) == 1
        assert "patch.toml" in result.stderr

    def test_a_missing_dependency_leaves_sglang_as_installed(self, site: Site) -> None:
        (site.root / "wrapt.py").write_text("")
        result = site.run(SHOW)
        assert result.stdout == UNPATCHED
        assert len(result.stderr.splitlines()) == 1
        assert "wrapt.py has taken the name of wrapt, which sglang-commfix needs" in result.stderr
        result = site.run(SHOW, check=False, SGLANG_COMMFIX_STRICT="1")
        assert (result.returncode, result.stdout) == (78, "")

    def test_an_unforeseen_error_leaves_sglang_as_installed(self, site: Site) -> None:
        code = """
        import sglang_commfix.run.session as session
        def fail(*arguments): raise ZeroDivisionError("unforeseen")
        session.make_plan = fail
        """
        result = site.run(textwrap.dedent(code) + SHOW)
        assert result.stdout == UNPATCHED
        assert len(result.stderr.splitlines()) == 1
        assert "its own ZeroDivisionError: unforeseen" in result.stderr

    def test_a_folder_in_the_way_of_sglang_is_named(self, site: Site, tmp_path: Path) -> None:
        (tmp_path / "sglang").mkdir()
        (tmp_path / "sglang" / "__init__.py").write_text("")
        result = site.run(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import sglang")
        assert len(result.stderr.splitlines()) == 1
        assert f"imports as sglang is {tmp_path / 'sglang' / '__init__.py'}" in result.stderr
        assert "Nothing is applied" in result.stderr

    def test_no_sglang_at_all_is_pythons_own_error(self, site: Site) -> None:
        (site.root / "sglang").rename(site.root / "other")
        result = site.run("import sglang", check=False)
        assert result.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'sglang'"
        assert "commfix" not in result.stderr
