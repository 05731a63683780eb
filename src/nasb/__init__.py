"""nasb: search, train and deploy binary convolutional neural networks.

Importing this package is cheap: torch is imported when a name that needs it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nasb.cells.architecture import Architecture, Edge
    from nasb.cells.config import CellConfig
    from nasb.cost import Count, count
    from nasb.data import DataConfig, open_data
    from nasb.deploy import Export, export_model, export_onnx
    from nasb.errors import UserError
    from nasb.model_file import Model, load, load_model
    from nasb.networks.convert import convert
    from nasb.networks.registry import create_network, list_networks, register_host
    from nasb.training.config import RunConfig

__all__ = [
    "Architecture",
    "CellConfig",
    "Count",
    "DataConfig",
    "Edge",
    "Export",
    "Model",
    "RunConfig",
    "UserError",
    "convert",
    "count",
    "create_network",
    "export_model",
    "export_onnx",
    "list_networks",
    "load",
    "load_model",
    "open_data",
    "register_factory",
    "register_host",
]

_HOMES = {
    "Architecture": "nasb.cells.architecture",
    "CellConfig": "nasb.cells.config",
    "Count": "nasb.cost",
    "DataConfig": "nasb.data",
    "Edge": "nasb.cells.architecture",
    "Export": "nasb.deploy",
    "Model": "nasb.model_file",
    "RunConfig": "nasb.training.config",
    "UserError": "nasb.errors",
    "convert": "nasb.networks.convert",
    "count": "nasb.cost",
    "create_network": "nasb.networks.registry",
    "export_model": "nasb.deploy",
    "export_onnx": "nasb.deploy",
    "list_networks": "nasb.networks.registry",
    "load": "nasb.model_file",
    "load_model": "nasb.model_file",
    "open_data": "nasb.data",
    "register_factory": "nasb.networks.families",
    "register_host": "nasb.networks.registry",
}


def __getattr__(name: str) -> Any:
    if name == "engine":
        return import_module("nasb.engine")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'nasb' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
