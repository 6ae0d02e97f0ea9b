"""Searchable catalogs of embeddings."""
