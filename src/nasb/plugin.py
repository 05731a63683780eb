"""The user's own code: a Python file that registers networks with `nasb.register_host`, or a factory of a network."""

import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nasb.errors import UserError

_LOADED: set[Path] = set()


@contextmanager
def importing_from(*folders: Path) -> Iterator[None]:
    """Let imports find modules of some folders, as those beside the user's file."""
    added = [str(folder.resolve()) for folder in folders]
    sys.path[:0] = added
    try:
        yield
    finally:
        for folder in added:
            sys.path.remove(folder)


def load_plugin(path: str) -> None:
    """Execute a file, once in a process, or import a factory, ``package.module:function`` or ``file.py:function``.

    Raises:
        UserError: there is no such file or function, or it fails.
    """
    if ":" in path:
        from nasb.networks import register_factory

        register_factory(path)
        return
    if not Path(path).is_file():
        raise UserError(f"plugin: {path}: there is no such file")
    file = Path(path).resolve()
    if file in _LOADED:
        return
    try:
        with importing_from(file.parent):
            runpy.run_path(path)
    except (Exception, SystemExit) as error:
        raise UserError(f"plugin: {path} failed: {type(error).__name__}: {error}") from None
    _LOADED.add(file)
