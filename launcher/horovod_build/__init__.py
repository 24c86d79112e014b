"""Builds Horovod for the installed TensorFlow: what `python -m launcher install-horovod` stands on.

recipe.py says what is built and how, machine.py what it is built with, build.py builds and keeps
the wheel, installed.py tells whether the installed one works.
"""
