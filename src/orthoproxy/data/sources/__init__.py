"""One reader a dataset: from files to a table."""
