#!/usr/bin/env python3
"""Makes folders of the form that `lapidary verify` reads, from implementations that are not ours.

`stored.py OUT [NAME..]`; needs torch 2.15.0, transformers 5.23.0 and safetensors 0.8.0, no network and no GPU. Models are
small, with sizes that divide nothing, and computed in float64 from weights rounded to float32: transformers' own classes
for LLaMA, Mistral, GPT-NeoX and GPT-2 (configs and weights written by `save_pretrained`), and for CrystalCoder, which
transformers lacks, the published forward pass written out in torch. Each folder gets hidden states, logits, loss, three
greedy continuations, gradients, and the losses of five AdamW steps. `tests/data/odd` is three of them.
"""

import json
import pathlib
import shutil
import sys

import torch
import transformers as hf
from safetensors.torch import save_file

POSITIONS = 160
NEW = 32
# Greedy continuations are exact only where the two likeliest tokens are further apart than rounding.
MARGIN = 2e-3


def rope(kind="default", theta=10000.0, **more):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


def llama(vocab, hidden, inner, layers, heads, kv, **more):
    sizes = dict(vocab_size=vocab, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers)
    common = dict(num_attention_heads=heads, num_key_value_heads=kv, max_position_embeddings=POSITIONS)
    return dict(sizes, **common, bos_token_id=1, eos_token_id=2, pad_token_id=None, **more)


def neox(vocab, hidden, inner, layers, heads, **more):
    sizes = dict(vocab_size=vocab, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers)
    return dict(sizes, num_attention_heads=heads, max_position_embeddings=POSITIONS, bos_token_id=0, eos_token_id=0, **more)


def gpt2(vocab, hidden, layers, heads, **more):
    none = dict(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=0)
    return dict(vocab_size=vocab, n_embd=hidden, n_layer=layers, n_head=heads, n_positions=POSITIONS, **none, **more)


SCALED = rope("llama3", 50000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
LLAMA, MISTRAL = (hf.LlamaForCausalLM, hf.LlamaConfig), (hf.MistralForCausalLM, hf.MistralConfig)
NEOX, GPT2 = (hf.GPTNeoXForCausalLM, hf.GPTNeoXConfig), (hf.GPT2LMHeadModel, hf.GPT2Config)

# Name: class, config, sequences and tokens of the batch.
LIBRARY = {
    "llama-grouped": (LLAMA, llama(283, 60, 97, 4, 6, 3, rms_norm_eps=1e-6, **rope()), (2, 53)),
    "llama-shared-tied": (LLAMA, llama(311, 40, 130, 2, 5, 1, head_dim=12, tie_word_embeddings=True, **rope(theta=5e5)), (3, 37)),
    "llama-scaled": (LLAMA, llama(270, 72, 201, 3, 9, 3, **SCALED), (1, 77)),
    "llama-linear-bias": (LLAMA, llama(299, 48, 77, 2, 4, 4, attention_bias=True, mlp_bias=True, **rope("linear", factor=4.0)), (2, 41)),
    "mistral-window": (MISTRAL, llama(263, 30, 50, 2, 3, 1, sliding_window=13, **rope()), (2, 50)),
    "neox-in-turn": (NEOX, neox(305, 48, 131, 3, 3, use_parallel_residual=False, **rope(partial_rotary_factor=0.5)), (2, 45)),
    "neox-parallel": (NEOX, neox(261, 80, 320, 2, 5, use_parallel_residual=True, **rope(partial_rotary_factor=0.25)), (1, 61)),
    "gpt2": (GPT2, gpt2(277, 56, 3, 7), (2, 39)),
    "gpt2-inner": (GPT2, gpt2(257, 24, 2, 3, n_inner=53, activation_function="gelu"), (3, 29)),
}

# Name: sizes and muP of CrystalCoder, sequences and tokens, learning rate.
CRYSTAL = {
    "crystal-odd": (dict(vocab=259, hidden=30, inner=47, layers=3, heads=3, rotary=4, width=0.125, embedding=10.0, alpha=2.5, eps=1e-5), (3, 35), 0.006),
    "crystal-one-sequence": (dict(vocab=279, hidden=60, inner=83, layers=2, heads=5, rotary=4, width=0.5, embedding=14.6, alpha=2.22, eps=1e-5), (1, 77), 0.003),
    "crystal-all-turned": (dict(vocab=290, hidden=64, inner=131, layers=3, heads=4, rotary=16, width=0.0625, embedding=20.0, alpha=6.0, eps=1e-6), (2, 48), 0.006),
}


class Library:
    """A class of transformers with random weights."""

    def __init__(self, classes, config, seed):
        torch.manual_seed(seed)
        self.config = classes[1](**config)
        self.config._attn_implementation = "eager"
        self.model = classes[0](self.config).double().eval()
        self.vocab = self.config.vocab_size
        self.adamw = dict(lr=1e-3, eps=1e-8, decay_all=True)
        tied = getattr(self.config, "tie_word_embeddings", False)
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                if any(word in name for word in ("embed", "wte", "wpe")):
                    p.normal_(0, 0.3 if tied else 1.0)
                elif p.dim() >= 2:
                    # Conv1D keeps its input first.
                    p.normal_(0, 1.1 * p.shape[0 if ".c_" in name else -1] ** -0.5)
                else:
                    p.normal_(0, 0.1) if name.endswith("bias") else p.normal_(1, 0.15)
                p.copy_(p.float().double())

    def parameters(self):
        """By the names of the file."""
        head = {"lm_head.weight": "embed_out.weight"} if isinstance(self.model, hf.GPTNeoXForCausalLM) else {}
        return {head.get(name, name): p for name, p in self.model.named_parameters()}

    def groups(self):
        return [{"params": list(self.model.parameters()), "weight_decay": 0.1}]

    def logits(self, ids):
        return self.model(ids, use_cache=False).logits

    def observed(self, ids):
        """Logits, and what the stored form keeps on the way there."""
        seen, hooks = {}, []
        first = lambda out: out[0] if isinstance(out, tuple) else out
        keep = lambda name: lambda _, args, out: seen.__setitem__(name, first(out))
        base = next(getattr(self.model, name) for name in ("model", "gpt_neox", "transformer") if hasattr(self.model, name))
        layers = base.layers if hasattr(base, "layers") else base.h
        parts = {"norm1": ("input_layernorm", "ln_1"), "attn": ("self_attn", "attention", "attn"), "norm2": ("post_attention_layernorm", "ln_2"), "mlp": ("mlp",)}
        for name, modules in parts.items():
            module = next(getattr(layers[0], module) for module in modules if hasattr(layers[0], module))
            hooks.append(module.register_forward_hook(keep(f"block0.{name}")))
        enter = lambda _, args, named: seen.__setitem__("hidden.0", args[0] if args else named["hidden_states"])
        hooks.append(layers[0].register_forward_pre_hook(enter, with_kwargs=True))
        hooks += [layer.register_forward_hook(keep(f"hidden.{i + 1}")) for i, layer in enumerate(layers)]
        norm = next(getattr(base, name) for name in ("norm", "final_layer_norm", "ln_f") if hasattr(base, name))
        hooks.append(norm.register_forward_hook(keep("final_norm")))
        logits = self.logits(ids)
        [hook.remove() for hook in hooks]
        return logits, seen

    def save(self, folder):
        self.model.float().save_pretrained(folder)
        self.model.double()
        (folder / "generation_config.json").unlink(missing_ok=True)


class Crystal:
    """CrystalCoder's forward pass as its `modeling_crystalcoder.py` has it, on a table of tensors."""

    def __init__(self, sizes, lr, seed):
        torch.manual_seed(seed)
        self.sizes, self.vocab = sizes, sizes["vocab"]
        self.adamw = dict(lr=lr, eps=1e-9, decay_all=False)
        h, inner = sizes["hidden"], sizes["inner"]
        normal = lambda *shape: torch.randn(*shape, dtype=torch.float64)
        p = {"wte.weight": 0.06 * normal(self.vocab, h), "ln_f.weight": 1 + 0.2 * normal(h), "ln_f.bias": 0.1 * normal(h)}
        # A row that is small shows a wrong eps.
        p["wte.weight"][5] *= 1e-2
        shapes = {"attn.c_attn": (h, 3 * h), "attn.c_proj": (h, h), "mlp.c_fc": (h, inner), "mlp.c_fc2": (h, inner), "mlp.c_proj": (inner, h)}
        for i in range(sizes["layers"]):
            for name, (rows, columns) in shapes.items():
                p[f"h.{i}.{name}.weight"] = 1.3 * rows**-0.5 * normal(rows, columns)
                p[f"h.{i}.{name}.bias"] = 0.1 * normal(columns)
            for name in ("ln_1", "ln_2"):
                p[f"h.{i}.{name}.weight"], p[f"h.{i}.{name}.bias"] = 1 + 0.2 * normal(h), 0.1 * normal(h)
        self.p = {"transformer." + name: x.float().double().requires_grad_() for name, x in p.items()}

    def parameters(self):
        return self.p

    def groups(self):
        hidden = lambda name: name.endswith(".weight") and (".attn." in name or ".mlp." in name)
        rate = lambda name: self.adamw["lr"] * (self.sizes["width"] if hidden(name) else 1.0)
        decay = lambda name: 0.1 if hidden(name) or "wte" in name else 0.0
        return [{"params": [x], "lr": rate(name), "weight_decay": decay(name)} for name, x in self.p.items()]

    def logits(self, ids):
        return self.observed(ids)[0]

    def observed(self, ids):
        s, p, seen = self.sizes, self.p, {}
        (batch, tokens), heads = ids.shape, s["heads"]
        d, r = s["hidden"] // heads, s["rotary"]
        inverse = 1.0 / (10000.0 ** (torch.arange(0, r, 2).float() / r))
        angles = (torch.arange(tokens).float()[:, None] * inverse[None]).double()

        def norm(x, name):
            return torch.nn.functional.layer_norm(x, (s["hidden"],), p[name + ".weight"], p[name + ".bias"], s["eps"])

        def turned(x):
            even, odd = x[..., :r:2], x[..., 1:r:2]
            pairs = [even * angles.cos() - odd * angles.sin(), odd * angles.cos() + even * angles.sin()]
            return torch.cat([torch.stack(pairs, -1).flatten(-2), x[..., r:]], -1)

        x = p["transformer.wte.weight"][ids] * s["embedding"]
        seen["hidden.0"] = x
        later = torch.ones(tokens, tokens).triu(1).bool()
        for i in range(s["layers"]):
            at = f"transformer.h.{i}."
            linear = lambda x, name: x @ p[at + name + ".weight"] + p[at + name + ".bias"]
            norm1 = norm(x, at + "ln_1")
            q, k, v = (part.view(batch, tokens, heads, d).transpose(1, 2) for part in linear(norm1, "attn.c_attn").split(s["hidden"], -1))
            scores = (turned(q) @ turned(k).transpose(-1, -2) / d).masked_fill(later, float("-inf"))
            attn = linear((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, -1), "attn.c_proj")
            x = x + attn
            norm2 = norm(x, at + "ln_2")
            mlp = linear(linear(norm2, "mlp.c_fc") * torch.nn.functional.silu(linear(norm2, "mlp.c_fc2")), "mlp.c_proj")
            x = x + mlp
            seen[f"hidden.{i + 1}"] = x
            if i == 0:
                seen |= {"block0.norm1": norm1, "block0.attn": attn, "block0.norm2": norm2, "block0.mlp": mlp}
        seen["final_norm"] = norm(x, "transformer.ln_f")
        return seen["final_norm"] @ p["transformer.wte.weight"].T * (s["alpha"] * s["width"]), seen

    def save(self, folder):
        s = self.sizes
        tensors = {name: x.detach().float().contiguous() for name, x in self.p.items()}
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
        for i in range(s["layers"]):
            tensors[f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
        save_file(tensors, folder / "model.safetensors")
        config = dict(
            architectures=["CrystalCoderLMHeadModel"], model_type="crystalcoder", vocab_size=s["vocab"], n_positions=POSITIONS,
            n_embd=s["hidden"], n_layer=s["layers"], n_head=s["heads"], n_inner=s["inner"], activation_function="swiglu",
            layer_norm_epsilon=s["eps"], position_embedding_type="rotary", rotary_dim=s["rotary"], scale_attn_weights=True,
            mup_scale_qk_dot_by_d=True, mup_embeddings_scale=s["embedding"], mup_output_alpha=s["alpha"], mup_width_scale=s["width"],
            tie_word_embeddings=True, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config, indent=1))


def continuation(model, prompt):
    ids, margin = list(prompt), float("inf")
    with torch.no_grad():
        for _ in range(NEW):
            best = torch.topk(model.logits(torch.tensor([ids]))[0, -1], 2)
            margin = min(margin, float(best.values[0] - best.values[1]))
            ids.append(int(best.indices[0]))
    return {"prompt": list(prompt), "continuation": ids[len(prompt) :], "min_margin": margin}


def cross_entropy(logits, ids):
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def steps(model, ids):
    """Losses and gradient norms of five AdamW steps."""
    settings = dict(steps=5, beta1=0.9, beta2=0.95, weight_decay=0.1, clip=1.0, **model.adamw)
    optimizer = torch.optim.AdamW(model.groups(), lr=settings["lr"], betas=(0.9, 0.95), eps=settings["eps"])
    losses, norms = [], []
    for _ in range(settings["steps"]):
        loss = cross_entropy(model.logits(ids), ids)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(list(model.parameters().values()), 1.0).item())
        optimizer.step()
    losses.append(cross_entropy(model.logits(ids), ids).item())
    return {"settings": settings, "losses": losses, "grad_norms": norms}


def store(folder, name, make, batch):
    """Takes the first seed whose continuations are not near ties."""
    for seed in range(1, 200):
        model = make(seed)
        prompts = [[1], [1, 27, 186, 5, 5, 66, 26], torch.randint(3, 250, (17,)).tolist()]
        cases = [continuation(model, prompt) for prompt in prompts]
        if min(case["min_margin"] for case in cases) > MARGIN:
            break
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model.save(folder)
    ids = torch.randint(3, model.vocab, batch)
    ids[0, 4] = 5
    logits, seen = model.observed(ids)
    loss = cross_entropy(logits, ids)
    loss.backward()
    plain = lambda tensors: {name: x.detach().float().contiguous() for name, x in tensors.items()}
    save_file({**plain(seen), **plain({"logits": logits}), "input_ids": ids}, folder / "expected.safetensors")
    save_file(plain({name: p.grad for name, p in model.parameters().items()}), folder / "grads.safetensors")
    (folder / "greedy.json").write_text(json.dumps({"new_tokens": NEW, "cases": cases}))
    about = {"name": name, "generator": "tools/stored.py", "seed": seed, "torch": torch.__version__, "transformers": hf.__version__}
    meta = {**about, "loss": loss.item(), "adamw": steps(model, ids)}
    (folder / "meta.json").write_text(json.dumps(meta))
    print(f"{name}: seed {seed}, loss {loss.item():.4f}")


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    torch.set_num_threads(1)
    out, wanted = pathlib.Path(sys.argv[1]), sys.argv[2:]
    makers = {name: (lambda seed, c=classes, k=config: Library(c, k, seed), batch) for name, (classes, config, batch) in LIBRARY.items()}
    makers |= {name: (lambda seed, s=sizes, r=lr: Crystal(s, r, seed), batch) for name, (sizes, batch, lr) in CRYSTAL.items()}
    if unknown := set(wanted) - set(makers):
        sys.exit(f"no model is called {', '.join(sorted(unknown))}; there are {', '.join(makers)}")
    for name in wanted or makers:
        make, batch = makers[name]
        store(out / name, name, make, batch)


if __name__ == "__main__":
    main()
