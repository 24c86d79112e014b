"""Trainings of two ranks that must end with one model, for `test_equal_models.py`.

Every variant starts with different seeds and different rows on each rank.
"""
