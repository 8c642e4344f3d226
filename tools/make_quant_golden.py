#!/usr/bin/env python3
"""Random blocks of every quantised GGUF type with the f32 bits gguf-py decodes them to.

    python3 -m venv venv && venv/bin/pip install gguf
    venv/bin/python tools/make_quant_golden.py tests/golden/quant/quants.bin

Blocks are random bytes, except that f16 scales are finite: a quarter of them each any finite value, of realistic
size, subnormal or zero, and at or near the largest. File: per type a 16-byte name, u32 blocks, u32 elements per
block, u32 bytes per block, the blocks, the f32 values; little endian. `--blocks N` makes a bigger one.
"""
import argparse
import numpy as np
from gguf import GGMLQuantizationType as T, quants

# type: (elements, bytes, offsets of f16 scales)
TYPES = {
    "Q8_0": (32, 34, [0]), "Q4_0": (32, 18, [0]), "Q4_1": (32, 20, [0, 2]), "Q5_0": (32, 22, [0]),
    "Q5_1": (32, 24, [0, 2]), "Q2_K": (256, 84, [80, 82]), "Q3_K": (256, 110, [108]),
    "Q4_K": (256, 144, [0, 2]), "Q5_K": (256, 176, [0, 2]), "Q6_K": (256, 210, [208]),
    "IQ4_NL": (32, 18, [0]), "IQ4_XS": (256, 136, [0]), "MXFP4": (32, 17, []),
}


def random_scales(rng, n):
    sign = rng.integers(0, 2, n).astype(np.uint16) << 15
    finite = rng.integers(0, 0x7C00, n)
    realistic = rng.integers(0x0800, 0x3000, n)
    tiny = rng.integers(0, 0x400, n) * rng.integers(0, 2, n)
    huge = rng.integers(0x7BF0, 0x7C00, n)
    return np.choose(rng.integers(0, 4, n), [finite, realistic, tiny, huge]).astype(np.uint16) | sign


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--blocks", type=int, help="per type (default 24 of 256 elements, 64 of 32)")
    args = parser.parse_args()
    rng = np.random.default_rng(1)
    with open(args.out, "wb") as f:
        for name, (elements, size, scales) in TYPES.items():
            n = args.blocks or (24 if elements == 256 else 64)
            blocks = rng.integers(0, 256, (n, size), dtype=np.uint8)
            for offset in scales:
                blocks[:, offset:offset + 2] = random_scales(rng, n).view(np.uint8).reshape(n, 2)
            with np.errstate(over="ignore"):
                values = quants.dequantize(blocks, T[name])
            assert values.shape == (n, elements) and values.dtype == np.float32
            f.write(name.encode().ljust(16, b"\0"))
            f.write(np.array([n, elements, size], dtype="<u4").tobytes())
            f.write(blocks.tobytes())
            f.write(values.astype("<f4").tobytes())


main()
