"""A registry of named functions or classes: a plain decorator, wildcard listing, errors that name the closest entry."""

import fnmatch
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from nasb.errors import UserError, unknown_name

T = TypeVar("T")


class Registry(Generic[T]):
    """Named entries of one kind (the kind, e.g. ``"network"``, is the word used in errors)."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that enters its function or class under `name`.

        Raises:
            ValueError: the name is taken.
        """

        def enter(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f'{self.kind} "{name}" is registered twice')
            self._entries[name] = entry
            return entry

        return enter

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            raise UserError(unknown_name(self.kind, name, self._entries))
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def names(self, pattern: str = "*") -> list[str]:
        """Return the names that match a shell wildcard, sorted."""
        return [name for name in self if fnmatch.fnmatchcase(name, pattern)]
