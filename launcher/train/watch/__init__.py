"""What watches a rank while it trains, plugged into the loop as observers (`assemble` lists them).

`measures` adds up this rank's steps, `exchange` joins them over the ranks, `journal` keeps them in
metrics.jsonl, `exporter` shows them to Prometheus. None of them stops training when it fails.
"""
