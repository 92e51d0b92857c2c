"""The command ``sglang-commfix``. No server imports it."""
