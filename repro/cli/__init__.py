"""`python -m repro COMMAND`."""
