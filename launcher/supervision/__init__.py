"""Starts the ranks of one job, watches them, ends them, and says why they ended."""
