"""A report on a run as one HTML page that needs no network: `launcher report RUN [RUN2]`.

run.py reads the files of a run, findings.py interprets them, own_figures.py and shared_figures.py
draw one run or two, page.py assembles the page, write.py writes the file.
"""
