#include "cli/commands.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "cli/bench.h"
#include "cli/completion.h"
#include "cli/doctor.h"
#include "cli/estimate.h"
#include "cli/eval.h"
#include "cli/export.h"
#include "cli/imatrix.h"
#include "cli/logits.h"
#include "cli/output.h"
#include "cli/prepare.h"
#include "cli/quantize.h"
#include "cli/report.h"
#include "cli/run.h"
#include "cli/selftest.h"
#include "cli/show.h"
#include "cli/tokenize.h"
#include "cli/train.h"
#include "cli/train_tokenizer.h"
#include "cli/welcome.h"
#include "train/quantize_mix.h"

namespace fathom {
namespace {

using Action = std::function<int()>;

void bind_memory(CLI::App& app, double& gib) {
  app.add_option("--memory", gib,
                 "GiB to use at most: experts beyond that are read from disk as they are needed")
      ->check(CLI::Range(1e-3, 1e6));
}

void bind_threads(CLI::App& app, int& threads) {
  app.add_option("-t,--threads", threads, "threads (default: all cores)")
      ->check(CLI::Range(0, 4096));
}

void bind_pin(CLI::App& app, bool& pin) {
  app.add_flag("--pin", pin,
               "keep each thread on one processor: for a machine that nothing else uses");
}

void bind_cache(CLI::App& app, std::string& cache) {
  app.add_option("--cache", cache, "type of the key-value cache: f32, bf16 or int8");
}

void bind_output(CLI::App& app, OutputOptions& output) {
  app.add_flag("-q,--quiet", output.quiet, "say nothing but errors on stderr");
  app.add_flag("--verbose", output.verbose, "say more on stderr");
  app.add_flag("--no-color", output.no_color, "no colours and no bars (also NO_COLOR)");
}

void bind_model(CLI::App& app, std::string& model) {
  app.add_option("-m,--model,MODEL", model,
                 "GGUF file, .safetensors file or Hugging Face folder; default $FATHOM_MODEL or "
                 "the only one in ./models");
}

void bind_mla(CLI::App& app, std::string& mla) {
  app.add_option("--mla", mla,
                 "latent attention: fast (default) expands the keys of long prompts, strict "
                 "computes all in one form");
}

void bind_isa(CLI::App& app, std::string& isa) {
  app.add_option(
      "--isa", isa,
      "instruction set: portable, avx2, avxvnni or avx512 (default: the best of this CPU)");
}

Action bind_run(CLI::App& app) {
  auto o = std::make_shared<RunOptions>();
  app.add_option("MODEL PROMPT", o->words, "the model, and what to say to it");
  app.add_option("-m,--model", o->model,
                 "the model: GGUF file, .safetensors file or folder; default $FATHOM_MODEL or the "
                 "only one in ./models, without any the bundled one");
  app.add_option("-p,--prompt", o->prompt,
                 "what to say; text on stdin follows it after a blank line");
  app.add_option("-f,--file", o->file, "a file that follows the prompt");
  app.add_option("-s,--system", o->system, "system message");
  app.add_option(
      "-c,--ctx", o->context_tokens,
      "longest prompt and answer together, in tokens (default, and 0: 8192 or the model's own "
      "limit)");
  app.add_option("-n,--max-tokens", o->max_tokens,
                 "longest answer (default, and 0: what the context leaves)");
  bind_threads(app, o->threads);
  bind_pin(app, o->pin);
  app.add_option("--temp", o->sampling.temperature,
                 "temperature; 0 always takes the likeliest token (default: the model's advice)");
  app.add_option("--top-p", o->sampling.top_p,
                 "keep the likeliest tokens up to this probability together");
  app.add_option("--top-k", o->sampling.top_k, "keep the k likeliest tokens; 0 = off");
  app.add_option("--min-p", o->sampling.min_p,
                 "drop tokens below this share of the likeliest one's probability");
  app.add_option("--repeat-penalty", o->sampling.repeat_penalty,
                 "divide the logits of seen tokens; 1 = off");
  app.add_option("--presence-penalty", o->sampling.presence_penalty,
                 "subtracted once from tokens already generated");
  app.add_option("--frequency-penalty", o->sampling.frequency_penalty,
                 "subtracted once per occurrence");
  app.add_option("--logit-bias", o->sampling.logit_bias,
                 "ID=BIAS, added to one token's logit; repeatable")
      ->allow_extra_args(false);
  app.add_option("--seed", o->sampling.seed, "equal seeds give equal answers (default 0)");
  app.add_option("--stop", o->stops, "end the answer before this text; repeatable")
      ->allow_extra_args(false);
  app.add_option("--template", o->template_name,
                 "chat format by name, instead of the one the model's files tell");
  app.add_flag("--think{on},!--no-think{off}", o->think,
               "--think=off or on, for models with a switch");
  app.add_flag("--hide-thinking", o->hide_thinking, "do not show thoughts");
  app.add_flag("--raw", o->raw, "no chat format: continue the text");
  app.add_option("--logprobs", o->sampling.logprobs,
                 "log-probabilities of the tokens, with this many alternatives")
      ->check(CLI::Range(0, 20));
  bind_cache(app, o->cache);
  bind_mla(app, o->mla);
  app.add_option(
      "--prefix-dir", o->prefix_folder,
      "keep computed prompts in this folder, so that the next start finds them (private: "
      "they tell what was asked)");
  app.add_option("--prefix-gib", o->prefix_gib, "GiB that folder may hold (default 4)")
      ->needs("--prefix-dir")
      ->check(CLI::Range(0.0, 1e6));
  bind_memory(app, o->memory_gib);
  app.add_flag("--ignore-memory", o->ignore_memory,
               "start even if the weights do not fit into memory (slow)")
      ->excludes("--memory");
  app.add_flag("--mapped", o->mapped,
               "compute from the mapped files instead of rearranging quantised weights in memory "
               "first: starts sooner, generates slower, the same answer");
  app.add_flag("--no-history", o->no_history, "do not keep what is typed");
  app.add_option("--speculate", o->speculate,
                 "compute guesses at the next tokens along, which changes no answer: mtp (the "
                 "model's own layer), lookup (from the text so far), both, off or auto (default: "
                 "both, or lookup without such a layer)");
  app.add_option("--drafts", o->draft_tokens,
                 "guessed tokens per step at most (default: mtp 1, lookup and both 7)")
      ->check(CLI::Range(1, 64));
  app.add_flag("--json", o->json, "one JSON object with the answer");
  app.add_option("--check", o->check,
                 "answer until this task's verifier accepts, such as countdown");
  app.add_option("--tries", o->tries, "how many answers --check may take (default 16)")
      ->needs("--check")
      ->check(CLI::Range(1, 1000000));
  bind_output(app, o->output);
  return [o] { return run_run(*o); };
}

Action bind_show(CLI::App& app) {
  auto o = std::make_shared<ShowOptions>();
  bind_model(app, o->model);
  app.add_flag("--tensors", o->tensors, "list every tensor");
  app.add_flag("--check-finite", o->check_finite,
               "read all weights and name the first NaN or infinity");
  app.add_flag("--json", o->json, "JSON: one object, with --tensors one more per tensor");
  bind_output(app, o->output);
  return [o] { return run_show(*o); };
}

Action bind_tokenize(CLI::App& app) {
  auto o = std::make_shared<TokenizeOptions>();
  bind_model(app, o->model);
  CLI::Option* text = app.add_option("TEXT", o->text, "the text (default: stdin)");
  CLI::Option* file = app.add_option("-f,--file", o->file, "a file with the text")->excludes(text);
  CLI::Option* decode =
      app.add_option("--decode", o->decode,
                     "print the text of these ids instead; - reads them from stdin")
          ->excludes(text)
          ->excludes(file);
  app.add_flag("--special", o->special, "special tokens written in the text become their ids");
  app.add_flag("--chat", o->chat, "the text is a user's message: show the whole prompt");
  app.add_option("--template", o->template_name, "chat format by name, for --chat");
  app.add_flag("--lines", o->lines, "stdin holds one JSON string a line; one result each")
      ->excludes(text)
      ->excludes(file)
      ->excludes(decode);
  app.add_flag("--json", o->json, "JSON: ids and pieces");
  bind_output(app, o->output);
  return [o] { return run_tokenize(*o); };
}

Action bind_eval(CLI::App& app) {
  auto o = std::make_shared<EvalOptions>();
  bind_model(app, o->model);
  app.add_option("--perplexity", o->perplexity, "the text to predict");
  app.add_option("--kl", o->kl,
                 "a second model, such as the unquantised one: how far the first one's "
                 "probabilities lie from its");
  app.add_option("--kl-cache", o->kl_cache,
                 "type of the second model's cache (default: that of --cache)");
  app.add_option("--task", o->task,
                 "solve this task's held-out problems instead, such as countdown");
  app.add_option("--problems", o->problems, "how many of them (default 200)")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24));
  app.add_option("--samples", o->samples,
                 "answers per problem beside the likeliest one, for pass@k (default 0)")
      ->check(CLI::Range(int64_t{0}, int64_t{4096}));
  app.add_option("--temp", o->temperature, "temperature of the samples (default 1)")
      ->check(CLI::Range(0.01, 10.0));
  app.add_option("-n,--max-tokens", o->max_tokens, "longest answer (default 256)")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20));
  app.add_option("--seed", o->seed, "other problems and other samples (default 0)");
  app.add_option("-c,--ctx", o->context_tokens,
                 "window in tokens (default 2048 or the model's own limit)")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 31));
  app.add_option("--stride", o->stride,
                 "tokens between the beginnings of windows (default: the window)")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 31));
  bind_threads(app, o->threads);
  bind_cache(app, o->cache);
  app.add_flag("--json", o->json, "one JSON object");
  bind_output(app, o->output);
  app.footer(
      "Windows: the text is tokenised once, without special tokens. Windows of --ctx tokens begin "
      "every --stride tokens; each is\n"
      "computed afresh and scores the tokens that no window before it scored. If the model wants a "
      "BOS, each window begins with\n"
      "one and every token is scored; else the first token of the text is not scored. Perplexity "
      "is per token; bits per byte\n"
      "compares models with different vocabularies.");
  return [o] { return run_eval(*o); };
}

Action bind_estimate(CLI::App& app) {
  auto o = std::make_shared<EstimateOptions>();
  bind_model(app, o->model);
  app.add_option("-c,--ctx", o->contexts, "context in tokens; repeatable (default: several)")
      ->allow_extra_args(false);
  app.add_option("--cache", o->cache, "only this type of cache: f32, bf16 or int8");
  bind_memory(app, o->memory_gib);
  app.add_flag("--json", o->json, "one JSON object per line of the table");
  bind_output(app, o->output);
  return [o] { return run_estimate(*o); };
}

Action bind_doctor(CLI::App& app) {
  auto o = std::make_shared<DoctorOptions>();
  app.add_flag("--print-limits", o->print_limits, "the limits on input from outside, instead");
  app.add_option("--seconds", o->seconds, "time for measuring")->check(CLI::Range(0.1, 600.0));
  bind_threads(app, o->threads);
  app.add_flag("--json", o->json, "one JSON object");
  bind_output(app, o->output);
  return [o] { return run_doctor(*o); };
}

Action bind_bench(CLI::App& app) {
  auto o = std::make_shared<BenchOptions>();
  app.add_option("-m,--model,MODEL", o->model, "the model (default: the bundled one)");
  app.add_option("--only", o->only, "parts: kernels, load, prefill, decode, batch (default: all)")
      ->delimiter(',');
  app.add_option("--prefill", o->prefill, "prompt lengths to time; the longest at each context")
      ->delimiter(',');
  app.add_option("--at", o->contexts,
                 "contexts at which to time (default: 0 to 32768, as far as they fill in a minute)")
      ->delimiter(',');
  app.add_option("--batch", o->batch, "numbers of sequences generated at once")->delimiter(',');
  app.add_option("--batch-at", o->batch_context, "context of each of them (default: 128)")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 24));
  app.add_option("--generate", o->generate, "tokens timed of each sequence");
  app.add_option("--repeat", o->repeat, "repetitions of each prompt");
  bind_threads(app, o->threads);
  bind_pin(app, o->pin);
  bind_cache(app, o->cache);
  bind_mla(app, o->mla);
  bind_isa(app, o->isa);
  app.add_flag("--json", o->json, "one JSON object per line of the table");
  app.add_option("-o,--out", o->page, "also write a picture: a .html page or an .svg");
  bind_output(app, o->output);
  return [o] { return run_bench(*o); };
}

Action bind_logits(CLI::App& app) {
  auto o = std::make_shared<LogitsOptions>();
  bind_model(app, o->model);
  app.add_option("--ids", o->ids,
                 "token ids: integers, a JSON list, or a .safetensors file with input_ids")
      ->required();
  app.add_option("-o,--out", o->out,
                 "the .safetensors file to write: logits F32 [tokens, vocab_size], input_ids")
      ->required();
  app.add_option("--chunk", o->chunk, "tokens per step");
  bind_threads(app, o->threads);
  app.add_option("--form", o->form, "form of MLA: absorbed or expanded");
  app.add_option(
      "--precision", o->precision,
      "input of layers with BF16 or FP8 weights or GGUF blocks: native (rounded to bf16, to "
      "8 bits) or f32");
  bind_cache(app, o->cache);
  bind_isa(app, o->isa);
  bind_output(app, o->output);
  return [o] { return run_logits(*o); };
}

Action bind_selftest(CLI::App& app) {
  auto o = std::make_shared<SelftestOptions>();
  auto output = std::make_shared<OutputOptions>();
  app.add_option("DIR", o->folders, "folders with a model and its golden.safetensors")->required();
  app.add_flag("--train", o->train, "compare gradients and training steps instead of logits");
  bind_threads(app, o->threads);
  app.add_flag("--json", o->json, "one JSON object per comparison");
  bind_output(app, *output);
  return [o, output] {
    o->color = use_color(STDOUT_FILENO, *output);
    return run_selftest(*o);
  };
}

Action bind_train(CLI::App& app, bool fine_tune) {
  auto o = std::make_shared<TrainOptions>();
  o->fine_tune = fine_tune;
  app.add_option("RECIPE", o->recipe, "the recipe, a TOML file")->required();
  app.add_option("KEY=VALUE", o->overrides,
                 "keys of the recipe to change, such as train.tokens=1000000");
  app.add_option("-o,--out", o->folder, "folder of the run (default: runs/ and the recipe's name)");
  app.add_flag("--resume", o->resume, "go on from the newest good checkpoint of that folder");
  app.add_flag("--print", o->print_recipe,
               "print the recipe with all defaults filled in, and stop");
  bind_output(app, o->output);
  return [o, &app] {
    o->command =
        fmt::format("fathom {} {} {}", app.get_name(), o->recipe, fmt::join(o->overrides, " "));
    return run_train(*o);
  };
}
Action bind_prepare(CLI::App& app) {
  auto o = std::make_shared<PrepareCommand>();
  app.add_option(
         "FILE", o->inputs,
         "texts, one document each; .jsonl: one {\"text\": ...} a line; folders: all files below")
      ->required();
  app.add_option("--tokenizer", o->tokenizer, "folder of tokenizer.json, or characters (default)");
  app.add_option("-o,--out", o->out,
                 "the folder to write; data.path of a recipe with data.kind = \"shards\"")
      ->required();
  bind_output(app, o->output);
  return [o] { return run_prepare(*o); };
}

Action bind_export(CLI::App& app) {
  auto o = std::make_shared<ExportCommand>();
  app.add_option("FOLDER", o->model, "a Hugging Face folder, such as a run's model")->required();
  app.add_option("OUT", o->out, "the GGUF file to write")->required();
  app.add_option("--type", o->type, "of the matrices: f32, f16, bf16 or q8_0 (default bf16)");
  app.add_flag("--no-mtp", o->no_mtp, "leave out the multi-token prediction layer");
  bind_output(app, o->output);
  return [o] { return run_export(*o); };
}

Action bind_quantize(CLI::App& app) {
  auto o = std::make_shared<QuantizeCommand>();
  app.add_option("IN", o->in, "a GGUF file or a Hugging Face folder")->required();
  app.add_option("OUT", o->out, "the GGUF file to write")->required();
  app.add_option("--type", o->type, "the mix of types (default Q4_K_M); below");
  app.add_option("--tensor", o->overrides,
                 "PATTERN=TYPE: matrices whose name in the file matches, such as "
                 "'blk.0.*=Q8_0'; repeatable, the last match counts")
      ->allow_extra_args(false);
  app.add_option("--imatrix", o->imatrix,
                 "importance of the columns, as fathom imatrix (or llama.cpp, as GGUF) writes it");
  app.add_flag("--no-mtp", o->no_mtp, "leave out a folder's multi-token prediction layer");
  app.add_flag("--overwrite", o->overwrite, "replace OUT if it exists");
  bind_threads(app, o->threads);
  app.add_flag("--json", o->json, "one JSON object per line of the table");
  bind_output(app, o->output);
  std::string names;
  for (const QuantizeMix& mix : quantize_mixes()) names += " " + std::string(mix.name);
  app.footer(
      "Mixes:" + names +
      "\n"
      "Each keeps norms, biases and the router in F32 and gives the head more bits; _M also "
      "the values and down projections.\n"
      "With experts, attention, shared experts and dense layers get more bits. Rows that are "
      "no whole blocks fall back to a\n"
      "type of blocks of 32, or to F16; the table says so. Error: root mean square of the "
      "change over that of the weights.");
  return [o] { return run_quantize(*o); };
}

Action bind_imatrix(CLI::App& app) {
  auto o = std::make_shared<ImatrixOptions>();
  bind_model(app, o->model);
  app.add_option("--text", o->text, "the calibration text")->required();
  app.add_option("-o,--out", o->out, "the GGUF file to write")->required();
  app.add_option("-c,--ctx", o->context_tokens,
                 "window in tokens (default 512 or the model's own limit)")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 31));
  bind_threads(app, o->threads);
  bind_output(app, o->output);
  return [o] { return run_imatrix(*o); };
}

Action bind_train_tokenizer(CLI::App& app) {
  auto o = std::make_shared<TrainTokenizerOptions>();
  app.add_option("FILE", o->files,
                 "texts; .jsonl: one {\"text\": ...} a line; folders: all files below")
      ->required();
  app.add_option("--vocab", o->vocab_size,
                 "tokens, special ones and bytes included (default 4096)");
  app.add_option("-o,--out", o->folder,
                 "folder to write tokenizer.json and tokenizer_config.json into")
      ->required();
  bind_output(app, o->output);
  return [o] { return run_train_tokenizer(*o); };
}

Action bind_report(CLI::App& app) {
  auto o = std::make_shared<ReportOptions>();
  app.add_option("RUN", o->runs, "folders of runs; several, such as seeds, are drawn together")
      ->required();
  app.add_option("-o,--out", o->out,
                 "the page to write; - = stdout (default: report.html in the run's folder)");
  bind_output(app, o->output);
  return [o] { return run_report(*o); };
}
Action bind_pretrain(CLI::App& app) { return bind_train(app, false); }
Action bind_sft(CLI::App& app) { return bind_train(app, true); }

Action bind_completion(CLI::App& app) {
  app.add_option("SHELL", "bash")->required()->check(CLI::IsMember({"bash"}));
  return [&app] {
    std::vector<CommandFlags> commands;
    for (const CLI::App* command : app.get_parent()->get_subcommands({})) {
      CommandFlags& one = commands.emplace_back(CommandFlags{command->get_name(), {}});
      for (const CLI::Option* option : command->get_options()) {
        for (const std::string& name : option->get_lnames()) one.flags.push_back("--" + name);
      }
    }
    write_stdout(bash_completion(commands));
    return 0;
  };
}

struct Command {
  const char* name;
  const char* summary;
  const char* examples;  // two that work
  Action (*bind)(CLI::App&);
};
constexpr Command kCommands[] = {
    {"run", "chat in the terminal, or answer a pipe",
     "  fathom run models/model.gguf\n  git log -5 | fathom run models/model.gguf \"Summarise "
     "these commits\"",
     bind_run},
    {"show", "what is inside a model file or folder",
     "  fathom show models/model.gguf\n  fathom show --tensors path/to/folder", bind_show},
    {"estimate", "does a model fit into this machine's memory",
     "  fathom estimate models/model.gguf\n  fathom estimate models/model.gguf --ctx 4096 --ctx "
     "32768 --cache bf16",
     bind_estimate},
    {"tokenize", "text to token ids and back",
     "  fathom tokenize models/model.gguf \"Hello, world\"\n  fathom tokenize models/model.gguf "
     "--decode 1,2,3",
     bind_tokenize},
    {"eval", "how well a model predicts a text or solves problems",
     "  fathom eval models/model.gguf --perplexity text.txt --ctx 1024 --stride 512\n  fathom eval "
     "small.gguf --kl bundled/countdown-12m.gguf --perplexity problems.txt\n  fathom eval "
     "bundled/countdown-12m.gguf --task countdown --samples 16",
     bind_eval},
    {"pretrain", "train a model on texts",
     "  fathom pretrain recipes/countdown-pretrain.toml\n  fathom pretrain "
     "recipes/digit-sum-aloud.toml train.tokens=100000 -o runs/try",
     bind_pretrain},
    {"sft", "fine-tune a model on answers",
     "  fathom sft recipes/countdown-sft.toml\n  fathom sft recipes/countdown-sft.toml "
     "model.path=runs/mine/model --resume",
     bind_sft},
    {"train-tokenizer", "a vocabulary from texts",
     "  fathom train-tokenizer README.md docs/*.md --vocab 1024 -o runs/tokenizer\n  fathom "
     "train-tokenizer book.txt -o path/to/folder",
     bind_train_tokenizer},
    {"prepare", "texts as token shards to train on",
     "  fathom prepare corpus.jsonl --tokenizer path/to/folder -o shards/corpus\n  fathom prepare "
     "notes/ book.txt -o shards/mine",
     bind_prepare},
    {"export", "a model folder as one GGUF file",
     "  fathom export runs/countdown-sft/model countdown.gguf\n  fathom export path/to/folder "
     "model.gguf --type q8_0",
     bind_export},
    {"imatrix", "which columns of a model matter, from a text",
     "  fathom imatrix models/model.gguf --text text.txt -o model.imatrix.gguf\n  fathom imatrix "
     "path/to/folder --text text.txt -o model.imatrix.gguf --ctx 1024",
     bind_imatrix},
    {"quantize", "a model in fewer bits, as one GGUF file",
     "  fathom quantize bundled/countdown-12m.gguf small.gguf --type Q4_K_M\n  fathom quantize "
     "path/to/folder model.gguf --type Q5_K_M --tensor '*.attn_*=Q8_0'",
     bind_quantize},
    {"report", "one page about a training run",
     "  fathom report runs/countdown-sft\n  fathom report runs/seed-1 runs/seed-2 runs/seed-3 -o "
     "seeds.html",
     bind_report},
    {"bench", "speed, as a share of what this machine can do",
     "  fathom bench\n  fathom bench models/model.gguf --at 0,4096 --batch 1,16 -o bench.html",
     bind_bench},
    {"logits", "the logits of every position, for comparisons",
     "  fathom logits models/model.gguf --ids ids.txt -o logits.safetensors\n  fathom logits "
     "path/to/folder --ids golden.safetensors -o logits.safetensors --chunk 1",
     bind_logits},
    {"selftest", "compare this build on this machine with recorded vectors",
     "  fathom selftest tests/golden/gguf\n  fathom selftest --json tests/golden/gguf",
     bind_selftest},
    {"doctor", "what this machine has and how fast it is",
     "  fathom doctor\n  fathom doctor --print-limits", bind_doctor},
    {"completion", "completion script for a shell",
     "  fathom completion bash > ~/.local/share/bash-completion/completions/fathom\n  source "
     "<(fathom completion bash)",
     bind_completion},
    {"version", "print the version", "  fathom version\n  fathom --version",
     [](CLI::App&) -> Action { return run_version; }},
};

// Examples come first; the variables are told once, not at each flag.
class HelpFormatter : public CLI::Formatter {
 public:
  std::string make_description(const CLI::App* app) const override {
    for (const Command& command : kCommands) {
      if (app->get_name() == command.name)
        return fmt::format("Examples:\n{}\n\nfathom {}: {}\n", command.examples, command.name,
                           command.summary);
    }
    return "Examples:\n  fathom run models/model.gguf\n  fathom doctor\n\n" +
           CLI::Formatter::make_description(app);
  }
  std::string make_footer(const CLI::App* app) const override {
    return CLI::Formatter::make_footer(app) +
           "\n\nEvery flag has an environment variable: --top-p is FATHOM_TOP_P. Flags win.\n";
  }
  std::string make_option_opts(const CLI::Option* option) const override {
    std::string text = CLI::Formatter::make_option_opts(option);
    const size_t variable = text.find(" (Env:");
    return variable == text.npos ? text : text.substr(0, variable);
  }
};

// --top-p answers to FATHOM_TOP_P. Not --model: a positional MODEL must win over FATHOM_MODEL, so
// resolve_model() asks for it last.
void bind_environment(CLI::App& app) {
  for (CLI::Option* option : app.get_options()) {
    if (option->get_lnames().empty()) continue;
    std::string name = option->get_lnames().front();
    if (name == "help" || name == "model" || name == "version") continue;
    std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) {
      return c == '-' ? '_' : static_cast<char>(std::toupper(c));
    });
    option->envname("FATHOM_" + name);
  }
}

// CLI11 reads numbers with strtoull: -1 becomes the largest seed, 010 is eight, what is too large
// the largest there is, and its ranges let NaN through. Ours are decimal, all of the text, finite.
template <class T>
std::string take_number(std::string& text, const char* expected) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool whole = error == std::errc{} && end == text.data() + text.size();
  if (!whole || !std::isfinite(static_cast<double>(value)))
    return fmt::format("found {}, expected {}", quoted(text), expected);
  if constexpr (std::is_integral_v<T>) text = std::to_string(value);  // without leading zeros
  return "";
}

void check_numbers(CLI::App& app) {
  for (CLI::Option* option : app.get_options()) {
    const std::string type = option->get_type_name();
    std::function<std::string(std::string&)> check;
    if (type.starts_with("UINT"))
      check = [](std::string& text) {
        return take_number<uint64_t>(text, "a whole number from 0");
      };
    else if (type.starts_with("INT"))
      check = [](std::string& text) { return take_number<int64_t>(text, "a whole number"); };
    else if (type.starts_with("FLOAT"))
      check = [](std::string& text) { return take_number<double>(text, "a finite number"); };
    if (check) option->transform(CLI::Validator(check, ""));  // before the option's own range
  }
}

}  // namespace

int run_command(int argc, char** argv) {
  CLI::App app("Trains and runs DeepSeek-family language models on this machine's CPU.", "fathom");
  app.formatter(std::make_shared<HelpFormatter>());
  app.require_subcommand(0, 1);
  app.failure_message(CLI::FailureMessage::simple);
  bool version = false;
  app.add_flag("--version", version, "print the version");
  Action action = [&version] { return version ? run_version() : run_welcome({}); };
  for (const Command& command : kCommands) {
    CLI::App* sub = app.add_subcommand(command.name, command.summary);
    Action chosen = command.bind(*sub);
    check_numbers(*sub);
    bind_environment(*sub);
    sub->callback([&action, chosen] { action = chosen; });
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    write_stdout(app.help());
    return 0;
  } catch (const CLI::ParseError& error) {
    const std::vector<CLI::App*> chosen = app.get_subcommands();
    fail("{} (see `fathom {}--help`)", error.what(),
         chosen.empty() ? "" : chosen.front()->get_name() + " ");
  }
  return action();
}

}  // namespace fathom
