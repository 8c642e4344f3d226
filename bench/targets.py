#!/usr/bin/env python3
"""Each target of the design as one line: median, spread, share of the roof, and whether it is met.

    bench/targets.py [--v2-lite [TYPE ...]] [--only WORD]

Models of random weights are written to build/bench-models where they are missing: Qwen2-1.5B's
shape in three types and a small one of V3 (5 GB together). V2-Lite's shape takes 10.4 GB of disk
in Q4_K_M (9 in Q4_0, 17 in Q8_0) and as much memory: only with --v2-lite. Speeds in tokens are the
targets of the reference machine (2 cores of Zen 5); elsewhere the share of the roof is what counts:
65 % for prompts, 70 % for 16 streams.
"""
import argparse
import re
import subprocess

from measure import ROOT, Bench

parser = argparse.ArgumentParser()
parser.add_argument("--build", default=ROOT / "build/release", help="folder of the programs")
parser.add_argument("--v2-lite", nargs="*", choices=("Q4_K_M", "Q4_0", "Q8_0"), metavar="TYPE",
                    help="also the lines of V2-Lite's shape in these types (default: Q4_K_M)")
parser.add_argument("--only", default="", help="only what it takes to measure lines whose name has this in it")
options = parser.parse_args()
bench = Bench(options.build)
met = {True: "met", False: "not met", None: ""}


def wanted(*names):
    return any(options.only in name for name in names)


def show(name, target, value, low, high, unit, share, reached):
    print(f"{name:44} {target:>14}  {value:8.1f} ({low:.1f} - {high:.1f}) {unit:9} "
          f"{100 * share:4.0f} % of the roof  {met[reached]}", flush=True)


def show_line(name, line, roof, tokens=None):
    """A line of `fathom bench`; it is met with a share of the roof, or with so many tok/s."""
    low, high = (line["tokens"] / line["seconds"][p] for p in ("p90", "p10"))
    target = f"{100 * roof:.0f} % roof" if tokens is None else f"{tokens} or {100 * roof:.0f} %"
    speed, share = line["tokens_per_second"], line["share_of_roof"]
    show(name, ">= " + target, speed, low, high, "tok/s", share,
         share >= roof or (tokens is not None and speed >= tokens))


def show_against(name, least, line, first):
    """The same, as a share of another line's speed."""
    low, high = (line["tokens"] / line["seconds"][p] for p in ("p90", "p10"))
    ratio = line["tokens_per_second"] / first["tokens_per_second"]
    show(name, f">= {100 * least:.0f} % of it", line["tokens_per_second"], low, high, "tok/s",
         line["share_of_roof"], ratio >= least)
    print(f"{'':44} {100 * ratio:.0f} % of the line it is compared with", flush=True)


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


def model(shape, preset, type, prefill=None, streams=None, depths=()):
    name = f"{shape} {type}"
    least, depths = dict(depths), [0, *dict(depths)]
    prompts = {n: f"prefill {n}, {name}" for n in (512, 2048)}
    batch = f"16 streams, {name}"
    decode = {at: f"decode at {at}, {name}" if at else f"decode, one stream, {name}"
              for at in depths}
    int8 = {at: f"{decode[at]}, int8 cache" for at in depths[1:]}
    if not wanted(*prompts.values(), batch, *decode.values(), *int8.values()):
        return
    path = bench.model(preset, type)
    if wanted(*prompts.values()):
        lines = bench.lines(path, "--only", "prefill", "--prefill", "512,2048", "--at", 0,
                            "--repeat", 3)
        of = {line["tokens"]: line for line in lines if line["group"] == "prefill"}
        show_line(prompts[512], of[512], 0.65, prefill)
        show_against(prompts[2048], 0.9, of[2048], of[512])
    if wanted(batch, *decode.values()):
        lines = bench.lines(path, "--only", "decode,batch", "--at", ",".join(map(str, depths)),
                            "--batch", 16, "--batch-at", 128)
        of = {line["context"]: line for line in lines if line["group"] == "decode"}
        show_line(decode[0], of[0], 0.9)
        show_line(batch, next(l for l in lines if l["group"] == "batch"), 0.7, streams)
        for at in depths[1:]:
            show_against(decode[at], least[at], of[at], of[0])
    if wanted(*int8.values()):
        lines = bench.lines(path, "--only", "decode", "--at", ",".join(map(str, depths)),
                            "--cache", "int8")
        of = {line["context"]: line for line in lines if line["group"] == "decode"}
        for at in depths[1:]:
            show_against(int8[at], least[at], of[at], of[0])


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
model("Qwen2-1.5B", "qwen2-1.5b", "Q4_0", 550, 350)
model("Qwen2-1.5B", "qwen2-1.5b", "Q4_K_M")
model("Qwen2-1.5B", "qwen2-1.5b", "Q8_0")
model("small V3", "v3-1b", "Q4_K_M")
if options.v2_lite is not None:
    for type in options.v2_lite or ["Q4_K_M"]:
        tokens = (300, 90) if type == "Q4_K_M" else (None, None)
        model("V2-Lite", "v2-lite", type, *tokens, {4096: 0.9, 16384: 0.75})
else:
    print("V2-Lite's shape: left out; a file of 10.4 GB and as much memory: bench/targets.py --v2-lite,"
          " or make bench V2LITE=1")
training()
