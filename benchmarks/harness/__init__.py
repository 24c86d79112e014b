"""What all measurements share: jobs of real ranks, turns, medians, tables and JSON."""
