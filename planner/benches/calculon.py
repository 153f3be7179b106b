"""How many configurations a second Calculon's own search tries: GPT-3 175B on 1,024 A100 80GB, one thread.

    python3 planner/benches/calculon.py CALCULON_FOLDER [CPU_SECONDS]

The folder is a checkout of github.com/calculon-ai/calculon; its `OptimalExecution.search` is called with every choice of
recomputation, sharding, collectives and overlap, 8 tensor-parallel ranks, and 4, 8 and 16 stages.
"""

import itertools
import sys
import time

folder, limit = sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 20.0
sys.path.insert(0, folder)
import calculon  # noqa: E402
from calculon.llm import Llm, System  # noqa: E402
from calculon.llm.optimal_execution import OptimalExecution  # noqa: E402

DEVICES, BATCH, TENSOR = 1024, 1024, 8
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
seconds = time.process_time() - start
print(f"{tried} tried, {valid} valid, {seconds:.1f} CPU s: {tried / seconds:.0f} tried a CPU second")
