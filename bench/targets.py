#!/usr/bin/env python3
"""Each target of the design as one line: median, spread, share of the roof, and whether it is met.

    bench/targets.py [--v2-lite] [--only WORD]

Models of random weights are written to build/bench-models where they are missing: Qwen2-1.5B's
shape (1.0 GB). V2-Lite's shape in 4 bits takes 10.4 GB of disk and as much memory: only with
--v2-lite. Absolute targets are those of the reference machine (2 cores of Zen 5); elsewhere the
share of the roof is what counts.
"""
import argparse
import re
import subprocess

from measure import ROOT, Bench

parser = argparse.ArgumentParser()
parser.add_argument("--build", default=ROOT / "build/release", help="folder of the programs")
parser.add_argument("--v2-lite", action="store_true", help="also the lines of V2-Lite's shape")
parser.add_argument("--only", default="", help="lines whose name has this in it")
options = parser.parse_args()
bench = Bench(options.build)
met = {True: "met", False: "not met", None: ""}


def wanted(*names):
    return any(options.only in name for name in names)


def show(name, target, value, low, high, unit, share, reached):
    print(f"{name:44} {target:>12}  {value:8.1f} ({low:.1f} - {high:.1f}) {unit:9} "
          f"{100 * share:4.0f} % of the roof  {met[reached]}", flush=True)


def show_line(name, least, line, of_roof=False):
    """A line of `fathom bench`; least: tok/s, or a share of the roof."""
    seconds = line["seconds"]
    low, high = (line["tokens"] / seconds[p] for p in ("p90", "p10"))
    value = line["share_of_roof"] if of_roof else line["tokens_per_second"]
    target = f">= {100 * least:.0f} % roof" if of_roof else f">= {least} tok/s"
    show(name, target, line["tokens_per_second"], low, high, "tok/s", line["share_of_roof"],
         value >= least)


def kernels(cases):
    for name, case, least in cases:
        if not wanted(name):
            continue
        text = subprocess.run([bench.build / "gemm_bench", "2", case], check=True,
                              stdout=subprocess.PIPE, text=True).stdout
        found = re.search(re.escape(case) + r"\s+([\d.]+) GFLOP/s.* ([\d.]+) % of (\w+)\s+"
                          r"\((\d+)-(\d+)\)", text)
        speed, share, _, low, high = found.groups()
        show(name, f">= {least} % roof", float(speed), float(speed) * float(low) / float(share),
             float(speed) * float(high) / float(share), "GFLOP/s", float(share) / 100,
             float(share) >= least)


def model(name, preset, type, prefill, streams, depths):
    decode = f"decode, one stream, {name}"
    names = [f"prefill 512, {name}", decode, f"16 streams, {name}"]
    if not wanted(*names, *(f"decode at {depth}, {name}" for depth in depths)):
        return
    lines = bench.lines(bench.model(preset, type), "--only", "prefill,decode,batch", "--prefill",
                        512, "--at", ",".join(map(str, [0, *depths])), "--batch", 16, "--batch-at",
                        128, "--repeat", 5)
    at = {line["context"]: line for line in lines if line["group"] == "decode"}
    first = next(line for line in lines if line["group"] == "prefill")
    show_line(names[0], prefill, first)
    show_line(decode, 0.9, at[0], of_roof=True)
    show_line(names[2], streams, next(line for line in lines if line["group"] == "batch"))
    for depth, least in depths.items():
        seconds, line = at[depth]["seconds"], at[depth]
        share = line["tokens_per_second"] / at[0]["tokens_per_second"]
        show(f"decode at {depth}, {name}", f">= {100 * least:.0f} % of 0", line["tokens_per_second"],
             1 / seconds["p90"], 1 / seconds["p10"], "tok/s", line["share_of_roof"], share >= least)
        print(f"{'':44} {100 * share:.0f} % of decode at 0")


def training():
    name = "training step, bf16, V3 architecture"
    if not wanted(name):
        return
    print(f"{name}: median, best, share (hidden 256: >= 30 %, hidden 1024: >= 50 %)", flush=True)
    subprocess.run([bench.build / "train_bench", "2", "nano", "wide"], check=True)


kernels([(f"{dtype} GEMM 512x2048x2048", f"{dtype} 512x2048x2048", 90)
         for dtype in ("F32", "BF16", "Q8_0", "Q4_0")])
kernels([(f"{dtype} grouped, 64 experts, 512 tokens, top 6", f"{dtype} grouped 3072x1408x2048", 70)
         for dtype in ("Q4_0", "Q4_K")])
model("Qwen2-1.5B Q4_0", "qwen2-1.5b", "Q4_0", 550, 350, {})
if options.v2_lite:
    model("V2-Lite Q4_K_M", "v2-lite", "Q4_K_M", 300, 90, {4096: 0.9, 16384: 0.75})
else:
    print("V2-Lite's shape: left out; a file of 10.4 GB and as much memory: bench/targets.py --v2-lite,"
          " or make bench V2LITE=1")
training()
