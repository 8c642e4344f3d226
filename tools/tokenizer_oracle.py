#!/usr/bin/env python3
"""The independent tokenizer: PyPI `tokenizers` (Rust), for data that our own is compared with. See check_tokenizer.sh.

  tokenizer_oracle.py strings COUNT SEED           > strings.json       test strings of every kind
  tokenizer_oracle.py train DIR                                         a small tokenizer.json per pre-tokeniser
  tokenizer_oracle.py encode TOKENIZER STRINGS     > NAME.expected      "ids;ids" per string: as is, and as plain text
  tokenizer_oracle.py hash NAME.expected           > NAME.hashes        the same, one CRC-32 for each list

Plain text means what Tokenizer::encode does with parse_special=false: the added tokens that it may not find are taken out
of the file first.
"""
import json
import random
import sys
import zlib

WORDS = """the of and to in is that it was for on as with his they be at one have this from or had by hot but some what there
we can out other were all your when up use word how said an each she which do their time if will way about many then them
don't I'll we've they're you'd it's I'M HE'S can't 'tis 'S 'LL 'Ve o'clock naïve café Straße ÜBER élan Größe señor
привет мир как дела что это нещо на Български Ελληνικά κόσμος שלום עולם مرحبا العالم नमस्ते दुनिया สวัสดีชาวโลก
你好 世界 深度求索 就是好 人工智能 毕老师 こんにちは カタカナ 日本語 한국어 안녕하세요 ﾊﾝｶｸ ａｂｃ ＡＢＣ １２３ 「引用」 。、！？
hello world function return class public static void import numpy np print self None True lambda async await""".split()
CODE = ["def f(x):\n    return x**2 + 1\n", "for (int i = 0; i < n; ++i) {\n\t\ta[i] += b[i];\n}\n", "<div class=\"a\">&nbsp;</div>",
        "SELECT * FROM t WHERE id=42;", "x = {'a': [1, 2.5e-3], \"b\": None}\r\n", "$x^2$ .Method _name /path/to/file.txt",
        "https://example.org/a?b=c&d=%20#e", "#!/bin/sh\nset -e\n", "// comment\n/* block */\n", "`code` **bold** ~~no~~ |a|b|"]
SPACES = [" ", "  ", "   ", "    ", "\t", "\n", "\n\n", "\r\n", "\r", " \n", "\n ", "\u00a0", "\u3000", "\u2028", "\u2029", "\u0085",
          "\u2003", "\u200b", "\ufeff", "\x0b", "\x0c", "\x1c", "\u1680", "\u202f", "\u180e"]
SYMBOLS = list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~") + ["…", "—", "“", "”", "‘", "’", "€", "¥", "£", "©", "™", "→", "∑", "∞", "√", "§"]
DIGITS = ["0", "7", "42", "123", "2024", "1234567", "٣", "١٢٣٤", "²", "³", "½", "Ⅷ", "५", "๙", "〇", "一", "𝟙", "𝟘𝟙", "①", "１２"]
EMOJI = ["😀", "👍🏽", "👨‍👩‍👧", "🇩🇪", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "❤️", "🤦🏼‍♂️", "🦙"]
MARKS = ["e\u0301", "a\u0308\u0323", "\u0301", "\u0300\u0316", "क\u093c\u094d", "\u1100\u1161\u11a8", "\uac00\u11a8", "\u212b", "\u2126",
         "\u1e9b\u0323", "ﬁ", "ſ", "'ſ", "\u0344", "\u0f73", "\u2adc", "\u212a", "\u1fbe", "ͅ", "\u20dd"]
LITERALS = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<|EOT|>", "<think>", "</think>",
            "<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>", "<｜place▁holder▁no▁7｜>", "<｜place▁holder▁no▁77｜>", "<｜User", "｜>", "<｜", "<|im_start|>",
            "<|im_end|>", "<|endoftext|>", "<mask>", "<sep>", "<sep", "ü", "þ", "ø", "<nfc-é>", "<nfc-e\u0301>"]


def unicode_char(rng):
    top = rng.choice([0x80, 0x250, 0x600, 0x1000, 0x3000, 0xA000, 0x10000, 0x20000, 0x30000, 0xF0000, 0x110000])
    while 0xD800 <= (c := rng.randrange(top)) < 0xE000:
        pass
    return chr(c)


def part(rng):
    kind = rng.random()
    if kind < 0.35:
        return rng.choice(WORDS)
    for share, items in ((0.45, SPACES), (0.53, SYMBOLS), (0.60, DIGITS), (0.64, EMOJI), (0.70, MARKS), (0.76, LITERALS), (0.78, CODE)):
        if kind < share:
            return rng.choice(items)
    if kind < 0.81:
        return rng.choice(SPACES + SYMBOLS + DIGITS + MARKS + ["a", "ab", "你", "é"]) * rng.randrange(2, 12)
    if kind < 0.86:
        return "".join(rng.choice(SPACES) for _ in range(rng.randrange(2, 6)))
    if kind < 0.92:
        return "".join(unicode_char(rng) for _ in range(rng.randrange(1, 6)))
    return rng.choice(WORDS).swapcase()


def make_strings(count, seed):
    rng = random.Random(seed)
    strings = []
    for _ in range(count):
        glue = rng.choice(["", "", " ", rng.choice(SPACES)])
        strings.append(glue.join(part(rng) for _ in range(rng.choice([1, 2, 2, 3, 4, 6, 9, 14]))))
    return strings


# The two long expressions of DeepSeek-LLM; what NFC would change is escaped.
CASED = ("A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌ"
         "ῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃")
LLAMA = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CJK_HANGUL = "[一-龥ࠀ-一가-\ud7ff]+"
CJK_KANA = "[一-龥\u3040-ゟ゠-ヿ]+"
V3 = (r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
      .replace(r'\"', '"'))
NOT_IN_UTF8 = [0xC0, 0xC1, *range(0xF5, 0x100)]


def pre_tokenizers():
    split = lambda regex: {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    level = lambda regex: {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": regex}
    sequence = lambda *steps: {"type": "Sequence", "pretokenizers": list(steps)}
    digits = {"type": "Digits", "individual_digits": True}
    return {
        "gpt2": level(True),
        "smollm": sequence(digits, level(True)),
        "llama3": sequence(split(LLAMA % r"\p{N}{1,3}"), level(False)),
        "qwen2": sequence(split(LLAMA % r"\p{N}"), level(False)),
        "deepseek-llm": sequence(split("[\r\n]"), split(rf"\s?[{CASED}]+"), split(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"), split(r"\s+$"),
                                 split(CJK_HANGUL), digits, level(False)),
        "deepseek-coder": sequence(split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split(CJK_HANGUL), digits, level(False)),
        "deepseek-v3": sequence(split(r"\p{N}{1,3}"), split(CJK_KANA), split(V3), level(False)),
    }


def train(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers as pre, trainers
    alphabet = sorted(pre.ByteLevel.alphabet())
    names = "<｜begin▁of▁sentence｜> <｜end▁of▁sentence｜> <|endoftext|> <|im_start|> <｜place▁holder▁no▁7｜> <｜place▁holder▁no▁77｜>".split()
    corpus = make_strings(6000, seed=1)
    for name, steps in pre_tokenizers().items():
        tokenizer = Tokenizer(models.BPE())
        shell = json.loads(tokenizer.to_str()) | {"pre_tokenizer": steps}
        if name == "qwen2":
            shell["normalizer"] = {"type": "NFC"}
        tokenizer = Tokenizer.from_str(json.dumps(shell))
        letters = alphabet
        if name == "deepseek-llm":  # the bytes that UTF-8 never has are added tokens instead
            letters = [c for c in alphabet if c not in map(chr, NOT_IN_UTF8)]
        trainer = trainers.BpeTrainer(vocab_size=1000, initial_alphabet=letters, show_progress=False, max_token_length=24)
        tokenizer.train_from_iterator(corpus, trainer)
        file = json.loads(tokenizer.to_str())
        added = [dict(content=c, special=True) for c in names]
        added += [dict(content="<｜User｜>"), dict(content="<think>"), dict(content="<nfc-é>"),
                  dict(content="<mask>", special=True, lstrip=True), dict(content="<sep>", special=True, rstrip=True)]
        if name == "deepseek-llm":
            added += [dict(content=chr(b)) for b in NOT_IN_UTF8]
        if name == "gpt2":
            added += [dict(content=" " * n) for n in (3, 4, 8)]
        vocab = file["model"]["vocab"]
        if name == "llama3":  # words no merge leads to: only ignore_merges finds them
            vocab |= {word: len(vocab) + i for i, word in enumerate(["Ġlambda", "Ġswapcase"])}
        first = len(vocab)
        flags = dict(single_word=False, lstrip=False, rstrip=False, special=False)
        file["added_tokens"] = [dict(id=first + i, **flags | a, normalized=not a.get("special")) for i, a in enumerate(added)]
        file["decoder"] = dict(type="ByteLevel", add_prefix_space=True, trim_offsets=True, use_regex=True)
        file["model"]["ignore_merges"] = name == "llama3"
        if name != "gpt2":  # both spellings of a merge are seen
            file["model"]["merges"] = [" ".join(m) for m in file["model"]["merges"]]
        with open(f"{folder}/{name}.json", "w", encoding="utf-8") as out:
            json.dump(file, out, ensure_ascii=False, separators=(",", ":"))
            out.write("\n")


def is_plain(token):
    return not token["special"] and (len(token["content"]) == 1 or token["content"].isspace())


def encode(path, strings_path):
    from tokenizers import Tokenizer
    file = json.load(open(path, encoding="utf-8"))
    strings = json.load(open(strings_path))
    whole = Tokenizer.from_str(json.dumps(file))
    file["added_tokens"] = [t for t in file["added_tokens"] if is_plain(t)]
    plain = Tokenizer.from_str(json.dumps(file))
    # The library numbers added tokens itself, whatever the file says.
    own_id = {plain.token_to_id(t["content"]): t["id"] for t in file["added_tokens"]}
    for text in strings:
        ids, plain_ids = (t.encode(text, add_special_tokens=False).ids for t in (whole, plain))
        print(",".join(map(str, ids)), ",".join(str(own_id.get(i, i)) for i in plain_ids), sep=";")


def main():
    command, *args = sys.argv[1:]
    if command == "strings":
        print("[\n" + ",\n".join(map(json.dumps, make_strings(int(args[0]), int(args[1])))) + "\n]")
    elif command == "train":
        train(args[0])
    elif command == "encode":
        encode(*args)
    elif command == "hash":
        for line in open(args[0]):
            print(" ".join(f"{zlib.crc32(ids.encode())}" for ids in line.strip().split(";")))


if __name__ == "__main__":
    main()
