#!/usr/bin/env bash
# The main job: both models through one compiler to both machines, and the plans. Shows the commands it runs.
# usage: show.sh PATH_TO_LAPIDARY
set -euo pipefail
lapidary=$1
out=$(mktemp -d); trap 'rm -rf "$out"' EXIT

step() { printf '\n\033[1m$ lapidary %s\033[0m\n' "$*"; "$lapidary" "$@"; }

for model in models/amber.toml models/crystalcoder.toml; do
  name=$(basename "$model" .toml)
  step compile "$model" --target a100 --batch 8 --seq-len 2048 -o "$out/$name-a100.lpd"
  step compile "$model" --target cg1-sim -o "$out/$name-cg1.lpd"
  step simulate "$out/$name-cg1.lpd"
done
step plan models/amber.toml --machine amber-cluster --global-batch 2240 --top 8 --explain
step plan models/crystalcoder.toml --machine cg1 --global-batch 2112 --top 8 --explain
