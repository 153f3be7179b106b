"""Writes the weights of a LLaMA-shaped safetensors folder as GGUF, element types unchanged.

llama.cpp rotates neighbouring dimensions of a head and the published layout rotates halves, so rows of the query and
key matrices change places, as llama.cpp's own conversion has it. The vocabulary is made up: only ids are used.
"""

import json
import pathlib
import sys

import gguf
import torch
from safetensors import safe_open

folder, target = pathlib.Path(sys.argv[1]), sys.argv[2]
config = json.loads((folder / "config.json").read_text())
heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
head_dim = config.get("head_dim") or config["hidden_size"] // heads
rope = config.get("rope_parameters") or config

writer = gguf.GGUFWriter(target, "llama")
writer.add_context_length(config["max_position_embeddings"])
writer.add_embedding_length(config["hidden_size"])
writer.add_block_count(config["num_hidden_layers"])
writer.add_feed_forward_length(config["intermediate_size"])
writer.add_head_count(heads)
writer.add_head_count_kv(kv_heads)
writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
writer.add_rope_dimension_count(head_dim)
writer.add_rope_freq_base(rope.get("rope_theta", 10000.0))
writer.add_vocab_size(config["vocab_size"])
writer.add_tokenizer_model("llama")
normal = config["vocab_size"] - 3
writer.add_token_list(["<unk>", "<s>", "</s>"] + [f"w{i}" for i in range(normal)])
writer.add_token_scores([0.0] * config["vocab_size"])
writer.add_token_types([2, 3, 3] + [1] * normal)
writer.add_bos_token_id(1)
writer.add_eos_token_id(2)

NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}


def renamed(name):
    stem = name.removesuffix(".weight")
    if stem.startswith("model.layers."):
        _, _, layer, part = stem.split(".", 3)
        return f"blk.{layer}.{NAMES[part]}.weight"
    return f"{NAMES[stem]}.weight"


def neighbours(tensor, count):
    rows, columns = tensor.shape
    return tensor.reshape(count, 2, rows // count // 2, columns).swapaxes(1, 2).reshape(rows, columns)


for shard in sorted(folder.glob("*.safetensors")):
    with safe_open(shard, "pt") as file:
        for name in file.keys():
            tensor = file.get_tensor(name)
            if "q_proj" in name or "k_proj" in name:
                tensor = neighbours(tensor, heads if "q_proj" in name else kv_heads).contiguous()
            if tensor.ndim == 1 or tensor.dtype == torch.float32:
                writer.add_tensor(renamed(name), tensor.float().numpy())
            else:
                data = tensor.contiguous().view(torch.uint8).numpy()
                writer.add_tensor(renamed(name), data, raw_dtype=gguf.GGMLQuantizationType.BF16)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
