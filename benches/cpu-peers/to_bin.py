#!/usr/bin/env python3
"""Writes a folder's model.safetensors as PyTorch writes checkpoints, to try the reader of `.bin` files on large ones.

`to_bin.py FOLDER OUT [SHARDS]`: OUT gets config.json and pytorch_model.bin, or with SHARDS so many parts and
pytorch_model.bin.index.json, as the hub has them.
"""

import json
import pathlib
import shutil
import sys

import torch
from safetensors.torch import load_file


def main():
    folder, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "config.json", out / "config.json")
    tensors = load_file(str(folder / "model.safetensors"))
    if count == 1:
        torch.save(tensors, out / "pytorch_model.bin")
        return
    total = sum(tensor.nbytes for tensor in tensors.values())
    shards, names, filled = [{}], {}, 0
    for name, tensor in tensors.items():
        if filled >= total * len(shards) / count:
            shards.append({})
        shards[-1][name] = tensor
        filled += tensor.nbytes
    for number, shard in enumerate(shards, 1):
        file = f"pytorch_model-{number:05}-of-{len(shards):05}.bin"
        torch.save(shard, out / file)
        names.update(dict.fromkeys(shard, file))
    index = {"metadata": {"total_size": total}, "weight_map": names}
    (out / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=2) + "\n")


if __name__ == "__main__":
    main()
