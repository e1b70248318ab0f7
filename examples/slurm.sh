#!/usr/bin/env bash
# Several machines under Slurm: copy this, adapt the lines below, and submit it with options of `aecli train`.
#
#   sbatch slurm.sh vae --data /shared/photos --batch-size 2048 --epochs 300 --out /shared/runs/vae
#
# The run folder and the images or shards must be on a file system shared by all machines. --batch-size is the global
# batch. Near its time limit, or when preempted, the job gets SIGTERM: aecli saves once and exits, and the same command,
# queued again, resumes.
#SBATCH --job-name=aecli
#SBATCH --nodes=4
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@90
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.txt
set -euo pipefail
[ $# -gt 0 ] || { echo "usage: sbatch $0 MODEL [options of aecli train]" >&2; exit 2; }

# Seconds of silence after which a process counts as lost; must exceed the longest normal pause.
export AECLI_PEER_TIMEOUT=${AECLI_PEER_TIMEOUT:-600}
# On machines with several networks, name the fast one: export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
export RENDEZVOUS="$first:$((29400 + SLURM_JOB_ID % 1000))"

# One torchrun per machine starts one process per GPU; the rendezvous is on the first machine. When a process dies, all
# restart from the last checkpoint. A machine that exits doesn't end the others, which may still be saving.
status=0
srun --kill-on-bad-exit=0 bash -c '
    exec torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${PROCESSES:-gpu}" --max-restarts 3 \
        --rdzv-backend c10d --rdzv-endpoint "$RENDEZVOUS" --rdzv-id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
        --rdzv-conf "is_host=$((SLURM_NODEID == 0))" -m aecli train "$@"
' torchrun "$@" || status=$?

# Slurm requeues preempted jobs by itself, but not those that ran out of time. (SLURM_JOB_END_TIME exists since Slurm
# 22.05; without it, requeue by hand.)
if [ "$status" -ne 0 ] && [ $((${SLURM_JOB_END_TIME:-9999999999} - $(date +%s))) -le 120 ]; then
    echo "out of time; requeued, and will resume"
    exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
