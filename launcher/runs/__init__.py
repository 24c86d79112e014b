"""The files of a run, in its own directory: written by its launcher, read by any process."""
