"""Trainings of two ranks that must end with one model: what `test_equal_models.py` runs.

Every variant starts unequal (each rank has its own seed) and sees other rows on each rank.
"""
