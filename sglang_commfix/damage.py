"""What to say where this package, or what it needs, cannot be imported. Loaded only then."""

import sys
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path


NEEDS = ("wrapt", "packaging", *(() if sys.version_info >= (3, 11) else ("tomli",)))


def told(error: Exception) -> str:
    """Say what is the matter, where, and what to do."""
    if type(error).__module__.startswith("sglang_commfix."):
        return str(error)  # it says so already
    if not _is_about_us(error):
        for name in NEEDS:
            spec = PathFinder.find_spec(name)
            if spec is None or spec.origin is None:
                return f"{name} is not installed, and sglang-commfix needs it: pip install {name}"
            if (path := Path(spec.origin)) not in _files_of(name):
                taken = path.parent if path.name == "__init__.py" else path
                why = f"{taken} has taken the name of {name}, which sglang-commfix needs"
                return f"{why}: rename it, or start where Python does not find it first"
    what = f"{type(error).__name__}: {error}"
    return f"the installation is damaged ({what}): pip install --force-reinstall sglang-commfix"


def _is_about_us(error: Exception) -> bool:
    """Tell whether a module of this package is missing, cut short, or of another version."""
    file = error.filename if isinstance(error, SyntaxError) else getattr(error, "path", None)
    name = getattr(error, "name", None) or ""
    return str(name).startswith("sglang_commfix") or str(file).startswith(
        str(Path(__file__).resolve().parent)
    )


def _files_of(name: str) -> list[Path]:
    """Return where the package of this name may be that was installed for it."""
    try:
        folder = Path(str(distribution(name).locate_file(name)))
    except PackageNotFoundError:
        return []
    return [folder / "__init__.py", folder.resolve() / "__init__.py", folder.with_suffix(".py")]
