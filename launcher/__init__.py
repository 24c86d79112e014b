"""Starts, watches and measures distributed training jobs: `python -m launcher --help`."""
