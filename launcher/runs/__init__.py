"""The record of a run, in a directory of its own: written by its launcher, read by everybody."""
