#!/usr/bin/env python3
"""Holds the host's runtime against PyTorch, llama.cpp and candle on the same random weights, interleaved in one run.

`compare.py WORK --model 110m --type bf16 [--threads 1] [--rounds 5] [--tools lapidary,torch,llama.cpp,candle]`

WORK is what setup.sh made. Every tool is a process that loads the model once; then the tools take turns, A B C A B C:
a prompt is run and continued greedily, in each round another prompt. Printed as a table, and as JSON with --json FILE:
tokens per second of prompt and of continuation by the clock (median, lowest, highest, best per processor second), share
of the bandwidth and of the kernel's peak that our worker measures between the rounds, time to load, memory, and how far
the tools agree: the tokens, and the distance of the logits after the prompt from ours, in standard deviations of them.
"""

import argparse
import datetime
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
SIZES = {"110m": {"prompt": 512, "new": 32}, "1.1b": {"prompt": 128, "new": 16}}


class Tool:
    """A worker process."""

    def __init__(self, name, command, threads):
        self.name = name
        env = dict(os.environ, OMP_NUM_THREADS=str(threads), RAYON_NUM_THREADS=str(threads))
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        self.about = self.answer()
        self.runs = []

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name}: ended with {self.process.wait()}")
        return json.loads(line)

    def ask(self, request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def peak_memory(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024


def commands(work, model, dtype, threads):
    folder, python = work / f"{model}-{dtype}", str(work / "venv/bin/python")
    return {
        "lapidary": [os.environ.get("CPU_WORKER", str(REPOSITORY / "target/release/cpu-worker")), str(folder), threads, dtype],
        "torch": [python, str(HERE / "torch_worker.py"), str(folder), threads, dtype],
        "llama.cpp": [python, str(HERE / "llama_worker.py"), str(work / f"{model}-{dtype}.gguf"), threads],
        "candle": [str(work / "candle/release/candle-worker"), str(folder), threads, dtype],
    }


def rates(runs, what, tokens):
    wall = [tokens / run[what][0] for run in runs]
    return {
        "median": statistics.median(wall),
        "lowest": min(wall),
        "highest": max(wall),
        "per_processor_second": max(tokens / run[what][1] for run in runs if run[what][1] > 0),
    }


def distance(ours, theirs):
    spread = statistics.pstdev(ours)
    return max(abs(a - b) for a, b in zip(ours, theirs)) / spread


def agreement(ours, theirs):
    """Rounds whose tokens are all the same, the shortest common beginning, and the largest distance of logits."""
    common = []
    for a, b in zip(ours, theirs):
        pairs = list(zip(a["tokens"], b["tokens"]))
        common.append(next((i for i, (x, y) in enumerate(pairs) if x != y), len(pairs)))
    whole = len(ours[0]["tokens"])
    return {
        "same": sum(n == whole for n in common),
        "shortest": min(common),
        "of": whole,
        "logits": max(distance(a["logits"], b["logits"]) for a, b in zip(ours, theirs)),
    }


def machine():
    cpu = next(line for line in open("/proc/cpuinfo") if line.startswith("model name")).split(":")[1].strip()
    return {"processor": cpu, "cores": os.cpu_count(), "date": datetime.date.today().isoformat()}


def measure(options):
    size = SIZES[options.model]
    if options.new:
        size = dict(size, new=options.new)
    listed = commands(options.work.resolve(), options.model, options.type, str(options.threads))
    tools = [Tool(name, listed[name], options.threads) for name in options.tools.split(",")]
    ours, reads, peaks, loads = tools[0], [], [], []
    for turn in range(options.rounds + 1):
        ids = random.Random(turn)
        request = {"prompt": [1] + [ids.randrange(3, 32000) for _ in range(size["prompt"] - 1)], "new": size["new"]}
        reads.append(ours.ask({"read": True})["bytes_per_s"])
        peaks.append(ours.ask({"peak": True})["flop_per_s"])
        loads.append(os.getloadavg()[0])
        # The first round only warms up; who begins changes from round to round.
        for tool in tools[turn % len(tools) :] + tools[: turn % len(tools)]:
            run = tool.ask(request)
            if turn:
                tool.runs.append(run)
    about = ours.about
    context = size["prompt"] + size["new"] / 2
    result = {
        "machine": machine(), "model": options.model, "type": options.type, "threads": options.threads, **size,
        "rounds": options.rounds, "load": [min(loads), max(loads)],
        "read_bytes_per_s": max(reads), "kernel_flop_per_s": max(peaks),
        "weight_bytes": about["weight_bytes"], "tools": {},
    }
    for tool in tools:
        decode = rates(tool.runs, "decode", size["new"])
        entry = {
            "versions": tool.about["versions"], "load_s": tool.about["load_s"], "peak_bytes": tool.peak_memory(),
            "prefill": rates(tool.runs, "prefill", size["prompt"]), "decode": decode,
            "share_of_bandwidth": decode["median"] * about["weight_bytes"] / max(reads),
        }
        if tool is ours:
            cache = about["cache_bytes_per_token"] * context
            entry["share_with_cache"] = decode["median"] * (about["weight_bytes"] + cache) / max(reads)
        else:
            entry["agreement"] = agreement(ours.runs, tool.runs)
            entry["ours_over_theirs"] = {
                what: statistics.median(b[what][0] / a[what][0] for a, b in zip(ours.runs, tool.runs))
                for what in ("prefill", "decode")
            }
            entry["ours_over_theirs_processor"] = {
                what: statistics.median(b[what][1] / a[what][1] for a, b in zip(ours.runs, tool.runs))
                for what in ("prefill", "decode")
            }
        result["tools"][tool.name] = entry
        tool.process.stdin.close()
    return result


def show(result):
    head = "{model} {type}, {threads} threads, prompt {prompt}, {new} new, {rounds} rounds, load {load}".format(**result)
    print(head)
    print(f"read {result['read_bytes_per_s'] / 1e9:.1f} GB/s, kernel {result['kernel_flop_per_s'] / 1e9:.0f} Gflop/s")
    for name, tool in result["tools"].items():
        text = [f"{name:10} load {tool['load_s']:.2f} s"]
        for what in ("prefill", "decode"):
            text.append(f"{what} {tool[what]['median']:.1f} ({tool[what]['lowest']:.1f} to {tool[what]['highest']:.1f}; "
                        f"{tool[what]['per_processor_second']:.1f}/cpu s)")
        text.append(f"{100 * tool['share_of_bandwidth']:.0f} % of bandwidth")
        if "agreement" in tool:
            ratio, cpu, same = tool["ours_over_theirs"], tool["ours_over_theirs_processor"], tool["agreement"]
            text.append(f"ours is {ratio['prefill']:.2f}x, {ratio['decode']:.2f}x ({cpu['prefill']:.2f}x, "
                        f"{cpu['decode']:.2f}x by processor time)")
            text.append(f"tokens same in {same['same']} rounds, at least {same['shortest']} of {same['of']}; "
                        f"logits within {same['logits']:.4f} sd")
        else:
            text.append(f"{100 * tool['share_with_cache']:.0f} % with the cache")
        print(", ".join(text))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--model", choices=SIZES, required=True)
    parser.add_argument("--type", choices=["bf16", "f32"], required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new", type=int, help="tokens to continue with, instead of 32 or 16")
    parser.add_argument("--tools", default="lapidary,torch,llama.cpp,candle", help="ours first")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    result = measure(options)
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
