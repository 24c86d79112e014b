#!/bin/bash
#SBATCH --job-name=plain
#SBATCH --output=/scratch/ada/runs/plain-%j.out
#SBATCH --open-mode=append
#SBATCH --chdir=/home/ada/project
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:USR1@64
#SBATCH --requeue

# Before the time limit Slurm sends USR1 to this script, which asks all tasks to save.
# scancel and preemption send SIGTERM to the tasks themselves.
warned=
trap 'interrupted=yes warned=yes; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
trap 'interrupted=yes' TERM

# On each node one launcher with one rank. The first one leads: it starts, watches and
# restarts all ranks. Jobs that share a node listen on ports of their own.
port=$((20000 + SLURM_JOB_ID % 4000 * 3))
srun --nodes=2 --ntasks=2 --ntasks-per-node=1 \
    --mpi=none --kill-on-bad-exit=0 --wait=64 --export=ALL \
    /home/ada/venv/bin/python -m launcher join --workers 1 --port "$port" --run "plain-$SLURM_JOB_ID" \
    --job '{"name": "plain", "backend": "mpi", "output": "/scratch/ada/runs"}' \
    -- python train.py &
step=$!
while interrupted=; wait "$step"; code=$?; [ -n "$interrupted" ]; do :; done
# 143: the ranks have saved and stopped. Where Slurm asked for it, the job continues later.
read -r state preempted < <(squeue --noheader --jobs="$SLURM_JOB_ID" --Format=State,PreemptTime)
again=
if [ "$code" -eq 143 ] && [ "$state" = RUNNING ]; then
    if [ -n "$warned" ] || [ "$preempted" != N/A ]; then again=yes; fi
elif [ "$state" = RUNNING ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 3 ]; then
    # Not an exit code of the launcher: one was killed, with its node or without.
    case $code in 0 | 1 | 2 | 130 | 143) ;; *) again=yes ;; esac
fi
if [ -n "$again" ]; then
    echo "launcher: job $SLURM_JOB_ID ended with $code and is queued again"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
