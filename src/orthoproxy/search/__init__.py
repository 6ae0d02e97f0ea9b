"""From a trained model to searching: export, embed, index, search, serve."""

from orthoproxy.search.export import Exported, export_onnx
from orthoproxy.search.onnx import Description, OnnxEmbedder, load_model

__all__ = ["Description", "Exported", "OnnxEmbedder", "export_onnx", "load_model"]
