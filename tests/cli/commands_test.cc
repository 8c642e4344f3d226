// The commands beside `run`: what they print, write and refuse.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "formats/safetensors.h"
#include "tests/base/test_files.h"
#include "tests/cli/subprocess.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

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
  expect_error(run_fathom({"eval", kBundled, "--task", "countdown", "-n", "1000"}), 2,
               "--max-tokens: found 1000, expected at most 99");
}

// Its logits differ, and with them some of the 60 answers.
TEST(Cli, EvalSolvesATaskWithTheCacheAskedFor) {
  const auto tokens = [](const char* cache) {
    const Finished run = run_fathom({"eval", kBundled, "--task", "countdown", "--problems", "60",
                                     "--cache", cache, "--json", "-q"});
    EXPECT_EQ(run.code, 0) << run.err;
    return json::parse(run.out)["mean_tokens"].get<double>();
  };
  EXPECT_EQ(tokens("bf16"), tokens("bf16"));
  EXPECT_NE(tokens("int8"), tokens("f32"));
}

TEST(Cli, EvalTellsHowFarAModelLiesFromAReference) {
  const TempDir folder;
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
  expect_error(run_fathom({"eval", kBundled, "--kl-cache", "f32", "--perplexity", text, "-q"}), 2,
               "--kl-cache: ");
  expect_error(run_fathom({"eval", kBundled, "--kl", kBundled, "--task", "countdown"}), 2,
               "--kl: expected --perplexity FILE with it");
}

TEST(Cli, QuantizeTellsWhatWasLostAndReplacesNothingUnasked) {
  const TempDir folder;
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
  const TempDir folder;
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
  const TempDir folder;
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
  const TempDir folder;
  const std::vector<float> values = {1, 2, std::numeric_limits<float>::quiet_NaN(), 4};
  write_safetensors(folder / "bare.safetensors",
                    std::vector<TensorToWrite>{
                        {"some.weight", DType::kF32, {2, 2}, std::as_bytes(std::span(values))}});
  const Finished show = run_fathom({"show", "--tensors", folder / "bare.safetensors"});
  EXPECT_EQ(show.code, 0) << show.err;
  EXPECT_TRUE(has(show.out, "some.weight")) << show.out;
  EXPECT_TRUE(has(show.out, "[2, 2]")) << show.out;
  EXPECT_TRUE(has(show.out, "config.json")) << show.out;
  const Finished here = run_fathom({"show", "bare.safetensors"}, "", {}, folder.string());
  EXPECT_TRUE(has(here.out, "tokenizer      none: bare.safetensors: no tokenizer.json beside it"))
      << here.out;
  const Finished check = run_fathom({"show", "--check-finite", folder / "bare.safetensors"});
  EXPECT_EQ(check.code, 2);
  EXPECT_TRUE(has(check.err, "'some.weight'") && has(check.err, "element 2")) << check.err;
  EXPECT_EQ(run_fathom({"show", "--check-finite", kTinyModel}).code, 0);
  EXPECT_TRUE(
      has(run_fathom({"show", kBundled}).out,
          "cache          2.0 KiB per token in f32, 1008 bytes in bf16, 560 bytes in int8"));
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
  EXPECT_EQ(special[0]["ids"], json::array({0}));
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
  const TempDir folder;
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
  const TempDir folder;
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
  const TempDir folder;
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
  const std::string far = folder.write("far", "1 256");
  expect_error(run_fathom({"logits", kTinyModel, "--ids", far, "-o", folder / "d.safetensors"}), 2,
               far + ": token id 256: expected less than 256 (vocab_size)");
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
  const TempDir folder;
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
  expect_error(run_fathom({"estimate", kTinyModel, "--cache", "int8"}), 2, "head_dim");
  const auto bundled = json_lines(run_fathom({"estimate", kBundled, "-c", "100", "--json"}).out);
  ASSERT_EQ(bundled.size(), 3u);  // f32, bf16, int8
  // A latent of 64 and 8 rotated: two scales.
  EXPECT_EQ(bundled[0]["cache_bytes"].get<uint64_t>() * (72 + 2 * 4),
            bundled[2]["cache_bytes"].get<uint64_t>() * (72 * 4));
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
      json_lines(run_fathom({"bench", kTinyModel, "--json", "--only", "load,prefill,decode,batch",
                             "--prefill", "16,64", "--at", "0,64", "--batch", "1,3", "--batch-at",
                             "70", "--generate", "4", "--repeat", "2", "-t", "1"})
                     .out);
  ASSERT_EQ(objects.front()["group"], "machine");
  ASSERT_EQ(objects.back()["group"], "memory");
  EXPECT_GT(objects.back()["resident_file_bytes"].get<double>(), 0);
  EXPECT_GT(objects.back()["cache_bytes"].get<double>(),
            71 * 3 * objects.back()["cache_bytes_per_token"].get<double>());
  std::vector<std::string> works;
  for (size_t i = 1; i + 1 < objects.size(); ++i) {
    const json& o = objects[i];
    EXPECT_GT(o["share_of_roof"].get<double>(), 0) << o;
    EXPECT_LE(o["seconds"]["p10"].get<double>(), o["seconds"]["median"].get<double>()) << o;
    EXPECT_LE(o["seconds"]["median"].get<double>(), o["seconds"]["p90"].get<double>()) << o;
    for (const char* roofs : {"roofs_before", "roofs_after"})
      EXPECT_GT(o[roofs]["read_bytes_per_second"].get<double>(), 1e7) << o;
    works.push_back(o["work"]);
    if (o["group"] == "load") continue;
    // what a line says is one and the same thing in three ways
    EXPECT_NEAR(o["tokens_per_second"].get<double>() * o["seconds"]["median"].get<double>(),
                o["tokens"].get<double>(), 1e-6)
        << o;
    EXPECT_NEAR(o["limit_tokens_per_second"].get<double>() * o["share_of_roof"].get<double>() /
                    o["tokens_per_second"].get<double>(),
                1, 1e-6)
        << o;
    // What the cache held was not computed again.
    const bool prefill = o["group"] == "prefill", batch = o["group"] == "batch";
    EXPECT_EQ(o["tokens"], o["work"] == "prefill 16" ? 16
                           : prefill                 ? 64
                                                     : o["sequences"].get<int>())
        << o;
    EXPECT_EQ(o["context"] == 70, batch) << o;
    EXPECT_EQ(o["seconds"]["runs"], prefill ? 2 : 4) << o;
  }
  EXPECT_EQ(works, (std::vector<std::string>{"first", "again", "prefill 16", "prefill 64", "decode",
                                             "prefill 64", "decode", "1 sequence", "3 sequences"}));
}

TEST(Cli, BenchLeavesOutWhatTheModelsContextDoesNotHold) {
  const Finished run = run_fathom({"bench", kTinyModel, "--only", "prefill,decode", "--json",
                                   "--prefill", "16,512", "--at", "0,509", "--generate", "3",
                                   "--repeat", "1", "-t", "1", "--isa", "portable"});
  EXPECT_EQ(run.code, 0) << run.err;
  const auto lines = json_lines(run.out);
  ASSERT_EQ(lines.size(), 4u) << run.out;  // machine, prefill, decode, memory
  EXPECT_EQ(lines[0]["kernels"], "portable");
  EXPECT_TRUE(has(run.err, "--prefill 512: left out: takes 513 tokens, the model's context is 512"))
      << run.err;
  EXPECT_TRUE(has(run.err, "--at 509: left out: takes 513 tokens")) << run.err;
  expect_error(run_fathom({"bench", kTinyModel, "-o", "/nonexistent/a.html"}), 2,
               "/nonexistent/a.html: cannot create: No such file or directory");
  expect_error(run_fathom({"bench", kTinyModel, "--only", "speed"}), 2,
               "--only: found 'speed', expected kernels, load, prefill, decode or batch");
  expect_error(run_fathom({"bench", kTinyModel, "--isa", "sse9"}), 2,
               "--isa: found 'sse9', expected portable, avx2, avxvnni or avx512");
  expect_error(run_fathom({"bench", kTinyModel, "--batch", "0"}), 2,
               "--batch: found 0, expected 1 or more");
  expect_error(run_fathom({"bench", kTinyModel, "-o", "bench.png"}), 2,
               "-o: found 'bench.png', expected a name that ends with .html or .svg");
}

TEST(Cli, BenchWritesAPictureThatLoadsNothing) {
  const TempDir folder;
  for (const char* name : {"bench.html", "bench.svg"}) {
    const std::string path = folder / name;
    const Finished run = run_fathom({"bench",      kTinyModel, "--only",     "prefill,decode,batch",
                                     "--prefill",  "16",       "--at",       "0,64",
                                     "--batch",    "1,2",      "--batch-at", "16",
                                     "--generate", "2",        "--repeat",   "1",
                                     "-t",         "1",        "-o",         path});
    ASSERT_EQ(run.code, 0) << run.err;
    const std::string page = read_file(path, 1 << 20);
    for (const char* part : {"decode at 64", "2 sequences", "limit of this machine", "</svg>"})
      EXPECT_TRUE(has(page, part)) << name << " " << part;
    for (const char* part : {"http:", "https:", "<script", "url(", "nan", "inf\""})
      EXPECT_EQ(std::string(page).find(part) != page.npos,
                part == std::string("http:") && name == std::string("bench.svg"))
          << name << " " << part;  // the namespace of SVG alone looks like an address
  }
}

TEST(Streaming, ExpertsThatDoNotFitAreReadAsTheyAreChosenAndTheAnswerIsTheSame) {
  const std::vector<std::string> arguments = {
      "run",    kBundled, "-p",         "Reach 24 from 3, 8, 1",
      "-c",     "256",    "--temp",     "0.6",
      "--seed", "1",      "--cache",    "f32",
      "-n",     "60",     "--logprobs", "0",
      "--json"};
  std::vector<std::string> limited = arguments;
  limited.insert(limited.end(), {"--memory", "0.022"});
  const json whole = json_lines(run_fathom(arguments).out)[0];
  const Finished small = run_fathom(limited);
  const json streamed = json_lines(small.out)[0];
  EXPECT_EQ(streamed["logprobs"], whole["logprobs"]);
  EXPECT_FALSE(whole.contains("streaming"));
  const json& s = streamed["streaming"];
  EXPECT_GT(s["hits"], 0);
  EXPECT_GT(s["misses"], 0);
  EXPECT_GT(s["read_bytes"], 0);
  EXPECT_GT(s["most_tokens_per_second"], 0);
  EXPECT_LT(s["experts_in_memory"], s["experts"]);
  EXPECT_NE(small.err.find("larger than memory: "), std::string::npos) << small.err;
  EXPECT_NE(small.err.find("% of the experts were in memory"), std::string::npos) << small.err;
}

TEST(Streaming, TheEstimateSaysWhatTheRunWillDo) {
  const auto estimate = [](const char* gib) {
    return json_lines(
        run_fathom({"estimate", kBundled, "-c", "256", "--cache", "f32", "--memory", gib, "--json"})
            .out)[0];
  };
  const json streamed = estimate("0.022");
  EXPECT_FALSE(streamed["fits"]);
  EXPECT_GT(streamed["streaming"]["read_bytes_per_token"], 0);
  EXPECT_GT(streamed["streaming"]["disk_bytes_per_second"], 0);
  EXPECT_FALSE(estimate("1").contains("streaming"));
  const json too_small = estimate("0.01");  // not even what every token needs
  EXPECT_FALSE(too_small["fits"]);
  EXPECT_FALSE(too_small.contains("streaming"));
}

TEST(Streaming, WhatHasNoExpertsOrTooLittleRoomIsRefusedAsBefore) {
  expect_error(run_fathom({"run", kTinyModel, "-p", "x", "-n", "1", "--memory", "0.001"}), 3,
               "(--memory)");
  expect_error(run_fathom({"run", kBundled, "-p", "x", "-n", "1", "--memory", "0.01"}), 3,
               "available are");
  expect_error(run_fathom({"run", kBundled, "x", "--memory", "1", "--ignore-memory"}), 2,
               "--ignore-memory");
}

TEST(Run, AnswersTheSameFromTilesAndFromTheMapping) {
  std::vector<std::string> words = {
      "run", kBundled, "Use 27, 7 and 12 to make 22.", "-n", "24", "--temp", "0", "--raw", "-q"};
  const Finished tiles = run_fathom(words);
  EXPECT_EQ(tiles.code, 0) << tiles.err;
  EXPECT_GT(tiles.out.size(), 8u);  // --raw: else the thoughts alone take all tokens
  words.push_back("--mapped");
  const Finished mapped = run_fathom(words);
  EXPECT_EQ(mapped.code, 0) << mapped.err;
  EXPECT_EQ(mapped.out, tiles.out);
}

// The prompt is shorter than what fast mode expands at a time.
TEST(Run, AnswersAShortPromptTheSameInFastAndStrictMode) {
  std::vector<std::string> words = {
      "run", kBundled, "Use 27, 7 and 12 to make 22.", "-n", "24", "--temp", "0", "--raw", "-q"};
  const Finished fast = run_fathom(words);
  words.insert(words.end(), {"--mla", "strict"});
  const Finished strict = run_fathom(words);
  EXPECT_EQ(fast.code, 0) << fast.err;
  EXPECT_EQ(strict.code, 0) << strict.err;
  EXPECT_GT(fast.out.size(), 8u);
  EXPECT_EQ(strict.out, fast.out);
}

TEST(Run, LeavesTilesOutWhereMemoryIsShortAndAnswersTheSame) {
  const std::string shape[] = {"-c", "128", "--cache", "f32"};
  std::vector<std::string> estimate = {"estimate", kSoftModel, "--json"},
                           words = {"run",    kSoftModel, "abc",    "-n", "24",
                                    "--temp", "1",        "--seed", "3",  "--verbose"};
  estimate.insert(estimate.end(), std::begin(shape), std::end(shape));
  words.insert(words.end(), std::begin(shape), std::end(shape));
  const double total = json_lines(run_fathom(estimate).out)[0]["total_bytes"];
  const auto with_memory = [&](double bytes) {
    std::vector<std::string> limited = words;
    limited.insert(limited.end(), {"--memory", fmt::format("{:.9f}", bytes / (1 << 30))});
    return run_fathom(limited);
  };
  const Finished ample = with_memory(2 * total), tight = with_memory(1.0001 * total);
  EXPECT_EQ(ample.code, 0) << ample.err;
  EXPECT_FALSE(has(ample.err, "arrange")) << ample.err;
  EXPECT_EQ(tight.code, 0) << tight.err;
  EXPECT_TRUE(has(tight.err, "too little memory to arrange the weights")) << tight.err;
  EXPECT_GT(tight.out.size(), 8u);
  EXPECT_EQ(tight.out, ample.out);
}

}  // namespace
}  // namespace fathom
