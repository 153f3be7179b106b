"""PyTorch + transformers as a worker: see worker.py for the protocol."""

import os
import sys

threads = int(sys.argv[2])
os.environ["OMP_NUM_THREADS"] = str(threads)

import time

import worker

start = time.perf_counter()
import torch
import transformers

torch.set_num_threads(threads)
imported = time.perf_counter() - start
dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[sys.argv[3]]
start = time.perf_counter()
model = transformers.LlamaForCausalLM.from_pretrained(sys.argv[1], dtype=dtype).eval()
load = time.perf_counter() - start


class Torch:
    def begin(self):
        self.cache = transformers.DynamicCache(config=model.config)

    def feed(self, ids):
        with torch.inference_mode():
            out = model(torch.tensor([ids]), past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.logits = out.logits[0, -1]
        return int(self.logits.argmax())

    def last_logits(self):
        return self.logits.float().tolist()


versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
worker.serve(Torch(), {"versions": versions, "load_s": load, "import_s": imported})
