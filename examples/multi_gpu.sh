#!/usr/bin/env bash
# One machine, all of its GPUs: train the VAE, reconstruct the held-out images, measure and sample.
#
#   examples/multi_gpu.sh [DATA] [IMAGE_SIZE] [EPOCHS] [further options of aecli train]
#
# The arguments are those of reproduce_report.sh; --batch-size is that of all GPUs together. PROCESSES says how many
# share the work, in place of one a GPU, and makes this run on a CPU too:
#
#   PROCESSES=2 examples/multi_gpu.sh demo 32 1 --width 4 --batch-size 8
#
# Everything lands in the folder `multi_gpu` beside you. Run it again after an interruption and it goes on, also with
# another number of processes.
set -euo pipefail
data=${1:-demo} size=${2:-256} epochs=${3:-1000}
shift $(($# < 3 ? $# : 3))

# Where a process dies, all are begun again from the last checkpoint, at most three times.
shared() { torchrun --standalone --nproc-per-node "${PROCESSES:-gpu}" --max-restarts "${RESTARTS:-0}" -m aecli "$@"; }

RESTARTS=3 shared train vae --data "$data" --image-size "$size" --epochs "$epochs" --out multi_gpu/run "$@"
# --native: each image at its own size, as the ground truth has it. What was trained on is in no pair, and skipped.
shared reconstruct --model multi_gpu/run --native --out multi_gpu/reconstructions --overwrite
shared eval --gt "$data" --pred vae=multi_gpu/reconstructions --on-mismatch skip --per-image multi_gpu/per_image.csv |
    tee multi_gpu/table.txt
shared sample --model multi_gpu/run --out multi_gpu/samples.png
