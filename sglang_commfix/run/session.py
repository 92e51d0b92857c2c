"""Once in each process: lock → plan → patched modules → one line in the log → verification.

A failure leaves sglang as installed, and says so. Strict ends a server, but never who embeds one.
What is verified is the code that runs, not who loaded it: after the import, and before it serves.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from functools import wraps
from importlib.machinery import ModuleSpec
from itertools import dropwhile
from pathlib import Path
from types import ModuleType
from typing import Any

from wrapt import register_post_import_hook

from sglang_commfix import FINDER, SELECT, is_off
from sglang_commfix.errors import AlreadyImportedError, CommfixError, MixedFleetError
from sglang_commfix.files import Sglang, ask, find_sglang
from sglang_commfix.run import fleet
from sglang_commfix.run.host import MIXED, STRICT, log, read_settings, read_switch
from sglang_commfix.run.loader import COMPILED, MARK, PatchedLoader, TellingLoader
from sglang_commfix.run.plan import Plan, make_plan
from sglang_commfix.run.reach import stray


_WORDS = {"apply": "applying", "not-needed": "not needed:", "not-in-lock": "not in your lock:"}
_WORDS |= {"disabled": "switched off:", "refused": "REFUSED:"}
# Cold places that a server passes once, on every rank, before it serves.
_COLD = {"sglang.srt.distributed.parallel_state", "sglang.srt.managers.scheduler"}
_COLD_NAMES = ("initialize_model_parallel", "event_loop_")

guard = threading.RLock()
current = FINDER.session  # where a host has forgotten this module, and it is imported anew
embeds = False  # whether this process has called activate(), so that nothing is to end it
_deciding = False


def _harmless(method: Callable[..., None]) -> Callable[..., None]:
    """Say an error of this package's own, and do not raise it: a guest must not break the host."""

    @wraps(method)
    def harmless(self: Session, *given: Any) -> None:
        try:
            method(self, *given)
        except Exception as error:  # noqa: BLE001 - whatever it is
            self.fail(f"its own {type(error).__name__}: {error}")

    return harmless


class Session:
    """The finder of one process: it knows what runs here, says so once, and verifies it.

    A hook that asks ``sys.meta_path`` again, from inside its own ``find_spec``, gets a patched spec
    to wrap. wrapt's finder is passed over, and its hooks are called by the patched loader: a third
    hook that assigns to a method of its loader would reach wrapt's proxy, and recurse.
    """

    def __init__(self, plan: Plan | None, *, ends: bool) -> None:
        self.plan = plan  # None: this package failed before it could decide
        self.modules = plan.modules if plan else {}
        self._ends = ends  # whether a failure ends this process
        self._ended = False
        self._announced = plan is None
        self._unverified = set(self.modules)
        self._said: set[str] = set()
        self._cold = set(_COLD if plan else ())
        applied = plan.having("apply") if plan else []
        self._relied = {name: it for patch in applied for name, it in patch["modules"].items()}

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Return a spec for a module of the plan, patched, or of a cold place; else nothing."""
        if name == "sglang.srt" or name.startswith("sglang.srt."):
            self.watch()
        if name in self._relied:
            self._check_file(name)
        module = self.modules.get(name)
        if module is None and name not in self._cold:
            return None
        behind = list(dropwhile(lambda f: f is not self and f is not FINDER, sys.meta_path))[1:]
        behind = [finder for finder in behind if type(finder).__module__ != "wrapt.importer"]
        spec = ask(behind, name, path, target)
        if spec is None or spec.loader is None or hasattr(spec, MARK):
            return spec
        if module and Path(spec.origin or "").resolve() != module.path.resolve():
            self.fail(f"{name} is not patched: found in {spec.origin}, decided for {module.path}")
            return None  # and leave it to the other finders
        spec.loader = (PatchedLoader if module else TellingLoader)(spec.loader, module)  # type: ignore[assignment]
        setattr(spec, MARK, module and module.patches)
        return spec

    @_harmless
    def watch(self) -> None:
        """Say once what was decided, and verify what was imported without this being asked."""
        if self._ended:
            self.fail("this process was to end, and goes on")
        if self.plan and not self._announced:
            self._announced = True
            refused = self.plan.having("refused")
            for patch in refused:
                log().error(f"{patch['id']} is refused: {patch['reason']}")
            log().info(summary(self.plan))
            if (count := len(refused)) and self._ends and not embeds:
                self.fail(f"{STRICT}=1 and {count} of the selected patches cannot be applied")
            if other := fleet.differs_from_parent(self.plan):
                self.fail(f"{other}. Processes of one server must run the same: restart it whole")
        for name in (self._unverified | self._cold) & sys.modules.keys():
            spec = getattr(sys.modules[name], "__spec__", None)
            if getattr(spec, "_initializing", False) is not True:
                self.imported(sys.modules[name], name)

    @_harmless
    def _check_file(self, name: str) -> None:
        if self.plan and Sglang(self.plan.sglang.path).digest(name) != self._relied[name]:
            file = self.plan.sglang.file_of(name)
            self.fail(f"{file} changed on disk after this process decided about it: restart")

    @_harmless
    def imported(self, module: Any, name: str = "") -> None:
        """Verify a module of the plan; in one with a cold place, stand in front of it."""
        name = name or module.__name__
        if name in self.modules:
            self.verify(name)
        if name in self._cold:
            self._cold.discard(name)
            owner = getattr(module, "Scheduler", module)
            for place in [word for word in dir(owner) if word.startswith(_COLD_NAMES)]:
                setattr(owner, place, self._before(getattr(owner, place)))

    def _before(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def checked(*args: Any, **kwargs: Any) -> Any:
            self.verify(*self.modules.keys() & sys.modules.keys())
            if call.__name__ == _COLD_NAMES[0]:
                self._compare(kwargs)
            return call(*args, **kwargs)

        return checked

    def _compare(self, call: dict[str, Any]) -> None:
        try:
            found = self.plan and fleet.differs_from_ranks(self.plan, call)
        except Exception as error:  # noqa: BLE001 - stores and back-ends have their own
            found = False, f"ranks could not be compared: {type(error).__name__}: {error}"
        if self.plan and found and found[0]:
            log().error(found[1])
            if not self.plan.settings.mixed:
                raise MixedFleetError(f"{found[1]}. Make them the same, or set {MIXED}=1")
        elif found:
            self.fail(found[1])

    @_harmless
    def verify(self, *names: str) -> None:
        """Check that what is edited in these modules leads to the edited code; say so where not."""
        self._unverified.difference_update(names)
        for name in names:
            planned, module = self.modules[name], sys.modules.get(name)
            if module is None:  # its import is forbidden
                continue
            marked = isinstance(module, ModuleType) and MARK in vars(module)
            wanted = COMPILED.get(name, {})
            found = stray(module, planned.runs_as, wanted)
            if found is None and (marked or wanted):
                log().debug(f"{name} runs with {', '.join(planned.patches)}")
                continue
            from sglang_commfix import wrong

            self.fail(wrong.unpatched(name, module, planned.patches, found if marked else None))

    def fail(self, message: str) -> None:
        """Say what went wrong, once; under strict, end the process."""
        if message not in self._said:
            log().error(message)
        self._said.add(message)
        self._ended = self._ends and not embeds
        if self._ended and threading.current_thread() is not threading.main_thread():
            os._exit(78)  # EX_CONFIG of sysexits.h
        if self._ended:
            raise SystemExit(78)


def summary(plan: Plan) -> str:
    """Tell in one line what a process runs with; the reasons are in ``sglang-commfix status``."""
    ids = {key: ", ".join(patch["id"] for patch in plan.having(key)) for key in _WORDS}
    ids["apply"] = ids["apply"] or "nothing"
    parts = [f"{words} {ids[key]}" for key, words in _WORDS.items() if ids[key]]
    if plan.unneeded:
        parts.append(f"none of the {len(plan.patches)} faults that this version knows is here")
    parts.insert(0, f"commfix={fleet.digest(fleet.texts(plan))}")
    return f"sglang {plan.lock['sglang']} at {plan.sglang.path}: {'; '.join(parts)}"


def start() -> Session | None:
    """Return this process's session; start it if there is none, and there is an sglang."""
    global _deciding  # noqa: PLW0603 - a finder that looks for sglang may come back here
    with guard:
        if current is not None:
            current.watch()  # only here again if it is to end the process
        if current is not None or _deciding:
            return current
        strict, _deciding = True, True  # strict until the setting has been read
        try:
            strict = read_switch()
            settings = read_settings()
            if sglang := find_sglang():
                plan = make_plan(sglang, settings)
                _check(plan)
                install(Session(plan, ends=strict))
            return current
        except Exception as error:  # noqa: BLE001 - a guest must not break the host
            own = "" if isinstance(error, CommfixError) else f"its own {type(error).__name__}: "
            failure = f"{own}{error}. Nothing is applied"
        finally:
            _deciding = False
        install(failed := Session(None, ends=strict))
        failed.fail(failure)
        return failed


def _check(plan: Plan) -> None:
    """Raise where a module of the plan has run already."""
    if late := sorted(plan.modules.keys() & sys.modules.keys()):
        what = f"{', '.join(late)} ran before {SELECT} was set, or before this was asked"
        raise AlreadyImportedError(f"{what}, and cannot be patched any more")


def install(session: Session) -> None:
    """Make ``session`` that of this process."""
    global current  # noqa: PLW0603 - one session for each process is what is meant
    current = FINDER.session = session
    FINDER.closed = True
    if session.plan and session.plan.settings.level:
        log().setLevel(session.plan.settings.level)
    for name in (*session.modules, *(_COLD if session.plan else ())):
        register_post_import_hook(session.imported, name)
    sys.meta_path.insert(0, session)


def verify() -> None:
    """Verify, when sglang's entry point for plug-ins is called, that the start-up hook did run."""
    session = current or Session(None, ends=not is_off(STRICT))
    if current is None and not is_off(SELECT) and not embeds:
        from sglang_commfix import wrong

        session.fail(wrong.not_hooked())
    session.verify(*session.modules.keys() & sys.modules.keys())


def _renew_guard() -> None:
    """In a forked child: the thread that held the lock may not be there to give it back."""
    global guard, _deciding
    guard, _deciding = threading.RLock(), False


os.register_at_fork(after_in_child=_renew_guard)
