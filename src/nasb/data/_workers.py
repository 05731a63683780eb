"""Work on files in numbered pieces, in this process or in worker processes, with the results in order."""

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Generic, TypeVar

import torch

from nasb.errors import UserError

T = TypeVar("T")


def in_order(work: Callable[[int], T], count: int, workers: int) -> Iterator[T]:
    """Yield work(0), ..., work(count - 1).

    Args:
        work: a picklable function of the piece's number that returns a tensor, and draws nothing from global
            random states.
        count: number of pieces.
        workers: processes to use; 0 works in this one.
    Raises:
        UserError: as raised by `work`, in its own words.
    """
    if not workers:
        yield from map(work, range(count))
        return
    abandoned = False

    def pieces() -> Iterator[int]:
        for piece in range(count):
            if abandoned:
                return
            yield piece

    loader = torch.utils.data.DataLoader(
        _Pieces(work, count),
        batch_size=None,
        sampler=pieces(),
        num_workers=workers,
        generator=torch.Generator(),  # else the loader draws from the caller's global random state
    )
    results = iter(loader)
    try:
        for result in results:
            if isinstance(result, str):
                raise UserError(result)
            yield result
    except (GeneratorExit, UserError):
        # Processes that are stopped while they send a result may abort, with a traceback that nobody can use (seen);
        # so they finish what they have begun. Where Python itself ends, or they are dead already, there is no point.
        abandoned = True
        with suppress(RuntimeError):
            while not sys.is_finalizing() and next(results, None) is not None:
                pass
        raise


class _Pieces(torch.utils.data.Dataset[T | str], Generic[T]):
    def __init__(self, work: Callable[[int], T], count: int) -> None:
        self._work = work
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, piece: int) -> T | str:
        # An exception would reach the user wrapped in the worker's traceback; so its message travels as a value.
        try:
            return self._work(piece)
        except UserError as error:
            return str(error)
