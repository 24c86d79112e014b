"""What observes a rank while it trains, called by the training loop (`assemble` lists them).

`step_timing` adds up this rank's steps, `cross_rank` joins them over the ranks, `journal` keeps
them in metrics.jsonl, `exporter` serves them to Prometheus. A failing observer never stops
training, except for those that take part in collectives.
"""
