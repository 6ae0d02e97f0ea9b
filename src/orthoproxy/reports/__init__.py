"""Reports of training runs: scores, curves, the geometry of the proxies, example queries."""
