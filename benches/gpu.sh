#!/bin/sh
# Checks every kernel on a GPU and measures all of them, in one call of less than 9 minutes.
#
#   benches/gpu.sh BUNDLE OUT
#
# BUNDLE is a folder made with `make gpu-bundle` on any machine that builds this project; it needs no GPU to be made. It
# holds everything: the runner, machine code for sm_80 and sm_90, weights' seeds and expected values. The machine with the
# GPU needs an NVIDIA driver of 525 or later, glibc 2.36 or later, and nothing else: no network, no compiler, no CUDA
# toolkit. Where python3 has torch, the same shapes are measured with it in the same call, and set beside ours.
#
# OUT gets gpu-run.json (checks and measurements), bench.json (what `lapidary calibrate --from` and `bench --baseline`
# read), torch.json where there is torch, report.txt, log.txt.
# Exit code: 0, or the runner's: 3 bundle damaged, 6 a kernel differs from the reference, 7 no GPU or no driver.
set -u
if [ $# -ne 2 ]; then
    sed -n '2,14p' "$0" >&2
    exit 2
fi
bundle=$1 out=$2 here=$(dirname "$0")
mkdir -p "$out"
[ -x "$bundle/lapidary-gpu" ] || { echo "$bundle/lapidary-gpu: missing; make the folder with make gpu-bundle" >&2; exit 3; }
timeout 330 "$bundle/lapidary-gpu" "$bundle" >"$out/gpu-run.json" 2>"$out/log.txt"
code=$?
tail -n 3 "$out/log.txt" >&2
if [ -s "$out/gpu-run.json" ] && command -v python3 >/dev/null; then
    if python3 -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
        timeout 180 python3 "$here/gpu_torch.py" "$out/gpu-run.json" >"$out/torch.json" 2>>"$out/log.txt"
    fi
    python3 "$here/gpu_report.py" "$out" >"$out/report.txt"
    cat "$out/report.txt"
fi
exit $code
