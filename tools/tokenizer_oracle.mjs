// The second independent tokenizer: npm @huggingface/tokenizers. Prints what `tokenizer_oracle.py encode` prints; the second list,
// plain text, is left empty.
//   node tokenizer_oracle.mjs TOKENIZER STRINGS (run where the package is installed)
import fs from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";

const { Tokenizer } = createRequire(path.join(process.cwd(), "x.js"))("@huggingface/tokenizers");
const [tokenizerPath, stringsPath] = process.argv.slice(2);
const tokenizer = new Tokenizer(JSON.parse(fs.readFileSync(tokenizerPath, "utf8")), {});
const lines = JSON.parse(fs.readFileSync(stringsPath, "utf8")).map(
  (text) => tokenizer.encode(text, { add_special_tokens: false }).ids.join(",") + ";",
);
process.stdout.write(lines.join("\n") + "\n");
