"""The errors that a user of nasb can cause: one clear line each, and an exit code at the command line."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user gave cannot be used; the message says what, where, what is accepted and how to mend it."""

    exit_code = 2


class StoppedError(UserError):
    """The run was asked to stop (SIGINT, SIGTERM) and has written a checkpoint."""

    exit_code = 130


def unknown_name(kind: str, name: object, known: Iterable[str]) -> str:
    """Return the message for a name that is not among the known ones, with the closest known names."""
    known = sorted(known)
    return f'unknown {kind} "{name}"; known: {", ".join(known)}{closest(name, known)}'


def closest(name: object, known: Iterable[str]) -> str:
    """Return `` (closest: ...)`` with up to three of the known names, or nothing."""
    close = difflib.get_close_matches(str(name), list(known), n=3)
    return f" (closest: {', '.join(close)})" if close else ""
