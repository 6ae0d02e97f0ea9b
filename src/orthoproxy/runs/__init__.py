"""What a configuration decides: the only place that sees a Config."""
