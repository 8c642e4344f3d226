// Every malformed model of tools/make_hostile_files.py, given to the real program: exit code 2, one
// line that begins with the file, the words the generator expects, and no more than 64 MiB above
// what the program takes to print its version. And a well-formed one whose numbers are not finite.
#include <sys/resource.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <set>

#include "base/file.h"
#include "formats/gguf.h"
#include "tests/base/test_files.h"
#include "tests/cli/subprocess.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

int64_t children_peak_bytes() {
  struct rusage usage {};
  getrusage(RUSAGE_CHILDREN, &usage);
  return int64_t{usage.ru_maxrss} * 1024;
}

TEST(Hostile, EveryMalformedModelIsRefusedInWords) {
  const fs::path folder = fs::path(testing::TempDir()) / "fathom-cli-hostile";
  fs::remove_all(folder);
  run_fathom({"version"});
  const int64_t before = children_peak_bytes();
  const std::string generate = "python3 '" + std::string(FATHOM_SOURCE_DIR) +
                               "/tools/make_hostile_files.py' '" + folder.string() + "' >/dev/null";
  ASSERT_EQ(std::system(generate.c_str()), 0);
  const int64_t generator = children_peak_bytes();
  const std::string ids = (folder / "ids.txt").string();
  std::ofstream(ids) << "1 2 3\n";

  std::ifstream manifest(folder / "manifest.tsv");
  std::string line;
  int cases = 0;
  std::set<std::string> kinds;
  while (std::getline(manifest, line)) {
    const size_t tab = line.find('\t');
    const std::string name = line.substr(0, tab), expected = line.substr(tab + 1);
    const std::string kind = name.substr(0, name.find('/'));
    if (kind == "valid") continue;
    kinds.insert(kind);
    const std::string path = (folder / name).string();
    // A lone safetensors file has no config to load by: `show` reads it.
    std::vector<std::string> arguments = {"logits", path, "--ids",
                                          ids,      "-o", (folder / "out.safetensors").string()};
    if (kind == "tokenizer") arguments = {"tokenize", path, "hello"};
    if (kind == "safetensors") arguments = {"show", path};
    const Finished run = run_fathom(arguments);
    EXPECT_EQ(run.code, 2) << name << ": " << run.err << run.out;
    EXPECT_EQ(run.err.rfind("error: " + path, 0), 0u) << name << ": " << run.err;
    EXPECT_EQ(run.out, "") << name;
    EXPECT_NE(run.err.find(expected), std::string::npos)
        << name << ": expected '" << expected << "' in " << run.err;
    EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << name << ": " << run.err;
    ++cases;
  }
  EXPECT_GE(cases, 200);
  EXPECT_EQ(kinds,
            (std::set<std::string>{"config", "gguf", "safetensors", "tokenizer", "weights"}));
  EXPECT_FALSE(fs::exists(folder / "out.safetensors"));
  EXPECT_LE(children_peak_bytes(), std::max(before + (int64_t{64} << 20), generator));
  fs::remove_all(folder);
}

// A copy of a model in whose last norm one weight is no number.
std::string damaged_model(const TempDir& folder, const std::string& whole = kBundled) {
  std::string bytes = read_file(whole, 1 << 30);
  const Gguf gguf = Gguf::open(whole);
  const TensorInfo& norm = *gguf.find("output_norm.weight");
  const auto offset = static_cast<size_t>(norm.data - gguf.files()[0].bytes().data());
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(bytes.data() + offset + 5 * sizeof(float), &nan, sizeof nan);
  return folder.write("damaged.gguf", bytes);
}

TEST(Hostile, LogitsThatAreNotFiniteAreNoScore) {
  const TempDir folder;
  const std::string model = damaged_model(folder);
  const Finished task =
      run_fathom({"eval", model, "--task", "countdown", "--problems", "3", "--samples", "1"});
  expect_error(task, 4, model + ": 6 answers ended because the model's logits are not finite");
  EXPECT_EQ(task.out, "");
  expect_error(run_fathom({"run", model, "x"}), 4, "the model's logits are not finite");
  const std::string text = folder.write("text.txt", "Use 27");
  expect_error(run_fathom({"eval", model, "--perplexity", text}), 4,
               model + ": token 0 of the text: log-likelihood is not finite");
  const std::string without_bos = damaged_model(folder, kTinyModel);  // nothing predicts token 0
  expect_error(run_fathom({"eval", without_bos, "--perplexity", text}), 4,
               without_bos + ": token 1 of the text: log-likelihood is not finite");
}

TEST(Hostile, AnImatrixOfAModelThatIsNotFiniteIsNotWritten) {
  const TempDir folder;
  const std::string model = damaged_model(folder), text = folder.write("text.txt", "Use 27");
  const std::string out = folder / "imatrix.gguf";
  expect_error(run_fathom({"imatrix", model, "--text", text, "-o", out}), 4,
               model + ": what goes into 'output.weight': column 5: sum of squares nan");
  EXPECT_FALSE(fs::exists(out));
}

}  // namespace
}  // namespace fathom
