"""Side-by-side measurements; each part runs by itself: `python -m benchmarks.NAME`."""
