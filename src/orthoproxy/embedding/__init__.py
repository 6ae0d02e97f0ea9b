"""A model in use: images in, embeddings out."""
