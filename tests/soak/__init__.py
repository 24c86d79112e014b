"""A soak: real jobs that train for long, and whose launcher and ranks must not grow.

`make soak` runs it; it is not part of the test suite.
"""
