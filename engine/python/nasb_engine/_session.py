"""Session: a loaded network. Checks what it is given; the C++ core does the work."""

import json
import operator
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from nasb_engine import _core
from nasb_engine._core import EngineError
from nasb_engine._preprocessing import Preprocessing

__version__ = _core.version()

Real = npt.NDArray[np.float32]

MOST_THREADS = 256
"""Of a session."""
MOST_REPEATS = 1_000_000
"""Of a profile."""


@dataclass(frozen=True)
class LayerProfile:
    """What one step of a network cost."""

    layer: str
    """Qualified name of the module; of a fused step, of its main layer."""
    operation: str
    """What the step does, e.g. "BinaryConv2d + Add + PRelu + Binarize"."""
    kernel: str
    """What ran, e.g. "lut_avx2"."""
    threads: int
    """Threads that took part."""
    milliseconds: float
    """Median over the repeats, one image."""
    macs: int
    """Multiply-accumulates of one image, real or binary."""
    binary: bool
    """Whether they are binary."""
    share: float
    """Part of the sum of all steps' times, 0 to 1."""


class Session:
    """A network that runs. It may be used from several threads at once; running releases the GIL.

    Args:
        model: path of an ONNX file of nasb, or its bytes.
        threads: 0: as many as the process may use; at most 256.
        kernel: of binary convolutions, one of `kernels()`; "": the best that works on this CPU.
    Warns:
        RuntimeWarning: a kernel that this CPU could run failed its self-check and is not used.
    Raises:
        OSError: the file cannot be read.
        EngineError: it is damaged, holds something that the engine does not know (named), or an option is not
            accepted.
    """

    def __init__(self, model: str | os.PathLike[str] | bytes, threads: int = 0, kernel: str = "") -> None:
        threads = _integer("threads", threads, 0, MOST_THREADS, "0 (all that there are)")
        if not isinstance(kernel, str):
            raise EngineError(f'kernel is {kernel!r}; give the name of a kernel, or ""')
        if isinstance(model, (bytes, bytearray, memoryview)):
            self._source, data = "", bytes(model)
        else:
            self._source, data = os.fspath(model), Path(model).read_bytes()
        for line in _core.kernel_warnings():
            warnings.warn(line, RuntimeWarning, stacklevel=2)
        try:
            self._core = _core.Session(data, threads, kernel)
        except EngineError as error:
            raise self._error(str(error)) from None
        self.file_bytes = len(data)
        """Size of the file."""
        self.input_shape: tuple[int, ...] = tuple(self._core.input_dims)
        """Channels, height, width of one image."""
        self.output_shape: tuple[int, ...] = tuple(self._core.output_dims)
        """Of one image, e.g. (classes,)."""

    def __repr__(self) -> str:
        return (
            f"Session({self._source or 'bytes'!r}, input_shape={self.input_shape}, output_shape={self.output_shape}, "
            f"threads={self.threads}, kernel={self.kernel!r})"
        )

    @property
    def threads(self) -> int:
        """Threads that a call may use."""
        return self._core.threads

    @property
    def kernel(self) -> str:
        """The kernel that was chosen, one of `kernels()`; `profile` tells what each step ran."""
        return self._core.kernel

    @property
    def workspace_bytes(self) -> int:
        """Memory of one running call."""
        return self._core.workspace_bytes

    @property
    def tensor_names(self) -> list[str]:
        """Inner tensors that `run(images, outputs=[...])` hands out."""
        return self._core.tensor_names

    @cached_property
    def metadata(self) -> dict[str, str]:
        """What the file says of itself: layout version, class names, preprocessing, architecture."""
        return self._core.metadata

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Names of the outputs; empty where the file has none.

        Raises:
            EngineError: the metadata are damaged.
        """
        text = self.metadata.get("nasb.class_names")
        if text is None:
            return ()
        try:
            names = json.loads(text)
        except (ValueError, RecursionError):
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise self._error('metadata "nasb.class_names": is not a list of texts')
        if len(set(names)) < len(names):
            twice = next(name for index, name in enumerate(names) if name in names[:index])
            raise self._error(f'metadata "nasb.class_names": names {twice!r} twice')
        if (len(names),) != self.output_shape:
            raise self._error(
                f'metadata "nasb.class_names": has {len(names)} names, but the network\'s output is '
                f"{list(self.output_shape)}"
            )
        return tuple(names)

    @cached_property
    def preprocessing(self) -> Preprocessing | None:
        """How images are prepared; None where the file does not say it.

        Raises:
            EngineError: the metadata are damaged.
        """
        text = self.metadata.get("nasb.preprocessing")
        if text is None:
            return None
        try:
            steps = Preprocessing.from_json(text)
        except EngineError as error:
            raise self._error(f'metadata "nasb.preprocessing": {error}') from None
        if self.input_shape != (steps.channels, steps.size, steps.size):
            raise self._error(
                f'metadata "nasb.preprocessing": makes images [{steps.channels}, {steps.size}, {steps.size}], but the '
                f"network takes {list(self.input_shape)}"
            )
        return steps

    @overload
    def run(self, images: Any, outputs: None = None) -> Real: ...
    @overload
    def run(self, images: Any, outputs: Sequence[str]) -> dict[str, Real]: ...
    def run(self, images: Any, outputs: Sequence[str] | None = None) -> Real | dict[str, Real]:
        """Run the network.

        Args:
            images: float [N, C, H, W], normalized (`preprocessing` does it). A C-contiguous float32 NumPy array, torch
                CPU tensor, or other object with DLPack or the buffer protocol is read in place; any other NumPy array
                of floats is converted, which copies it once.
            outputs: None for the network's output; else names of inner tensors (`tensor_names`), for checks.
        Returns:
            float32 [N, ...output_shape]; with `outputs`, these tensors by name.
        Raises:
            TypeError: images are of another type or dtype.
            ValueError: they have another shape, or are a tensor that is not contiguous.
            EngineError: there is no inner tensor of that name, or `outputs` holds something else than names.
        """
        x_NCHW = self._images(images)
        if outputs is not None:
            if isinstance(outputs, str):
                raise TypeError(f"outputs is the string {outputs!r}; give a list of names")
            names = list(outputs)
            for name in names:
                if not isinstance(name, str):
                    raise EngineError(f"outputs holds {name!r}; give names of tensors (tensor_names)")
            return self._core.inspect(x_NCHW, names)
        y = np.empty((len(x_NCHW), *self.output_shape), np.float32)
        if len(x_NCHW) > 0:
            self._core.run(x_NCHW, y)
        return y

    def profile(self, repeats: int = 20) -> list[LayerProfile]:
        """Time each step on one random image; return the steps in their order."""
        repeats = _integer("repeats", repeats, 1, MOST_REPEATS)
        image = np.random.default_rng(0).standard_normal((1, *self.input_shape), np.float32)
        records = self._core.profile(image, repeats)
        total = sum(record["milliseconds"] for record in records)
        return [LayerProfile(**record, share=record["milliseconds"] / total if total else 0.0) for record in records]

    def _images(self, images: Any) -> Real:
        if isinstance(images, np.ndarray):
            if images.dtype.kind != "f":
                raise TypeError(
                    f"images is an array of {images.dtype}; give floats, normalized as session.preprocessing does it"
                )
            array = np.require(images, np.float32, ["C", "A"])
        else:
            array = _view(images)
        if array.ndim != 1 + len(self.input_shape) or array.shape[1:] != self.input_shape:
            wanted = ", ".join(map(str, ("N", *self.input_shape)))
            hint = "; add the batch axis: images[None]" if array.shape == self.input_shape else ""
            raise ValueError(f"images has the shape {list(array.shape)}; this network takes [{wanted}]{hint}")
        return array

    def _error(self, problem: str) -> EngineError:
        return EngineError(f"{self._source}: {problem}" if self._source else problem)


def _integer(name: str, value: Any, least: int, most: int, least_text: str = "") -> int:
    """Return an integer, Python's or NumPy's, within its limits."""
    try:
        number = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not least <= number <= most:
        raise EngineError(f"{name} is {value!r}; give an integer from {least_text or least} to {most}")
    return number


def _view(images: Any) -> npt.NDArray[Any]:
    """Return the array that shares the memory of a tensor (DLPack) or of a buffer."""
    kind = f"{type(images).__module__}.{type(images).__qualname__}".removeprefix("builtins.")
    if hasattr(images, "__dlpack__"):
        try:
            array = np.from_dlpack(images)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise TypeError(
                f"images ({kind}) cannot be read in place: {reason}; give a detached float32 tensor on the CPU"
            ) from None
    else:
        try:
            array = np.asarray(memoryview(images))
        except (TypeError, ValueError):
            raise TypeError(
                f"images is {kind}; give a NumPy array, a torch CPU tensor, or an object with DLPack or the buffer "
                "protocol: float32 [N, C, H, W]"
            ) from None
    if array.dtype != np.float32:
        raise TypeError(f"images ({kind}) is of {array.dtype}; give float32")
    if not array.flags.c_contiguous or not array.flags.aligned:
        raise ValueError(f"images ({kind}) is not contiguous as [N, C, H, W]; call .contiguous() or copy it")
    return array
