"""Start the hook where no ``.pth`` file is read, then hand over to the next ``sitecustomize``.

``sglang-commfix run`` puts this folder in front of ``PYTHONPATH``.
"""

import sys


def _start() -> None:
    try:
        import sglang_commfix
    except ImportError as error:
        sys.stderr.write(
            f"sglang-commfix: {sys.executable} cannot import sglang_commfix ({error}); "
            "sglang runs as installed\n"
        )
    else:
        sglang_commfix.init()


def _chain() -> None:
    """Run the ``sitecustomize`` that this file hides, under its own name, if there is one."""
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec
    from pathlib import Path

    here = Path(__file__).resolve().parent
    others = [entry for entry in sys.path if Path(entry).resolve() != here]
    spec = PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        module = module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


_start()
_chain()
