"""The errors that a user of nasb can cause: one clear line each, exit code 2 at the command line."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user gave cannot be used; the message says what, where, what is accepted and how to mend it."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> str:
    """Return the message for a name that is not among the known ones, with the closest known names."""
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=3)
    hint = f" (closest: {', '.join(close)})" if close else ""
    return f'unknown {kind} "{name}"; known: {", ".join(known)}{hint}'
