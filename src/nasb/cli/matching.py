"""Whether a trained network and the images that it is to be evaluated on belong together."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nasb.errors import UserError

if TYPE_CHECKING:
    from nasb.data import ImageData, Preprocessing


def check_images(
    target: str, trained_on: "Preprocessing | None", class_names: Sequence[str], data: "ImageData"
) -> None:
    """Refuse images that are prepared in another way than those of the training, or of other classes.

    Args:
        target: the network's file or run directory; leads the messages.
        trained_on: how the training's images were prepared; None where the file does not tell it.
        class_names: of the network, in its order; empty where the file does not tell them.
        data: the images.

    Raises:
        UserError: they do not fit.
    """
    given = data.preprocessing
    if trained_on is not None and trained_on.channels != given.channels:
        raise UserError(
            f"{target}: was trained on images of {trained_on.channels} channel(s), but those of {data.name} have "
            f"{given.channels}; give other images by --data.name"
        )
    if trained_on is not None and trained_on != given:
        raise UserError(
            f"{target}: was trained on images prepared as {trained_on}, but these are prepared as {given}; give "
            "--data.image_size, --data.mean and --data.std to match"
        )
    if class_names and tuple(class_names) != data.class_names:
        raise UserError(
            f"{target}: its classes are {_some(class_names)}, those of the images {_some(data.class_names)}"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
