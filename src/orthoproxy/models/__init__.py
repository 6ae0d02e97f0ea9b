"""The encoder and where its starting weights come from."""

from orthoproxy.models.encoder import Encoder
from orthoproxy.models.weights import load_weights

__all__ = ["Encoder", "load_weights"]
