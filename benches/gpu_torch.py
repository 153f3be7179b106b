"""Measures the shapes of a gpu-run.json with PyTorch: cuBLAS, SDPA's FlashAttention, torch.compile for row kernels.

Prints a document lapidary/bench. Caches are cold before each run, data is random, medians of the device's own events.
"""
import json
import statistics
import sys

import torch
import torch.nn.functional as F

DEVICE, DTYPE = "cuda", torch.bfloat16
SCRATCH = torch.empty(256 << 20, dtype=torch.uint8, device=DEVICE)


def timed(work, samples=20):
    for _ in range(3):
        work()
    seconds = []
    for i in range(samples):
        SCRATCH.fill_(i)
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        seconds.append(begin.elapsed_time(end) / 1e3)
    return seconds


def random(*shape):
    return torch.randn(*shape, device=DEVICE, dtype=DTYPE)


def gemm(s):
    a, w = random(s["m"], s["k"]), random(s["n"], s["k"])
    return lambda: F.linear(a, w)


def norm(s):
    x, r, w = random(s["rows"], s["cols"]), random(s["rows"], s["cols"]), random(s["cols"])

    def work(x, r):
        y = x + r
        return y, F.rms_norm(y, (y.shape[-1],), w, 1e-5)

    compiled = torch.compile(work)
    return lambda: compiled(x, r)


def swiglu(s):
    g, u = random(s["rows"], s["cols"]), random(s["rows"], s["cols"])
    compiled = torch.compile(lambda g, u: F.silu(g) * u)
    return lambda: compiled(g, u)


def loss(s):
    x = random(s["rows"], s["cols"])
    y = torch.randint(0, s["cols"], (s["rows"],), device=DEVICE)
    compiled = torch.compile(lambda x, y: F.cross_entropy(x.float(), y))
    return lambda: compiled(x, y)


def attention(s, backward):
    q = random(s["batch"], s["heads"], s["seq"], s["head_dim"]).requires_grad_(backward)
    k, v = (random(s["batch"], s["kv_heads"], s["seq"], s["head_dim"]).requires_grad_(backward) for _ in range(2))
    wide = lambda t: t.repeat_interleave(s["heads"] // s["kv_heads"], 1)
    flash = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION)

    def forward():
        with flash:
            return F.scaled_dot_product_attention(q, wide(k), wide(v), is_causal=True)

    if not backward:
        return forward
    out = forward()
    dy = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, (q, k, v), dy, retain_graph=True)


KERNELS = {
    "gemm": gemm,
    "norm": norm,
    "swiglu": swiglu,
    "cross-entropy": loss,
    "attention-forward": lambda s: attention(s, False),
    "attention-backward": lambda s: attention(s, True),
}


def main():
    with open(sys.argv[1]) as file:
        ours = json.load(file)["bench"]
    results, skipped = [], []
    for one in ours["results"]:
        if one["kernel"] not in KERNELS:
            continue
        try:
            seconds = timed(KERNELS[one["kernel"]](one["shape"]))
        except Exception as error:  # One shape that torch refuses must not hide the others.
            skipped.append({"kernel": one["kernel"], "why": str(error).splitlines()[0]})
            continue
        median = statistics.median(seconds)
        work = one["achieved"] * one["median_s"]
        results.append({
            "kernel": one["kernel"], "shape": one["shape"], "dtype": one["dtype"], "median_s": median,
            "spread_pct": 100 * (max(seconds) - min(seconds)) / median, "achieved": work / median, "unit": one["unit"],
        })
        torch.cuda.empty_cache()
    print(json.dumps({
        "schema": "lapidary/bench", "version": 1, "device": ours["device"], "date": ours["date"], "results": results,
        "skipped": skipped,
    }, indent=1))


main()
