// The program as its users meet it: exit codes, messages, which stream says what.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "formats/safetensors.h"
#include "tests/cli/subprocess.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = fs::temp_directory_path() / "fathom_cli_XXXXXX";
    path_ = mkdtemp(name.data());
  }
  ~TemporaryFolder() { fs::remove_all(path_); }
  fs::path operator/(const std::string& name) const { return path_ / name; }
  std::string string() const { return path_.string(); }
  fs::path write(const std::string& name, const std::string& text) const {
    fs::create_directories((path_ / name).parent_path());
    std::ofstream(path_ / name, std::ios::binary) << text;
    return path_ / name;
  }

 private:
  fs::path path_;
};

std::vector<json> json_lines(const std::string& text) {
  std::vector<json> objects;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    objects.push_back(json::parse(line, nullptr, false));
    EXPECT_TRUE(objects.back().is_object()) << line;
  }
  return objects;
}

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

void expect_error(const Finished& run, int code, const std::string& part) {
  EXPECT_EQ(run.code, code) << run.err;
  EXPECT_EQ(run.out, "");
  EXPECT_TRUE(run.err.starts_with("error: ")) << run.err;
  EXPECT_TRUE(has(run.err, part)) << run.err;
}

// many tokens are likely; id 67 is "A"
const std::string kSoftModel = kGoldenGguf + "v2-lite-256-Q4_K_M.gguf";
const std::vector<std::string> kCommands = {
    "run",      "show",   "estimate",   "tokenize", "eval", "bench",           "logits",
    "selftest", "doctor", "completion", "pretrain", "sft",  "train-tokenizer", "prepare",
    "report",   "export", "quantize",   "imatrix"};

TEST(Cli, AloneSaysWhatTheMachineHasAndWhatToTypeNext) {
  const TemporaryFolder folder;
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

const std::string kBundled = std::string(FATHOM_SOURCE_DIR) + "/bundled/countdown-12m.gguf";

// Held-out problem: its three numbers occur in no training text.
TEST(Cli, TheBundledModelSolvesAProblemAndItsCheckerSaysSo) {
  // no ./models: the bundled model is found from where the program lies
  const TemporaryFolder folder;
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

TEST(Cli, EvalScoresATask) {
  const Finished run = run_fathom({"eval", kBundled, "--task", "countdown", "--problems", "10",
                                   "--samples", "4", "--json", "-q"});
  EXPECT_EQ(run.code, 0) << run.err;
  const json score = json::parse(run.out);
  EXPECT_EQ(score["problems"], 10);
  EXPECT_GE(score["pass_at_4"].get<double>(), score["pass_1"].get<double>());
  EXPECT_GT(score["pass_at_4"].get<double>(), 0);
  expect_error(run_fathom({"eval", kBundled}), 2, "expected --task NAME or --perplexity FILE");
  expect_error(run_fathom({"eval", kBundled, "--task", "countdown", "--perplexity", "x"}), 2,
               "one of the two");
}

TEST(Cli, EvalTellsHowFarAModelLiesFromAReference) {
  const TemporaryFolder folder;
  const std::string text = folder.write("text.txt", "Use 27, 7 and 12 to make 22. 27-7=20 no");
  const std::string small = folder / "small.gguf";
  ASSERT_EQ(run_fathom({"quantize", kBundled, small, "--type", "Q4_0", "-q"}).code, 0);
  const auto evaluate = [&](const std::string& model) {
    return run_fathom({"eval", model, "--kl", kBundled, "--perplexity", text, "--json", "-q"});
  };
  const json same = json::parse(evaluate(kBundled).out), other = json::parse(evaluate(small).out);
  EXPECT_EQ(same["kl_mean"], 0);
  EXPECT_EQ(same["kl_max"], 0);
  EXPECT_EQ(same["same_likeliest"], 1);
  EXPECT_EQ(same["perplexity"], same["reference_perplexity"]);
  EXPECT_GT(other["kl_mean"].get<double>(), 0);
  EXPECT_LE(other["kl_median"].get<double>(), other["kl_p99"].get<double>());
  EXPECT_LE(other["kl_p99"].get<double>(), other["kl_max"].get<double>());
  EXPECT_EQ(other["reference_perplexity"], same["perplexity"]);
  const Finished lines = run_fathom({"eval", small, "--kl", kBundled, "--perplexity", text, "-q"});
  EXPECT_TRUE(has(lines.out, "KL divergence: mean 0.") && has(lines.out, "same likeliest token"))
      << lines.out;
  expect_error(run_fathom({"eval", kBundled, "--kl", kTinyModel, "--perplexity", text, "-q"}), 2,
               "--kl: vocabulary of ");
  expect_error(run_fathom({"eval", kBundled, "--kl", kBundled, "--task", "countdown"}), 2,
               "--kl: expected --perplexity FILE with it");
}

TEST(Cli, QuantizeTellsWhatWasLostAndReplacesNothingUnasked) {
  const TemporaryFolder folder;
  const std::string out = folder / "small.gguf";
  const Finished run = run_fathom(
      {"quantize", kBundled, out, "--type", "Q4_K_M", "--tensor", "blk.1.ffn_*=Q8_0", "--json"});
  EXPECT_EQ(run.code, 0) << run.err;
  EXPECT_TRUE(has(run.err, "holds Q8_0: what these lost is lost")) << run.err;
  const std::vector<json> lines = json_lines(run.out);
  ASSERT_GT(lines.size(), 5u);
  const json all = lines.back();
  EXPECT_EQ(all["kind"], "all");
  EXPECT_EQ(all["tensors"], 128);
  EXPECT_LT(all["bits_per_weight"].get<double>(), 8);
  EXPECT_GT(all["relative_rms_error"].get<double>(), 0.01);
  EXPECT_LT(all["relative_rms_error"].get<double>(), 0.1);
  bool fell_back = false;
  for (const json& line : lines)
    fell_back = fell_back || (line["kind"] == "experts" && line.value("instead_of", "") == "Q6_K");
  EXPECT_TRUE(fell_back) << run.out;
  const Finished table = run_fathom({"quantize", kBundled, out, "--type", "Q2_K", "--overwrite"});
  EXPECT_EQ(table.code, 0) << table.err;
  EXPECT_TRUE(has(table.out, "rows are no multiple of its block")) << table.out;
  expect_error(run_fathom({"quantize", kBundled, out}), 2, "exists already; --overwrite");
  expect_error(run_fathom({"quantize", kBundled, folder / "x.bin"}), 2, "ends in .gguf");
  expect_error(run_fathom({"quantize", kBundled, folder / "x.gguf", "--type", "Q9"}), 2,
               "--type: found 'Q9', expected one of Q4_K_M");
  expect_error(run_fathom({"quantize", kBundled, "/nonexistent/x.gguf"}), 2, "/nonexistent");
  EXPECT_FALSE(fs::exists(folder / "x.gguf"));
  const Finished answer = run_fathom({"run", out, "Use 27, 7 and 12 to make 22.", "--temp", "0"});
  EXPECT_EQ(answer.code, 0) << answer.err;
}

TEST(Cli, AnImportanceMatrixIsMadeOfATextAndUsed) {
  const TemporaryFolder folder;
  std::string text;
  for (int i = 10; i < 60; ++i)
    text += "Use " + std::to_string(i) + ", 7 and 12 to make " + std::to_string(i + 5) + ". ";
  const std::string file = folder.write("text.txt", text), matrix = folder / "i.gguf";
  const Finished made = run_fathom({"imatrix", kBundled, "--text", file, "-o", matrix});
  EXPECT_EQ(made.code, 0) << made.err;
  EXPECT_EQ(made.out, "");
  EXPECT_TRUE(has(made.err, " matrices, ")) << made.err;
  const auto quantized = [&](const std::vector<std::string>& more) {
    std::vector<std::string> words = {"quantize", kBundled, folder / "q.gguf",
                                      "--type",   "IQ4_NL", "--overwrite"};
    words.insert(words.end(), more.begin(), more.end());
    const Finished run = run_fathom(words);
    EXPECT_EQ(run.code, 0) << run.err;
    EXPECT_EQ(has(run.err, "have an importance"), !more.empty()) << run.err;
    return read_file(folder / "q.gguf", 1 << 26);
  };
  EXPECT_NE(quantized({"--imatrix", matrix}), quantized({}));
  expect_error(run_fathom({"quantize", kBundled, folder / "x.gguf", "--imatrix", kBundled, "-q"}),
               2, "expected 'imatrix'");
  expect_error(run_fathom({"imatrix", kBundled, "--text", file, "-o", folder / "x"}), 2,
               "ends in .gguf");
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
  const TemporaryFolder folder;
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
  expect_error(run_fathom({"run", kTinyModel, "zz", "-c", "10", "-n", "9", "--quiet"}), 2, "10");
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
  const TemporaryFolder folder;
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
               "--prefix-gib: found nan");
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
  expect_error(run_fathom({"run", kTinyModel, "x", "--cache", "f16", "--quiet"}), 2, "f32 or bf16");
  expect_error(run_fathom({"run", kTinyModel, "x", "--template", "nosuch", "--quiet"}), 2,
               "chatml");
  expect_error(run_fathom({"run", kTinyModel, "x", "--think=maybe", "--quiet"}), 2, "maybe");
  expect_error(run_fathom({"run", kTinyModel, "x", "-n", "-1", "--quiet"}), 2, "--max-tokens");
}

TEST(Cli, AModelThatIsNotThereIsNamedWithWhatToDo) {
  const TemporaryFolder folder;
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
  const TemporaryFolder folder;
  fs::create_directories(folder / "models");
  fs::copy_file(kTinyModel, folder / "models/tiny.gguf");
  EXPECT_EQ(run_fathom({"show"}, "", {}, folder.string()).code, 0);
  EXPECT_EQ(run_fathom({"show", "tiny"}, "", {}, folder.string()).code, 0);
}

TEST(Cli, ADamagedModelIsRefusedWithTwo) {
  const TemporaryFolder folder;
  std::ifstream in(kTinyModel, std::ios::binary);
  std::string bytes(std::istreambuf_iterator<char>(in), {});
  const fs::path path = folder.write("cut.gguf", bytes.substr(0, bytes.size() - 5000));
  expect_error(run_fathom({"run", path, "hi"}), 2, "cut.gguf");
}

TEST(Cli, WeightsAndCacheThatDoNotFitAreRefusedWithThree) {
  // A sparse file of 2 TiB whose one tensor is the embedding: headers are valid, memory cannot
  // suffice.
  const TemporaryFolder folder;
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

TEST(Cli, ShowTellsWhatIsInside) {
  const Finished people = run_fathom({"show", kGoldenGguf + "v2-lite-256-Q4_K_M.gguf"});
  EXPECT_EQ(people.code, 0) << people.err;
  for (const char* part : {"DeepSeek-V2 architecture", "active per token", "MLA",
                           "4, 2 per token, 2 shared", "Q4_K", "experts", "norms and router"}) {
    EXPECT_TRUE(has(people.out, part)) << part << "\n" << people.out;
  }
  const auto objects = json_lines(
      run_fathom({"show", kGoldenGguf + "v2-lite-256-Q4_K_M.gguf", "--json", "--tensors"}).out);
  ASSERT_GT(objects.size(), 2u);
  EXPECT_EQ(objects[0]["tensors"], objects.size() - 1);
  uint64_t by_kind = 0, by_dtype = 0, by_tensor = 0;
  for (const auto& [kind, bytes] : objects[0]["bytes_by_kind"].items())
    by_kind += bytes.get<uint64_t>();
  for (const auto& [dtype, bytes] : objects[0]["bytes_by_dtype"].items())
    by_dtype += bytes.get<uint64_t>();
  for (size_t i = 1; i < objects.size(); ++i) by_tensor += objects[i]["bytes"].get<uint64_t>();
  EXPECT_EQ(by_kind, objects[0]["bytes"].get<uint64_t>());
  EXPECT_EQ(by_dtype, objects[0]["bytes"].get<uint64_t>());
  EXPECT_EQ(by_tensor, objects[0]["bytes"].get<uint64_t>());
}

TEST(Cli, ShowAndEstimateCountTheMtpLayerOnlyIfTheFilesHaveIt) {
  const TemporaryFolder folder;
  const fs::path golden = std::string(FATHOM_SOURCE_DIR) + "/tests/golden/models/";
  const auto config_of = [](const fs::path& model) {
    return json::parse(std::ifstream(model / "config.json"));
  };
  fs::copy(golden / "v2-lite", folder / "without");
  json config = config_of(golden / "v2-lite");
  config["num_nextn_predict_layers"] = 1;
  std::ofstream(folder / "without/config.json") << config.dump();
  for (const auto& [model, mtp] :
       {std::pair<fs::path, int>{golden / "v3", 1}, {folder / "without", 0}}) {
    const json shown = json_lines(run_fathom({"show", model, "--json"}).out).at(0);
    EXPECT_EQ(shown["num_nextn_predict_layers"], 1) << model;
    EXPECT_EQ(shown["mtp_in_files"], mtp == 1) << model;
    const json c = config_of(model);
    const int per_layer = 4 * (c["kv_lora_rank"].get<int>() + c["qk_rope_head_dim"].get<int>());
    EXPECT_EQ(shown["cache_bytes_per_token"]["f32"],
              per_layer * (c["num_hidden_layers"].get<int>() + mtp))
        << model;
    const json estimate =
        json_lines(run_fathom({"estimate", model, "-c", "10", "--cache", "f32", "--json"}).out)
            .at(0);
    EXPECT_EQ(estimate["cache_bytes"], 10 * shown["cache_bytes_per_token"]["f32"].get<int>())
        << model;
  }
  EXPECT_TRUE(has(run_fathom({"show", folder / "without"}).out,
                  "one more is declared, for multi-token prediction: not in the files"));
}

TEST(Cli, ShowListsABareSafetensorsAndFindsNaN) {
  const TemporaryFolder folder;
  const std::vector<float> values = {1, 2, std::numeric_limits<float>::quiet_NaN(), 4};
  write_safetensors(folder / "bare.safetensors",
                    std::vector<TensorToWrite>{
                        {"some.weight", DType::kF32, {2, 2}, std::as_bytes(std::span(values))}});
  const Finished show = run_fathom({"show", "--tensors", folder / "bare.safetensors"});
  EXPECT_EQ(show.code, 0) << show.err;
  EXPECT_TRUE(has(show.out, "some.weight")) << show.out;
  EXPECT_TRUE(has(show.out, "[2, 2]")) << show.out;
  EXPECT_TRUE(has(show.out, "config.json")) << show.out;
  const Finished check = run_fathom({"show", "--check-finite", folder / "bare.safetensors"});
  EXPECT_EQ(check.code, 2);
  EXPECT_TRUE(has(check.err, "'some.weight'") && has(check.err, "element 2")) << check.err;
  EXPECT_EQ(run_fathom({"show", "--check-finite", kTinyModel}).code, 0);
}

TEST(Cli, TokenizeAndDecodeGiveTheTextBack) {
  const std::string text = "Hello, wörld\n<bos> 日本語 \t end";
  const auto objects = json_lines(run_fathom({"tokenize", kTinyModel, "--json"}, text).out);
  ASSERT_EQ(objects.size(), 1u);
  std::string ids;
  for (const json& id : objects[0]["ids"]) ids += std::to_string(id.get<int>()) + ",";
  EXPECT_EQ(run_fathom({"tokenize", kTinyModel, "--decode", ids}).out, text);
  EXPECT_EQ(run_fathom({"tokenize", kTinyModel, "--decode", "-"}, ids).out, text);
  const auto plain = json_lines(run_fathom({"tokenize", kTinyModel, "<bos>", "--json"}).out);
  const auto special =
      json_lines(run_fathom({"tokenize", kTinyModel, "<bos>", "--json", "--special"}).out);
  EXPECT_GT(plain[0]["ids"].size(), 1u);
  EXPECT_EQ(special[0]["ids"], json({0}));
  const auto lines = json_lines(
      run_fathom({"tokenize", kTinyModel, "--json", "--lines"}, "\"a\\nb\"\n\"\"\n\"c\"\n").out);
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_EQ(lines[0]["ids"].size(), 3u);
  EXPECT_EQ(lines[1]["ids"].size(), 0u);
  expect_error(run_fathom({"tokenize", kTinyModel, "--lines"}, "not json\n"), 2, "line 1");
  expect_error(run_fathom({"tokenize", kTinyModel, "--decode", "1 x"}), 2, "'x'");
  expect_error(run_fathom({"tokenize", kTinyModel, "--decode", "99999"}), 2, "99999");
}

TEST(Cli, PrepareMakesShardsOfFilesFoldersAndJsonl) {
  const TemporaryFolder folder;
  folder.write("notes/a.txt", "one");
  folder.write("notes/deep/b.txt", "two");
  const fs::path lines =
      folder.write("c.jsonl", "{\"text\": \"three\", \"from\": 3}\n\n{\"text\": \"four\"}\n");
  const std::string out = folder / "shards";
  const Finished done = run_fathom({"prepare", folder / "notes", lines, "-o", out});
  EXPECT_EQ(done.code, 0) << done.err;
  EXPECT_EQ(done.out, "");
  // 15 characters, each text between BOS and EOS
  EXPECT_NE(done.err.find("4 documents, 23 tokens"), std::string::npos) << done.err;
  const json manifest = json::parse(std::ifstream(out + "/shards.json"));
  EXPECT_EQ(manifest["documents"], 4);

  const fs::path bad = folder.write("bad.jsonl", "{\"text\": \"fine\"}\n{\"txt\": \"no\"}\n");
  const Finished refused = run_fathom({"prepare", bad, "-o", folder / "other"});
  EXPECT_EQ(refused.code, 2);
  EXPECT_NE(refused.err.find("bad.jsonl:2: text: "), std::string::npos) << refused.err;
  EXPECT_FALSE(fs::exists(folder / "other/shards.json"));
}

TEST(Cli, ATokenizerIsTrainedWrittenAndReadBack) {
  const TemporaryFolder folder;
  std::string text;
  for (int i = 0; i < 200; ++i) text += "the cat sat on the mat, 猫坐在垫子上。\n";
  const fs::path first = folder.write("first.txt", text),
                 second = folder.write("second.txt", "\xff\xfe the end");
  const std::string out = folder / "new/tokenizer";
  const Finished run = run_fathom({"train-tokenizer", first, second, "--vocab", "275", "-o", out});
  EXPECT_EQ(run.code, 0) << run.err;
  EXPECT_TRUE(run.out.starts_with("vocabulary 275, 12 merges, ")) << run.out;
  EXPECT_TRUE(run.out.ends_with(" bytes per token\n")) << run.out;
  EXPECT_EQ(run.err, "");
  const auto tokenizer =
      Tokenizer::from_json(read_file(out + "/tokenizer.json", 1 << 20), "tokenizer.json",
                           read_file(out + "/tokenizer_config.json", 1 << 20));
  EXPECT_EQ(tokenizer.vocab_size(), 275);
  EXPECT_EQ(detect_chat_format(tokenizer), ChatFormat::kDeepseekR1);

  json line;
  line["text"] = text;
  const Finished same =
      run_fathom({"train-tokenizer", folder.write("first.jsonl", line.dump() + "\n"), second,
                  "--vocab", "275", "-o", folder / "other"});
  EXPECT_EQ(same.out, run.out) << same.err;

  const Finished rare = run_fathom({"train-tokenizer", second, "-o", out});
  EXPECT_EQ(rare.code, 0) << rare.err;
  EXPECT_TRUE(has(rare.err, "no pair is left that occurs twice")) << rare.err;
  EXPECT_EQ(run_fathom({"train-tokenizer", second, "-o", out, "-q"}).err, "");

  expect_error(run_fathom({"train-tokenizer", "-o", out}), 2, "FILE");
  expect_error(run_fathom({"train-tokenizer", first}), 2, "--out");
  expect_error(run_fathom({"train-tokenizer", first, "--vocab", "262", "-o", out}), 2,
               "found 262 tokens, expected 263");
  expect_error(run_fathom({"train-tokenizer", first, "--vocab", "1000001", "-o", out}), 2,
               "to 1000000");
  expect_error(run_fathom({"train-tokenizer", folder / "none.txt", "-o", out}), 2, "none.txt");
  expect_error(run_fathom({"train-tokenizer", folder.write("empty", ""), "-o", out}), 2, "0 bytes");
  expect_error(run_fathom({"train-tokenizer", first, "-o", second}), 2, "second.txt");
}

TEST(Cli, LogitsOfAnyChunkAndThreadsAreTheSameFile) {
  const TemporaryFolder folder;
  const fs::path ids = folder.write("ids", "10 11 12, 13\n14 15 16 17 18");
  const auto logits = [&](const std::string& name, std::vector<std::string> more) {
    more.insert(more.begin(), {"logits", kGoldenGguf + "v2-lite-256-Q4_K_M.gguf", "--ids", ids,
                               "-o", folder / name});
    const Finished run = run_fathom(more);
    EXPECT_EQ(run.code, 0) << run.err;
    std::ifstream in(folder / name, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(in), {});
  };
  const std::string whole = logits("a.safetensors", {});
  EXPECT_GT(whole.size(), 9u * 256 * 4);
  EXPECT_EQ(whole, logits("b.safetensors", {"--chunk", "2", "--threads", "3"}));
  EXPECT_NE(whole, logits("c.safetensors", {"--form", "expanded"}));  // other rounding
  folder.write("json", "[10, 11, 12, 13, 14, 15, 16, 17, 18]");
  EXPECT_EQ(
      run_fathom({"logits", kTinyModel, "--ids", folder / "json", "-o", folder / "d.safetensors"})
          .code,
      0);
  EXPECT_EQ(run_fathom({"logits", kTinyModel, "--ids", folder / "d.safetensors", "-o",
                        folder / "e.safetensors"})
                .code,
            0);
  expect_error(run_fathom({"logits", kTinyModel, "--ids", folder.write("bad", "1 2 300"), "-o",
                           folder / "f"}),
               2, "300");
  expect_error(
      run_fathom({"logits", kTinyModel, "--ids", folder.write("bad", "1 -2"), "-o", folder / "f"}),
      2, "-2");
  expect_error(
      run_fathom({"logits", kTinyModel, "--ids", folder.write("bad", ""), "-o", folder / "f"}), 2,
      "no token ids");
  expect_error(
      run_fathom({"logits", kTinyModel, "--ids", ids, "-o", folder / "f", "--form", "folded"}), 2,
      "folded");
  expect_error(run_fathom({"logits", kTinyModel, "--ids", ids, "-o", folder / "none/f"}), 2,
               "none/f: cannot create");
  expect_error(run_fathom({"logits", kTinyModel, "--ids", ids, "-o", folder.string()}), 2,
               "is a folder");
  std::string many;
  for (int i = 0; i < 513; ++i) many += "1 ";
  expect_error(
      run_fathom({"logits", kTinyModel, "--ids", folder.write("many", many), "-o", folder / "f"}),
      2, "513 token ids, expected at most 512");
  EXPECT_FALSE(fs::exists(folder / "f"));
  EXPECT_FALSE(fs::exists(folder / "f"));
}

TEST(Cli, EvalScoresEveryTokenWhateverTheThreadsAndWindows) {
  const TemporaryFolder folder;
  const fs::path text = folder.write("text", std::string(300, 'z') +
                                                 " some text that is longer than a window of the "
                                                 "model, several times over, to cross borders");
  const auto eval = [&](std::vector<std::string> more) {
    more.insert(more.begin(), {"eval", kTinyModel, "--perplexity", text, "--json", "--quiet"});
    const Finished run = run_fathom(more);
    EXPECT_EQ(run.code, 0) << run.err;
    return run.out;
  };
  EXPECT_EQ(eval({"-t", "1", "-c", "64"}), eval({"-t", "3", "-c", "64"}));
  const json whole = json_lines(eval({"-c", "512"})).at(0),
             windows = json_lines(eval({"-c", "64", "--stride", "16"})).at(0);
  // every token but the first, once, whatever the windows
  EXPECT_EQ(whole["tokens"], windows["tokens"]);
  EXPECT_EQ(whole["windows"], 1);
  EXPECT_GT(windows["windows"], 10);
  expect_error(run_fathom({"eval", kTinyModel, "--perplexity", text, "-c", "513"}), 2, "512");
  expect_error(run_fathom({"eval", kTinyModel, "--perplexity", text, "-c", "64", "--stride", "65"}),
               2, "65");
  expect_error(run_fathom({"eval", kTinyModel, "--perplexity", folder.write("empty", "")}), 2,
               "0 tokens");
}

TEST(Cli, EstimateAddsUp) {
  const auto objects =
      json_lines(run_fathom({"estimate", kTinyModel, "-c", "100", "-c", "200", "--json"}).out);
  ASSERT_EQ(objects.size(), 4u);
  for (const json& o : objects) {
    EXPECT_EQ(o["total_bytes"],
              o["weight_bytes"].get<uint64_t>() + o["rebuilt_bytes"].get<uint64_t>() +
                  o["work_bytes"].get<uint64_t>() + o["cache_bytes"].get<uint64_t>());
    EXPECT_EQ(o["fits"], true);
  }
  EXPECT_EQ(objects[2]["cache_bytes"].get<uint64_t>(),
            2 * objects[0]["cache_bytes"].get<uint64_t>());
  expect_error(run_fathom({"estimate", kTinyModel, "-c", "513"}), 2, "512");
}

TEST(Cli, DoctorPrintsTheLimits) {
  const Finished limits = run_fathom({"doctor", "--print-limits"});
  EXPECT_EQ(limits.code, 0);
  EXPECT_TRUE(has(limits.out, "json_depth                 64\n")) << limits.out;
  const auto objects =
      json_lines(run_fathom({"doctor", "--json", "--seconds", "0.2", "-t", "1"}).out);
  ASSERT_EQ(objects.size(), 1u);
  EXPECT_GT(objects[0]["f32_flops"].get<double>(), 1e8);
  EXPECT_GT(objects[0]["read_bytes_per_second"].get<double>(), 1e7);
}

TEST(Cli, BenchGivesAShareOfTheRoofForEachLine) {
  const auto objects =
      json_lines(run_fathom({"bench", kTinyModel, "--json", "--prefill", "16,64", "--at", "0,32",
                             "--generate", "4", "--repeat", "2", "-t", "1"})
                     .out);
  ASSERT_EQ(objects.size(), 4u);
  for (const json& o : objects) {
    EXPECT_GT(o["tokens_per_second"].get<double>(), 0);
    EXPECT_GT(o["share_of_roof"].get<double>(), 0);
    EXPECT_LE(o["seconds"]["p10"].get<double>(), o["seconds"]["p90"].get<double>());
  }
  EXPECT_EQ(objects[3]["context"], 32);
  const Finished start = run_fathom({"bench", kTinyModel, "--json", "--prefill", "16,512", "--at",
                                     "0,509", "--generate", "3", "--repeat", "1", "-t", "1"});
  EXPECT_EQ(start.code, 0) << start.err;
  EXPECT_EQ(json_lines(start.out).size(), 2u) << start.out;
  EXPECT_TRUE(
      has(start.err, "--prefill 512: left out: takes 513 tokens, the model's context is 512"))
      << start.err;
  EXPECT_TRUE(has(start.err, "--at 509: left out: takes 513 tokens")) << start.err;
}

TEST(Cli, FlagsHaveEnvironmentVariablesAndWinOverThem) {
  const auto tokens = [](std::vector<std::string> more, const Environment& environment) {
    more.insert(more.begin(), {"run", kTinyModel, "abc", "--temp", "0", "--json", "--quiet"});
    return json_lines(run_fathom(more, "", environment).out).at(0)["tokens"].get<int>();
  };
  EXPECT_EQ(tokens({}, {{"FATHOM_MAX_TOKENS", "3"}}), 3);
  EXPECT_EQ(tokens({"-n", "2"}, {{"FATHOM_MAX_TOKENS", "3"}}), 2);
}

TEST(Cli, TheBashCompletionIsAScript) {
  const TemporaryFolder folder;
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

// --- on a terminal ---

TEST(Terminal, AChatAnswersStopsAndLeaves) {
  const TemporaryFolder home;
  TerminalChild chat({"run", kTinyModel, "--temp", "1", "-c", "400"}, {{"HOME", home.string()}});
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("/set max_tokens 5\r");
  ASSERT_TRUE(chat.wait_for(">>> "));
  chat.type("hello\r");
  ASSERT_TRUE(chat.wait_for("generated 5 tokens"));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("/ctx\r");
  ASSERT_TRUE(chat.wait_for(" of 400 tokens"));
  ASSERT_TRUE(chat.wait_for("2 messages"));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("/undo\r");
  ASSERT_TRUE(chat.wait_for("taken back"));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("/ctx\r");
  ASSERT_TRUE(chat.wait_for("0 of 400 tokens (0 %), 0 messages"));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("/nosuch\r");
  ASSERT_TRUE(chat.wait_for("Send it as a message? [y/N]"));
  chat.type("n\r");
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("\x03");
  ASSERT_TRUE(chat.wait_for("Ctrl-D or /exit leaves"));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("/set temp -1\r");
  ASSERT_TRUE(chat.wait_for("error: "));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("\x1b[200~pasted\rlines\x1b[201~\r");
  ASSERT_TRUE(chat.wait_for("generated 5 tokens"));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("/save test\r");
  ASSERT_TRUE(chat.wait_for("Saved as"));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("/clear\r/load test\r");
  ASSERT_TRUE(chat.wait_for("user: pasted\r\nlines"));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("/set max_tokens 0\r/set\r");
  ASSERT_TRUE(chat.wait_for("what the context leaves"));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type(
      "/load " +
      home.write("question.json", R"({"messages":[{"role":"user","content":"four"}]})").string() +
      "\r");
  ASSERT_TRUE(chat.wait_for("user: four"));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("/ctx\r");
  ASSERT_TRUE(chat.wait_for("4 of 400 tokens (1 %), 1 messages"));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("/undo\r");
  ASSERT_TRUE(chat.wait_for("taken back"));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("\x04");
  EXPECT_EQ(chat.finish(), 0);
  for (const char* kept : {".local/state/fathom/history", ".local/state/fathom/chats/test.json"}) {
    EXPECT_EQ(fs::status(home / kept).permissions(), fs::perms::owner_read | fs::perms::owner_write)
        << kept;
  }
  EXPECT_TRUE(has(chat.screen(), "\x1b[?2004l"));  // bracketed paste is off again
  std::ifstream history(home / ".local/state/fathom/history");
  std::string first, second;
  std::getline(history, first);
  std::getline(history, second);
  EXPECT_EQ(first, "/set max_tokens 5");
  EXPECT_EQ(second, "hello");
}

// The next prompt of a conversation begins with the last one, whose rows are still there. (Up to the
// generation prompt: this format leaves out the thoughts of earlier turns.)
TEST(Terminal, AChatComputesOnlyWhatIsNewInIt) {
  TerminalChild chat({"run", kBundled, "--temp", "0", "--no-history", "--no-color"});
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("Use 27, 7 and 12 to make 22.\r");
  ASSERT_TRUE(chat.wait_for("generated "));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  EXPECT_TRUE(has(chat.screen(), "prompt 33 tokens, ")) << chat.screen();
  chat.type("Use 3, 7 and 25 to make 46.\r");
  ASSERT_TRUE(chat.wait_for(" (31 cached), "));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("/stats\r");
  ASSERT_TRUE(chat.wait_for("31 more from the cache"));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("\x04");
  EXPECT_EQ(chat.finish(), 0);
}

TEST(Terminal, ControlCStopsTheAnswerAndTheTalkGoesOn) {
  TerminalChild chat({"run", kSoftModel, "--temp", "0", "--logit-bias", "67=100",
                      "--no-history"});  // 2,500 times "A", if nobody stops it
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("go\r");
  ASSERT_TRUE(chat.wait_for("AAA"));
  chat.type("\x03");
  ASSERT_TRUE(chat.wait_for("; interrupted"));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  // Wherever else it falls, it ends nothing: between the line and the answer, during a command,
  // after the last token.
  for (int i = 0; i < 40; ++i) {
    chat.type(i % 2 == 0 ? "/clear\r" : "go\r");
    ASSERT_TRUE(chat.wait_for(
        "[?2004l"));  // the editor has let go of the terminal: the key is a signal now
    chat.type("\x03");
    ASSERT_TRUE(chat.wait_for("[?2004h"));
    chat.type("x");
    ASSERT_TRUE(chat.wait_for(">>> x"));  // the editor has read everything before it
    chat.type("\x15");
  }
  chat.type("/exit\r");
  EXPECT_EQ(chat.finish(), 0);
}

TEST(Terminal, ColoursKeepAwayFromThoseWhoDoNotWantThem) {
  for (const auto& [flags, environment] :
       {std::pair<std::vector<std::string>, Environment>{{"--no-color"}, {}},
        {{}, {{"NO_COLOR", "1"}}}}) {
    std::vector<std::string> arguments = {"run", kTinyModel, "abc", "-n", "4"};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    TerminalChild plain(arguments, environment);
    plain.type("\x04");
    EXPECT_EQ(plain.finish(), 0);
    EXPECT_EQ(plain.screen().find('\x1b'), std::string::npos) << plain.screen();
  }
  TerminalChild colored({"run", kTinyModel, "abc", "-n", "4"});
  colored.type("\x04");
  EXPECT_EQ(colored.finish(), 0);
  EXPECT_NE(colored.screen().find("\x1b[2m"), std::string::npos) << colored.screen();
}

TEST(Terminal, ATerminatedChatLeavesTheTerminalAsItWas) {
  for (const auto& [signal, code] :
       {std::pair{SIGTERM, 128 + SIGTERM}, {SIGBUS, 2}, {SIGABRT, 1000 + SIGABRT}}) {
    TerminalChild chat({"run", kTinyModel, "--no-history"});
    ASSERT_TRUE(chat.wait_for("Type a message"));
    kill(chat.pid(), signal);
    EXPECT_EQ(chat.finish(), code);
    EXPECT_TRUE(has(chat.screen(), "\x1b[?2004l")) << signal;
  }
}

}  // namespace
}  // namespace fathom
