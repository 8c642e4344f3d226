#!/usr/bin/env python3
"""Writes malformed model files, each one step away from a valid one.  Usage: make_hostile_files.py OUTDIR

OUTDIR/valid/        model.safetensors, model.gguf and the folder model/: what all the others are made from
OUTDIR/safetensors/  CASE.safetensors
OUTDIR/gguf/         CASE.gguf
OUTDIR/config/       CASE/, a model folder whose config.json is wrong
OUTDIR/weights/      CASE/, a folder whose config.json and model.safetensors are valid but do not belong together
OUTDIR/tokenizer/    CASE/, a folder whose tokenizer.json or tokenizer_config.json is wrong
OUTDIR/manifest.tsv  path, tab, a fragment that the refusal must contain (it names the wrong field or tensor)

Python's standard library only; the output depends on nothing but this file.
"""
import json
import struct
import sys
from pathlib import Path

U64_MAX = 2**64 - 1


def u32(n):
    return struct.pack("<I", n)


def u64(n):
    return struct.pack("<Q", n)


def dumps(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


# --- safetensors ---


def safetensors(header, data=b"", length=None):
    """A file of this header (object or raw bytes) and data; `length` is what the file claims the header takes."""
    text = header if isinstance(header, bytes) else dumps(header)
    if not isinstance(header, bytes):
        text += b" " * (-len(text) % 8)
    return u64(len(text) if length is None else length) + text + data


def tensor(dtype, shape, begin, end, **extra):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end], **extra}


ST_DATA = bytes(range(44))


def st_header(**changes):
    """The valid header with tensors replaced, added, or (None) removed."""
    header = {
        "__metadata__": {"format": "pt"},
        "a.weight": tensor("F32", [2, 3], 0, 24),
        "b.weight": tensor("BF16", [4], 24, 32),
        "c.scalar": tensor("F64", [], 32, 40),
        "d.empty": tensor("F32", [0, 3], 40, 40),
        "e.fp8": tensor("F8_E4M3", [2, 2], 40, 44),
    }
    for name, value in changes.items():
        name = {"meta": "__metadata__"}.get(name, name.replace("__", "."))
        if value is None:
            del header[name]
        else:
            header[name] = value
    return header


def safetensors_cases():
    valid = safetensors(st_header(), ST_DATA)
    header_end = len(valid) - len(ST_DATA)
    text = valid[8:header_end]

    def st(data=ST_DATA, **changes):
        return safetensors(st_header(**changes), data)

    def raw(old, new):
        assert text.count(old) == 1, old
        return safetensors(text.replace(old, new), ST_DATA)

    yield "empty", b"", "0 bytes"
    for size in (1, 7):
        yield f"truncated_length_{size}", valid[:size], "expected at least 8"
    yield "only_length", valid[:8], "truncated"
    for part in (1, 2, 3):
        yield f"truncated_header_{part}", valid[: 8 + len(text) * part // 4], "truncated"
    yield "no_data", valid[:header_end], "data_offsets"
    for part in (1, 2, 3):
        yield f"truncated_data_{part}", valid[: header_end + len(ST_DATA) * part // 4], "data_offsets"
    yield "one_byte_short", valid[:-1], "e.fp8"
    yield "one_byte_long", valid + b"\0", "end of the last tensor"
    yield "appended_page", valid + bytes(4096), "end of the last tensor"
    for name, length in (("zero", 0), ("one_short", len(text) - 1), ("one_long", len(text) + 1), ("whole_file", len(valid)),
                         ("limit", 100_000_000), ("above_limit", 100_000_001), ("4g", 2**32), ("2_63", 2**63), ("max", U64_MAX)):
        yield f"length_{name}", safetensors(text.rstrip(), ST_DATA, length if name != "one_short" else len(text.rstrip()) - 1), "header"
    yield "length_big_endian", struct.pack(">Q", len(text)) + valid[8:], "header"
    yield "pickle", b"\x80\x02}q\x00(X\x06\x00\x00\x00weightq\x01K\x01u." + bytes(64), "header"
    yield "zip_archive", b"PK\x03\x04\x14\x00\x00\x00\x08\x00" + bytes(100), "header"
    yield "git_lfs_pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 44\n", "Git LFS pointer"
    yield "html_error_page", b"<!DOCTYPE html><html><body>404</body></html>" * 3, "header"
    yield "gguf_content", b"GGUF" + u32(3) + u64(0) + u64(0), "header"

    yield "header_array", safetensors(b"[]"), "expected '{'"
    yield "header_leading_space", safetensors(b" " + text, ST_DATA), "expected '{'"
    yield "header_bom", safetensors(b"\xef\xbb\xbf" + text, ST_DATA), "expected '{'"
    yield "header_unclosed", safetensors(text.rstrip()[:-1], ST_DATA), "invalid JSON"
    yield "header_trailing_text", safetensors(text + b"x", ST_DATA), "invalid JSON"
    yield "header_trailing_nul", safetensors(text + b"\0" * 8, ST_DATA), "NUL"
    yield "header_second_object", safetensors(text + b"{}", ST_DATA), "invalid JSON"
    yield "header_single_quotes", safetensors(text.replace(b'"', b"'"), ST_DATA), "invalid JSON"
    yield "header_trailing_comma", raw(b'"format":"pt"', b'"format":"pt",'), "invalid JSON"
    yield "header_comment", raw(b'"format":"pt"', b'"format":"pt"/*x*/'), "invalid JSON"
    yield "header_nan", raw(b'[2,3]', b'[NaN,3]'), "invalid JSON"
    yield "header_leading_zero", raw(b'[2,3]', b'[02,3]'), "invalid JSON"
    yield "header_bad_utf8", raw(b"a.weight", b"a\xff.weight"), "UTF-8"
    yield "header_overlong_utf8", raw(b"a.weight", b"a\xc0\xae.weight"), "UTF-8"
    yield "header_surrogate", raw(b"a.weight", b"a\\ud800.weight"), "invalid JSON"
    yield "header_raw_newline_in_name", raw(b"a.weight", b"a\n.weight"), "invalid JSON"
    yield "header_deep_arrays", raw(b"[2,3]", b"[" * 100 + b"]" * 100), "nested deeper"
    yield "header_deep_objects", raw(b'{"format":"pt"}', b'{"a":' * 5000 + b"1" + b"}" * 5000), "nested deeper"
    yield "header_unclosed_arrays", safetensors(b'{"a":' + b"[" * 100_000), "nested deeper"
    yield "header_number_overflow", raw(b"[2,3]", b"[1e999,3]"), "too large"
    yield "duplicate_tensor", safetensors(text.replace(b'"b.weight"', b'"a.weight"'), ST_DATA), "duplicate key 'a.weight'"
    yield "duplicate_escaped", safetensors(text.replace(b'"b.weight"', b'"\\u0061.weight"'), ST_DATA), "duplicate key 'a.weight'"
    yield "duplicate_field", raw(b'"shape":[2,3]', b'"shape":[2,3],"shape":[3,2]'), "duplicate key 'shape'"
    yield "duplicate_metadata", safetensors(b'{"__metadata__":{},' + text[1:], ST_DATA), "duplicate key '__metadata__'"

    yield "metadata_array", st(meta=["pt"]), "__metadata__"
    yield "metadata_number", st(meta={"format": 1}), "'format'"
    yield "metadata_nested", st(meta={"format": {"a": "b"}}), "'format'"
    yield "metadata_null", st(meta={"format": None}), "'format'"
    for kind, value in (("number", 3), ("string", "F32"), ("array", [1]), ("null", None)):
        header = st_header()
        header["a.weight"] = value
        yield f"tensor_is_{kind}", safetensors(header, ST_DATA), "tensor 'a.weight'"
    for field in ("dtype", "shape", "data_offsets"):
        whole = tensor("F32", [2, 3], 0, 24)
        yield f"{field}_missing", st(a__weight={k: v for k, v in whole.items() if k != field}), f"{field}: missing"
        for kind, value in (("null", None), ("object", {}), ("number", 7), ("bool", True)):
            yield f"{field}_{kind}", st(a__weight={**whole, field: value}), f"tensor 'a.weight': {field}"
    yield "unknown_field", st(a__weight=tensor("F32", [2, 3], 0, 24, strides=[3, 1])), "'strides'"
    for dtype in ("", "f32", "F31", "FP32", "float32", "F8_E8M0", "F4", "Q4_K", "C64", "F32\u0000"):
        name = dtype.replace("\u0000", "_nul") or "empty"
        yield f"dtype_unknown_{name}", st(a__weight=tensor(dtype, [2, 3], 0, 24)), "tensor 'a.weight': dtype"
    yield "dtype_wrong_size", st(a__weight=tensor("F64", [2, 3], 0, 24)), "expected 48"
    for name, shape in (("negative", [2, -3]), ("float", [2.0, 3]), ("string", ["2", 3]), ("nested", [[2], 3]), ("null", [None, 3]),
                        ("2_63", [2**63, 1]), ("2_64", [2**64, 1]), ("1e400_digits", [10**400, 1])):
        fragment = "number too large" if name == "1e400_digits" else "tensor 'a.weight': shape"
        yield f"shape_of_{name}", st(a__weight=tensor("F32", shape, 0, 24)), fragment
    yield "shape_product_wraps", st(a__weight=tensor("F32", [2**32, 2**32], 0, 24)), "larger than any file"
    yield "shape_bytes_wrap", st(a__weight=tensor("F32", [2**62 + 6], 0, 24)), "larger than any file"
    yield "shape_zero_times_huge", st(a__weight=tensor("F32", [0, 2**62, 4], 0, 24)), "larger than any file"
    yield "shape_too_large", st(a__weight=tensor("F32", [3, 3], 0, 24)), "expected 36"
    yield "shape_too_small", st(a__weight=tensor("F32", [1, 3], 0, 24)), "expected 12"
    yield "shape_scalar", st(a__weight=tensor("F32", [], 0, 24)), "expected 4"
    yield "shape_rank_9", st(a__weight=tensor("F32", [1] * 7 + [2, 3], 0, 24)), "rank 9"
    yield "shape_rank_1000", st(a__weight=tensor("F32", [1] * 1000 + [6], 0, 24)), "rank 1001"
    for name, offsets in (("one", [0]), ("three", [0, 24, 24]), ("empty", []), ("float", [0, 24.0]), ("string", ["0", 24]),
                          ("negative", [-1, 23]), ("swapped", [24, 0]), ("past_end", [0, 1000]), ("2_63", [2**63, 2**63 + 24]),
                          ("max", [U64_MAX - 23, U64_MAX]), ("wrapping", [U64_MAX - 7, 16])):
        yield f"offsets_{name}", st(a__weight={"dtype": "F32", "shape": [2, 3], "data_offsets": offsets}), "tensor 'a.weight': data_offsets"
    yield "offsets_too_short", st(a__weight=tensor("F32", [2, 3], 0, 23)), "23 bytes of data, expected 24"
    yield "overlap_all", st(b__weight=tensor("BF16", [4], 0, 8)), "overlaps"
    yield "overlap_one_byte", st(b__weight=tensor("BF16", [4], 23, 31)), "overlaps"
    yield "overlap_empty_inside", st(d__empty=tensor("F32", [0], 30, 30)), "d.empty"
    yield "hole_at_start", st(a__weight=tensor("U8", [23], 1, 24)), "expected 0"
    yield "hole_between", st(a__weight=None, extra=tensor("U8", [20], 0, 20)), "hole"
    yield "hole_at_end", st(e__fp8=None), "end of the last tensor"
    yield "same_range_twice", st(extra=tensor("F32", [2, 3], 0, 24)), "overlaps"
    yield "no_tensors_but_data", safetensors(b"{}", ST_DATA), "expected 0"
    yield "name_empty", safetensors({**st_header(a__weight=None), "": tensor("F32", [2, 3], 0, 24)}, ST_DATA), "name of 0 bytes"
    yield "name_too_long", safetensors({**st_header(a__weight=None), "n" * 513: tensor("F32", [2, 3], 0, 24)}, ST_DATA), "name of 513 bytes"


# --- GGUF ---

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, UINT64, INT64, F64 = range(13)
T_F32, T_Q4_0, T_Q8_0, T_Q4_K = 0, 2, 8, 12


def string(text):
    data = text if isinstance(text, bytes) else text.encode()
    return u64(len(data)) + data


def array(kind, count, elements):
    return u32(kind) + u64(count) + elements


def strings(texts):
    return array(STRING, len(texts), b"".join(string(t) for t in texts))


def key(name, kind, value):
    return string(name) + u32(kind) + value


def info(name, ne, kind, offset, rank=None):
    return string(name) + u32(len(ne) if rank is None else rank) + b"".join(u64(n) for n in ne) + u32(kind) + u64(offset)


TOKENS = ["<bos>", "<eos>", "a", "b", "ab"]
GGUF_KEYS = [
    key("general.architecture", STRING, string("llama")),
    key("general.alignment", U32, u32(32)),
    key("general.name", STRING, string("tiny")),
    key("llama.block_count", U32, u32(1)),
    key("llama.context_length", U32, u32(128)),
    key("llama.embedding_length", U32, u32(32)),
    key("llama.attention.layer_norm_rms_epsilon", F32, struct.pack("<f", 1e-6)),
    key("llama.rope.freq_base", F64, struct.pack("<d", 10000.0)),
    key("tokenizer.ggml.model", STRING, string("gpt2")),
    key("tokenizer.ggml.tokens", ARRAY, strings(TOKENS)),
    key("tokenizer.ggml.token_type", ARRAY, array(I32, 5, struct.pack("<5i", 3, 3, 1, 1, 1))),
    key("tokenizer.ggml.merges", ARRAY, strings(["a b"])),
    key("tokenizer.ggml.add_bos_token", BOOL, b"\0"),
    key("tokenizer.ggml.bos_token_id", U32, u32(0)),
]
GGUF_TENSORS = [
    info("token_embd.weight", [32, 5], T_Q8_0, 0),  # 170 bytes
    info("output_norm.weight", [32], T_F32, 192),
    info("blk.0.ffn_up.weight", [256, 2], T_Q4_K, 320),  # 288 bytes
]
GGUF_DATA = bytes(i % 251 for i in range(320 + 288))


def gguf(keys=None, tensors=None, data=GGUF_DATA, magic=b"GGUF", version=3, n_tensors=None, n_keys=None, alignment=32):
    keys = GGUF_KEYS if keys is None else keys
    tensors = GGUF_TENSORS if tensors is None else tensors
    head = magic + u32(version) + u64(len(tensors) if n_tensors is None else n_tensors)
    head += u64(len(keys) if n_keys is None else n_keys) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data


def gguf_cases():
    valid = gguf()
    data_start = len(valid) - len(GGUF_DATA)
    keys_end = 24 + sum(map(len, GGUF_KEYS))

    def with_key(name, kind, value):
        """The valid file, one key more."""
        return gguf(keys=GGUF_KEYS + [key(name, kind, value)])

    def replaced(index, *fields, **more):
        """The valid file with tensor `index` described otherwise."""
        tensors = list(GGUF_TENSORS)
        tensors[index] = info(*fields, **more)
        return gguf(tensors=tensors)

    yield "empty", b"", "truncated"
    for size in (3, 4, 7, 8, 15, 16, 23):
        yield f"truncated_header_{size}", valid[:size], "truncated"
    at = 24
    for i, k in enumerate(GGUF_KEYS):
        yield f"truncated_before_key_{i}", valid[:at], "truncated"
        yield f"truncated_in_key_{i}", valid[: at + len(k) - 1], "truncated"
        at += len(k)
    for i, t in enumerate(GGUF_TENSORS):
        yield f"truncated_before_tensor_{i}", valid[:at], "truncated"
        yield f"truncated_in_tensor_{i}", valid[: at + len(t) - 1], "truncated"
        at += len(t)
    yield "truncated_before_data", valid[:data_start], "outside the file"
    for part in (1, 2, 3):
        yield f"truncated_data_{part}", valid[: data_start + len(GGUF_DATA) * part // 4], "outside the file"
    yield "one_byte_short", valid[:-1], "blk.0.ffn_up.weight"
    yield "middle_cut_out", valid[:200] + valid[400:], "key 'llama.context_length'"

    for name, magic in (("ggml", b"GGML"), ("ggjt", b"ggjt"), ("reversed", b"FUGG"), ("lower", b"gguf"), ("zero", bytes(4))):
        yield f"magic_{name}", gguf(magic=magic), "expected 'GGUF'"
    for version in (0, 1, 4, 2**32 - 1):
        yield f"version_{version}", gguf(version=version), "version"
    yield "big_endian", b"GGUF" + struct.pack(">IQQ", 3, 3, 14) + valid[24:], "big-endian"
    yield "git_lfs_pointer", b"version https://git-lfs.github.com/spec/v1\nsize 44\n", "Git LFS pointer"

    # One too many reads the padding as a tensor; one key too few or many reads on in the wrong place.
    for name, count in (("one_more", len(GGUF_TENSORS) + 1), ("limit", 1_000_000)):
        yield f"tensor_count_{name}", gguf(n_tensors=count), "tensor ''"
    for name, count in (("above_limit", 1_000_001), ("2_32", 2**32), ("max", U64_MAX)):
        yield f"tensor_count_{name}", gguf(n_tensors=count), "tensors, expected at most"
    yield "key_count_one_more", gguf(n_keys=len(GGUF_KEYS) + 1), "tensor 1 of 3"
    yield "key_count_one_less", gguf(n_keys=len(GGUF_KEYS) - 1), "tensor 'tokenizer.ggml.bos_token_id'"
    yield "key_count_limit", gguf(n_keys=65_536), "key 16 of 65536"
    for name, count in (("above_limit", 65_537), ("2_63", 2**63), ("max", U64_MAX)):
        yield f"key_count_{name}", gguf(n_keys=count), "keys, expected at most"

    for name, length in (("past_end", 10_000), ("16m", 2**24), ("above_limit", 2**24 + 1), ("2_31", 2**31), ("max", U64_MAX), ("wrapping", U64_MAX - 200)):
        yield f"string_length_{name}", with_key("x", STRING, u64(length) + b"abc"), "key 'x'"
        yield f"key_length_{name}", gguf(keys=GGUF_KEYS + [u64(length) + b"abc" + u32(U8) + b"\0"]), "key 15 of 15"
        yield f"name_length_{name}", gguf(tensors=GGUF_TENSORS + [u64(length) + b"abc"]), "tensor 4 of 4"
    for kind in (13, 14, 255, 2**32 - 1):
        yield f"value_type_{kind}", with_key("x", kind, u64(0)), "key 'x': value type"
        yield f"element_type_{kind}", with_key("x", ARRAY, array(kind, 1, u64(0))), "key 'x': array element type"
    for name, kind, width in (("u8", U8, 1), ("u16", U16, 2), ("f32", F32, 4), ("u64", UINT64, 8), ("bool", BOOL, 1), ("string", STRING, 8)):
        for size, count in (("limit", 2**26), ("above_limit", 2**26 + 1), ("wrapping", 2**64 // width + 1 if width > 1 else U64_MAX), ("max", U64_MAX)):
            yield f"array_{name}_{size}", with_key("x", ARRAY, array(kind, count, bytes(64))), "key 'x'"
    yield "array_of_arrays", with_key("x", ARRAY, array(ARRAY, 1, array(U8, 1, b"\0"))), "array of arrays"
    yield "array_of_arrays_deep", with_key("x", ARRAY, array(ARRAY, 1, b"") * 1000), "array of arrays"
    yield "array_string_too_long", with_key("x", ARRAY, strings(["a", "t" * 65_537])), "string of 65537 bytes"
    yield "bool_2", with_key("x", BOOL, b"\2"), "boolean 2"
    yield "bool_255_in_array", with_key("x", ARRAY, array(BOOL, 3, b"\0\1\xff")), "boolean 255"
    yield "key_twice", with_key("general.architecture", STRING, string("llama")), "'general.architecture': found twice"
    yield "key_twice_other_type", with_key("llama.block_count", STRING, string("1")), "'llama.block_count': found twice"

    for name, kind, value in (("0", U32, u32(0)), ("1", U32, u32(1)), ("4", U32, u32(4)), ("24", U32, u32(24)), ("131072", U32, u32(131072)),
                              ("max", U32, u32(2**32 - 1)), ("string", STRING, string("32")), ("float", F32, struct.pack("<f", 32.0)),
                              ("negative", I32, struct.pack("<i", -32)), ("bool", BOOL, b"\1"), ("array", ARRAY, array(U32, 1, u32(32)))):
        keys = [key("general.alignment", kind, value)] + [k for k in GGUF_KEYS if b"general.alignment" not in k]
        yield f"alignment_{name}", gguf(keys=keys), "general.alignment"
    keys = [key("general.alignment", U32, u32(128))] + [k for k in GGUF_KEYS if b"general.alignment" not in k]
    yield "alignment_128_but_offsets_32", gguf(keys=keys, alignment=128), "expected a multiple of 128"

    for rank in (5, 8, 255, 2**31, 2**32 - 1):
        yield f"rank_{rank}", replaced(1, "output_norm.weight", [32], T_F32, 192, rank=rank), "tensor 'output_norm.weight': rank"
    for name, ne in (("2_63", [2**63]), ("max", [U64_MAX]), ("wraps", [2**32, 2**32]), ("bytes_wrap", [2**62]), ("four_wrap", [2**16] * 4),
                     ("zero_times_huge", [0, 2**62, 4]), ("one_row_more", [32, 1000])):
        yield f"shape_{name}", replaced(1, "output_norm.weight", ne, T_F32, 192), "tensor 'output_norm.weight'"
    for kind, name in ((4, "4"), (5, "5"), (9, "Q8_1"), (15, "Q8_K"), (16, "IQ2_XXS"), (21, "IQ3_S"), (31, "31"), (34, "TQ1_0"), (99, "99"), (2**32 - 1, "4294967295")):
        yield f"type_{kind}", replaced(1, "output_norm.weight", [32], kind, 192), f"tensor 'output_norm.weight': type {name}"
    yield "block_q8_0", replaced(0, "token_embd.weight", [33, 5], T_Q8_0, 0), "rows of 33"
    yield "block_q4_0", replaced(0, "token_embd.weight", [16, 10], T_Q4_0, 0), "rows of 16"
    yield "block_q4_k", replaced(2, "blk.0.ffn_up.weight", [128, 4], T_Q4_K, 320), "rows of 128"
    yield "type_larger_than_data", replaced(2, "blk.0.ffn_up.weight", [256, 2], T_F32, 320), "outside the file"
    for name, offset in (("1", 1), ("16", 16), ("191", 191), ("max", U64_MAX)):
        yield f"offset_unaligned_{name}", replaced(1, "output_norm.weight", [32], T_F32, offset), "expected a multiple of 32"
    for name, offset in (("at_end", 608), ("past_end", 2**20), ("2_63", 2**63), ("wrapping", U64_MAX - 31), ("wrapping_to_start", 2**64 - 1024)):
        yield f"offset_{name}", replaced(1, "output_norm.weight", [32], T_F32, offset), "outside the file"
    yield "overlap_same", replaced(1, "output_norm.weight", [32], T_F32, 0), "overlaps"
    yield "overlap_tail", replaced(1, "output_norm.weight", [32], T_F32, 160), "overlaps"
    yield "overlap_next", replaced(1, "output_norm.weight", [33], T_F32, 192), "overlaps"
    yield "overlap_inside", replaced(1, "output_norm.weight", [2], T_F32, 352), "overlaps"
    yield "tensor_twice", gguf(tensors=GGUF_TENSORS + [info("output_norm.weight", [0], T_F32, 0)]), "'output_norm.weight': found twice"
    yield "name_empty", replaced(1, "", [32], T_F32, 192), "name of 0 bytes"
    yield "name_bad_utf8", replaced(1, b"output\xff", [32], T_F32, 192), "not valid UTF-8"
    yield "name_too_long", replaced(1, "n" * 513, [32], T_F32, 192), "513 bytes"
    split = lambda no, count, tensors: [key("split.no", U16, struct.pack("<H", no)), key("split.count", U16, struct.pack("<H", count)),
                                        key("split.tensors.count", I32, struct.pack("<i", tensors))]
    yield "split_second_part", gguf(keys=GGUF_KEYS + split(1, 2, 3)), "expected the first part"
    yield "split_name", gguf(keys=GGUF_KEYS + split(0, 2, 3)), "expected a name ending in"
    yield "split_count_huge", gguf(keys=GGUF_KEYS + split(0, 65535, 3)), "split.count"
    yield "split_no_missing", gguf(keys=GGUF_KEYS + split(0, 2, 3)[1:]), "split.no"
    yield "split_no_past_count", gguf(keys=GGUF_KEYS + split(7, 2, 3)), "split.no"
    yield "split_count_string", gguf(keys=GGUF_KEYS + [key("split.count", STRING, string("2"))]), "split.count"


# --- model folders ---

CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "vocab_size": 264, "hidden_size": 8,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "hidden_act": "silu", "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "max_position_embeddings": 2560, "tie_word_embeddings": False, "attention_bias": False,
    "rope_scaling": {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
                     "original_max_position_embeddings": 64},
    "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.02, "torch_dtype": "float32", "moe_layer_freq": 1,
    "first_k_dense_replace": 1, "n_shared_experts": 1, "intermediate_size": 16, "moe_intermediate_size": 4,
    "scoring_func": "sigmoid", "topk_method": "noaux_tc", "norm_topk_prob": True, "q_lora_rank": 6, "kv_lora_rank": 4,
    "qk_nope_head_dim": 4, "qk_rope_head_dim": 2, "v_head_dim": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2,
    "topk_group": 1, "routed_scaling_factor": 2.5, "num_nextn_predict_layers": 0,
}


def weight_shapes():
    """Names and shapes of CONFIG's tensors (Hugging Face layout)."""
    c = CONFIG
    d, heads = c["hidden_size"], c["num_attention_heads"]
    qk = c["qk_nope_head_dim"] + c["qk_rope_head_dim"]
    shapes = {"model.embed_tokens.weight": [c["vocab_size"], d], "model.norm.weight": [d], "lm_head.weight": [c["vocab_size"], d]}

    def mlp(prefix, width):
        shapes.update({f"{prefix}.gate_proj.weight": [width, d], f"{prefix}.up_proj.weight": [width, d], f"{prefix}.down_proj.weight": [d, width]})

    for layer in range(c["num_hidden_layers"]):
        p = f"model.layers.{layer}"
        shapes.update({
            f"{p}.input_layernorm.weight": [d], f"{p}.post_attention_layernorm.weight": [d],
            f"{p}.self_attn.q_a_proj.weight": [c["q_lora_rank"], d], f"{p}.self_attn.q_a_layernorm.weight": [c["q_lora_rank"]],
            f"{p}.self_attn.q_b_proj.weight": [heads * qk, c["q_lora_rank"]],
            f"{p}.self_attn.kv_a_proj_with_mqa.weight": [c["kv_lora_rank"] + c["qk_rope_head_dim"], d],
            f"{p}.self_attn.kv_a_layernorm.weight": [c["kv_lora_rank"]],
            f"{p}.self_attn.kv_b_proj.weight": [heads * (c["qk_nope_head_dim"] + c["v_head_dim"]), c["kv_lora_rank"]],
            f"{p}.self_attn.o_proj.weight": [d, heads * c["v_head_dim"]],
        })
        if layer < c["first_k_dense_replace"]:
            mlp(f"{p}.mlp", c["intermediate_size"])
        else:
            shapes.update({f"{p}.mlp.gate.weight": [c["n_routed_experts"], d], f"{p}.mlp.gate.e_score_correction_bias": [c["n_routed_experts"]]})
            mlp(f"{p}.mlp.shared_experts", c["n_shared_experts"] * c["moe_intermediate_size"])
            for expert in range(c["n_routed_experts"]):
                mlp(f"{p}.mlp.experts.{expert}", c["moe_intermediate_size"])
    return shapes


def weights(shapes, dtype="F32"):
    """A safetensors file of these shapes; small values that follow from the position."""
    header, data = {"__metadata__": {"format": "pt"}}, bytearray()
    for name, shape in shapes.items():
        count = 1
        for n in shape:
            count *= n
        values = [1.0 if len(shape) == 1 else ((i * 37 + len(data)) % 101 - 50) / 500 for i in range(count)]
        chunk = struct.pack(f"<{count}f", *values) if dtype == "F32" else bytes(8 * count)
        header[name] = tensor(dtype, shape, len(data), len(data) + len(chunk))
        data += chunk
    return safetensors(header, bytes(data))


def byte_chars():
    """The printable character that stands for each byte in byte-level vocabularies."""
    chars, extra = [], 0
    for byte in range(256):
        if 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174:
            chars.append(chr(byte))
        else:
            chars.append(chr(0x100 + extra))
            extra += 1
    return chars


def added_token(number, content, **changes):
    return {"id": number, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True, **changes}


def tokenizer():
    vocab = {"<bos>": 0, "<eos>": 1}
    for char in byte_chars():
        vocab[char] = len(vocab)
    merges = ["h e", "l l", "he ll", "hell o"]
    for merge in merges:
        vocab[merge.replace(" ", "")] = len(vocab)
    split = lambda regex: {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [added_token(0, "<bos>"), added_token(1, "<eos>")],
        "normalizer": {"type": "Sequence", "normalizers": []},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            split("\\p{N}{1,3}"), split("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"),
            split("[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|"
                  "\\s*[\r\n]+|\\s+(?!\\S)|\\s+"),
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "vocab": vocab, "merges": merges},
    }


TOKENIZER_CONFIG = {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, "add_eos_token": False, "bos_token": "<bos>",
                    "eos_token": "<eos>", "model_max_length": 2560}


def folder(**changes):
    """The files of a valid model folder; config=, tokenizer=, tokenizer_config= (objects or bytes) and weights= replace one."""
    raw = lambda value: value if isinstance(value, bytes) else dumps(value)
    return {"config.json": raw(changes.get("config", CONFIG)), "tokenizer.json": raw(changes.get("tokenizer", tokenizer())),
            "tokenizer_config.json": raw(changes.get("tokenizer_config", TOKENIZER_CONFIG)),
            "model.safetensors": changes.get("weights", VALID_WEIGHTS)}


def text_cases(valid, place):
    """What can be wrong with any JSON file that must hold an object."""
    text = dumps(valid)
    yield "empty", b"", place
    yield "truncated", text[: len(text) // 2], place
    yield "last_brace_missing", text[:-1], place
    yield "trailing_text", text + b"}", place
    yield "trailing_nul", text + b"\0", place
    yield "array", b"[" + text + b"]", place
    yield "null", b"null", place
    yield "string", b'"{}"', place
    yield "bad_utf8", text[:-1] + b',"x":"\xff"}', place
    yield "trailing_comma", text[:-1] + b",}", place
    yield "comment", b"// made by hand\n" + text, place
    yield "single_quotes", text.replace(b'"', b"'"), place
    yield "nan", text[:-1] + b',"x":NaN}', place
    yield "infinite", text[:-1] + b',"x":1e999}', place
    yield "deep_arrays", text[:-1] + b',"x":' + b"[" * 1000 + b"]" * 1000 + b"}", "nested deeper"
    yield "deep_unclosed", b'{"x":' * 200_000, "nested deeper"
    yield "utf16", text.decode().encode("utf-16"), place


def config_cases():
    def changed(**changes):
        return {**CONFIG, **changes}

    def rope(**changes):
        return changed(rope_scaling={k: v for k, v in {**CONFIG["rope_scaling"], **changes}.items() if v != "absent"})

    for name, text, fragment in text_cases(CONFIG, "config.json"):
        yield f"text_{name}", text, fragment
    first = next(iter(CONFIG))
    yield "duplicate_key", dumps(CONFIG)[:-1] + b',"hidden_size":16}', "duplicate key 'hidden_size'"
    yield "duplicate_escaped", dumps(CONFIG)[:-1] + b',"\\u0068idden_size":16}', "duplicate key 'hidden_size'"
    yield "empty_object", b"{}", first
    for name in ("architectures", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings",
                 "rms_norm_eps", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "moe_intermediate_size", "num_experts_per_tok"):
        yield f"{name}_missing", {k: v for k, v in CONFIG.items() if k != name}, name
        yield f"{name}_null", changed(**{name: None}), name
        yield f"{name}_string", changed(**{name: str(CONFIG[name])}), name
        yield f"{name}_negative", changed(**{name: -1}), name
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "kv_lora_rank", "n_routed_experts"):
        yield f"{name}_float", changed(**{name: CONFIG[name] + 0.5}), name
        yield f"{name}_whole_float", changed(**{name: float(CONFIG[name])}), name
        yield f"{name}_2_31", changed(**{name: 2**31}), name
        yield f"{name}_2_32_plus", changed(**{name: 2**32 + CONFIG[name]}), name  # narrows to the right value
        yield f"{name}_2_64", changed(**{name: 2**64}), name
        yield f"{name}_array", changed(**{name: [CONFIG[name]]}), name
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "qk_rope_head_dim", "v_head_dim", "rms_norm_eps"):
        yield f"{name}_zero", changed(**{name: 0}), name
    yield "architecture_unknown", changed(architectures=["MixtralForCausalLM"]), "MixtralForCausalLM"
    yield "architecture_case", changed(architectures=["deepseekv3forcausallm"]), "architectures"
    yield "architectures_empty", changed(architectures=[]), "architectures"
    yield "architectures_two", changed(architectures=["DeepseekV3ForCausalLM", "LlamaForCausalLM"]), "architectures"
    yield "architectures_number", changed(architectures=[3]), "architectures"
    yield "hidden_act_gelu", changed(hidden_act="gelu"), "hidden_act"
    yield "attention_bias_true", changed(attention_bias=True), "attention_bias"
    yield "tie_word_embeddings_number", changed(tie_word_embeddings=0), "tie_word_embeddings"
    yield "rms_norm_eps_one", changed(rms_norm_eps=1), "rms_norm_eps"
    yield "rope_theta_zero", changed(rope_theta=0), "rope_theta"
    yield "rope_theta_negative", changed(rope_theta=-10000.0), "rope_theta"
    yield "rope_theta_string", changed(rope_theta="1e4"), "rope_theta"
    yield "rope_scaling_array", changed(rope_scaling=[]), "rope_scaling"
    yield "rope_type_unknown", rope(type="linear"), "linear"
    yield "rope_type_missing", rope(type="absent"), "type"
    yield "rope_type_llama3", rope(type="llama3"), "llama3"
    yield "rope_factor_missing", rope(factor="absent"), "factor"
    yield "rope_factor_zero", rope(factor=0), "factor"
    yield "rope_factor_string", rope(factor="40"), "factor"
    yield "rope_original_missing", rope(original_max_position_embeddings="absent"), "original_max_position_embeddings"
    yield "rope_original_negative", rope(original_max_position_embeddings=-64), "original_max_position_embeddings"
    yield "rope_beta_fast_null_string", rope(beta_fast="fast"), "beta_fast"
    yield "rope_mscale_bool", rope(mscale=True), "mscale"
    yield "qk_rope_head_dim_odd", changed(qk_rope_head_dim=3), "rot"
    yield "num_key_value_heads_other", changed(num_key_value_heads=1), "num_key_value_heads"
    yield "scoring_func_unknown", changed(scoring_func="tanh"), "scoring_func"
    yield "scoring_func_softmax_with_noaux", changed(scoring_func="softmax"), "topk_method"
    yield "topk_method_unknown", changed(topk_method="top_p"), "topk_method"
    yield "topk_method_greedy_with_sigmoid", changed(topk_method="greedy"), "topk_method"
    yield "n_routed_experts_above_limit", changed(n_routed_experts=4097), "n_routed_experts"
    yield "num_hidden_layers_above_limit", changed(num_hidden_layers=1025), "num_hidden_layers"
    yield "vocab_size_above_limit", changed(vocab_size=2_097_153), "vocab_size"
    yield "experts_per_tok_above_experts", changed(num_experts_per_tok=5), "num_experts_per_tok"
    yield "n_group_does_not_divide", changed(n_group=3), "n_group"
    yield "n_group_zero", changed(n_group=0), "n_group"
    yield "topk_group_above_n_group", changed(topk_group=3), "topk_group"
    yield "topk_group_too_few_experts", changed(num_experts_per_tok=3), "topk_group"
    yield "norm_topk_prob_string", changed(norm_topk_prob="true"), "norm_topk_prob"
    yield "routed_scaling_factor_string", changed(routed_scaling_factor="2.5"), "routed_scaling_factor"
    yield "moe_layer_freq_zero", changed(moe_layer_freq=0), "moe_layer_freq"
    yield "first_k_dense_replace_negative", changed(first_k_dense_replace=-1), "first_k_dense_replace"
    yield "num_nextn_predict_layers_2", changed(num_nextn_predict_layers=2), "num_nextn_predict_layers"
    yield "bos_above_vocab", changed(bos_token_id=264), "bos_token_id"
    yield "eos_above_vocab", changed(eos_token_id=[1, 264]), "eos_token_id"
    yield "eos_negative", changed(eos_token_id=-2), "eos_token_id"
    yield "eos_string", changed(eos_token_id="<eos>"), "eos_token_id"
    yield "eos_nested", changed(eos_token_id=[[1]]), "eos_token_id"
    yield "quantization_unknown", changed(quantization_config={"quant_method": "gptq", "bits": 4}), "quant_method"
    yield "quantization_block_size", changed(quantization_config={"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [64, 64]}), "weight_block_size"


def weights_cases():
    """config.json and weights are each valid, but of different models."""
    shapes = weight_shapes()
    for name in ("lm_head.weight", "model.norm.weight", "model.layers.1.mlp.gate.e_score_correction_bias", "model.layers.1.mlp.experts.3.up_proj.weight",
                 "model.layers.0.self_attn.kv_b_proj.weight"):
        yield f"missing_{name}", {"weights": weights({k: v for k, v in shapes.items() if k != name})}, name
        yield f"shape_{name}", {"weights": weights({**shapes, name: [n + 1 for n in shapes[name]]})}, name
    yield "transposed", {"weights": weights({**shapes, "model.layers.0.mlp.gate_proj.weight": [8, 16]})}, "model.layers.0.mlp.gate_proj.weight"
    yield "rank_3", {"weights": weights({**shapes, "model.layers.0.mlp.gate_proj.weight": [16, 4, 2]})}, "model.layers.0.mlp.gate_proj.weight"
    yield "extra_tensor", {"weights": weights({**shapes, "model.layers.0.mlp.extra.weight": [8]})}, "model.layers.0.mlp.extra.weight"
    yield "extra_expert", {"weights": weights({**shapes, "model.layers.1.mlp.experts.4.up_proj.weight": [4, 8]})}, "experts.4.up_proj.weight"
    yield "integers", {"weights": weights(shapes, "I64")}, "I64"
    yield "no_tensors", {"weights": safetensors({"__metadata__": {"format": "pt"}})}, "model.embed_tokens.weight"
    for name, value in (("hidden_size", 16), ("vocab_size", 300), ("num_hidden_layers", 3), ("num_attention_heads", 4), ("q_lora_rank", 8),
                        ("kv_lora_rank", 8), ("v_head_dim", 8), ("intermediate_size", 32), ("moe_intermediate_size", 8), ("n_routed_experts", 8), ("first_k_dense_replace", 2)):
        more = {"num_key_value_heads": value} if name == "num_attention_heads" else {}
        yield f"config_{name}", {"config": {**CONFIG, name: value, **more}}, "tensor '"


def tokenizer_cases():
    def changed(path, value):
        """The valid tokenizer.json with the value at `path` replaced; value None as a key deletes (use ... for that)."""
        root = tokenizer()
        node = root
        for step in path[:-1]:
            node = node[step]
        if value is ...:
            del node[path[-1]]
        else:
            node[path[-1]] = value
        return root

    def vocab(**changes):
        return changed(["model", "vocab"], {k: v for k, v in {**tokenizer()["model"]["vocab"], **changes}.items() if v is not ...})

    for name, text, fragment in text_cases(tokenizer(), "tokenizer.json"):
        yield f"text_{name}", {"tokenizer": text}, fragment
    cases = [
        ("model_missing", changed(["model"], ...), "model"),
        ("model_array", changed(["model"], []), "model"),
        ("model_type_unigram", changed(["model", "type"], "Unigram"), "Unigram"),
        ("model_type_wordpiece", changed(["model", "type"], "WordPiece"), "WordPiece"),
        ("model_type_missing", changed(["model", "type"], ...), "type"),
        ("byte_fallback", changed(["model", "byte_fallback"], True), "byte_fallback"),
        ("subword_prefix", changed(["model", "continuing_subword_prefix"], "##"), "continuing_subword_prefix"),
        ("dropout", changed(["model", "dropout"], 0.1), "dropout"),
        ("vocab_missing", changed(["model", "vocab"], ...), "vocab"),
        ("vocab_array", changed(["model", "vocab"], ["a", "b"]), "vocab"),
        ("vocab_empty", changed(["model", "vocab"], {}), "tokenizer.json"),
        ("vocab_id_string", vocab(hello="261"), "hello"),
        ("vocab_id_float", vocab(hello=261.5), "hello"),
        ("vocab_id_negative", vocab(hello=-1), "hello"),
        ("vocab_id_twice", vocab(hello=260), "260"),
        ("vocab_id_2_31", vocab(hello=2**31), "hello"),
        ("vocab_id_2_32_plus", vocab(hello=2**32 + 261), "hello"),
        ("vocab_id_above_limit", vocab(hello=2_097_152), "2097152"),
        ("vocab_empty_token", vocab(**{"": 262}), "tokenizer.json"),
        ("vocab_token_too_long", vocab(**{"t" * 65_537: 262}), "tokenizer.json"),
        ("vocab_byte_missing", vocab(**{byte_chars()[0xbd]: ...}), "no token for byte"),
        ("vocab_merged_token_missing", vocab(ll=...), "ll"),
        ("merges_missing", changed(["model", "merges"], ...), "merges"),
        ("merges_string", changed(["model", "merges"], "h e"), "merges"),
        ("merge_number", changed(["model", "merges"], ["h e", 3]), "merge"),
        ("merge_one_part", changed(["model", "merges"], ["h e", "ll"]), "merge"),
        ("merge_three_parts", changed(["model", "merges"], ["h e l"]), "merge"),
        ("merge_three_elements", changed(["model", "merges"], [["h", "e", "l"]]), "merge"),
        ("merge_empty_part", changed(["model", "merges"], [" e"]), "merge"),
        ("merge_of_unknown", changed(["model", "merges"], ["h e", "zz y"]), "zz"),
        ("merge_result_unknown", changed(["model", "merges"], ["z z"]), "zz"),
        ("merge_twice", changed(["model", "merges"], ["h e", "l l", "h e"]), "listed twice"),
        ("merge_of_special", changed(["model", "merges"], ["<bos> h"]), "merge"),
        ("added_tokens_object", changed(["added_tokens"], {}), "added_tokens"),
        ("added_token_string", changed(["added_tokens", 0], "<bos>"), "added_tokens"),
        ("added_id_missing", changed(["added_tokens", 0, "id"], ...), "id"),
        ("added_id_negative", changed(["added_tokens", 0, "id"], -1), "id"),
        ("added_id_taken", changed(["added_tokens", 0, "id"], 5), "<bos>"),
        ("added_id_above_limit", changed(["added_tokens", 0], added_token(2_097_152, "<big>")), "<big>"),
        ("added_content_number", changed(["added_tokens", 0, "content"], 3), "content"),
        ("added_content_empty", changed(["added_tokens", 0], added_token(262, "")), "tokenizer.json"),
        ("added_twice", changed(["added_tokens"], [added_token(0, "<bos>"), added_token(262, "<bos>")]), "<bos>"),
        ("added_single_word", changed(["added_tokens", 0, "single_word"], True), "single_word"),
        ("added_special_string", changed(["added_tokens", 0, "special"], "yes"), "special"),
        ("normalizer_unknown", changed(["normalizer"], {"type": "Lowercase"}), "Lowercase"),
        ("normalizer_nfkc", changed(["normalizer"], {"type": "Sequence", "normalizers": [{"type": "NFKC"}]}), "NFKC"),
        ("normalizer_number", changed(["normalizer"], 3), "normalizer"),
        ("pre_tokenizer_null", changed(["pre_tokenizer"], None), "pre_tokenizer"),
        ("pre_tokenizer_unknown", changed(["pre_tokenizer"], {"type": "Metaspace"}), "Metaspace"),
        ("pre_tokenizer_whitespace", changed(["pre_tokenizer", "pretokenizers", 0], {"type": "Whitespace"}), "Whitespace"),
        ("pre_tokenizer_no_byte_level", changed(["pre_tokenizer", "pretokenizers", 3], ...), "ByteLevel"),
        ("pre_tokenizer_prefix_space", changed(["pre_tokenizer", "pretokenizers", 3, "add_prefix_space"], True), "add_prefix_space"),
        ("split_unknown_regex", changed(["pre_tokenizer", "pretokenizers", 0, "pattern", "Regex"], "(a+)+$"), "(a+)+$"),
        ("split_regex_number", changed(["pre_tokenizer", "pretokenizers", 0, "pattern", "Regex"], 3), "Regex"),
        ("split_regex_one_character_off", changed(["pre_tokenizer", "pretokenizers", 0, "pattern", "Regex"], "\\p{N}{1,4}"), "{1,4}"),
        ("split_behavior", changed(["pre_tokenizer", "pretokenizers", 0, "behavior"], "Removed"), "Removed"),
        ("split_invert", changed(["pre_tokenizer", "pretokenizers", 0, "invert"], True), "invert"),
        ("post_processor_unknown", changed(["post_processor"], {"type": "BertProcessing"}), "BertProcessing"),
        ("unknown_field", changed(["encoder"], {}), "encoder"),
    ]
    for name, value, fragment in cases:
        yield name, {"tokenizer": value}, fragment
    duplicate = dumps(tokenizer()).replace(b'"hello":261', b'"hello":261,"hell\\u006f":262')
    yield "vocab_duplicate_token", {"tokenizer": duplicate}, "duplicate key 'hello'"
    for name, text, fragment in list(text_cases(TOKENIZER_CONFIG, "tokenizer_config.json"))[:7]:
        yield f"config_text_{name}", {"tokenizer_config": text}, fragment
    yield "config_bos_unknown", {"tokenizer_config": {**TOKENIZER_CONFIG, "bos_token": "<s>"}}, "<s>"
    yield "config_bos_number", {"tokenizer_config": {**TOKENIZER_CONFIG, "bos_token": 0}}, "bos_token"
    yield "config_eos_object_without_content", {"tokenizer_config": {**TOKENIZER_CONFIG, "eos_token": {"lstrip": False}}}, "content"
    yield "config_add_bos_string", {"tokenizer_config": {**TOKENIZER_CONFIG, "add_bos_token": "true"}}, "add_bos_token"


VALID_WEIGHTS = weights(weight_shapes())


def main():
    out = Path(sys.argv[1])
    manifest, seen = [], set()

    def write_file(path, contents):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents)

    def write_case(path, contents, fragment):
        assert path not in seen, path
        seen.add(path)
        if isinstance(contents, dict):
            for name, data in contents.items():
                write_file(out / path / name, data)
        else:
            write_file(out / path, contents)
        manifest.append((path, fragment))

    write_file(out / "valid/model.safetensors", safetensors(st_header(), ST_DATA))
    write_file(out / "valid/model.gguf", gguf())
    for name, data in folder().items():
        write_file(out / "valid/model" / name, data)
    for name, data, fragment in safetensors_cases():
        write_case(f"safetensors/{name}.safetensors", data, fragment)
    for name, data, fragment in gguf_cases():
        write_case(f"gguf/{name}.gguf", data, fragment)
    for name, config, fragment in config_cases():
        write_case(f"config/{name}", folder(config=config), fragment)
    for name, changes, fragment in weights_cases():
        write_case(f"weights/{name}", folder(**changes), fragment)
    for name, changes, fragment in tokenizer_cases():
        write_case(f"tokenizer/{name}", folder(**changes), fragment)
    write_file(out / "manifest.tsv", "".join(f"{path}\t{fragment}\n" for path, fragment in manifest).encode())


if __name__ == "__main__":
    main()
