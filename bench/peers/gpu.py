"""The cases of bench/gpu.ts with PyTorch and PEFT on a GPU; prints a JSON line a row.

usage: gpu.py --case gpt2|gpt2-full|llama-1b|attention|matmul [--steps 20]
"""
import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--case", required=True)
parser.add_argument("--steps", type=int, default=20)
args = parser.parse_args()
device = "cuda"


def show(**row):
    print(json.dumps(row), flush=True)


def timed(call, rounds=5, calls=20):
    seconds = []
    for i in range(rounds + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
        if i > 0:
            seconds.append((time.perf_counter() - start) / calls)
    return statistics.median(seconds)


def model_of(name):
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

    if name == "llama-1b":
        config = LlamaConfig(
            hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
            head_dim=64, intermediate_size=8192, vocab_size=128256, max_position_embeddings=8192,
            rms_norm_eps=1e-5, rope_theta=500000.0, tie_word_embeddings=True)
        return AutoModelForCausalLM.from_config(config, torch_dtype=torch.bfloat16), ["q_proj", "v_proj"]
    config = GPT2Config(embd_pdrop=0, attn_pdrop=0, resid_pdrop=0)
    return AutoModelForCausalLM.from_config(config, torch_dtype=torch.bfloat16), ["c_attn"]


def step(name, compiled):
    torch.manual_seed(1)
    batch, seq = (4, 1024) if name == "llama-1b" else (8, 512)
    model, targets = model_of(name.removesuffix("-full"))
    model.to(device).train()
    model.config.use_cache = False
    if not name.endswith("-full"):
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=targets))
    vocab = model.config.vocab_size
    ids = (torch.arange(batch * seq, device=device) * 7919 % vocab).reshape(batch, seq)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    forward = torch.compile(model) if compiled else model
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for i in range(args.steps + 4):
        torch.cuda.synchronize()
        start = time.perf_counter()
        loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        torch.cuda.synchronize()
        if i >= 4:
            seconds.append(time.perf_counter() - start)
    each = statistics.median(seconds)
    show(case=name, step_ms=round(each * 1e3, 3), tokens_per_s=round(batch * seq / each),
         peak_mb=round(torch.cuda.max_memory_allocated() / 2**20),
         by="torch.compile" if compiled else "torch")


if args.case == "attention":
    B, T, H, D = 4, 2048, 16, 64
    q, k, v = (torch.full((B, H, T, D), 0.01, device=device, dtype=torch.bfloat16, requires_grad=True)
               for _ in range(3))
    call = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)
    with torch.no_grad():
        forward = timed(call)
    y = call()
    dy = torch.ones_like(y)
    backward = timed(lambda: torch.autograd.grad(y, (q, k, v), dy, retain_graph=True))
    show(case="attention", forward_ms=round(forward * 1e3, 4), backward_ms=round(backward * 1e3, 4),
         by="torch")
elif args.case == "matmul":
    n = 4096
    x, w = (torch.full((n, n), 0.01, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = timed(lambda: F.linear(x, w))
    show(case="matmul", ms=round(seconds * 1e3, 4), tflops=round(2 * n**3 / seconds / 1e12, 1), by="torch")
else:
    step(args.case, compiled=False)
    step(args.case, compiled=True)
