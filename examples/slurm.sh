#!/usr/bin/env bash
# Several machines under Slurm: copy this, change what stands below, and hand it over with options of `aecli train`.
#
#   sbatch slurm.sh vae --data /shared/photos --batch-size 2048 --epochs 300 --out /shared/runs/vae
#
# The run folder, and the images or shards, lie on a disk that all machines see. --batch-size is that of all GPUs
# together. Near the end of its time, and where it has to make room, the job is asked to stop (SIGTERM): aecli saves
# once and leaves, and the same command, queued again, goes on where it stopped.
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

# Seconds after which a machine that says nothing counts as lost; more than the longest pause that is no failure.
export AECLI_PEER_TIMEOUT=${AECLI_PEER_TIMEOUT:-600}
# Where machines have several networks, name the fast one: export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
export RENDEZVOUS="$first:$((29400 + SLURM_JOB_ID % 1000))"

# One torchrun a machine, which starts a process a GPU. They meet on the first machine; where a process dies, all begin
# again from the last checkpoint. No machine is ended because another one has left: it may be saving.
status=0
srun --kill-on-bad-exit=0 bash -c '
    exec torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${PROCESSES:-gpu}" --max-restarts 3 \
        --rdzv-backend c10d --rdzv-endpoint "$RENDEZVOUS" --rdzv-id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
        --rdzv-conf "is_host=$((SLURM_NODEID == 0))" -m aecli train "$@"
' torchrun "$@" || status=$?

# Slurm itself queues again what it ended before its time; what ran out of time is for us to queue. (SLURM_JOB_END_TIME
# is there from Slurm 22.05 on; without it, queue the job again by hand.)
if [ "$status" -ne 0 ] && [ $((${SLURM_JOB_END_TIME:-9999999999} - $(date +%s))) -le 120 ]; then
    echo "out of time; the job is queued again and goes on where it stopped"
    exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
