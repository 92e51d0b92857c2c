"""Upstream communication fixes for an installed sglang, applied while sglang is imported.

Every Python start of an environment that holds this package runs this file, because of the line in
``sglang_commfix.pth``. It therefore imports nothing but :mod:`sys` and :mod:`os`, which the
interpreter has loaded by then, and everything else waits until sglang itself is imported with
``SGLANG_COMMFIX`` set.
"""

import os
import sys


TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from sglang_commfix.embed import activate, status
    from sglang_commfix.report import EditReport, PatchReport, Report

__version__ = "0.1.0"
__all__ = ["EditReport", "PatchReport", "Report", "__version__", "activate", "init", "status"]

_LAZY = {
    "EditReport": "report",
    "PatchReport": "report",
    "Report": "report",
    "activate": "embed",
    "status": "embed",
}


class StartupFinder:
    """Wait on ``sys.meta_path`` for the first import of sglang, then hand over to the session.

    It never finds a module itself, and never leaves the list, which would make an import under way
    skip the next finder: ``closed`` ends its work.
    """

    closed = False

    def find_spec(
        self,
        name: str,
        path: "Sequence[str] | None" = None,
        target: "ModuleType | None" = None,
    ) -> "ModuleSpec | None":
        """Start the session when sglang is first imported with the variable set."""
        if self.closed or (name != "sglang" and not name.startswith("sglang.")):
            return None
        if os.environ.get("SGLANG_COMMFIX", "").strip().lower() in {"", "0", "off"}:
            # Once sglang is in, unpatched, the gate has been read for the life of this process.
            self.closed = "sglang" in sys.modules
            return None
        try:
            from sglang_commfix import session
        except Exception as error:  # noqa: BLE001 - a guest must not break the host
            self._give_up(error)
            return None
        finder = session.start()
        return None if finder is None else finder.find_spec(name, path, target)

    def _give_up(self, error: Exception) -> None:
        """Say that this package is damaged; under strict, end the process."""
        sys.stderr.write(
            f"sglang-commfix: the installation is damaged ({type(error).__name__}: {error}). "
            "Nothing is applied: reinstall sglang-commfix\n"
        )
        if os.environ.get("SGLANG_COMMFIX_STRICT", "").strip().lower() not in {"", "0", "off"}:
            raise SystemExit(78) from error
        self.closed = True


FINDER = StartupFinder()
_initialised = False


def init() -> None:
    """Put the start-up finder in place, once for each process.

    Called by the line in ``sglang_commfix.pth``, which a virtual environment before Python 3.15
    runs twice, and by ``sglang_commfix.start`` (PEP 829).
    """
    global _initialised  # noqa: PLW0603 - one flag for each process is what is meant
    if not _initialised:
        _initialised = True
        sys.meta_path.insert(0, FINDER)


def hooked() -> bool:
    """Tell whether :func:`init` has been called in this process."""
    return _initialised


def reopen_gate() -> None:
    """Wait for sglang's modules again, if the gate was read while the variable was unset."""
    from sglang_commfix import session

    FINDER.closed = session.current() is not None


def __getattr__(name: str) -> object:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f"sglang_commfix.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'sglang_commfix' has no attribute {name!r}")
