"""Builds Horovod for the installed TensorFlow: behind `python -m launcher install-horovod`.

recipe.py says what is built and how, machine.py what it is built with, build.py builds and keeps
the wheel, installed.py tells whether the installed one works.
"""
