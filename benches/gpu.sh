#!/bin/sh
# Checks every kernel on a GPU and measures all of them, in one call of less than 9 minutes.
#
#   benches/gpu.sh BUNDLE OUT
#
# BUNDLE is a folder made with `make gpu-bundle` on any machine that builds this project; it needs no GPU to be made. It
# holds everything: the runner, machine code for sm_80 and sm_90a, weights' seeds and expected values. The machine with the
# GPU needs an NVIDIA driver of 525 or later, glibc 2.36 or later, and nothing else: no network, no compiler, no CUDA
# toolkit. Where python3 has torch, the same shapes are measured with it in the same call and set beside ours, and its
# cuBLASLt is one of the forms of each product.
#
# OUT gets gpu-run.json (checks and measurements), bench.json (what `lapidary calibrate --from` and `bench --baseline`
# read), tunings.json (times of all forms of products), roofline.svg, torch.json where there is torch, report.txt, log.txt.
#
# Time: 25 s to look for torch, the runner 285 s (it leaves out what is not done by then, each thing with a line), torch 170 s (the same), the
# report a second; each is ended 15 s later if it still runs. GPU_SECONDS and TORCH_SECONDS set other times.
# Exit code: 0, or the runner's: 2 usage, 3 bundle missing or damaged, 6 a kernel differs from the reference or was not
# checked, 7 no GPU or no driver, 124 ended.
set -u
if [ $# -ne 2 ]; then
    sed -n '2,21p' "$0" >&2
    exit 2
fi
bundle=$1 out=$2 here=$(dirname "$0")
seconds=${GPU_SECONDS:-285} torch_seconds=${TORCH_SECONDS:-170}
mkdir -p "$out" || exit 3
[ -x "$bundle/lapidary-gpu" ] || { echo "$bundle/lapidary-gpu: missing; make the folder with make gpu-bundle" >&2; exit 3; }
# torch brings cuBLASLt along, beside itself or in a wheel of its own.
torch=$(command -v python3 >/dev/null && timeout 25 python3 -c 'import torch, glob, os
root = os.path.dirname(torch.__file__)
if torch.cuda.is_available():
    print(":".join([root + "/lib"] + glob.glob(root + "/../nvidia/cublas/lib")))' 2>/dev/null)
if [ -n "$torch" ]; then
    LD_LIBRARY_PATH=$torch${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    export LD_LIBRARY_PATH
fi
timeout $((seconds + 15)) "$bundle/lapidary-gpu" "$bundle" 30 "$seconds" >"$out/gpu-run.json" 2>"$out/log.txt"
code=$?
tail -n 3 "$out/log.txt" >&2
[ $code -eq 124 ] && echo "the runner was ended after $((seconds + 15)) s" >&2
if [ -s "$out/gpu-run.json" ] && command -v python3 >/dev/null; then
    if [ -n "$torch" ]; then
        timeout $((torch_seconds + 15)) python3 "$here/gpu_torch.py" "$out/gpu-run.json" "$torch_seconds" "$out/torch.json" 2>>"$out/log.txt" ||
            echo "torch was ended or failed: see $out/log.txt" >&2
    fi
    python3 "$here/gpu_report.py" "$out" >"$out/report.txt"
    cat "$out/report.txt"
fi
exit $code
