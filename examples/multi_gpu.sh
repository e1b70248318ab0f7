#!/usr/bin/env bash
# One machine, all of its GPUs: train the VAE, reconstruct the held-out images, measure and sample.
#
#   examples/multi_gpu.sh [DATA] [IMAGE_SIZE] [EPOCHS] [further options of aecli train]
#
# The arguments are those of reproduce_report.sh; --batch-size is the global batch. PROCESSES sets the number of
# processes, by default one per GPU, and lets this run on a CPU too:
#
#   PROCESSES=2 examples/multi_gpu.sh demo 32 1 --width 4 --batch-size 8
#
# Everything is written to the folder `multi_gpu` in the current one. Run it again after an interruption and it resumes,
# also with another number of processes.
set -euo pipefail
data=${1:-demo} size=${2:-256} epochs=${3:-1000}
shift $(($# < 3 ? $# : 3))

# With RESTARTS, when a process dies, torchrun restarts all of them and training resumes from the last checkpoint.
shared() { torchrun --standalone --nproc-per-node "${PROCESSES:-gpu}" --max-restarts "${RESTARTS:-0}" -m aecli "$@"; }

RESTARTS=3 shared train vae --data "$data" --image-size "$size" --epochs "$epochs" --out multi_gpu/run "$@"
# --native keeps the size of the ground truth. Training images have no reconstruction, hence --on-mismatch skip.
shared reconstruct --model multi_gpu/run --native --out multi_gpu/reconstructions --overwrite
shared eval --gt "$data" --pred vae=multi_gpu/reconstructions --on-mismatch skip --per-image multi_gpu/per_image.csv |
    tee multi_gpu/table.txt
shared sample --model multi_gpu/run --out multi_gpu/samples.png
