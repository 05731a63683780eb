"""Run binary convolutional neural networks, exported by nasb as 1-bit ONNX files, on CPUs."""

from nasb_engine._core import EngineError
from nasb_engine._kernels import Kernel, cpu_name, kernels
from nasb_engine._preprocessing import Preprocessing
from nasb_engine._session import LayerProfile, Session, __version__

__all__ = ["EngineError", "Kernel", "LayerProfile", "Preprocessing", "Session", "__version__", "cpu_name", "kernels"]
