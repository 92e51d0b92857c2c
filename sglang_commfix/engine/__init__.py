"""How a decision is made: source, fingerprint, guard, rewrite, and the lock that holds the outcome.

Imported when a package is built, by the command, and in a server only for a tree whose files no
shipped lock knows. It never imports ``sglang_commfix.run``.
"""

import sys

from sglang_commfix.errors import CommfixError


try:
    import packaging.specifiers
    import packaging.version  # noqa: F401 - that it is there, and is what it should be

    if sys.version_info < (3, 11):
        import tomli  # noqa: F401
except Exception as error:
    from sglang_commfix.damage import told

    raise CommfixError(told(error)) from error
