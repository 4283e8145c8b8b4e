"""Loads adapters of convolutions that lowrank wrote into PEFT, and compares outputs.

usage: python conv.py MANIFEST.json
Each case: layers (name, class, sizes, walk), weights, adapter, expected (x, y), merge.
Prints a line of JSON for each: name, difference, error.
"""

import json
import os
import sys
import traceback
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn


class Vision(nn.Module):
    """A convolution over two dimensions, and one along the places of what it gives."""

    def __init__(self, layers):
        super().__init__()
        for name, layer in layers.items():
            kind = getattr(nn, layer["kind"])
            setattr(self, name, kind(*layer["sizes"], **layer["walk"]))

    def forward(self, x):
        return self.second(self.first(x).flatten(2))


def difference(case):
    model = Vision(case["layers"])
    model.load_state_dict(load_file(case["weights"]))
    model = PeftModel.from_pretrained(model, case["adapter"])
    if case["merge"]:
        model = model.merge_and_unload()
    model.eval()
    want = load_file(case["expected"])
    with torch.no_grad():
        return (model(want["x"]) - want["y"]).abs().max().item()


def check(case):
    result = {"name": case["name"], "warnings": []}
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result["difference"] = difference(case)
        result["warnings"] = [str(w.message) for w in caught]
    except Exception:
        result["error"] = traceback.format_exc()
    print(json.dumps(result), flush=True)


torch.set_num_threads(1)
with open(sys.argv[1]) as file:
    for each in json.load(file):
        check(each)
