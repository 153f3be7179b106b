"""How many plans a second of one processor, ours beside Calculon's own search: GPT-3 175B on 1,024 A100 80GB.

    python3 planner/benches/calculon.py CALCULON_FOLDER [CPU_SECONDS] [LAPIDARY]

The folder is a checkout of github.com/calculon-ai/calculon; its `OptimalExecution.search` is called with every choice of
recomputation, sharding, collectives and overlap, 8 tensor-parallel ranks, and 4, 8 and 16 stages, for so many seconds
(20). With the path of a `lapidary` program that runs before and after it, so that both see the same machine. On both sides
a plan counts whose price was asked for by itself; what our bounds leave out unseen is printed beside and counts nothing.
"""

import itertools
import json
import resource
import subprocess
import sys
import time

DEVICES, BATCH, TENSOR = 1024, 1024, 8


def ours(program, top):
    """Plans looked at, left out and simulated, CPU seconds and peak memory in MiB of one run of our search."""
    used = lambda: resource.getrusage(resource.RUSAGE_CHILDREN)
    before = used()
    command = [program, "plan", "gpt3-175b", "--machine", "dgx-a100", "--devices", str(DEVICES), "--global-batch",
               str(BATCH), "--software", "megatron-2022", "--top", str(top), "--json"]
    counts = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["counts"]
    after = used()
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return counts, seconds, after.ru_maxrss / 1024


def show_ours(program):
    rates = []
    for top in [10, 100, 1000]:
        counts, seconds, memory = ours(program, top)
        rates.append(counts["evaluated"] / seconds)
        print(f"ours, best {top}: {counts['evaluated']} looked at, {counts['left_out']} left out by a bound, "
              f"{counts['simulated']} simulated, {seconds:.2f} CPU s with its start and output, "
              f"{rates[-1]:.0f} a CPU second, at most {memory:.0f} MiB so far")
    return rates


def calculons(folder, limit):
    """Configurations that Calculon's search tried, those of them that are valid, and CPU seconds."""
    sys.path.insert(0, folder)
    import calculon
    from calculon.llm import Llm, System
    from calculon.llm.optimal_execution import OptimalExecution

    model = Llm.Application(calculon.io.read_json_file(f"{folder}/models/gpt3-175B.json"))
    machine = System(calculon.io.read_json_file(f"{folder}/systems/a100_80g.json"))

    def space():
        for stages in [4, 8, 16]:
            data = Llm.get_data_parallelism(DEVICES, TENSOR, stages)
            batch = OptimalExecution.get_batch_size(data, BATCH)
            chunks = Llm.get_valid_pipeline_interleavings(model.num_blocks, stages)
            choices = [chunks, ["full", "attn_only", "none"], [True, False], ["ar", "p2p_rs_ag", "rs_ag"]]
            for chunk, again, sharded, collective in itertools.product(*choices):
                yield (False, 1, False, DEVICES, BATCH, "float16", model, machine, TENSOR, stages, data, chunk,
                       batch, again, sharded, collective, [True], False, True, True)

    start, tried, valid = time.process_time(), 0, 0
    for one in space():
        _, count, good, *_ = OptimalExecution.search(*one)
        tried, valid = tried + count, valid + good
        if time.process_time() - start > limit:
            break
    return tried, valid, time.process_time() - start


def main():
    folder, limit = sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 20.0
    program = sys.argv[3] if len(sys.argv) > 3 else None
    rates = show_ours(program) if program else []
    tried, valid, seconds = calculons(folder, limit)
    theirs = tried / seconds
    print(f"Calculon: {tried} tried, {valid} valid, {seconds:.1f} CPU s: {theirs:.0f} tried a CPU second")
    rates += show_ours(program) if program else []
    if rates:
        print(f"ratio: {min(rates) / theirs:.0f} to {max(rates) / theirs:.0f}")


main()
