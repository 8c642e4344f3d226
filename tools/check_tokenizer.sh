#!/bin/sh
# Compares our tokenizer with the two independent ones (PyPI tokenizers, npm @huggingface/tokenizers) on COUNT generated strings, with
# the published V3 tokenizer and a small one per pre-tokeniser. Fetches both packages into WORK. With --golden it also remakes the
# small files of tests/golden/text (COUNT 2000 then).
#   tools/check_tokenizer.sh BUILD_DIR WORK [COUNT] [SEED] [--golden]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
golden=$here/../tests/golden/text
build=$(cd "$1" && pwd)
mkdir -p "$2"
work=$(cd "$2" && pwd)
count=${3:-25000}
seed=${4:-7}
cd "$work"
[ -x venv/bin/python ] || { python3 -m venv venv && venv/bin/pip -q install tokenizers==0.23.3; }
[ -d node_modules/@huggingface/tokenizers ] || npm install --no-save --silent @huggingface/tokenizers@0.2.0
oracle="venv/bin/python $here/tokenizer_oracle.py"

$oracle strings "$count" "$seed" > strings.json
$oracle train .
xz -dc "$golden/published-v3.json.xz" > published-v3.json
for name in published-v3 gpt2 smollm llama3 qwen2 deepseek-llm deepseek-coder deepseek-v3; do
  $oracle encode $name.json strings.json > $name.expected
  $oracle hash $name.expected > $name.hashes
  node "$here/tokenizer_oracle.mjs" $name.json strings.json > $name.npm
  cut -d';' -f1 $name.expected > left
  cut -d';' -f1 $name.npm > right
  echo "$name: npm and PyPI differ on $(paste -d'|' left right | awk -F'|' '$1 != $2' | wc -l) of $count strings"
done
FATHOM_TOKENIZER_ORACLE=$work "$build/text_tokenizer_oracle_test"
if [ "${5:-}" = --golden ]; then
  cp strings.json ./*.hashes "$golden"
  for name in gpt2 smollm llama3 qwen2 deepseek-llm deepseek-coder deepseek-v3; do cp $name.json "$golden"; done
fi
