"""Measures the shapes of a gpu-run.json with PyTorch: cuBLAS with its epilogue behind it, SDPA's FlashAttention, torch.compile for
row kernels, layers of torch.compile (max-autotune) in a CUDA graph for a decoded token and a prompt, and a training step of such
layers under autocast with a clipped gradient and torch's fused AdamW.

    gpu_torch.py gpu-run.json SECONDS torch.json

Writes a document lapidary/bench after every measurement, so that what is there stays when time is up; what SECONDS do not suffice
for is left out and named. Caches are cold before each run, data is random, medians of the device's own events.
"""
import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F

BEGAN = time.monotonic()
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


def rotated(x, cosine, sine):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cosine - b * sine, b * cosine + a * sine), -1)


def gemm(one):
    """A product and, as one compiled kernel behind it, what our region has behind it."""
    s, ops = one["shape"], (one.get("ops") or "linear").split(", ")
    if "linear_dw" in ops or "linear_dx" in ops:
        return gemm_backward(s, ops)
    a, w, bias = random(s["m"], s["k"]), random(s["n"], s["k"]), random(s["n"])
    residuals = [random(s["m"], s["n"]) for _ in range(ops.count("add"))]
    half = random(s["m"], s["n"] // 2)
    gated, turned = ops.count("linear") == 2 and "mul" in ops, "rope" in ops

    def epilogue(y, bias, residuals, half):
        if "bias" in ops:
            y = y + bias
        if gated:
            gate, up = y.chunk(2, -1)
            return F.silu(gate) * up
        if turned:
            return rotated(y, half, half)
        if "activation" in ops:
            y = F.gelu(y)
        for other in residuals:
            y = y + other
        return y

    if len(ops) == 1:
        return lambda: F.linear(a, w)
    compiled = torch.compile(epilogue)
    return lambda: compiled(F.linear(a, w), bias, residuals, half)


def gemm_backward(s, ops):
    """The derivative of a product: by its weight, added to an f32 gradient, or by what went in, with what our region has behind it."""
    if "linear_dw" in ops:
        dy, x = random(s["k"], s["m"]), random(s["k"], s["n"])
        if "gradient" not in ops:
            return lambda: torch.mm(dy.t(), x)
        gradient = torch.zeros(s["m"], s["n"], device=DEVICE)
        return lambda: gradient.add_(torch.mm(dy.t(), x))
    dy, w = random(s["m"], s["k"]), random(s["k"], s["n"])
    gate, residuals = random(s["m"], s["n"]), [random(s["m"], s["n"]) for _ in range(ops.count("add"))]

    def epilogue(y, gate, residuals):
        if "activation_dx" in ops:
            y = torch.ops.aten.silu_backward(y, gate)
        if "mul" in ops:
            y = y * gate
        for other in residuals:
            y = y + other
        return y

    if len(ops) == 1:
        return lambda: torch.mm(dy, w)
    compiled = torch.compile(epilogue)
    return lambda: compiled(torch.mm(dy, w), gate, residuals)


def norm(one):
    s = one["shape"]
    x, r, w = random(s["rows"], s["cols"]), random(s["rows"], s["cols"]), random(s["cols"])

    def work(x, r):
        y = x + r
        return y, F.rms_norm(y, (y.shape[-1],), w, 1e-5)

    compiled = torch.compile(work)
    return lambda: compiled(x, r)


def swiglu(one):
    s = one["shape"]
    g, u = random(s["rows"], s["cols"]), random(s["rows"], s["cols"])
    compiled = torch.compile(lambda g, u: F.silu(g) * u)
    return lambda: compiled(g, u)


def rope(one):
    s = one["shape"]
    x, cosine, sine = random(s["rows"], s["cols"] // 128, 128), random(s["rows"], 1, 64), random(s["rows"], 1, 64)
    compiled = torch.compile(rotated)
    return lambda: compiled(x, cosine, sine)


def loss(one):
    s = one["shape"]
    x = random(s["rows"], s["cols"])
    y = torch.randint(0, s["cols"], (s["rows"],), device=DEVICE)
    compiled = torch.compile(lambda x, y: F.cross_entropy(x.float(), y))
    return lambda: compiled(x, y)


def attention(one, backward):
    s = one["shape"]
    q = random(s["batch"], s["heads"], s["seq"], s["head_dim"]).requires_grad_(backward)
    k, v = (random(s["batch"], s["kv_heads"], s["seq"], s["head_dim"]).requires_grad_(backward) for _ in range(2))
    wide = lambda t: t if s["heads"] == s["kv_heads"] else t.repeat_interleave(s["heads"] // s["kv_heads"], 1)

    def forward():
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(q, wide(k), wide(v), is_causal=True)

    if not backward:
        return forward
    out = forward()
    dy = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, (q, k, v), dy, retain_graph=True)


class Layer(torch.nn.Module):
    """A LLaMA layer: what both 7B models cost, up to biases and the kind of norm."""

    def __init__(self, d, heads, ff):
        super().__init__()
        self.heads, self.d = heads, d
        shapes = {"qkv": (3 * d, d), "out": (d, d), "gate_up": (2 * ff, d), "down": (d, ff), "n1": (d,), "n2": (d,)}
        for name, shape in shapes.items():
            setattr(self, name, torch.nn.Parameter(random(*shape) * 0.02, requires_grad=False))

    def forward(self, x, keys, values, position, cosine, sine, mask):
        b, s, d = x.shape
        y = F.linear(F.rms_norm(x, (d,), self.n1, 1e-5), self.qkv)
        q, k, v = (t.view(b, s, self.heads, -1).transpose(1, 2) for t in y.chunk(3, -1))
        q, k = rotated(q, cosine, sine), rotated(k, cosine, sine)
        keys.index_copy_(2, position, k)
        values.index_copy_(2, position, v)
        if s == 1:
            y = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + F.linear(y.transpose(1, 2).reshape(b, s, d), self.out)
        gate, up = F.linear(F.rms_norm(x, (d,), self.n2, 1e-5), self.gate_up).chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, self.down)


def model(one):
    """All layers, each through one compiled function, and the logits of the last token, as one CUDA graph."""
    s = one["shape"]
    b, new = s["batch"], s.get("seq", 1)
    length = new if one["kernel"] == "prefill" else s["cached"] + 1
    d, heads, ff = s["width"], s["width"] // 128, s["ff"]
    layers = [Layer(d, heads, ff) for _ in range(s["layers"])]
    embed, head, last = random(s["vocab"], d), random(s["vocab"], d) * 0.02, random(d)
    caches = [[torch.zeros(b, heads, length, 128, device=DEVICE, dtype=DTYPE) for _ in range(2)] for _ in layers]
    ids = torch.randint(0, s["vocab"], (b, new), device=DEVICE)
    position = torch.arange(length - new, length, device=DEVICE)
    cosine, sine, mask = random(new, 64), random(new, 64), torch.ones(1, 1, new, length, device=DEVICE, dtype=torch.bool)
    step = torch.compile(Layer.forward, mode="max-autotune-no-cudagraphs", dynamic=False)

    def work():
        x = F.embedding(ids, embed)
        for layer, (keys, values) in zip(layers, caches):
            x = step(layer, x, keys, values, position, cosine, sine, mask)
        return F.linear(F.rms_norm(x[:, -1], (d,), last, 1e-5), head).argmax(-1)

    with torch.no_grad():
        for _ in range(2):
            work()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
    # The graph names the memory of these.
    graph.keeps = (layers, caches, embed, head, last, ids, position, cosine, sine, mask)
    return graph.replay


class Trained(torch.nn.Module):
    """The same layer over a whole sequence, its weights in f32."""

    def __init__(self, d, heads, ff):
        super().__init__()
        self.heads = heads
        shapes = {"qkv": (3 * d, d), "out": (d, d), "gate_up": (2 * ff, d), "down": (d, ff), "n1": (d,), "n2": (d,)}
        for name, shape in shapes.items():
            setattr(self, name, torch.nn.Parameter(random(*shape).float() * 0.02))

    def forward(self, x, cosine, sine):
        b, s, d = x.shape
        y = F.linear(F.rms_norm(x, (d,), self.n1.to(x.dtype), 1e-5), self.qkv)
        q, k, v = (t.view(b, s, self.heads, -1).transpose(1, 2) for t in y.chunk(3, -1))
        y = F.scaled_dot_product_attention(rotated(q, cosine, sine), rotated(k, cosine, sine), v, is_causal=True)
        x = x + F.linear(y.transpose(1, 2).reshape(b, s, d), self.out)
        gate, up = F.linear(F.rms_norm(x, (d,), self.n2.to(x.dtype), 1e-5), self.gate_up).chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, self.down)


def train_step(one):
    """Forward, loss, backward, clipping and AdamW of f32 weights under bf16 autocast."""
    s = one["shape"]
    d, heads, ff = s["width"], s["width"] // 128, s["ff"]
    layers = torch.nn.ModuleList(Trained(d, heads, ff) for _ in range(s["layers"]))
    ends = torch.nn.ParameterList([random(s["vocab"], d).float() * 0.02, random(s["vocab"], d).float() * 0.02, random(d).float()])
    every = [*layers.parameters(), *ends]
    optimizer = torch.optim.AdamW(every, lr=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True)
    ids = torch.randint(0, s["vocab"], (s["batch"], s["seq"]), device=DEVICE)
    labels = torch.randint(0, s["vocab"], (s["batch"], s["seq"]), device=DEVICE)
    cosine, sine = random(s["seq"], 64), random(s["seq"], 64)
    step = torch.compile(Trained.forward, mode="max-autotune-no-cudagraphs", dynamic=False)

    def work():
        embed, head, last = ends
        with torch.autocast(DEVICE, dtype=DTYPE):
            x = F.embedding(ids, embed).to(DTYPE)
            for layer in layers:
                x = step(layer, x, cosine, sine)
            logits = F.linear(F.rms_norm(x, (d,), last.to(x.dtype), 1e-5), head)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(every, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return work


KERNELS = {
    "gemm": gemm,
    "norm": norm,
    "swiglu": swiglu,
    "rope": rope,
    "cross-entropy": loss,
    "attention-forward": lambda one: attention(one, False),
    "attention-backward": lambda one: attention(one, True),
    "decode": model,
    "prefill": model,
    "train-step": train_step,
}
# Whole models compile longest: the token at batch 1 and the prompt, which goals are about, come before the others.
ORDER = ["attention-forward", "attention-backward", "norm", "swiglu", "rope", "cross-entropy", "decode", "prefill", "train-step", "gemm"]


def main():
    source, seconds, place = sys.argv[1], float(sys.argv[2]), sys.argv[3]
    with open(source) as file:
        ours = json.load(file)["bench"]
    results, skipped = [], []

    def write():
        with open(place, "w") as file:
            json.dump({
                "schema": "lapidary/bench", "version": 1, "device": ours["device"], "date": ours["date"],
                "results": results, "skipped": skipped,
            }, file, indent=1)

    def rank(one):
        later = one["kernel"] == "decode" and one["shape"]["batch"] > 1
        return (later, ORDER.index(one["kernel"]))

    known = [one for one in ours["results"] if one["kernel"] in KERNELS and one["dtype"] == "bf16"]
    write()
    for one in sorted(known, key=rank):
        if time.monotonic() - BEGAN > seconds:
            skipped.append({"kernel": one["kernel"], "why": f"the {seconds:.0f} s of torch are over"})
            continue
        try:
            times = timed(KERNELS[one["kernel"]](one))
        except Exception as error:  # One shape that torch refuses must not hide the others.
            skipped.append({"kernel": one["kernel"], "why": (str(error).splitlines() or ["unknown"])[0]})
            continue
        finally:
            torch.cuda.empty_cache()
        median = statistics.median(times)
        work = one["achieved"] * one["median_s"]
        results.append({
            "kernel": one["kernel"], "shape": one["shape"], "dtype": one["dtype"], "ops": one.get("ops") or "",
            "median_s": median, "spread_pct": 100 * (max(times) - min(times)) / median, "achieved": work / median,
            "unit": one["unit"],
        })
        write()
    write()


main()
