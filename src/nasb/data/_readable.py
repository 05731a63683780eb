"""Leave out what cannot be read, by decoding every file once: costs what an epoch of reading costs."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nasb.data._reading import Place, load_image
from nasb.data._sources import FileImages
from nasb.data._workers import in_order
from nasb.errors import UserError

_PIECE = 256


def leave_out_unreadable(
    parts: Mapping[str, FileImages], class_names: tuple[str, ...], workers: int
) -> tuple[dict[str, FileImages], int]:
    """Return the parts without the files that cannot be read, and how many these are; warn of them in one line.

    Raises:
        UserError: no image of a class can be read.
    """
    kept: dict[str, FileImages] = {}
    lost: list[str] = []
    for part, images in parts.items():
        pieces = -(-len(images.paths) // _PIECE)
        readable = torch.cat(list(in_order(_Check(images.paths), pieces, workers))).numpy()
        lost += [str(images.paths[index]) for index in np.flatnonzero(~readable).tolist()]
        for number in np.setdiff1d(images.targets, images.targets[readable]).tolist():
            example = images.paths[int(np.flatnonzero(images.targets == number)[0])]
            raise UserError(
                f'no image of class "{class_names[number]}" among the {part} images can be read, e.g. "{example}"; '
                "mend them"
            )
        kept[part] = images.take(np.flatnonzero(readable))
    if lost:
        total = sum(len(images.paths) for images in parts.values())
        examples = ", ".join(lost[:3]) + (", ..." if len(lost) > 3 else "")
        warnings.warn(f"left out {len(lost):,} of {total:,} images that cannot be read: {examples}", stacklevel=3)
    return kept, len(lost)


@dataclass(frozen=True)
class _Check:
    paths: Sequence[Place]

    def __call__(self, piece: int) -> Tensor:
        return torch.tensor([_can_be_read(path) for path in self.paths[piece * _PIECE : (piece + 1) * _PIECE]])


def _can_be_read(path: Place) -> bool:
    try:
        load_image(path)
    except UserError:
        return False
    return True
