"""Side-by-side measurements; each runs separately: `python -m benchmarks.NAME`."""
