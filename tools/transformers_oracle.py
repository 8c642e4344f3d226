#!/usr/bin/env python3
"""Do other programs read what fathom trained? The logits of a checkpoint as the transformers library computes them.

  fathom pretrain recipes/digit-sum-aloud.toml -o runs/aloud
  tools/transformers_oracle.py runs/aloud/model build/release/fathom

loads the folder with AutoModelForCausalLM (which its config.json must make a class of the library's own, no remote code) in float32, and compares
its logits with those of `fathom logits --precision f32`, which sees BF16 weights exactly as well. Random ids; no tokenizer is involved.
Not a test of the suite: the packages are too large (pip install torch transformers safetensors numpy; torch has brought 3 GB of CUDA with it).

Exit code 1 if a logit differs by more than 1e-4 of the largest, or a weight of the file is not used (an MTP layer is not: the library ignores it).
"""
import argparse
import os
import re
import subprocess
import sys
import tempfile

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModelForCausalLM


def fathom_logits(program, folder, ids):
    with tempfile.TemporaryDirectory() as work:
        ids_file, out = os.path.join(work, "ids.txt"), os.path.join(work, "logits.safetensors")
        with open(ids_file, "w") as file:
            file.write(" ".join(map(str, ids)))
        subprocess.run([program, "logits", folder, "--ids", ids_file, "-o", out, "--precision", "f32", "--cache", "f32", "-q"], check=True)
        return load_file(out)["logits"]


def unused_weights(folder, model, layers):
    """Names in the file that the library's model has no place for, the MTP layer's left out."""
    known = set(model.state_dict())
    with safe_open(os.path.join(folder, "model.safetensors"), "pt") as file:
        names = set(file.keys())
    mtp = re.compile(rf"model\.layers\.{layers}\.")
    return sorted(n for n in names - known if not mtp.match(n)), sum(1 for n in names if mtp.match(n))


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder")
    arguments.add_argument("fathom")
    arguments.add_argument("--tokens", type=int, default=96)
    a = arguments.parse_args()
    config = AutoConfig.from_pretrained(a.folder)
    model, info = AutoModelForCausalLM.from_pretrained(a.folder, torch_dtype=torch.float32, attn_implementation="eager",
                                                       output_loading_info=True)
    ids = np.random.default_rng(1).integers(0, config.vocab_size, a.tokens)
    with torch.no_grad():
        expected = model.eval()(torch.tensor(ids)[None]).logits[0].numpy()
    actual = fathom_logits(a.fathom, a.folder, ids)
    unused, mtp = unused_weights(a.folder, model, config.num_hidden_layers)
    error = float(np.abs(actual - expected).max() / np.abs(expected).max())
    same = int((actual.argmax(1) == expected.argmax(1)).sum())
    print(f"{type(model).__name__}: largest difference {error:.2e} of the largest logit, equal argmax in {same} of {a.tokens} rows; "
          f"missing weights: {info['missing_keys'] or 'none'}; unused: {unused or 'none'}, and {mtp} of the MTP layer")
    return 0 if error <= 1e-4 and not info["missing_keys"] and not unused else 1


if __name__ == "__main__":
    sys.exit(main())
