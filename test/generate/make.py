"""Makes what test/generate.test.ts expects, with PyTorch and transformers.

    python3 -m venv VENV
    VENV/bin/pip install "torch==2.13.0" "transformers==5.18.0" safetensors
    VENV/bin/python test/generate/make.py

`models/` holds tiny models with random weights, `expected.json` what transformers makes with them:
`search`, continuations by beam search and by greedy decoding with their scores; `sampling`, the
probabilities of the next token after transformers' processors. The weights are drawn from a seed,
so that a second run with the same versions gives the same files.
"""

import json
import shutil
from pathlib import Path

import torch
import transformers
from transformers import GenerationConfig

HERE = Path(__file__).parent
VOCAB = 31

LLAMA = dict(
    model_type="llama",
    hidden_size=12,
    intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    vocab_size=VOCAB,
    max_position_embeddings=48,
)
GPT2 = dict(model_type="gpt2", n_embd=12, n_head=2, n_layer=2, n_positions=48, vocab_size=VOCAB)
MODELS = {"llama-1": (LLAMA, 1), "llama-2": (LLAMA, 2), "gpt2-1": (GPT2, 3), "gpt2-2": (GPT2, 4)}

PROMPTS = [[3, 14, 15, 9, 2, 6], [27], [1, 8, 28, 18]]

# The options as transformers names them; eos ids and lengths chosen so that beams end early, late
# and never.
SEARCHES = [
    dict(num_beams=2, max_new_tokens=8),
    dict(num_beams=3, max_new_tokens=12, eos_token_id=[5]),
    dict(num_beams=4, max_new_tokens=12, eos_token_id=[5, 11], length_penalty=0.0),
    dict(num_beams=4, max_new_tokens=12, eos_token_id=[5, 11], length_penalty=2.0),
    dict(num_beams=4, max_new_tokens=12, eos_token_id=[7], length_penalty=-1.0),
    dict(num_beams=4, max_new_tokens=14, eos_token_id=[7, 9, 20], early_stopping=True),
    dict(num_beams=4, max_new_tokens=14, eos_token_id=[7, 9, 20], early_stopping="never"),
    dict(
        num_beams=3, max_new_tokens=14, eos_token_id=[4], early_stopping="never", length_penalty=0.0
    ),
    dict(num_beams=3, max_new_tokens=16, eos_token_id=[4], no_repeat_ngram_size=2),
    dict(num_beams=3, max_new_tokens=10, eos_token_id=[4], repetition_penalty=1.4),
    # The paper's decoding of E2E.
    dict(
        num_beams=10,
        max_new_tokens=20,
        eos_token_id=[6],
        length_penalty=0.9,
        no_repeat_ngram_size=4,
    ),
    dict(
        num_beams=5,
        max_new_tokens=16,
        eos_token_id=[12, 13],
        length_penalty=0.9,
        no_repeat_ngram_size=3,
        repetition_penalty=1.2,
        early_stopping=True,
    ),
    dict(num_beams=1, max_new_tokens=16, no_repeat_ngram_size=1),
    dict(num_beams=1, max_new_tokens=16, no_repeat_ngram_size=2, repetition_penalty=1.3),
    dict(num_beams=1, max_new_tokens=16, repetition_penalty=0.8, eos_token_id=[10]),
]

SAMPLINGS = [
    dict(temperature=0.7),
    dict(top_k=4),
    dict(top_k=1, temperature=2.0),
    dict(top_p=0.8),
    dict(top_p=0.05),
    dict(top_k=5, top_p=0.9, temperature=1.5),
    dict(repetition_penalty=1.5),
    dict(no_repeat_ngram_size=2, repetition_penalty=0.7, top_k=6),
    dict(no_repeat_ngram_size=1, top_p=0.9),
]
# With two equal ones, which a top_k of 4 both keeps.
LOGITS = [0.5, -1.0, 2.0, 1.25, 0.0, 1.25, -0.5, 3.0, 0.75, -2.0]
IDS = [[7, 2, 3, 7], [1, 3, 7, 2, 8, 3, 7], [4]]


def model_of(name):
    settings, seed = MODELS[name]
    config = transformers.AutoConfig.for_model(**settings)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            norm = "norm" in parameter_name or ".ln_" in parameter_name
            size = 0.1 if norm else 0.6 if parameter.shape[0] == VOCAB else 0.4
            start = 1 if norm and parameter_name.endswith("weight") else 0
            parameter.copy_((start + size * noise).half().float())
    # Nothing that the cases do not say themselves.
    model.generation_config = GenerationConfig(bos_token_id=None, eos_token_id=None)
    model.config.eos_token_id = model.config.bos_token_id = None
    return model


def save(model, name):
    folder = HERE / "models" / name
    model.half().save_pretrained(folder)
    for extra in folder.iterdir():
        if extra.name not in ("config.json", "model.safetensors"):
            extra.unlink()


def search(model, prompt, options):
    beams = options["num_beams"]
    config = GenerationConfig(
        **{"do_sample": False, "pad_token_id": 0, "num_return_sequences": beams, **options},
        return_dict_in_generate=True,
        output_scores=True,
    )
    with torch.no_grad():
        out = model.generate(torch.tensor([prompt]), generation_config=config)
    if beams == 1:
        return [dict(ids=out.sequences[0, len(prompt) :].tolist(), score=None)]
    lengths = (out.beam_indices >= 0).sum(dim=1).tolist()
    rows = zip(out.sequences.tolist(), lengths, out.sequences_scores.tolist())
    return [dict(ids=r[len(prompt) :][:n], score=round(s, 6)) for r, n, s in rows]


def probabilities(model, ids, options):
    """After the processors and warpers that transformers makes of the options."""
    config = GenerationConfig(do_sample=True, **{"temperature": 1.0, "top_k": 0, **options})
    config._eos_token_tensor = None
    processors = model._get_logits_processor(config, len(ids))
    scores = processors(torch.tensor([ids]), torch.tensor([LOGITS]))
    return [round(p, 7) for p in torch.softmax(scores[0], -1).tolist()]


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    shutil.rmtree(HERE / "models", ignore_errors=True)
    found = []
    for name in MODELS:
        model = model_of(name)
        for options in SEARCHES:
            results = [search(model, prompt, options) for prompt in PROMPTS]
            found.append(dict(model=name, options=options, results=results))
        # Last: halving rounds the frequencies of RoPE, too.
        save(model, name)
    sampling = [
        dict(options=options, ids=ids, probabilities=probabilities(model, ids, options))
        for options in SAMPLINGS
        for ids in IDS
    ]
    versions = dict(torch=torch.__version__, transformers=transformers.__version__)
    head = dict(versions=versions, prompts=PROMPTS, logits=LOGITS)
    lines = [json.dumps(head)[:-1]]
    for key, items in (("search", found), ("sampling", sampling)):
        lines.append(f',\n"{key}": [\n' + ",\n".join(json.dumps(i) for i in items) + "\n]")
    (HERE / "expected.json").write_text("".join(lines) + "}\n")


if __name__ == "__main__":
    main()
