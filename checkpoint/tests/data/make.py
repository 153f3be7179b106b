"""Writes the .bin files of this folder. They were made with: python3 make.py . (PyTorch 2.15.0, CPU)."""
import collections
import sys

import torch

folder = sys.argv[1]
base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
typed = torch.full((2, 3), 3.0)
typed.note = "an attribute, so that the pickle names _rebuild_from_type_v2"
state = collections.OrderedDict(
    float=base * 0.5,
    half=(base * 0.25).half(),
    brain=(base * 0.125).bfloat16(),
    double=(base * 0.1).double(),
    long=torch.arange(-3, 3),
    byte=torch.tril(torch.ones(3, 3, dtype=torch.uint8)),
    bool=torch.tensor([True, False, True]),
    scalar=torch.tensor(-1e4),
    empty=torch.zeros(0, 3),
    turned=base.t(),
    rows=base[1:3],
    column=base[:, 2],
    parameter=torch.nn.Parameter(torch.full((2,), 7.0)),
    typed=typed,
)
state["tied"] = state["float"]
torch.save(state, folder + "/torch.bin")

module = torch.nn.Linear(3, 2)
with torch.no_grad():
    module.weight.copy_(torch.arange(6.0).reshape(2, 3))
    module.bias.copy_(torch.tensor([8.0, 9.0]))
torch.save(module.state_dict(), folder + "/module.bin")
torch.save(module.state_dict(), folder + "/protocol4.bin", pickle_protocol=4)
torch.save({"state_dict": module.state_dict()}, folder + "/nested.bin")
torch.save(module.state_dict(), folder + "/legacy.bin", _use_new_zipfile_serialization=False)
torch.save(module, folder + "/whole-module.bin")
torch.serialization.set_crc32_options(False)
torch.save(module.state_dict(), folder + "/no-crc.bin")
