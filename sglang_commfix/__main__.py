"""``python -m sglang_commfix`` is the command ``sglang-commfix``."""

import sys

from sglang_commfix.command.cli import main


if __name__ == "__main__":
    sys.exit(main())
