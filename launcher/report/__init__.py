"""A run on one page that needs no network: `launcher report RUN [RUN2]`.

run.py reads what a run left, findings.py draws conclusions, own_figures.py and shared_figures.py
draw one run or two, page.py puts it together, write.py writes the file.
"""
