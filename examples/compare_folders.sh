#!/usr/bin/env bash
# Compare any number of folders of images with one ground truth, in one pass:
#
#   examples/compare_folders.sh GROUND_TRUTH FOLDER [FOLDER …]
#
# Images pair by relative path without suffix. The numbers are also written to comparison.json and comparison.csv.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 GROUND_TRUTH FOLDER [FOLDER …]" >&2; exit 2; }
truth=$1
shift
predictions=()
for folder in "$@"; do predictions+=(--pred "$folder"); done
aecli eval --gt "$truth" "${predictions[@]}" --per-image comparison.csv
aecli eval --gt "$truth" "${predictions[@]}" --json --quiet > comparison.json
