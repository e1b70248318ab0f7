#!/usr/bin/env bash
# Reproduces the report: trains both models, reconstructs the held-out images, and makes table, figure and samples.
#
#   examples/reproduce_report.sh [DATA] [IMAGE_SIZE] [EPOCHS] [further options of aecli train]
#
# DATA is a folder, a .zip, or demo (the default). The report's own setting is 256 and 1000, the defaults.
# Everything is written to the folder `report` in the current one. Run it again after an interruption and it resumes.
set -euo pipefail
data=${1:-demo} size=${2:-256} epochs=${3:-1000}
shift $(($# < 3 ? $# : 3))

mkdir -p report
for model in ae vae; do
    aecli train "$model" --data "$data" --image-size "$size" --epochs "$epochs" --out "report/runs/$model" "$@"
    aecli reconstruct --model "report/runs/$model" --out "report/reconstructions/$model" --overwrite
done

# The ground truth is the held-out images at the models' size.
python3 - <<'PYTHON'
from pathlib import Path

from PIL import Image

from aecli.data.decoding.decode import decode, fit
from aecli.runs.images import run_images
from aecli.runs.folder import RunFolder

run = RunFolder(Path("report/runs/ae"))
options = run.read_config()["options"]
for image in run_images(run, "val"):
    file = Path("report/ground_truth", f"{image.key}.png")
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(fit(decode(image).pixels, options["image_size"], options["fit"])).save(file)
PYTHON

here=$(cd "$(dirname "$0")" && pwd)
options() { python3 -c 'import json, sys
given = json.load(open(sys.argv[1]))["options"]
given |= given.pop("options")
del given["model_defaults"]
print("\n".join(f"| {key} | {value} |" for key, value in given.items() if value is not None))' "report/runs/$1/config.json"; }

# The six answers, in the report's order.
for model in ae vae; do
    width=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["model"]["options"]["width"])' \
        "report/runs/$model/config.json")
    printf '# %s\n\n' "$model"
    PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}" python3 "$here/architecture.py" "$model" "$size" "width=$width"
    echo
done >report/1_architecture.md
for model in ae vae; do
    printf '# %s\n\n| option | value |\n|---|---|\n%s\n\n' "$model" "$(options "$model")"
done >report/2_parameters.md
aecli models --runs report/runs | tee report/models.txt
for model in ae vae; do cp "report/runs/$model/curves.png" "report/3_curves_$model.png"; done
aecli grid --n 10 --model report/runs/ae --model report/runs/vae --out report/4_figure.png
aecli eval --gt report/ground_truth --pred AE=report/reconstructions/ae --pred VAE=report/reconstructions/vae \
    --per-image report/per_image.csv --report report/page.html | tee report/5_table.txt
aecli sample --model report/runs/vae --prior normal --out report/6_samples.png

cat >report/README.md <<'PAGE'
# The report's answers

1. [Architecture](1_architecture.md)
2. [Parameters](2_parameters.md)
3. Curves: AE ![AE](3_curves_ae.png) VAE ![VAE](3_curves_vae.png)
4. Figure: ![Ground truth, AE, VAE](4_figure.png)
5. [Table](5_table.txt), every image's numbers [as a file](per_image.csv) and [as a page to look at](page.html)
6. Samples of the VAE, from N(0, I): ![Samples](6_samples.png)
PAGE
echo "the report's six answers are in report/: see report/README.md"
