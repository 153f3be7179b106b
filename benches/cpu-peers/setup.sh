#!/usr/bin/env bash
# Makes what compare.py needs in a folder outside of the repository: the other tools, and the random models in their
# formats. `setup.sh WORK`, 8 GB and, on two free cores, about half an hour. Prompts are ids, so no tokenizer is needed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$(mkdir -p "$1" && cd "$1" && pwd)
repository=$(cd "$here/../.." && pwd)

cd "$repository"
cargo build --release --locked -p lapidary-cli -p lapidary-benches --bins

[ -x "$work/venv/bin/python" ] || python3 -m venv "$work/venv"
pip="$work/venv/bin/pip install --quiet"
$pip torch==2.15.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6 gguf==0.19.0
# Compiled for this processor, optimised throughout; only the library, not its tools.
CMAKE_ARGS="-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF \
  -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF" \
  $pip --no-binary llama-cpp-python llama-cpp-python==0.3.36
RUSTFLAGS="-C target-cpu=native" cargo build --release --locked --manifest-path "$here/candle/Cargo.toml" --target-dir "$work/candle"

for model in 110m 1.1b; do
  for type in bf16 f32; do
    folder="$work/$model-$type"
    [ -d "$folder" ] || target/release/lapidary models init "$here/models/$model.toml" --dtype $type --seed 7 -o "$folder" --shard-bytes 100000000000
    [ -e "$folder.gguf" ] || "$work/venv/bin/python" "$here/to_gguf.py" "$folder" "$folder.gguf"
  done
done
