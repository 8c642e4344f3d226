// label: slow
// SmolLM2-135M, the model `make run` fetches: does the program read real files rightly? Its
// perplexity is compared with the double-precision twin's, and it must know a capital. `make
// test-slow` fetches the model first.
#include <gtest/gtest.h>

#include <cmath>

#include "base/file.h"
#include "tests/cli/subprocess.h"
#include "tests/reference/model_ref.h"
#include "text/tokenizer.h"

namespace fathom {
namespace {

const std::string kModel =
    std::string(FATHOM_SOURCE_DIR) + "/models/SmolLM2-135M-Instruct.Q4_1.gguf";

TEST(RealWeights, PerplexityIsTheTwins) {
  // The first 256 tokens: the twin multiplies in plain loops.
  const Model model = Model::load(kModel);
  const Tokenizer tokenizer = Tokenizer::from_checkpoint(model.checkpoint());
  const std::string text =
      read_file(std::string(FATHOM_SOURCE_DIR) + "/tests/golden/eval/public_domain.txt", 1 << 20);
  std::vector<int32_t> ids = tokenizer.encode(text, false);
  ids.resize(256);
  const auto logits = reference::model_logits(model, ids, Precision::kF32);
  const auto vocab = static_cast<size_t>(model.config().vocab_size);
  double nll = 0;
  for (size_t t = 0; t + 1 < ids.size(); ++t) {
    const double* row = logits.data() + t * vocab;
    double largest = row[0], sum = 0;
    for (size_t i = 0; i < vocab; ++i) largest = std::max(largest, row[i]);
    for (size_t i = 0; i < vocab; ++i) sum += std::exp(row[i] - largest);
    nll -= row[ids[t + 1]] - largest - std::log(sum);
  }
  const double expected = std::exp(nll / static_cast<double>(ids.size() - 1));

  const std::string sample = testing::TempDir() + "fathom-sample.txt";
  write_file_atomically(sample, tokenizer.decode(ids));
  const Finished run = run_fathom({"eval", kModel, "--perplexity", sample, "--json"});
  ASSERT_EQ(run.code, 0) << run.err;
  const size_t at = run.out.find("\"perplexity\":");
  ASSERT_NE(at, std::string::npos) << run.out;
  const double found = std::strtod(run.out.c_str() + at + 13, nullptr);
  std::printf("perplexity %.6f, twin %.6f\n", found, expected);
  EXPECT_NEAR(found / expected, 1.0, 0.005);
}

TEST(RealWeights, KnowsACapitalAtTemperatureZero) {
  const Finished run =
      run_fathom({"run", kModel, "What is the capital of France?", "--temp", "0", "-n", "40"});
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_NE(run.out.find("Paris"), std::string::npos) << run.out;
}

}  // namespace
}  // namespace fathom
