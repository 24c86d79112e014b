"""The verbs of `python -m launcher`, one file each."""
