"""What the workers in Python share.

A worker loads a model once and says so in a line of JSON. Then it answers every request line
`{"prompt": [ids], "new": n}` with a line of seconds by the clock and of the processor for the prompt and for `n`
greedy tokens after it, the tokens, and the logits that follow the prompt.
"""

import json
import sys
import time


def clocks():
    return time.perf_counter(), time.process_time()


def passed(since):
    now = clocks()
    return [now[0] - since[0], now[1] - since[1]]


def serve(model, about):
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        model.begin()
        start = clocks()
        tokens = [model.feed(request["prompt"])]
        prefill = passed(start)
        logits = model.last_logits()
        start = clocks()
        for _ in range(request["new"]):
            tokens.append(model.feed(tokens[-1:]))
        decode = passed(start)
        print(json.dumps({"prefill": prefill, "decode": decode, "tokens": tokens, "logits": logits}), flush=True)
