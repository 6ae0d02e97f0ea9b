"""From a trained model to searching: export, embed, index, search, serve."""

from orthoproxy.search.onnx import Description, OnnxEmbedder, load_model

__all__ = ["Description", "OnnxEmbedder", "load_model"]
