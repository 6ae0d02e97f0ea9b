"""Foundations: errors, files, processes, progress."""
