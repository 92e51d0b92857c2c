"""How a decision is made: source, fingerprint, guard, rewrite, and the lock that holds the outcome.

Imported when a package is built, by the command, and in a server only for a tree whose files no
shipped lock knows. It never imports ``sglang_commfix.run``.
"""
