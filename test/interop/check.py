"""Loads what lowrank wrote into PEFT and transformers, and compares logits.

usage: python check.py MANIFEST.json
Prints a line of JSON for each case: name, difference (the largest, of logits whose position
counts), warnings (what the libraries warned of), error.
"""

import json
import logging
import os
import sys
import traceback
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "warning"

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

CLASSES = {
    "CAUSAL_LM": AutoModelForCausalLM,
    "SEQ_CLS": AutoModelForSequenceClassification,
}


class Collector(logging.Handler):
    """Keeps every message of a warning or worse."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


def load_base(case):
    kind = CLASSES[case["task"]]
    # Weights stored in halves are widened, as lowrank's kernels do.
    model, info = kind.from_pretrained(
        case["model"], dtype=torch.float32, output_loading_info=True, **case.get("settings", {})
    )
    allowed = case.get("new", [])
    wrong = {
        key: sorted(value)
        for key, value in info.items()
        if value and not (key == "missing_keys" and all(any(a in k for a in allowed) for k in value))
    }
    if wrong:
        raise ValueError(f"not loaded as written: {wrong}")
    return model


def load(case):
    model = load_base(case)
    adapters = case.get("adapters", [])
    if adapters:
        names = [f"a{i}" for i in range(len(adapters))]
        model = PeftModel.from_pretrained(model, adapters[0]["dir"], adapter_name=names[0])
        for name, adapter in zip(names[1:], adapters[1:]):
            model.load_adapter(adapter["dir"], adapter_name=name)
        if len(adapters) > 1:
            shares = [a["weight"] for a in adapters]
            model.add_weighted_adapter(names, shares, "sum", combination_type="cat")
            model.set_adapter("sum")
        if case.get("merge"):
            model = model.merge_and_unload()
    return model.eval()


def difference(case):
    model = load(case)
    want = load_file(case["expected"])
    mask = want["attention_mask"]
    with torch.no_grad():
        got = model(input_ids=want["input_ids"], attention_mask=mask).logits
    apart = (got.float() - want["logits"]).abs()
    if got.shape != want["logits"].shape:
        raise ValueError(f"logits {tuple(got.shape)}, expected {tuple(want['logits'].shape)}")
    counted = apart[mask.bool()] if case["task"] == "CAUSAL_LM" else apart
    return counted.max().item()


def check(case):
    collector = Collector()
    loggers = [logging.getLogger(n) for n in ("transformers", "peft", "torch", "root")]
    for logger in loggers:
        logger.addHandler(collector)
    result = {"name": case["name"]}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result["difference"] = difference(case)
        except Exception:
            result["error"] = traceback.format_exc()
    for logger in loggers:
        logger.removeHandler(collector)
    result["warnings"] = collector.messages + [str(w.message) for w in caught]
    print(json.dumps(result), flush=True)


torch.set_num_threads(1)
with open(sys.argv[1]) as file:
    for each in json.load(file):
        check(each)
