#!/bin/sh
# Unpacks NVRTC, its headers and the SASS tools from their PyPI wheels into a project-local folder.
# usage: cuda.sh FOLDER NAME==VERSION...
set -eu
out=$1; shift
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$tmp/wheels" "$@"
mkdir "$tmp/cuda"
for wheel in "$tmp"/wheels/*.whl; do python3 -m zipfile -e "$wheel" "$tmp/cuda"; done
find "$tmp/cuda" -path '*/bin/*' -type f -exec chmod +x {} +
printf '%s\n' "$@" > "$tmp/cuda/versions"
rm -rf "$out"; mkdir -p "$(dirname "$out")"; mv "$tmp/cuda" "$out"
