#!/bin/bash
#SBATCH --job-name=pyxis
#SBATCH --output=/scratch/ada/runs/pyxis-%j.out
#SBATCH --open-mode=append
#SBATCH --chdir=/home/ada/project
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:USR1@64
#SBATCH --no-requeue

# Before the time limit Slurm sends USR1 to this script, which asks all tasks to save.
# scancel and preemption send SIGTERM to the tasks themselves.
trap 'interrupted=yes; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
trap 'interrupted=yes' TERM

# On each node one launcher with one rank. The first one leads: it starts, watches and
# restarts all ranks. Jobs that share a node listen on ports of their own.
port=$((20000 + SLURM_JOB_ID % 4000 * 3))
srun --nodes=2 --ntasks=2 --ntasks-per-node=1 \
    --mpi=none --kill-on-bad-exit=0 --wait=64 --export=ALL \
    --container-image='registry.example#team/syncbn:gpu' --container-mounts=/scratch/ada/runs:/scratch/ada/runs,/home/ada/project:/home/ada/project,/data:/data,/home/ada:/root:ro --container-workdir=/home/ada/project \
    python -m launcher join --workers 1 --port "$port" --run "pyxis-$SLURM_JOB_ID" \
    --job '{"name": "pyxis", "backend": "mpi", "output": "/scratch/ada/runs"}' \
    -- python train.py &
step=$!
while interrupted=; wait "$step"; code=$?; [ -n "$interrupted" ]; do :; done
exit "$code"
