"""The trainer: `python -m launcher.train`, under horovodrun, mpirun, srun, TF_CONFIG, or alone.

Start reading at `program`, which shows a run from top to bottom; `config` has its options.
"""
