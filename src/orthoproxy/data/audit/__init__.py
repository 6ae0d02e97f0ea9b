"""Checks of a dataset: scan, verify, duplicates, statistics."""
