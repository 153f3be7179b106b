#!/usr/bin/env bash
# Fuzzes one target with the stable compiler and no sanitizer, from seeds of this repository.
# usage: fuzz/run.sh safetensors|torch|config|model|wafer SECONDS
set -euo pipefail
target=$1 seconds=$2
cd "$(dirname "$0")"

seeds=corpus/$target
mkdir -p "$seeds" artifacts
seed() { { printf "$1"; cat "$2"; } > "$seeds/seed-$(basename "$(dirname "$2")")-$(basename "$2")"; }
case $target in
  safetensors)
    for model in ../tests/data/oracles/*/; do
      # The header alone: its length is put before it again.
      length=$(od -An -t u8 -N 8 "$model/model.safetensors" | tr -d ' ')
      { printf "\002"; head -c "$((8 + length))" "$model/model.safetensors" | tail -c +9; } > "$seeds/seed-$(basename "$model")"
    done
    printf '\000{"metadata": {"total_size": 8}, "weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}}' > "$seeds/seed-index"
    printf '\002{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "b": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [8, 16]}}' > "$seeds/seed-two"
    ;;
  torch)
    for file in ../checkpoint/tests/data/*.bin; do seed '\000' "$file"; done
    for file in ../checkpoint/tests/data/{torch,module,protocol4}.bin; do
      { printf '\001'; unzip -p "$file" '*/data.pkl'; } > "$seeds/seed-pickle-$(basename "$file")"
    done
    ;;
  config) for file in ../tests/data/oracles/*/config.json ../models/tests/data/*.json; do [ -f "$file" ] && seed '' "$file"; done ;;
  wafer) for file in ../runtime-sim/tests/data/*.wafer; do seed '' "$file"; done ;;
  model) for file in ../models/*.toml; do seed '' "$file"; done ;;
esac

# What cargo-fuzz passes, without its sanitizer: coverage counters and traced comparisons.
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
 -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing"
cargo build --release --bin "$target" --target "$(rustc -vV | sed -n 's/^host: //p')"
binary=$(ls -t target/*/release/"$target" | head -1)
dictionary=$([ -f "$target.dict" ] && echo "-dict=$target.dict" || true)
exec "$binary" "$seeds" $dictionary -max_total_time="$seconds" -max_len=16384 -timeout=10 -rss_limit_mb=2048 \
  -artifact_prefix="artifacts/$target-" -print_final_stats=1
