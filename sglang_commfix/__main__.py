"""``python -m sglang_commfix`` is the command ``sglang-commfix``."""

import sys


def main() -> int:
    """Run the command; say in one line if it, or what it needs, cannot be imported."""
    try:
        from sglang_commfix.command.cli import main as command
    except Exception as error:  # noqa: BLE001 - whatever a file that was cut short raises
        from sglang_commfix.damage import told

        sys.stderr.write(f"sglang-commfix: {told(error)}\n")
        return 1
    return command()


if __name__ == "__main__":
    sys.exit(main())
