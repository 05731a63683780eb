"""Predictions for image files, and Top-1 / Top-5 over a folder of them."""

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nasb_engine._core import EngineError
from nasb_engine._images import list_folder, load_image
from nasb_engine._preprocessing import Preprocessing
from nasb_engine._session import Session

Real = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of a network on a folder of images."""

    top1: float
    """Percent of the readable images whose class has the highest score."""
    top5: float | None
    """Percent whose class is among the five highest scores; None for networks of five classes or fewer."""
    images: int
    """Images that could be read."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Path and reason of each image that could not be read; they count nowhere else."""
    missing: tuple[str, ...] = ()
    """Classes of the model of which there are no images."""
    seconds: float = 0.0
    """Wall time, reading included."""
    engine_seconds: float = 0.0
    """Of these, in the engine."""

    @property
    def images_per_second(self) -> float:
        """Images per second of wall time."""
        return self.images / self.seconds if self.seconds else 0.0


def softmax(scores: Real) -> npt.NDArray[np.float64]:
    """Return probabilities along the last axis."""
    exponentials = np.exp(scores.astype(np.float64) - scores.max(-1, keepdims=True))
    result: npt.NDArray[np.float64] = exponentials / exponentials.sum(-1, keepdims=True)
    return result


def class_labels(session: Session) -> tuple[str, ...]:
    """Return the class names, or "class 0", "class 1", ... where the file has none."""
    if len(session.output_shape) != 1:
        raise EngineError(f"the network's output is {list(session.output_shape)}, not one score for each class")
    return session.class_names or tuple(f"class {index}" for index in range(session.output_shape[0]))


def needed_preprocessing(session: Session) -> Preprocessing:
    """Return how images are prepared.

    Raises:
        EngineError: the file does not say it.
    """
    if session.preprocessing is None:
        raise EngineError(
            'the model does not say how images are prepared (no metadata "nasb.preprocessing"); export it by nasb '
            "export, or prepare them yourself and call Session.run"
        )
    return session.preprocessing


def predict(session: Session, paths: Sequence[str | os.PathLike[str]]) -> Iterator[Real | EngineError]:
    """Yield for each image its scores [classes], or the error why it has none."""
    steps = needed_preprocessing(session)
    for path in paths:
        image = _prepared(steps, path)
        yield image if isinstance(image, EngineError) else _finite(session.run(image[None])[0], path)


def _prepared(steps: Preprocessing, path: str | os.PathLike[str]) -> Real | EngineError:
    """Return the network's input [C, H, W] for an image file, or the error why there is none."""
    try:
        image = load_image(path)
    except EngineError as error:
        return error
    try:
        return steps(image)
    except (EngineError, MemoryError) as error:
        return EngineError(f'image "{Path(path)}" cannot be prepared: {str(error) or "not enough memory"}')


def _finite(scores: Real, path: str | os.PathLike[str]) -> Real | EngineError:
    """Return the scores [classes], or the error that no probability can be made of them."""
    for index in np.flatnonzero(~np.isfinite(scores)).tolist():
        return EngineError(
            f'image "{Path(path)}": the score of class {index} is {scores[index]}; the file\'s weights are damaged'
        )
    return scores


def evaluate(session: Session, folder: str | os.PathLike[str], *, batch: int = 32, readers: int = 0) -> Evaluation:
    """Return Top-1 and Top-5 over the images of folder/<class>/ (see `list_folder`).

    Args:
        session: the network; the file must say how images are prepared.
        folder: holds a folder for each class.
        batch: images in one run of the engine.
        readers: threads that read images while the engine runs; 0: as many as the session has.
    Raises:
        EngineError: the folder does not fit the model, or not one image can be read.
    """
    if batch < 1 or readers < 0:
        raise EngineError(f"batch is {batch} and readers is {readers}; give batch >= 1 and readers >= 0")
    steps = needed_preprocessing(session)
    labels = class_labels(session)
    files = list_folder(folder, labels)
    present = {target for _, target in files}
    classes = session.output_shape[0]
    start, engine_seconds = time.perf_counter(), 0.0
    ranks: list[int] = []
    unreadable: dict[str, str] = {}

    def read(path: Path) -> Real | EngineError:
        return _prepared(steps, path)

    with ThreadPoolExecutor(readers or session.threads) as pool:
        for part, loaded in _one_ahead(pool, read, files, batch):
            images, targets = [], []
            for (path, target), image in zip(part, loaded, strict=True):
                if isinstance(image, EngineError):
                    unreadable[str(path)] = str(image)
                else:
                    images.append(image)
                    targets.append(target)
            if images:
                before = time.perf_counter()
                scores_NC = session.run(np.stack(images))
                engine_seconds += time.perf_counter() - before
                ranks += _ranks(scores_NC, np.array(targets)).tolist()
    if not ranks:
        raise EngineError(f'"{folder}": none of its {len(files):,} images can be read, e.g. {next(iter(unreadable))}')
    rank_N = np.array(ranks)
    return Evaluation(
        top1=100 * float((rank_N < 1).mean()),
        top5=100 * float((rank_N < 5).mean()) if classes > 5 else None,
        images=len(rank_N),
        unreadable=unreadable,
        missing=tuple(label for index, label in enumerate(labels) if index not in present),
        seconds=time.perf_counter() - start,
        engine_seconds=engine_seconds,
    )


def _one_ahead(
    pool: ThreadPoolExecutor, read: Any, files: Sequence[tuple[Path, int]], batch: int
) -> Iterator[tuple[Sequence[tuple[Path, int]], list[Real | EngineError]]]:
    """Yield batches of files with what `read` returns for them, the next batch being read meanwhile."""
    waiting: list[tuple[Sequence[tuple[Path, int]], list[Future[Real | EngineError]]]] = []
    for first in range(0, len(files), batch):
        part = files[first : first + batch]
        waiting.append((part, [pool.submit(read, path) for path, _ in part]))
        if len(waiting) == 2:
            part, futures = waiting.pop(0)
            yield part, [future.result() for future in futures]
    for part, futures in waiting:
        yield part, [future.result() for future in futures]


def _ranks(scores_NC: Real, target_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:  # noqa: N803
    """Return how many classes come before the right one: a higher score, or an equal one and a lower number.

    A score that is not a number makes the answer wrong, whatever the others are.
    """
    own_N1 = np.take_along_axis(scores_NC, target_N[:, None], 1)
    before_NC = (scores_NC > own_N1) | ((scores_NC == own_N1) & (np.arange(scores_NC.shape[1]) < target_N[:, None]))
    rank_N: npt.NDArray[np.int64] = before_NC.sum(1)
    rank_N[np.isnan(scores_NC).any(1)] = scores_NC.shape[1]
    return rank_N
