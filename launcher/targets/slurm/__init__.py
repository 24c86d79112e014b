"""Jobs on a cluster of Slurm: sbatch starts one launcher per node, and the first one leads.

script.py renders a job, submit.py hands it to sbatch, queue.py reads Slurm's queue, reasons.py puts
its states into words, status.py combines both with the record of the run, target.py does the rest.
"""
