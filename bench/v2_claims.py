#!/usr/bin/env python3
"""DeepSeek-V2's two claims about serving, as ratios on models of this project.

The paper's abstract (arXiv 2405.04434) compares V2 (236 B parameters, 21 B active) with the dense
DeepSeek 67 B: 93.3 % less key-value cache, 5.76 times the greatest generation throughput. Here: two
models of 2.03 and 2.04 B parameters in 4 bits, 16 layers and 16 heads of 128 each:

  claims-v2      MLA (latent 512 + 64), 64 experts of which 6 and 2 shared ones work per token
  claims-dense   multi-head attention, a dense MLP

The most sequences a machine can serve is what its cache memory holds. So the throughput is compared
twice: with equally many sequences, and with as many as fit in the same cache memory. Runs of the
two alternate; a line is the median over rounds of medians over steps. Ends with a table as Markdown.

    bench/v2_claims.py [--context 1024] [--sequences 8] [--rounds 2]
"""
import argparse
import statistics

from measure import ROOT, Bench

parser = argparse.ArgumentParser()
parser.add_argument("--build", default=ROOT / "build/release", help="folder of the programs")
parser.add_argument("--context", type=int, default=1024, help="tokens before, of each sequence")
parser.add_argument("--sequences", type=int, default=8, help="of the dense model: the cache memory")
parser.add_argument("--generate", type=int, default=32, help="steps timed in each round")
parser.add_argument("--rounds", type=int, default=2)
parser.add_argument("--type", default="Q4_0")
options = parser.parse_args()

bench = Bench(options.build)
mla, mha = (bench.model(name, options.type) for name in ("claims-v2", "claims-dense"))


def cache_per_token(model):
    lines = bench.lines(model, "--only", "decode", "--at", 0, "--generate", 1)
    return lines[-1]["cache_bytes_per_token"]


cache = {model: cache_per_token(model) for model in (mla, mha)}
few = options.sequences
many = few * cache[mha] // cache[mla]
found = {}  # (model, sequences) -> medians of rounds, shares
for _ in range(options.rounds):
    for model, sequences in ((mha, f"{few}"), (mla, f"{few},{many}")):
        for line in bench.lines(model, "--only", "batch", "--batch", sequences, "--batch-at",
                                options.context, "--generate", options.generate):
            if line["group"] == "batch":
                found.setdefault((model, line["sequences"]), []).append(line)


def speed(model, sequences):
    return statistics.median([line["tokens_per_second"] for line in found[model, sequences]])


def cell(model, sequences):
    lines = found[model, sequences]
    speeds = [line["tokens_per_second"] for line in lines]
    share = statistics.median([line["share_of_roof"] for line in lines])
    return f"{statistics.median(speeds):.1f} ({min(speeds):.1f} - {max(speeds):.1f}), {100 * share:.0f} % of the roof"


memory = few * options.context * cache[mha] / 2**20
print(f"\n| {options.type}, context {options.context} | MLA + experts | multi-head + dense | ratio "
      "| the paper |\n|---|---|---|---|---|")
print(f"| cache per token, bytes | {cache[mla]:,} | {cache[mha]:,} | "
      f"{100 * (cache[mla] / cache[mha] - 1):+.1f} % | -93.3 % |")
print(f"| tok/s, {few} sequences each | {cell(mla, few)} | {cell(mha, few)} | "
      f"{speed(mla, few) / speed(mha, few):.2f} x | |")
print(f"| tok/s, as many as {memory:.0f} MiB of cache hold ({many} and {few}) | "
      f"{cell(mla, many)} | {cell(mha, few)} | {speed(mla, many) / speed(mha, few):.2f} x | 5.76 x |")
