#!/usr/bin/env bash
# The report, end to end: train both models, reconstruct the held-out images, table, figure, samples.
#
#   examples/reproduce_report.sh [DATA] [IMAGE_SIZE] [EPOCHS] [further options of aecli train]
#
# DATA is a folder, a .zip, or demo (the default); the report's own setting is 256 and 1000.
# Everything lands in the folder `report` beside you. Run it again after an interruption and it goes on.
set -euo pipefail
data=${1:-demo} size=${2:-256} epochs=${3:-1000}
shift $(($# < 3 ? $# : 3))

mkdir -p report
for model in ae vae; do
    aecli train "$model" --data "$data" --image-size "$size" --epochs "$epochs" --out "report/runs/$model" "$@"
    aecli reconstruct --model "report/runs/$model" --out "report/reconstructions/$model" --overwrite
done

# The ground truth as the models saw it: the held-out images at the models' size.
python3 - <<'PYTHON'
from pathlib import Path

from PIL import Image

from aecli.data.decode import decode, fit
from aecli.inference import run_images
from aecli.runs import RunFolder

run = RunFolder(Path("report/runs/ae"))
options = run.read_config()["options"]
for image in run_images(run, "val"):
    file = Path("report/ground_truth", f"{image.key}.png")
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(fit(decode(image), options["image_size"], options["fit"])).save(file)
PYTHON

aecli eval --gt report/ground_truth --pred AE=report/reconstructions/ae --pred VAE=report/reconstructions/vae \
    --per-image report/per_image.csv | tee report/table.txt
aecli grid --n 10 --model report/runs/ae --model report/runs/vae --out report/figure.png
aecli sample --model report/runs/vae --out report/samples.png
aecli models --runs report/runs | tee report/models.txt
