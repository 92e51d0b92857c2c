"""A process that embeds sglang: it is told at ``activate()``, and is never ended."""

from __future__ import annotations

import textwrap

import pytest
from rig.site import TAKES_OVER, Site
from rig.stand_in import FILE, in_doubt


# Where a host may call: on its main thread, on another, and on an event loop beside the main thread,
# as an actor of Ray does.
WHERE = {
    "main thread": "work()",
    "thread": "threading.Thread(target=work).start()",
    "event loop": """
async def call():
    work()
threading.Thread(target=lambda: asyncio.run(call())).start()
""",
}
WORK = """\
import asyncio, os, sys, threading
import sglang_commfix
from sglang_commfix.errors import RefusedError

def activate(**arguments):
    try:
        sglang_commfix.activate(strict=True, **arguments)
    except RefusedError as error:
        print("told:", error)

def work():
{body}
"""
IMPORT = """
from sglang.srt.layers import communicator
print("patched:", getattr(communicator, "__commfix__", None))
"""
# What sglang calls when an engine is built, from 0.5.11 on.
PLUGIN = """
from sglang_commfix.run.session import verify
verify()
"""
PATCHED, AS_INSTALLED = "patched: ('1-guard',)\n", "patched: None\n"
UNPATCHED = "ERROR sglang-commfix: sglang.srt.layers.communicator runs UNPATCHED"
VARIABLES = {"SGLANG_COMMFIX": "1", "SGLANG_COMMFIX_STRICT": "1"}

at_every_place = pytest.mark.parametrize("where", WHERE)
# A host may have been started as a server is: this must not make it one.
however_started = pytest.mark.parametrize(
    "variables", [{}, VARIABLES], ids=["without variables", "with variables"]
)


def host(*body: str, where: str = "main thread") -> str:
    """Return a program that does ``body`` there, and says so at its end."""
    text = textwrap.indent("\n".join([*body, 'print("done")']), "    ")
    return WORK.format(body=text) + WHERE[where]


def host_with_a_child(child: str, *between: str, method: str = "spawn", before: str = "") -> str:
    """Return a program that activates, does ``between`` and waits for a child that does ``child``."""
    steps = ["sglang_commfix.activate(strict=True)", *between]
    return f"""\
import multiprocessing, os, sys
import sglang_commfix
{before}
def child():
{textwrap.indent(child, "    ")}

if __name__ == "__main__":
{textwrap.indent(chr(10).join(steps), "    ")}
    process = multiprocessing.get_context({method!r}).Process(target=child)
    process.start()
    process.join()
    print("child:", process.exitcode)
"""


@pytest.fixture
def refused(site: Site) -> Site:
    """A site whose sglang is none that the register knows."""
    file = site.root / "sglang" / FILE
    file.write_text(changed(file.read_text()))
    return site


def changed(text: str) -> str:
    return in_doubt(text)


def change_the_file(site: Site) -> str:
    """Return code that makes the sglang on disk one that the register does not know."""
    file = site.root / "sglang" / FILE
    return f"open({str(file)!r}, 'w').write({changed(file.read_text())!r})"


class TestRefused:
    @at_every_place
    def test_activate_raises_and_says_what_is_refused_and_why(
        self, refused: Site, where: str
    ) -> None:
        result = refused.run(host("activate()", where=where), select=None)
        assert result.stdout.startswith(
            "told: 1-guard is refused: neither the fault nor its fix is known here: what line 12 "
            "relies on in sglang.srt.layers.communicator:LayerCommunicator.should_fuse is as in no"
        )

    @however_started
    def test_the_environment_stays_as_it_was(
        self, refused: Site, variables: dict[str, str]
    ) -> None:
        code = host("before = dict(os.environ)", "activate()", "print(os.environ == before)")
        result = refused.run(code, select=None, **variables)
        assert result.stdout.splitlines()[1:] == ["True", "done"]

    @at_every_place
    @however_started
    def test_sglang_runs_as_installed_from_there_on(
        self, refused: Site, variables: dict[str, str], where: str
    ) -> None:
        code = host("activate()", IMPORT, where=where)
        result = refused.run(code, select=None, **variables)
        assert result.stdout.splitlines()[1:] == ["patched: None", "done"]
        assert result.stderr == ""

    @at_every_place
    @however_started
    def test_building_an_engine_does_not_end_the_process(
        self, refused: Site, variables: dict[str, str], where: str
    ) -> None:
        code = host("activate()", IMPORT, PLUGIN, where=where)
        result = refused.run(code, select=None, check=False, **variables)
        assert (result.returncode, result.stdout.splitlines()[-1:]) == (0, ["done"])

    def test_the_plugin_does_not_say_that_the_start_up_hook_is_missing(self, refused: Site) -> None:
        code = host("activate()", IMPORT, PLUGIN)
        result = refused.run(code, select="1")
        assert "the start-up hook did not run" not in result.stderr

    def test_who_catches_everything_has_caught_it_at_activate(self, refused: Site) -> None:
        code = """
        import sglang_commfix
        try:
            sglang_commfix.activate(strict=True)
            print("never")
        except BaseException as error:
            print(type(error).__name__)
        """
        assert refused.run(code, select=None).stdout == "RefusedError\n"

    def test_asked_again_activate_raises_again(self, refused: Site) -> None:
        result = refused.run(host("activate()", "activate()"), select=None)
        first, second, _ = result.stdout.splitlines()
        assert first == second
        assert first.startswith("told: 1-guard is refused")

    def test_taking_the_entry_out_is_a_way_on(self, refused: Site) -> None:
        code = host("activate()", "activate(select='-1')", IMPORT)
        result = refused.run(code, select=None)
        assert result.stdout.splitlines()[1:] == ["patched: None", "done"]
        assert result.stderr.endswith("applying nothing; switched off: 1-guard\n")

    def test_children_run_as_installed_where_no_variable_is_set(self, refused: Site) -> None:
        code = host_with_a_child(IMPORT).replace(
            "    sglang_commfix.activate(strict=True)",
            "    try: sglang_commfix.activate(strict=True)\n    except Exception: pass",
        )
        assert refused.run(code, select=None).stdout == f"{AS_INSTALLED}child: 0\n"

    def test_one_who_only_looks_for_sglang_beforehand_is_told_as_well(self, refused: Site) -> None:
        """As libraries do that ask whether sglang is installed."""
        look = "import importlib.util; importlib.util.find_spec('sglang')"
        result = refused.run(host(look, "activate()", IMPORT), check=False, **VARIABLES)
        assert result.stdout.startswith("told: 1-guard is refused")
        assert result.stdout.endswith(f"{AS_INSTALLED}done\n")
        assert result.returncode == 0


class TestUnusableSetting:
    """What activate() cannot decide by, it says; sglang's import is no second occasion."""

    SETTINGS = pytest.mark.parametrize(
        "unusable", [{"SGLANG_COMMFIX": "nonsense"}, {"SGLANG_COMMFIX_LOCK": "nowhere.json"}]
    )
    ACTIVATE = """
try:
    sglang_commfix.activate()
except sglang_commfix.errors.CommfixError as error:
    print("told:", error)
"""

    @SETTINGS
    def test_activate_raises_and_names_it(self, site: Site, unusable: dict[str, str]) -> None:
        result = site.run(host(self.ACTIVATE), select=None, **(VARIABLES | unusable))
        (value,) = unusable.values()
        assert result.stdout.startswith("told: ")
        assert value in result.stdout

    @SETTINGS
    def test_importing_sglang_does_not_end_the_process(
        self, site: Site, unusable: dict[str, str]
    ) -> None:
        code = host(self.ACTIVATE, IMPORT)
        result = site.run(code, select=None, check=False, **(VARIABLES | unusable))
        assert result.stdout.endswith(f"{AS_INSTALLED}done\n")
        assert result.returncode == 0


class TestRefusedWithoutStrict:
    REPORT = """
plan = sglang_commfix.activate()
print([patch["decision"] for patch in plan.patches])
"""

    @at_every_place
    def test_the_report_says_it_and_the_process_goes_on(self, refused: Site, where: str) -> None:
        result = refused.run(host(self.REPORT, IMPORT, where=where), select=None)
        assert result.stdout == f"['refused']\n{AS_INSTALLED}done\n"

    def test_an_error_is_logged_when_sglang_is_imported(self, refused: Site) -> None:
        result = refused.run(host(self.REPORT, IMPORT), select=None)
        error, line = result.stderr.splitlines()
        assert "ERROR sglang-commfix: 1-guard is refused: neither the fault" in error
        assert line.endswith("applying nothing; REFUSED: 1-guard")

    def test_the_variable_for_strict_counts_for_activate_too(self, refused: Site) -> None:
        code = host("try: sglang_commfix.activate()", "except RefusedError: print('told')", IMPORT)
        result = refused.run(code, select=None, SGLANG_COMMFIX_STRICT="1")
        assert result.stdout == f"told\n{AS_INSTALLED}done\n"


class TestTakenOverLater:
    @at_every_place
    @however_started
    def test_the_host_hears_of_it_and_goes_on(
        self, site: Site, variables: dict[str, str], where: str
    ) -> None:
        code = host("activate()", TAKES_OVER, where=where)
        result = site.run(code, select=None, check=False, **variables)
        assert (result.returncode, result.stdout) == (0, "done\n")
        assert UNPATCHED in result.stderr

    def test_building_an_engine_does_not_end_the_process(self, site: Site) -> None:
        result = site.run(host("activate()", TAKES_OVER, PLUGIN), select=None)
        assert result.stdout == "done\n"
        assert UNPATCHED in result.stderr

    def test_one_who_looked_for_sglang_beforehand_is_not_ended_either(self, site: Site) -> None:
        look = "import importlib.util; importlib.util.find_spec('sglang')"
        result = site.run(host(look, "activate()", TAKES_OVER), check=False, **VARIABLES)
        assert (result.returncode, result.stdout) == (0, "done\n")
        assert UNPATCHED in result.stderr


class TestChildren:
    def test_a_spawned_child_is_patched_and_says_so_itself(self, site: Site) -> None:
        result = site.run(host_with_a_child(IMPORT), select=None)
        assert result.stdout == f"{PATCHED}child: 0\n"
        assert result.stderr.endswith("; applying 1-guard\n")

    def test_a_child_spawned_by_a_thread_is_patched(self, site: Site) -> None:
        code = f"""\
import multiprocessing, threading
import sglang_commfix

def child():
{textwrap.indent(IMPORT, "    ")}

def work():
    sglang_commfix.activate(strict=True)
    process = multiprocessing.get_context("spawn").Process(target=child)
    process.start()
    process.join()

if __name__ == "__main__":
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
"""
        assert site.run(code, select=None).stdout == PATCHED

    @pytest.mark.parametrize("method", ["spawn", "forkserver"])
    def test_strict_ends_a_child_whose_sglang_has_changed_since(
        self, site: Site, method: str
    ) -> None:
        code = host_with_a_child(IMPORT, change_the_file(site), method=method)
        result = site.run(code, select=None)
        assert result.stdout == "child: 78\n"
        assert "SGLANG_COMMFIX_STRICT=1 and 1 of the selected patches" in result.stderr

    def test_strict_ends_a_child_in_which_a_module_is_taken_over(self, site: Site) -> None:
        code = host_with_a_child(f"import sglang.srt{TAKES_OVER}")
        result = site.run(code, select=None)
        assert result.stdout == "child: 78\n"
        assert UNPATCHED in result.stderr

    def test_it_does_so_where_the_hosts_program_calls_activate_when_imported(
        self, site: Site
    ) -> None:
        """multiprocessing imports the host's program once more in each child that it spawns."""
        code = host_with_a_child(TAKES_OVER, before="sglang_commfix.activate(strict=True)")
        result = site.run(code, select=None)
        assert UNPATCHED in result.stderr
        assert result.stdout == "child: 78\n"

    def test_without_strict_such_a_child_goes_on(self, site: Site) -> None:
        code = host_with_a_child(IMPORT, change_the_file(site)).replace("strict=True", "")
        result = site.run(code, select=None)
        assert result.stdout == f"{AS_INSTALLED}child: 0\n"
        assert "ERROR sglang-commfix: 1-guard is refused" in result.stderr

    def test_a_forked_child_runs_what_the_host_has_decided(self, site: Site) -> None:
        code = host_with_a_child(IMPORT, change_the_file(site), method="fork")
        assert site.run(code, select=None).stdout == f"{PATCHED}child: 0\n"

    def test_a_forked_child_is_part_of_the_host_and_is_not_ended(self, site: Site) -> None:
        result = site.run(host_with_a_child(TAKES_OVER, method="fork"), select=None)
        assert result.stdout == "child: 0\n"
        assert UNPATCHED in result.stderr


class TestReport:
    SHOW = """
plan = sglang_commfix.activate(strict=True)
print([(patch["id"], patch["decision"]) for patch in plan.patches], "sglang" in sys.modules)
"""

    def test_it_is_there_before_sglang_is_imported(self, site: Site) -> None:
        result = site.run(host(self.SHOW), select=None)
        assert result.stdout == "[('1-guard', 'apply')] False\ndone\n"
        assert result.stderr == ""

    def test_it_has_a_reason_for_each_entry(self, refused: Site) -> None:
        code = host("print(sglang_commfix.activate().patches[0]['reason'])")
        result = refused.run(code, select=None)
        assert "neither the fault nor its fix is known here" in result.stdout

    @pytest.mark.parametrize("between", ["pass", "import sglang", IMPORT])
    def test_asked_again_activate_returns_the_same(self, site: Site, between: str) -> None:
        code = host(
            "first = sglang_commfix.activate(strict=True)",
            between,
            "print(sglang_commfix.activate(strict=True) is first)",
        )
        assert "True\ndone\n" in site.run(code, select=None).stdout

    def test_threads_that_ask_at_once_get_the_same(self, site: Site) -> None:
        code = """
        import sys, threading
        import sglang_commfix
        sys.setswitchinterval(1e-6)
        barrier, plans = threading.Barrier(8), []
        def work():
            barrier.wait()
            plans.append(sglang_commfix.activate(strict=True))
        threads = [threading.Thread(target=work) for _ in range(8)]
        [t.start() for t in threads]; [t.join() for t in threads]
        print(len(plans), len({id(plan) for plan in plans}))
        """
        assert site.run(code, select=None).stdout == "8 1\n"
