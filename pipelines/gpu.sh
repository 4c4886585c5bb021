#!/usr/bin/env bash
# What needs a GPU, in one command: the tests marked for it, then FPN and AugFPN at the mini scale, with their runtime and
# the semantic gap.
#
#   PYTHON=.venv/bin/python OUT=runs/mini pipelines/gpu.sh
#
# Runs go on where they were interrupted. What they found is in $OUT/*/metrics.json, with provenance.json beside it.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${OUT:-runs/mini}
"$python" -m pytest -m gpu -q
for experiment in table2/baseline table2/cs+rfa+srs; do
  "$python" -m augfpn train "$experiment" --scale mini --out "$out/${experiment//\//_}" --resume
done
"$python" -m augfpn runtime "$out"/table2_baseline "$out"/table2_cs+rfa+srs --out "$out/runtime.json"
"$python" -m augfpn semantic-gap "$out"/table2_baseline "$out"/table2_cs+rfa+srs --out "$out/semantic_gap.json"
"$python" -m augfpn figure4 "$out"/table2_cs+rfa+srs --out "$out/figure4.json"
"$python" -m augfpn report "$out"/table2_baseline "$out"/table2_cs+rfa+srs --out "$out/report"
