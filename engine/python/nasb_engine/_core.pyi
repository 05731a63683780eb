"""The engine's core (bind/module.cpp)."""

from typing import Any

import numpy as np
import numpy.typing as npt

class EngineError(ValueError):
    """A model or a value that the engine refuses; one line that says what and where."""

class Session:
    def __init__(self, data: bytes, threads: int, kernel: str) -> None: ...
    def run(self, images: npt.NDArray[np.float32], outputs: npt.NDArray[np.float32]) -> None: ...
    def inspect(self, images: npt.NDArray[np.float32], names: list[str]) -> dict[str, npt.NDArray[np.float32]]: ...
    def profile(self, image: npt.NDArray[np.float32], repeats: int) -> list[dict[str, Any]]: ...
    @property
    def input_dims(self) -> list[int]: ...
    @property
    def output_dims(self) -> list[int]: ...
    @property
    def metadata(self) -> dict[str, str]: ...
    @property
    def threads(self) -> int: ...
    @property
    def workspace_bytes(self) -> int: ...
    @property
    def tensor_names(self) -> list[str]: ...

def measure(
    kind: str,
    in_channels: int,
    in_height: int,
    in_width: int,
    out_channels: int,
    kernel_size: int = 1,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    residual: bool = True,
    sign_output: bool = False,
    repeats: int = 20,
    threads: int = 1,
    kernel: str = "",
) -> list[float]: ...
def kernels() -> list[dict[str, Any]]: ...
def cpu_name() -> str: ...
def version() -> str: ...
