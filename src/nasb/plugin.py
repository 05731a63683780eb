"""The user's own Python file, which registers a network with `nasb.register_host`."""

import runpy
from pathlib import Path

from nasb.errors import UserError


def load_plugin(path: str) -> None:
    """Execute the file.

    Raises:
        UserError: there is no such file, or it fails.
    """
    if not Path(path).is_file():
        raise UserError(f"plugin: {path}: there is no such file")
    try:
        runpy.run_path(path)
    except (Exception, SystemExit) as error:
        raise UserError(f"plugin: {path} failed: {type(error).__name__}: {error}") from None
