#!/usr/bin/env bash
# What needs a GPU, in one command: the tests marked for it, then FPN and AugFPN at the mini scale, with their runtime and
# the semantic gap.
#
#   PYTHON=.venv/bin/python OUT=runs/mini pipelines/gpu.sh
#
# Runs go on where they were interrupted. What they found is in metrics.json, with provenance.json beside it. They stand
# where `augfpn reproduce --scale mini` has them, which does the rest where papermill and Snakemake are: notebooks, report.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${OUT:-runs/mini}
"$python" -m pytest -m gpu -q
fpn=$out/table2/baseline/seed0
augfpn=$out/table2/cs+rfa+srs/seed0
"$python" -m augfpn train table2/baseline --scale mini --out "$fpn" --resume
"$python" -m augfpn train table2/cs+rfa+srs --scale mini --out "$augfpn" --resume
"$python" -m augfpn runtime "$fpn" "$augfpn" --out "$out/runtime.json"
"$python" -m augfpn semantic-gap "$fpn" "$augfpn" --out "$out/semantic_gap.json"
"$python" -m augfpn figure4 "$augfpn" --out "$out/figure4.json"
