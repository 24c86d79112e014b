"""Builds Horovod for the installed TensorFlow, for `python -m launcher install-horovod`.

recipe.py defines the build, machine.py finds the tools for it, build.py builds and caches the
wheel, installed.py checks the installed Horovod, failure.py records a failed build.
"""
