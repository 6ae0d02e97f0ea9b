"""Export a model to ONNX."""

from orthoproxy.export.onnx_export import Exported, export_onnx

__all__ = ["Exported", "export_onnx"]
