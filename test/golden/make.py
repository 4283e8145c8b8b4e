"""Makes the project's own golden cases again, with PyTorch, transformers and PEFT.

    python3 -m venv VENV
    VENV/bin/pip install "torch==2.13.0" peft transformers safetensors
    VENV/bin/python test/golden/make.py

Each case is a tiny model of the Llama family with random weights, a PEFT adapter with random A and B, and what
PyTorch computes with them in float32; README.md says what each file holds. The weights are drawn
from a seed, so that a second run with the same versions gives the same files (but for the order
of target_modules, which PEFT keeps as a set).
"""

import argparse
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import peft
import torch
import transformers
from safetensors.torch import save_file

STEPS = 10
OPTIMIZER = "AdamW lr 5e-3, betas 0.9/0.999, eps 1e-8, weight decay 0.01, one full batch a step, 10 steps"


@dataclass
class Case:
    name: str
    model: dict  # what differs from TINY
    lora: dict
    dtype: torch.dtype = torch.float32


TINY = dict(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    vocab_size=37,
    max_position_embeddings=32,
)

CASES = [
    # Grouped queries, a head size that is not hidden / heads, biases everywhere, a tied head.
    Case(
        "llama-gqa-bias-tied",
        dict(
            num_key_value_heads=2,
            head_dim=6,
            attention_bias=True,
            mlp_bias=True,
            tie_word_embeddings=True,
        ),
        dict(r=3, lora_alpha=6, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]),
    ),
    # One key head for all, bf16 weights, a head of its own, alpha below the rank.
    Case(
        "llama-mlp-bf16",
        dict(num_key_value_heads=1, rope_parameters=dict(rope_type="default", rope_theta=1000.0)),
        dict(r=4, lora_alpha=2, target_modules=["down_proj", "gate_proj"]),
        torch.bfloat16,
    ),
    # Norms of queries and keys, a window on one layer of two, YaRN with its factor.
    Case(
        "qwen3-window-yarn",
        dict(
            model_type="qwen3",
            intermediate_size=16,
            vocab_size=29,
            num_key_value_heads=2,
            head_dim=8,
            use_sliding_window=True,
            sliding_window=4,
            max_window_layers=1,
            rope_parameters=dict(
                rope_type="yarn",
                rope_theta=10000.0,
                factor=4.0,
                original_max_position_embeddings=8,
            ),
        ),
        dict(r=2, lora_alpha=4, target_modules=["q_proj", "k_proj"]),
    ),
    # A window on every layer, Llama 3's scaling of RoPE.
    Case(
        "mistral-window-llama3",
        dict(
            model_type="mistral",
            num_key_value_heads=2,
            sliding_window=3,
            rope_parameters=dict(
                rope_type="llama3",
                rope_theta=1000.0,
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=16,
            ),
        ),
        dict(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]),
    ),
]


def base_model(case, seed):
    """A random model whose parameters are all representable in the stored dtype, kept in f32."""
    generator = torch.Generator().manual_seed(seed)
    settings = {"model_type": "llama", **TINY, **case.model}
    config = transformers.AutoConfig.for_model(**settings)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1 + 0.1 * noise)
            else:
                parameter.copy_((0.5 if "embed" in name else 0.15) * noise)
            # Rounded in place: buffers such as RoPE's frequencies stay in f32.
            parameter.copy_(parameter.to(case.dtype).to(torch.float32))
    return model, generator


def save_base(model, dtype, directory):
    """config.json and model.safetensors in the stored dtype, as transformers lays them out."""
    weights = {n: p.detach().to(dtype).contiguous() for n, p in model.named_parameters()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict()
    config["dtype"] = str(dtype).removeprefix("torch.")
    text = json.dumps(config, indent=2, sort_keys=True, default=str)
    (directory / "config.json").write_text(text + "\n")


def make_batch(vocab, generator):
    """Three right-padded sequences; the first two positions of each and the padding have no label."""
    ids = torch.randint(3, vocab, (3, 11), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    mask[2, 4:] = 0
    ids[mask == 0] = 0
    labels = ids.clone()
    labels[mask == 0] = -100
    labels[:, :2] = -100
    return dict(input_ids=ids, attention_mask=mask, labels=labels)


def build(case, out):
    seed = 1 + CASES.index(case)
    directory = out / case.name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    base, generator = base_model(case, seed)
    save_base(base, case.dtype, directory)
    batch = make_batch(base.config.vocab_size, generator)
    seen = {k: batch[k] for k in ("input_ids", "attention_mask")}
    expected = dict(batch)

    def logits(model):
        with torch.no_grad():
            return model(**seen).logits

    expected["base_logits"] = logits(base)
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **case.lora)).eval()
    trained = {n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(directory / "adapter")

    result = model(**batch)
    result.loss.backward()
    expected["logits"] = result.logits
    expected["loss"] = result.loss.reshape(1)
    for name, parameter in trained.items():
        expected[f"grad.{name}"] = parameter.grad.clone()
    model.zero_grad()

    optimizer = torch.optim.AdamW(
        trained.values(), lr=5e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01
    )
    losses = []
    for _ in range(STEPS):
        loss = model(**batch).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    expected["step_losses"] = torch.tensor(losses)
    for name, parameter in trained.items():
        expected[f"after.{name}"] = parameter.detach().clone()
    model.save_pretrained(directory / "adapter_after")
    expected["logits_after"] = logits(model)
    expected["merged_logits_after"] = logits(model.merge_and_unload())

    save_file(
        {k: v.detach().contiguous() for k, v in expected.items()},
        directory / "expected.safetensors",
    )
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}"
    notes = dict(
        case=case.name,
        task="CAUSAL_LM",
        lora=case.lora,
        optimizer=OPTIMIZER,
        stored_dtype=str(case.dtype).removeprefix("torch."),
        computed_in="float32",
        made_with=versions,
    )
    (directory / "case.json").write_text(json.dumps(notes, indent=2) + "\n")
    for readme in directory.rglob("README.md"):
        readme.unlink()
    size = sum(f.stat().st_size for f in directory.rglob("*") if f.is_file())
    print(f"{case.name}: loss {losses[0]:.4f} -> {losses[-1]:.4f}, {size // 1024} KiB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).parent / "cases"
    parser.add_argument("--out", type=Path, default=default, help="folder for the cases")
    parser.add_argument("names", nargs="*", help="cases to make; default all")
    arguments = parser.parse_args()
    for each in CASES:
        if not arguments.names or each.name in arguments.names:
            build(each, arguments.out)
