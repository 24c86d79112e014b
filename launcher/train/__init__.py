"""What each rank runs: `python -m launcher.train`, under horovodrun, mpirun, TF_CONFIG, or alone.

Read `__main__` (command line), `config`, `session` (what is set up before the first step), `loop`.
"""
