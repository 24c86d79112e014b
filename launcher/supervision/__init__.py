"""Starts the ranks of one job, watches them, ends them, and names the cause of a failure."""
