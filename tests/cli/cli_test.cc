// The program as its users meet it: exit codes, messages, which stream says what.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "formats/safetensors.h"
#include "tests/base/test_files.h"
#include "tests/cli/subprocess.h"
#include "text/character_tokenizer.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

const std::vector<std::string> kCommands = {
    "run",      "show",   "estimate",   "tokenize", "eval", "bench",           "logits",
    "selftest", "doctor", "completion", "pretrain", "sft",  "train-tokenizer", "prepare",
    "report",   "export", "quantize",   "imatrix"};

TEST(Cli, AloneSaysWhatTheMachineHasAndWhatToTypeNext) {
  const TempDir folder;
  const Finished empty = run_fathom({}, "", {}, folder.string());
  EXPECT_EQ(empty.code, 0);
  EXPECT_TRUE(has(empty.out, "cores")) << empty.out;
  EXPECT_TRUE(has(empty.out, "fathom run path/to/model.gguf")) << empty.out;
  folder.write("models/broken.gguf", "GGUF but no more");
  fs::copy_file(kTinyModel, folder / "models/a b.gguf");
  const Finished two = run_fathom({}, "", {}, folder.string());
  EXPECT_EQ(two.code, 0);
  EXPECT_TRUE(has(two.out, "fathom run 'models/a b.gguf'")) << two.out;
  EXPECT_TRUE(has(two.out, "cannot be used")) << two.out;
}

// Held-out problem: its three numbers occur in no training text.
TEST(Cli, TheBundledModelSolvesAProblemAndItsCheckerSaysSo) {
  // no ./models: the bundled model is found from where the program lies
  const TempDir folder;
  const Finished solved = run_fathom({"run", "Use 27, 7 and 12 to make 22.", "--check", "countdown",
                                      "--temp", "1", "--tries", "200"},
                                     "", {}, folder.string());
  EXPECT_EQ(solved.code, 0) << solved.err;
  EXPECT_TRUE(has(solved.err, "checked by the countdown verifier: correct")) << solved.err;
  EXPECT_TRUE(has(solved.out, "27") && has(solved.out, "12") && has(solved.out, "7")) << solved.out;
  const Finished wrong = run_fathom(
      {"run", kBundled, "Use 3, 7 and 25 to make 46.", "--check", "countdown", "--temp", "0"});
  EXPECT_EQ(wrong.code, 1) << wrong.out;
  EXPECT_TRUE(has(wrong.err, "answer 1 of at most 1")) << wrong.err;
  expect_error(run_fathom({"run", kBundled, "Hello", "--check", "countdown"}), 2,
               "--check countdown: 'Hello': no problem of this task");
  expect_error(run_fathom({"run", kBundled, "Hello", "--check", "chess"}), 2,
               "task 'chess': unknown, expected one of countdown");
}

TEST(Cli, HelpOfEachCommandBeginsWithTwoExamples) {
  for (const std::string& command : kCommands) {
    const Finished help = run_fathom({command, "--help"});
    EXPECT_EQ(help.code, 0) << command;
    EXPECT_EQ(help.err, "") << command;
    const std::string begin = "Examples:\n  fathom " + command;
    EXPECT_TRUE(help.out.starts_with("Examples:\n")) << help.out;
    size_t examples = 0;
    for (size_t at = help.out.find("fathom " + command); at < help.out.find("\n\n");
         at = help.out.find("fathom " + command, at + 1))
      ++examples;
    EXPECT_GE(examples, 2u) << help.out;
  }
}

TEST(Cli, VersionIsOneLine) {
  EXPECT_TRUE(run_fathom({"version"}).out.starts_with("fathom "));
  EXPECT_EQ(run_fathom({"--version"}).out, run_fathom({"version"}).out);
}

TEST(Cli, WrongUsageExitsWithTwoAndNamesTheHelp) {
  expect_error(run_fathom({"nosuch"}), 2, "nosuch");
  expect_error(run_fathom({"run", "--nosuch"}), 2, "fathom run --help");
  expect_error(run_fathom({"run", kTinyModel, "x", "--temp", "warm"}), 2, "warm");
  expect_error(run_fathom({"run", kTinyModel, "x", "-n", "12abc"}), 2, "12abc");
  expect_error(run_fathom({"run", kTinyModel, "x", "--threads", "-3"}), 2, "threads");
  expect_error(run_fathom({"run", kTinyModel, "one", "two"}), 2, "quotes");
  expect_error(run_fathom({"eval", kTinyModel}), 2, "--perplexity");
}

// Not what strtoull makes of -1, 010 or more digits than it holds, nor a NaN that no range refuses.
TEST(Cli, NumbersAreDecimalWholeAndFinite) {
  const auto refused = [](std::vector<std::string> flag, const std::string& words) {
    flag.insert(flag.begin(), {"run", kTinyModel, "abc"});
    expect_error(run_fathom(flag), 2, words);
  };
  refused({"--seed", "-1"}, "--seed: found '-1', expected a whole number from 0");
  refused({"--seed", "18446744073709551616"}, "--seed: found '18446744073709551616'");
  refused({"-n", "0x10"}, "--max-tokens: found '0x10', expected a whole number");
  refused({"-c", "9223372036854775808"}, "--ctx: found '9223372036854775808'");
  refused({"--temp", "nan"}, "--temp: found 'nan', expected a finite number");
  refused({"--temp", "1e400"}, "--temp: found '1e400'");
  refused({"--memory", "nan"}, "--memory: found 'nan'");
  refused({"-n", "-1"}, "--max-tokens: found -1, expected 0 or more");
  expect_error(run_fathom({"bench", kTinyModel, "--batch", "1,x"}), 2, "--batch: found 'x'");
  const Finished ten = run_fathom({"run", kTinyModel, "abc", "-n", "010", "--json", "-q"});
  EXPECT_EQ(json_lines(ten.out).at(0)["tokens"], 10) << ten.out;
  const std::string most = "18446744073709551615";
  const Finished seed = run_fathom({"run", kTinyModel, "abc", "-n", "1", "--json", "--seed", most});
  EXPECT_EQ(json_lines(seed.out).at(0)["seed"].dump(), most);
}

TEST(Cli, WhatWouldBeIgnoredIsRefused) {
  const TempDir folder;
  const std::string file = folder.write("text", "abc");
  expect_error(run_fathom({"run", kTinyModel, "abc", "--system", "Be brief."}), 2,
               "--system: this model has no chat format for it");
  expect_error(run_fathom({"run", kBundled, "abc", "--raw", "--system", "Be brief."}), 2,
               "--system: ");
  expect_error(run_fathom({"run", kBundled, "abc", "--tries", "3"}), 2, "--tries requires --check");
  const auto tokenize = [](std::vector<std::string> more) {
    more.insert(more.begin(), {"tokenize", kTinyModel});
    return run_fathom(more);
  };
  expect_error(tokenize({"abc", "-f", file}), 2, "TEXT excludes --file");
  expect_error(tokenize({"abc", "--decode", "1"}), 2, "TEXT excludes --decode");
  expect_error(tokenize({"abc", "--lines"}), 2, "TEXT excludes --lines");
}

TEST(Cli, AnAnswerIsAllThatStdoutHolds) {
  const Finished run = run_fathom({"run", kTinyModel, "abc", "-n", "8", "--temp", "0"});
  EXPECT_EQ(run.code, 0) << run.err;
  EXPECT_FALSE(run.out.empty());
  EXPECT_TRUE(run.out.ends_with("\n"));
  EXPECT_TRUE(has(run.err, "prompt 3 tokens")) << run.err;
  EXPECT_TRUE(has(run.err, "generated 8 tokens")) << run.err;
  EXPECT_EQ(run.err.find('\x1b'), std::string::npos);
  const Finished quiet =
      run_fathom({"run", kTinyModel, "abc", "-n", "8", "--temp", "0", "--quiet"});
  EXPECT_EQ(quiet.out, run.out);
  EXPECT_EQ(quiet.err, "");
}

TEST(Cli, ThePromptComesFromArgumentFileAndStdin) {
  const TempDir folder;
  const auto prompt_tokens = [](const Finished& run) {
    EXPECT_EQ(run.code, 0) << run.err;
    const auto objects = json_lines(run.out);
    return objects.size() == 1 ? objects[0].value("prompt_tokens", -1) : -1;
  };
  const std::vector<std::string> base = {"run", kTinyModel, "-n", "1", "--json"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), base.begin(), base.end());
    return more;
  };
  EXPECT_EQ(prompt_tokens(run_fathom(with({"zzzz"}))), 4);
  EXPECT_EQ(prompt_tokens(run_fathom(with({"-p", "zzzz"}))), 4);
  EXPECT_EQ(prompt_tokens(run_fathom(with({}), "zzzzz")), 5);
  EXPECT_EQ(prompt_tokens(run_fathom(with({"zz"}), "zzz")), 7);  // a blank line between
  const fs::path file = folder.write("text", "zzzzzz");
  EXPECT_EQ(prompt_tokens(run_fathom(with({"-f", file}))), 6);
  EXPECT_EQ(prompt_tokens(run_fathom(with({"zz", "-f", file}), "zzz")), 2 + 2 + 6 + 2 + 3);
  EXPECT_EQ(prompt_tokens(run_fathom({"run", "-m", kTinyModel, "zzz", "-n", "1", "--json"})), 3);
  EXPECT_EQ(prompt_tokens(run_fathom({"run", "z zz", "-n", "1", "--json"}, "",
                                     {{"FATHOM_MODEL", kTinyModel}})),
            4);
}

TEST(Cli, AnEmptyPromptAndALongOneAreRefused) {
  expect_error(run_fathom({"run", kTinyModel}), 2, "prompt: empty");
  const Finished tiny = run_fathom({"run", kTinyModel, std::string(600, 'z'), "--quiet"});
  expect_error(tiny, 2, "600 tokens");
  EXPECT_TRUE(has(tiny.err, "512")) << tiny.err;
  const Finished fit = run_fathom({"run", kTinyModel, std::string(20, 'z'), "-c", "20", "--quiet"});
  expect_error(fit, 2, "20 tokens, expected less than the context of 20");
  EXPECT_EQ(run_fathom({"run", kTinyModel, std::string(19, 'z'), "-c", "20", "--quiet"}).code, 0);
  expect_error(run_fathom({"run", kTinyModel, "z", "-c", "513"}), 2, "512");
  expect_error(run_fathom({"run", kTinyModel, "z", "-c", "-5"}), 2, "--ctx: found -5");
}

TEST(Cli, EqualSeedsGiveEqualAnswersAndOthersDiffer) {
  const auto answer = [](const std::string& seed, const std::string& threads) {
    return run_fathom({"run", kSoftModel, "abc", "-n", "40", "--temp", "1", "--top-p", "1",
                       "--seed", seed, "-t", threads, "--quiet"})
        .out;
  };
  EXPECT_EQ(answer("1", "1"), answer("1", "3"));
  EXPECT_NE(answer("1", "1"), answer("2", "1"));
}

TEST(Cli, JsonHoldsTheAnswerAndLogprobsThatAddUp) {
  const Finished run = run_fathom({"run", kSoftModel, "abc", "-n", "3", "--temp", "0", "--json",
                                   "--logprobs", "20", "--logit-bias", "67=100"});
  const auto objects = json_lines(run.out);
  ASSERT_EQ(objects.size(), 1u) << run.err;
  EXPECT_EQ(objects[0]["answer"], "AAA");
  ASSERT_EQ(objects[0]["logprobs"].size(), 3u);
  const json& first = objects[0]["logprobs"][0];
  EXPECT_EQ(first["id"], 67);  // the bias chose it
  ASSERT_EQ(first["top"].size(), 20u);
  double last = 0;
  for (const json& top : first["top"]) {
    EXPECT_LE(top["logprob"].get<double>(), last);
    last = top["logprob"].get<double>();
  }
}

TEST(Cli, APromptComputedOnceIsFoundByTheNextStart) {
  const TempDir folder;
  const std::string cache = (folder / "cache").string();
  std::string prompt;
  while (prompt.size() < 300) prompt += "Use 27, 7 and 12 to make 22. ";
  std::string reason;
  const auto ask = [&] {
    const Finished run = run_fathom(
        {"run", kBundled, prompt, "--prefix-dir", cache, "--json", "--temp", "0", "-n", "4"});
    EXPECT_EQ(run.code, 0) << run.err;
    reason = run.err;
    const std::vector<json> objects = json_lines(run.out);
    return objects.empty() ? json() : objects[0];
  };
  const json first = ask(), second = ask();
  EXPECT_EQ(first.at("cached_tokens"), 0);
  EXPECT_GE(second.at("cached_tokens"), 64);
  EXPECT_EQ(second.at("answer"), first.at("answer"));
  EXPECT_EQ(second.value("thought", ""), first.value("thought", ""));
  EXPECT_FALSE(has(reason, "note:")) << reason;
  for (const auto& entry : fs::recursive_directory_iterator(cache)) {
    if (entry.is_regular_file()) fs::resize_file(entry.path(), 1000);
  }
  const json third = ask();
  EXPECT_EQ(third.at("cached_tokens"), 0);
  EXPECT_EQ(third.value("thought", ""), first.value("thought", ""));
  EXPECT_TRUE(has(reason, "note: a file of the prefix cache is not used: " + cache)) << reason;
  EXPECT_TRUE(has(reason, "1000 bytes, expected")) << reason;
  EXPECT_GE(ask().at("cached_tokens"), 64);
  expect_error(
      run_fathom({"run", kBundled, "x", "--prefix-dir", folder.write("file", "").string()}), 2,
      "cannot make this folder for the prefix cache");
  expect_error(run_fathom({"run", kBundled, "x", "--prefix-dir", cache, "--prefix-gib", "-1"}), 2,
               "--prefix-gib: Value -1 not in range");
  expect_error(run_fathom({"run", kBundled, "x", "--prefix-dir", cache, "--prefix-gib", "nan"}), 2,
               "--prefix-gib: found 'nan', expected a finite number");
  expect_error(run_fathom({"run", kBundled, "x", "--prefix-gib", "1"}), 2,
               "--prefix-gib requires --prefix-dir");
  fs::permissions(cache, fs::perms::all);
  expect_error(run_fathom({"run", kBundled, "x", "--prefix-dir", cache}), 2, "found mode 0777");
}

TEST(Cli, StopTextsEndTheAnswerBeforeThem) {
  const auto answer = [](std::vector<std::string> more) {
    more.insert(more.begin(), {"run", kSoftModel, "abc", "-n", "10", "--temp", "0", "--quiet",
                               "--logit-bias", "67=100", "--json"});
    return json_lines(run_fathom(more).out).at(0);
  };
  EXPECT_EQ(answer({})["answer"], "AAAAAAAAAA");
  EXPECT_EQ(answer({})["finish"], "length");
  const json stopped = answer({"--stop", "never", "--stop", "AAA"});
  EXPECT_EQ(stopped["answer"], "");
  EXPECT_EQ(stopped["finish"], "stop");
  EXPECT_EQ(stopped["tokens"], 3);
  // what was held back comes out at the end
  EXPECT_EQ(answer({"--stop", "AAB"})["answer"], "AAAAAAAAAA");
}

TEST(Cli, SamplingOutOfRangeIsRefused) {
  expect_error(run_fathom({"run", kTinyModel, "x", "--temp", "-1", "--quiet"}), 2, "temperature");
  expect_error(run_fathom({"run", kTinyModel, "x", "--top-p", "1.5", "--quiet"}), 2, "top_p");
  expect_error(run_fathom({"run", kTinyModel, "x", "--logit-bias", "12", "--quiet"}), 2, "ID=BIAS");
  expect_error(run_fathom({"run", kTinyModel, "x", "--logit-bias", "99999=1", "--quiet"}), 2,
               "99999");
  expect_error(run_fathom({"run", kTinyModel, "x", "--cache", "f16", "--quiet"}), 2,
               "f32, bf16 or int8");
  expect_error(run_fathom({"run", kTinyModel, "x", "--template", "nosuch", "--quiet"}), 2,
               "chatml");
  expect_error(run_fathom({"run", kTinyModel, "x", "--think=maybe", "--quiet"}), 2, "maybe");
  expect_error(run_fathom({"run", kTinyModel, "x", "-n", "-1", "--quiet"}), 2, "--max-tokens");
}

TEST(Cli, WaysOfComputingThatThereAreNotAreRefused) {
  expect_error(run_fathom({"run", kTinyModel, "x", "--mla", "quick", "--quiet"}), 2,
               "--mla: found 'quick', expected fast or strict");
  expect_error(run_fathom({"run", kTinyModel, "x", "--speculate", "much", "--quiet"}), 2,
               "--speculate: found 'much', expected auto, mtp, lookup, both or off");
  expect_error(run_fathom({"run", kTinyModel, "x", "--speculate", "both", "--quiet"}), 2,
               "--speculate: both: this model has no layer for multi-token prediction");
}

TEST(Cli, AModelThatIsNotThereIsNamedWithWhatToDo) {
  const TempDir folder;
  expect_error(run_fathom({"run", "nosuch.gguf", "hi"}, "", {}, folder.string()), 2,
               "'nosuch.gguf': no such file or folder");
  expect_error(run_fathom({"show"}, "", {}, folder.string()), 2, "FATHOM_MODEL");
  folder.write("models/one.gguf", "");
  folder.write("models/two.gguf", "");
  expect_error(run_fathom({"show"}, "", {}, folder.string()), 2, "models/two.gguf");
  expect_error(run_fathom({"show", "evil\x1b[31m"}, "", {}, folder.string()), 2, "\\x1b");
  // found by name, and refused as damaged
  EXPECT_EQ(run_fathom({"show", "one"}, "", {}, folder.string()).code, 2);
}

TEST(Cli, TheOnlyModelIsTheDefault) {
  const TempDir folder;
  fs::create_directories(folder / "models");
  fs::copy_file(kTinyModel, folder / "models/tiny.gguf");
  EXPECT_EQ(run_fathom({"show"}, "", {}, folder.string()).code, 0);
  EXPECT_EQ(run_fathom({"show", "tiny"}, "", {}, folder.string()).code, 0);
}

TEST(Cli, ADamagedModelIsRefusedWithTwo) {
  const TempDir folder;
  std::ifstream in(kTinyModel, std::ios::binary);
  std::string bytes(std::istreambuf_iterator<char>(in), {});
  const fs::path path = folder.write("cut.gguf", bytes.substr(0, bytes.size() - 5000));
  expect_error(run_fathom({"run", path, "hi"}), 2, "cut.gguf");
}

TEST(Cli, WeightsAndCacheThatDoNotFitAreRefusedWithThree) {
  // A sparse file of 2 TiB whose one tensor is the embedding: headers are valid, memory cannot
  // suffice.
  const TempDir folder;
  const std::string config =
      R"({"architectures":["LlamaForCausalLM"],"vocab_size":1048576,"hidden_size":1048576,"num_hidden_layers":1,
    "num_attention_heads":16,"num_key_value_heads":1,"intermediate_size":64,"max_position_embeddings":512,"rms_norm_eps":1e-6})";
  folder.write("config.json", config);
  const uint64_t tensor_bytes = uint64_t{1} << 41;
  std::string header =
      R"({"model.embed_tokens.weight":{"dtype":"BF16","shape":[1048576,1048576],"data_offsets":[0,)" +
      std::to_string(tensor_bytes) + "]}}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  const uint64_t size = header.size();
  const fs::path file = folder.write("model.safetensors",
                                     std::string(reinterpret_cast<const char*>(&size), 8) + header);
  std::error_code error;
  fs::resize_file(file, 8 + header.size() + tensor_bytes, error);
  if (error) GTEST_SKIP() << "this file system has no sparse files of 2 TiB";
  expect_error(run_fathom({"run", folder.string(), "hi"}), 3, "2.0 TiB");
}

TEST(Cli, AClosedPipeEndsQuietly) {
  signal(SIGPIPE, SIG_IGN);
  Child child({"run", kTinyModel, "abc", "-n", "400", "--temp", "1"});
  child.close_out();
  const Finished run = child.finish();
  EXPECT_EQ(run.code, 0);
  EXPECT_FALSE(has(run.err, "error")) << run.err;
  EXPECT_FALSE(has(run.err, "rror: ")) << run.err;
}

TEST(Cli, WhatMayNotBeLookedAtIsNoBugOfOurs) {
  const TempDir folder;
  const std::string ids = folder.write("ids", "1 2"), text = folder.write("text", "abc");
  const fs::path closed = folder / "closed";
  fs::create_directory(closed);
  fs::copy_file(kTinyModel, closed / "model.gguf");
  fs::permissions(folder.path(), fs::perms::all);
  fs::permissions(closed, fs::perms::none);
  const auto as_nobody = [](const std::vector<std::string>& arguments) {
    const Unprivileged nobody;
    // The address sanitizer's search for leaks may not look into a process that is another user's.
    return run_fathom(arguments, "", {{"ASAN_OPTIONS", "detect_leaks=0"}});
  };
  const auto denied = [&](const std::vector<std::string>& arguments, const fs::path& subject) {
    const Finished run = as_nobody(arguments);
    expect_error(run, 2, subject.string() + ": ");
    EXPECT_TRUE(has(run.err, "Permission denied")) << run.err;
  };
  const fs::path inside = closed / "x.gguf";
  denied({"run", closed / "model.gguf", "abc"}, closed / "model.gguf");
  denied({"logits", kTinyModel, "--ids", ids, "-o", closed / "x"}, closed / "x");
  denied({"imatrix", kTinyModel, "--text", text, "-o", inside}, inside);
  denied({"bench", kTinyModel, "-o", closed / "x.svg"}, closed / "x.svg");
  denied({"prepare", text, "-o", closed / "x"}, closed / "x");
  const std::string broken = folder.write("broken.jsonl", "{");  // comes to light when it is read
  denied({"train-tokenizer", broken, "--vocab", "300", "-o", closed / "x"}, closed / "x");
  fs::permissions(closed, fs::perms::owner_all);
}

TEST(Cli, AFullDiskIsAnError) {
  if (!fs::exists("/dev/full")) GTEST_SKIP();
  const pid_t pid = fork();
  if (pid == 0) {
    dup2(open("/dev/full", O_WRONLY), 1);
    dup2(open("/dev/null", O_WRONLY), 2);
    exec_fathom({"version"}, {}, "");
  }
  int status = 0;
  waitpid(pid, &status, 0);
  EXPECT_EQ(exit_code(status), 3);
}

TEST(Cli, ControlCEndsAnAnswerWith130AndKeepsWhatWasSaid) {
  signal(SIGPIPE, SIG_IGN);
  Child child({"run", kTinyModel, "abc", "--temp", "1", "--stop", "never"});
  // The pipe is all but full, so the child cannot run to the end of its answer before the signal
  // arrives.
  ASSERT_EQ(fcntl(child.out(), F_SETPIPE_SZ, 4096), 4096);
  const int write_end =
      open(("/proc/self/fd/" + std::to_string(child.out())).c_str(), O_WRONLY | O_CLOEXEC);
  ASSERT_GE(write_end, 0);
  const std::string filler(4080, '.');
  ASSERT_EQ(::write(write_end, filler.data(), filler.size()), 4080);
  close(write_end);
  child.close_in();
  int waiting = 0;
  for (int i = 0; i < 3000 && waiting <= 4080; ++i) {
    ASSERT_EQ(ioctl(child.out(), FIONREAD, &waiting), 0);
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  ASSERT_GT(waiting, 4080);
  kill(child.pid(), SIGINT);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const Finished run = child.finish();
  EXPECT_EQ(run.code, 130);
  EXPECT_GT(run.out.size(), 4080u);
  EXPECT_TRUE(has(run.err, "interrupted")) << run.err;
}

// The folder of a model with 51 MB of embedding and head, so that writing it takes a while.
fs::path wide_folder(const TempDir& folder) {
  const fs::path golden = fs::path(FATHOM_SOURCE_DIR) / "tests/golden/models/qwen2";
  constexpr int64_t kVocab = 100000, kHidden = 64;
  json config = json::parse(read_file(golden / "config.json", 1 << 20));
  config["vocab_size"] = kVocab;
  const Safetensors model = Safetensors::open(golden / "model.safetensors");
  const std::vector<float> wide(kVocab * kHidden, 0.5f);
  std::vector<TensorToWrite> tensors;
  for (const TensorInfo& t : model.tensors()) {
    if (t.name == "model.embed_tokens.weight" || t.name == "lm_head.weight")
      tensors.push_back({t.name, DType::kF32, {kVocab, kHidden}, std::as_bytes(std::span(wide))});
    else
      tensors.push_back({t.name, t.dtype, t.shape, {t.data, t.bytes}});
  }
  write_safetensors(folder / "model.safetensors", tensors);
  folder.write("config.json", config.dump());
  folder.write("tokenizer.json", character_tokenizer_json());
  folder.write("tokenizer_config.json", character_tokenizer_config_json());
  return folder.path();
}

// Does the process have a file of this folder open, with a name there or without?
bool writes_in(pid_t process, const fs::path& folder) {
  std::error_code gone;  // the process, or one of its files
  for (const auto& entry : fs::directory_iterator(fmt::format("/proc/{}/fd", process), gone)) {
    if (fs::read_symlink(entry.path(), gone).string().starts_with(folder.string() + "/"))
      return true;
  }
  return false;
}

TEST(Cli, ASignalLeavesNothingOfAFileHalfWritten) {
  signal(SIGPIPE, SIG_IGN);
  const TempDir model, folder;
  wide_folder(model);
  const std::string out = folder / "out.gguf";
  for (const std::vector<std::string>& command :
       {std::vector<std::string>{"export", model.string(), out, "--type", "q8_0"},
        std::vector<std::string>{"quantize", model.string(), out, "--overwrite"}}) {
    for (const int stop : {SIGINT, SIGTERM}) {
      int code = 0;
      for (int tries = 0; tries < 20 && code != 128 + stop; ++tries) {  // it may be done before
        fs::remove(out);
        Child child(command);
        for (int i = 0; i < 4000 && !writes_in(child.pid(), folder.path()) && !fs::exists(out); ++i)
          std::this_thread::sleep_for(std::chrono::microseconds(500));
        kill(child.pid(), stop);
        code = child.finish().code;
        if (code != 0 && (stop == SIGINT || has_unnamed_files(folder.path()))) {
          EXPECT_TRUE(fs::is_empty(folder.path())) << command[0];
        }
      }
      EXPECT_EQ(code, 128 + stop) << command[0];
    }
  }
}

TEST(Cli, FlagsHaveEnvironmentVariablesAndWinOverThem) {
  const auto tokens = [](std::vector<std::string> more, const Environment& environment) {
    more.insert(more.begin(), {"run", kTinyModel, "abc", "--temp", "0", "--json", "--quiet"});
    return json_lines(run_fathom(more, "", environment).out).at(0)["tokens"].get<int>();
  };
  EXPECT_EQ(tokens({}, {{"FATHOM_MAX_TOKENS", "3"}}), 3);
  EXPECT_EQ(tokens({"-n", "2"}, {{"FATHOM_MAX_TOKENS", "3"}}), 2);
}

TEST(Cli, AnAnswerEndsWhereTheContextDoes) {
  const Finished run = run_fathom(
      {"run", kTinyModel, "abc", "-c", "10", "-n", "1000", "--temp", "0", "--raw", "--json"});
  EXPECT_EQ(run.code, 0) << run.err;
  const auto answer = json_lines(run.out).at(0);
  EXPECT_EQ(answer["tokens"].get<int>(), 7) << run.out;
  EXPECT_EQ(answer["finish"], "length");
  EXPECT_TRUE(has(run.err, "; stopped as the context is full")) << run.err;
}

TEST(Cli, TheBashCompletionIsAScript) {
  const TempDir folder;
  const Finished script = run_fathom({"completion", "bash"});
  EXPECT_EQ(script.code, 0);
  EXPECT_TRUE(has(script.out, "--hide-thinking")) << script.out;
  const fs::path file = folder.write("completion.bash", script.out);
  const std::string command =
      "bash -c 'source " + file.string() +
      "; COMP_WORDS=(fathom run --top); COMP_CWORD=2; _fathom; echo \"${COMPREPLY[@]}\"' > " +
      (folder / "result").string();
  ASSERT_EQ(std::system(command.c_str()), 0);
  std::ifstream in(folder / "result");
  std::string line;
  std::getline(in, line);
  EXPECT_EQ(line, "--top-p --top-k");
}

}  // namespace
}  // namespace fathom
