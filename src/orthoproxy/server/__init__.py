"""The search page and the HTTP service."""
