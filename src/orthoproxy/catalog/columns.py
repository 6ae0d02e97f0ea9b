"""The columns of a catalog's rows, beside ``embedding``."""

TEXT_FIELDS = {"id": 32, "path": 4096, "label": 1024, "group": 1024, "content": 64}  # maximum bytes
HIT_FIELDS = ["id", "path", "label", "group"]
