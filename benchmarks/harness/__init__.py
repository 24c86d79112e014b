"""The common parts of measurements: jobs of real ranks, turns, medians, tables and JSON."""
