#!/bin/bash
#SBATCH --job-name=full
#SBATCH --output=/scratch/ada/runs/full-%j.out
#SBATCH --open-mode=append
#SBATCH --chdir=/home/ada/project
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=h100:4
#SBATCH --mem=33280M
#SBATCH --partition=gpu
#SBATCH --account=vision
#SBATCH --qos=high
#SBATCH --time=1-12:00:00
#SBATCH --constraint=a100&ib
#SBATCH --exclusive
#SBATCH --dependency=afterok:4711
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --signal=B:USR1@154
#SBATCH --requeue
#SBATCH --reservation=maint
#SBATCH --mail-type=END

# API_TOKEN: in the environment of sbatch; the value is not written here.
export DATA='/data/it'"'"'s here'
module load cuda/12
ulimit -n 65536

# Before the time limit Slurm sends USR1 to this script, which asks all tasks to save.
# scancel and preemption send SIGTERM to the tasks themselves.
warned=
trap 'interrupted=yes warned=yes; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
trap 'interrupted=yes' TERM

# On each node one launcher with 4 ranks. The first one leads: it starts, watches and
# restarts all ranks. Jobs that share a node listen on ports of their own.
port=$((20000 + SLURM_JOB_ID % 2000 * 6))
srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --cpus-per-task=16 \
    --mpi=none --kill-on-bad-exit=0 --wait=154 --export=ALL \
    apptainer exec --nv --bind /scratch/ada/runs --bind /home/ada/project --bind /data --pwd /home/ada/project /images/syncbn.sif \
    python -m launcher join --workers 1 --port "$port" --run "full-$SLURM_JOB_ID" \
    --job '{"name": "full", "backend": "mpi", "resources": {"memory": 8589934592, "threads": 4}, "restart": {"max_restarts": 5}, "save_timeout": 120.0, "output": "/scratch/ada/runs", "metrics": {"port": 9400, "address": "0.0.0.0"}, "container": {"slots": 4}}' \
    -- python -m launcher.train --note 'two words' &
step=$!
while interrupted=; wait "$step"; code=$?; [ -n "$interrupted" ]; do :; done
# 143: the ranks have saved and stopped. Where Slurm asked for it, the job continues later.
read -r state preempted < <(squeue --noheader --jobs="$SLURM_JOB_ID" --Format=State,PreemptTime)
again=
if [ "$code" -eq 143 ] && [ "$state" = RUNNING ]; then
    if [ -n "$warned" ] || [ "$preempted" != N/A ]; then again=yes; fi
elif [ "$state" = RUNNING ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 5 ]; then
    # Not an exit code of the launcher: one was killed, with its node or without.
    case $code in 0 | 1 | 2 | 130 | 143) ;; *) again=yes ;; esac
fi
if [ -n "$again" ]; then
    echo "launcher: job $SLURM_JOB_ID ended with $code and is queued again"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
