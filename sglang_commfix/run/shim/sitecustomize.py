"""Start the hook where no ``.pth`` file is read, then hand over to the next ``sitecustomize``."""

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path


try:
    import sglang_commfix

    sglang_commfix.init()
except ImportError as error:
    failure = f"{sys.executable} cannot import sglang_commfix ({error}); sglang runs as installed"
    sys.stderr.write(f"sglang-commfix: {failure}\n")

# The sitecustomize that this file hides runs under its own name, if there is one.
_here = Path(__file__).resolve().parent
_spec = PathFinder.find_spec(__name__, [p for p in sys.path if Path(p).resolve() != _here])
if _spec is not None and _spec.loader is not None:
    sys.modules[__name__] = module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[__name__])
