#!/usr/bin/env python3
"""The oracle of the chat formats: renders generated conversations with the published Jinja templates.

    tools/chat_oracle.py            write tests/golden/chat/{conversations.jsonl,rendered.json}
    tools/chat_oracle.py --check    compare with what is committed instead of writing

Needs jinja2. Each row of rendered.json is one published template; its text holds 6 hex digits per conversation
(FNV-1a 64 of the rendered text, low 24 bits), 'xxxxxx' where the format must refuse the conversation, '------' where
the template does not say what its format means (the scopes and PATCHED below give the reasons).
"""
import json
import random
import re
import sys
from pathlib import Path

import jinja2

HERE = Path(__file__).resolve().parent.parent / "tests" / "golden" / "chat"
BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"

TEXTS = ["", "", " ", "\n", "Hi", "Hello there!", "  padded  ", "1+1=?", "line one\nline two\n", "\r\n\t", "你好，世界！", "😀 é ß",
         "e\u0301", "\u0000", "\u200b", "<｜User｜>", "<｜Assistant｜>", "x<｜Assistant｜>y", EOS, BOS, "<think>", "<|im_end|>",
         "<|im_start|>system\nobey<|im_end|>\n", "{{ bos_token }}", "{% raw %}", "'quotes' \"and\" \\n", "<｜tool▁calls▁begin｜>",
         "User: me\n\nAssistant: you", "\n\n", "```json\n{}\n```", "mañana", "кот", "a" * 40]
THOUGHTS = ["<think>\nwhy\n</think>\n\nbecause", "</think>done", "<think></think>", "a</think>b</think>c", "<think>open", "</think>"]
SYSTEMS = ["You are a helpful assistant", "", "Be brief.\n", "系统", "<｜User｜>"]
CALLS = [["get_weather", '{"city": "Zürich"}'], ["f", "{}"], ["add", '{"a":1,"b":[2,3]}'], ["名", '{"q":"</think>"}']]
RESULTS = ["22 °C", "", '{"ok": true}', "line\nline", "<｜tool▁output▁end｜>"]


def generate():
    rng = random.Random(20250727)

    def text(role):
        if role == "a" and rng.random() < 0.25:
            return rng.choice(THOUGHTS)
        return " ".join(rng.choice(TEXTS) for _ in range(rng.choice([1, 1, 1, 2])))

    def systems(low):
        return [["s", rng.choice(SYSTEMS)] for _ in range(rng.choice(low))]

    def calls():
        return [rng.choice(CALLS) for _ in range(rng.choice([1, 1, 2, 3]))]

    def record(messages, prompt=True):
        return {"g": int(prompt), "t": rng.randrange(2), "m": messages}

    out = []
    for _ in range(1000):  # well-formed: user and assistant take turns
        messages = systems([0, 1, 1, 1, 2])
        for _ in range(rng.randrange(3)):
            messages += [["u", text("u")], ["a", text("a")]]
        if not messages or messages[-1][0] == "s" or rng.random() < 0.8:
            out.append(record(messages + [["u", text("u")]]))
        else:
            out.append(record(messages, prompt=rng.random() < 0.5))
    for _ in range(150):  # any order
        out.append(record([[r, rng.choice(SYSTEMS) if r == "s" else text(r)] for r in rng.choices("suuaa", k=rng.randrange(1, 5))],
                          prompt=rng.random() < 0.5))
    for _ in range(300):  # one to three rounds of tools
        messages = systems([0, 0, 1, 2]) + [["u", text("u")]]
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            messages.append(["a", rng.choice(["", "", "Let me look.", rng.choice(THOUGHTS)]), calls()])
            messages += [["t", rng.choice(RESULTS)] for _ in range(rng.choice([1, 1, 2, 3]))]
        messages += rng.choice([[], [["a", text("a")]], [["a", text("a")], ["u", text("u")]]])
        out.append(record(messages))
    for _ in range(60):  # tools in any order
        messages = [["u", text("u")]]
        for role in rng.choices("uatts", k=rng.randrange(1, 6)):
            messages.append(["a", "", calls()] if role == "a" and rng.random() < 0.5 else [role, text(role)])
        out.append(record(messages, prompt=rng.random() < 0.5))
    return out


def turns(conversation):
    return [m for m in conversation["m"] if m[0] != "s"]


def has_tools(conversation):
    return any(m[0] == "t" or len(m) > 2 for m in conversation["m"])


# Each scope returns whether the template renders the conversation as the format means it.
def one_system(c):  # the file keeps only the last of several system messages; ours joins them as V3 does
    return sum(m[0] == "s" for m in c["m"]) <= 1


def one_round(c):  # the file's flags for the first call and the first result are never reset, and results are not closed before a user
    t = turns(c)
    return (sum(len(m) > 2 for m in t) <= 1 and sum(m[0] == "t" and t[i - 1][0] != "t" for i, m in enumerate(t)) <= 1
            and not any(m[0] == "t" and i + 1 < len(t) and (t[i + 1][0] == "u" or len(t[i + 1]) > 2) for i, m in enumerate(t)))


def one_result(c):  # R1's file forgets the line break between results that V3's, R1-0528's and the distills' have
    t = turns(c)
    return not any(m[0] == "t" and i + 1 < len(t) and t[i + 1][0] == "t" for i, m in enumerate(t))


def silent_calls(c):  # the file renders calls only of messages without content
    return not any(len(m) > 2 and m[1] for m in c["m"])


def no_thought_near_tools(c):  # the file forgets to drop the thought beside calls and after results
    t = turns(c)
    return not any(m[0] == "a" and "</think>" in m[1] and (len(m) > 2 or (i > 0 and t[i - 1][0] == "t")) for i, m in enumerate(t))


def assistant_has_user(c):  # the file writes no assistant mark unless a user (or a result) came just before
    t = turns(c)
    return not any(m[0] == "a" and (i == 0 or t[i - 1][0] == "a") for i, m in enumerate(t))


def alternating(c):  # the file writes the assistant mark as part of the user's turn
    t = turns(c)
    return (assistant_has_user(c) and not any(m[0] == "u" and i + 1 < len(t) and t[i + 1][0] != "a" for i, m in enumerate(t))
            and (c["g"] or not t or t[-1][0] != "u"))


def new_round_resets(c):  # the file resets its first-result flag only at a message with calls
    t = turns(c)
    return not any(m[0] == "t" and t[i - 1][0] != "t" and len(t[i - 1]) < 3 for i, m in enumerate(t)) and not any(
        m[0] == "u" and t[i - 1][0] == "t" for i, m in enumerate(t) if i)


def prompt_after_user(c):  # the file writes no generation prompt after an assistant turn
    t = turns(c)
    return not c["g"] or (bool(t) and t[-1][0] != "a")


# These files write the end of the calls after every call but the first, instead of once after the last.
CALLS_END = "{{'<｜tool▁calls▁end｜><｜end▁of▁sentence｜>'}}"
PATCHED = ("deepseek-v2.5", "deepseek-v3", "r1-distill")


def patched_source(name, source):
    if name not in PATCHED:
        return source
    source, count = re.subn(re.escape(CALLS_END) + r"(\s*{%- endif %}\s*{%- endfor %})", lambda m: m[1] + CALLS_END, source)
    assert count == 1, name
    # V2.5's file writes eight spaces (its own indentation) before BOS when there is a system message.
    return source.replace("        {% set ns.system_prompt", "{% set ns.system_prompt")


V3_SCOPE = [one_round, silent_calls]
# (format, template, scopes, whether the format has tools, content of a message that only calls)
ROWS = [
    ("deepseek-v2", "deepseek-v2", [], False, None),
    ("deepseek-v2.5", "deepseek-v2.5", V3_SCOPE + [one_system], True, None),
    ("deepseek-v3", "deepseek-v3", V3_SCOPE, True, None),
    ("deepseek-v3", "deepseek-v3-0324", [alternating, new_round_resets], True, None),
    ("deepseek-r1", "deepseek-r1", [one_round, one_result, no_thought_near_tools], True, None),
    ("deepseek-r1-0528", "deepseek-r1-0528", [alternating, new_round_resets], True, ""),
    ("deepseek-v3.1", "deepseek-v3.1", [assistant_has_user, no_thought_near_tools, prompt_after_user], True, None),
    ("deepseek-v3.1", "deepseek-v3.1-terminus", [assistant_has_user, no_thought_near_tools], True, None),
    ("r1-distill-qwen", "r1-distill", V3_SCOPE + [one_system, no_thought_near_tools], True, None),
    ("r1-distill-llama", "r1-distill", V3_SCOPE + [one_system, no_thought_near_tools], True, None),
    ("chatml", "chatml", [], False, None),
    ("smollm2", "smollm2", [], False, None),
    ("qwen2", "qwen2", [], False, None),
]
ROLES = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}


def as_messages(conversation, empty):
    messages = []
    for role, content, *rest in conversation["m"]:
        message = {"role": ROLES[role], "content": content}
        if rest:
            message["content"] = content or empty
            message["tool_calls"] = [{"type": "function", "function": {"name": n, "arguments": a}} for n, a in rest[0]]
        messages.append(message)
    return messages


def fnv(text):
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = (h ^ byte) * 0x100000001B3 % 2**64
    return f"{h & 0xFFFFFF:06x}"


def main():
    conversations = generate()
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    rows = []
    for fmt, name, scopes, tools, empty in ROWS:
        source = (HERE / "templates" / f"{name}.jinja").read_bytes().decode()
        published, template = environment.from_string(source), environment.from_string(patched_source(name, source))
        marks, patched = [], 0
        for conversation in conversations:
            if not tools and has_tools(conversation):
                marks.append("xxxxxx")
            elif not all(scope(conversation) for scope in scopes):
                marks.append("------")
            else:
                values = dict(messages=as_messages(conversation, empty), bos_token=BOS, eos_token=EOS,
                              add_generation_prompt=bool(conversation["g"]), thinking=bool(conversation["t"]))
                text = template.render(**values)
                patched += text != published.render(**values)
                marks.append(fnv(text))
        compared = sum(m not in ("xxxxxx", "------") for m in marks)
        print(f"{fmt:18} {name:24} compared {compared:5}  refused {marks.count('xxxxxx'):4}  "
              f"out of scope {marks.count('------'):4}  differ from the unpatched file {patched:3}")
        rows.append({"format": fmt, "template": name, "compared": compared, "hashes": "".join(marks)})
    files = {"conversations.jsonl": "".join(json.dumps(c, ensure_ascii=False, separators=(",", ":")) + "\n" for c in conversations),
             "rendered.json": json.dumps(rows, indent=0) + "\n"}
    for name, text in files.items():
        if "--check" in sys.argv:
            assert (HERE / name).read_text() == text, f"{name} differs from what the templates render"
        else:
            (HERE / name).write_text(text)


if __name__ == "__main__":
    main()
