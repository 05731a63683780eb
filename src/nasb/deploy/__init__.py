"""From a trained network to one ONNX file: packing, folding, lowering, verification."""

from nasb.deploy.export import check_path, export_model, export_onnx
from nasb.deploy.report import Export

__all__ = ["Export", "check_path", "export_model", "export_onnx"]
