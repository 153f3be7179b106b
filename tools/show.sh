#!/usr/bin/env bash
# The main job: both models through one compiler to both machines, and the plans. Shows the commands it runs.
# usage: show.sh PATH_TO_LAPIDARY
set -euo pipefail
lapidary=$1
out=$(mktemp -d); trap 'rm -rf "$out"' EXIT

step() { printf '\n\033[1m$ lapidary %s\033[0m\n' "${*//$out\//}"; "$lapidary" "$@"; }

for model in amber crystalcoder; do
  step compile "models/$model.toml" --target a100 --batch 8 --seq-len 2048 -o "$out/$model-a100.lpd"
  step compile "models/$model.toml" --target cg1-sim --batch 66 --seq-len 2048 -o "$out/$model-cg1.lpd"
done
step simulate "$out/crystalcoder-cg1.lpd"
step plan models/amber.toml --machine amber-cluster --global-batch 2240 --software lightning-fabric --top 6 --explain
step plan models/crystalcoder.toml --machine cg1 --global-batch 2112 --top 6
# Random weights in the published form, and what they say: no download, no GPU.
step models init cerebras-gpt-111m --seed 1 -o "$out/cerebras-gpt-111m"
step inspect "$out/cerebras-gpt-111m"
step run "$out/cerebras-gpt-111m" --tokens 464,3797,3332 -n 16
# A stored model of a public implementation, on the host and word by word on a simulated wafer.
step verify tests/data/oracles/crystal-tiny
step verify tests/data/oracles/crystal-tiny --device wafer-sim
