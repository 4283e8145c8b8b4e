"""Makes the project's own golden cases again, with PyTorch, transformers and PEFT.

    python3 -m venv VENV
    VENV/bin/pip install "torch==2.13.0" peft transformers safetensors
    VENV/bin/python test/golden/make.py

Each case is a tiny model with random weights, a PEFT adapter with random A and B, and what PyTorch
computes with them in float32; README.md says what each file holds. The weights are drawn from a
seed, so that a second run with the same versions gives the same files (but for the order of
target_modules, which PEFT keeps as a set).
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
    task: str = "CAUSAL_LM"
    labels: str = "tokens"  # or classes, several, values
    token_types: bool = False
    shards: int = 1


TINY = dict(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    vocab_size=37,
    max_position_embeddings=32,
)

TINY_GPT2 = dict(
    model_type="gpt2",
    n_embd=16,
    n_inner=24,
    n_layer=2,
    n_head=4,
    vocab_size=37,
    n_positions=16,
    bos_token_id=1,
    eos_token_id=2,
)
TINY_BERT = dict(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    vocab_size=37,
    max_position_embeddings=16,
    type_vocab_size=2,
    num_labels=3,
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
    # Conv1D layers of several names, f16 shards, ReLU, scores divided by the layer's number.
    Case(
        "gpt2-all-f16-shards",
        dict(activation_function="relu", scale_attn_by_inverse_layer_idx=True, **TINY_GPT2),
        dict(r=3, lora_alpha=3, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True),
        torch.float16,
        shards=2,
    ),
    # One class a pair of texts, by the pooler.
    Case(
        "bert-pairs",
        dict(model_type="bert", **TINY_BERT),
        dict(r=2, lora_alpha=4, target_modules=["query", "value"]),
        task="SEQ_CLS",
        labels="classes",
        token_types=True,
    ),
    # Several labels a text, a head of two layers, positions that start after the padding's id.
    Case(
        "roberta-multi-label",
        dict(
            model_type="roberta",
            pad_token_id=1,
            problem_type="multi_label_classification",
            hidden_act="gelu_new",
            **TINY_BERT,
        ),
        dict(r=2, lora_alpha=2, target_modules=["query", "key", "value", "dense"]),
        task="SEQ_CLS",
        labels="several",
    ),
    # One value a text, from the last token of a causal model.
    Case(
        "llama-score-regression",
        dict(num_labels=1, pad_token_id=0, hidden_act="gelu", num_key_value_heads=2),
        dict(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]),
        task="SEQ_CLS",
        labels="values",
    ),
    # A and B on the table of tokens, scaling by the root of the rank, ranks and alphas by pattern.
    Case(
        "llama-table-rslora-patterns",
        dict(num_key_value_heads=2),
        dict(
            r=2,
            lora_alpha=3,
            target_modules=["embed_tokens", "q_proj", "v_proj", "down_proj"],
            use_rslora=True,
            rank_pattern={"q_proj": 1, r"layers\.1\..*down_proj": 4},
            alpha_pattern={"^model.layers.0.self_attn.v_proj": 5},
        ),
    ),
    # DoRA on Conv1D with the layers' biases, from bf16 weights.
    Case(
        "gpt2-dora-biases-bf16",
        TINY_GPT2,
        dict(
            r=2,
            lora_alpha=4,
            target_modules=["c_attn", "mlp.c_proj"],
            fan_in_fan_out=True,
            use_dora=True,
            bias="lora_only",
        ),
        torch.bfloat16,
    ),
    # B with a bias, a module saved whole, rows of tokens in a table that the head shares, chosen
    # blocks without one name.
    Case(
        "llama-tokens-whole-tied",
        dict(num_key_value_heads=2, attention_bias=True, tie_word_embeddings=True),
        dict(
            r=2,
            lora_alpha=4,
            target_modules=["q_proj", "v_proj", "k_proj"],
            exclude_modules=["k_proj"],
            layers_to_transform=[1],
            layers_pattern="layers",
            lora_bias=True,
            modules_to_save=["model.norm"],
            trainable_token_indices=[5, 3, 30],
        ),
    ),
]


def base_model(case, seed):
    """A random model whose parameters are all representable in the stored dtype, kept in f32."""
    generator = torch.Generator().manual_seed(seed)
    type = case.model.get("model_type", "llama")
    tiny = TINY if type in ("llama", "mistral", "qwen3") else {}
    config = transformers.AutoConfig.for_model(**{"model_type": type, **tiny, **case.model})
    if case.task == "CAUSAL_LM":
        kind = transformers.AutoModelForCausalLM
    else:
        kind = transformers.AutoModelForSequenceClassification
    model = kind.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name.lower() or "ln_" in name:
                parameter.copy_(0.1 * noise + (0 if name.endswith("bias") else 1))
            else:
                table = "embed" in name or ".wte." in name
                parameter.copy_((0.5 if table else 0.15) * noise)
            # Rounded in place: buffers such as RoPE's frequencies stay in f32.
            parameter.copy_(parameter.to(case.dtype).to(torch.float32))
    return model, generator


def save_weights(weights, shards, directory):
    """model.safetensors, or shards with an index."""
    if shards == 1:
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(weights)
    index = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = names[i * len(names) // shards : (i + 1) * len(names) // shards]
        save_file({n: weights[n] for n in part}, directory / file, metadata={"format": "pt"})
        index |= {n: file for n in part}
    size = sum(w.nbytes for w in weights.values())
    text = json.dumps(dict(metadata=dict(total_size=size), weight_map=index), indent=2)
    (directory / "model.safetensors.index.json").write_text(text + "\n")


def save_base(model, case, directory):
    """config.json and the weights in the stored dtype, as transformers lays them out."""
    weights = {n: p.detach().to(case.dtype).contiguous() for n, p in model.named_parameters()}
    save_weights(weights, case.shards, directory)
    config = model.config.to_dict()
    config["architectures"] = [type(model).__name__]
    config["dtype"] = str(case.dtype).removeprefix("torch.")
    text = json.dumps(config, indent=2, sort_keys=True, default=str)
    (directory / "config.json").write_text(text + "\n")


def make_batch(config, case, generator):
    """
    Three right-padded sequences. Labels of a language model: their tokens, but for the first two
    of each and the padding. Of a classifier: a class, several labels or a value a sequence.
    """
    ids = torch.randint(3, config.vocab_size, (3, 11), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    mask[2, 4:] = 0
    ids[mask == 0] = getattr(config, "pad_token_id", None) or 0
    batch = dict(input_ids=ids, attention_mask=mask)
    if case.token_types:
        batch["token_type_ids"] = (torch.arange(11) > 5).long().expand(3, 11).contiguous()
    if case.labels == "tokens":
        labels = ids.clone()
        labels[mask == 0] = -100
        labels[:, :2] = -100
    elif case.labels == "classes":
        labels = torch.tensor([2, 0, 1])
    elif case.labels == "several":
        labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    else:
        labels = torch.tensor([0.5, -1.25, 2.0])
    return dict(**batch, labels=labels)


def build(case, out):
    seed = 1 + CASES.index(case)
    directory = out / case.name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    base, generator = base_model(case, seed)
    save_base(base, case, directory)
    batch = make_batch(base.config, case, generator)
    seen = {k: v for k, v in batch.items() if k != "labels"}
    expected = dict(batch)

    def logits(model):
        with torch.no_grad():
            return model(**seen).logits

    expected["base_logits"] = logits(base)
    model = peft.get_peft_model(base, peft.LoraConfig(task_type=case.task, **case.lora)).eval()
    # Names as in the files: without the adapter's, and a magnitude without its module's.
    plain = lambda n: n.replace(".modules_to_save", "").replace(".default", "")
    key = lambda n: plain(n).replace("magnitude_vector.weight", "magnitude_vector")
    trained = {key(n): p for n, p in model.named_parameters() if p.requires_grad}
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
        task=case.task,
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
