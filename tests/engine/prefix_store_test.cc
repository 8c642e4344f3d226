// The prefix cache on disk: what survives a restart, and every way a file can be wrong.
#include "engine/prefix_store.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <fstream>

#include "base/file.h"
#include "formats/safetensors.h"
#include "kernels/attention.h"
#include "tests/base/test_files.h"
#include "tests/engine/traces.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

std::vector<fs::path> block_files(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.path().extension() == ".kv") files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

void write_whole(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

PrefixStoreOptions options_for(const fs::path& folder, const Model& model) {
  return {folder, uint64_t{1} << 30, model_fingerprint(model), {1, 2}};
}

// One life of a program: an engine with a store answers, saves, and is gone.
struct Life {
  Outcome outcome;
  PrefixReuse reuse;
  PrefixStore::Stats stats;
  std::string problem;
};
Life live(const Model& model, Context& ctx, EngineOptions options, const PrefixStoreOptions& store,
          const Request& request) {
  Engine engine(model, ctx, options);
  PrefixStore disk(store, ctx, options.form, engine.cache().view());
  engine.use_store(&disk);
  Life life;
  engine.submit(request);
  std::vector<TokenEvent> events;
  while (engine.step(events)) engine.check();
  for (const TokenEvent& event : events) add(life.outcome, event);
  life.reuse = events.back().reuse;
  engine.save_to_store();
  engine.check();
  life.stats = disk.stats();
  life.problem = disk.last_problem();
  return life;
}

TEST(PrefixStore, WhatWasComputedBeforeARestartIsFoundAndGivesTheSameBits) {
  Context ctx(1);
  for (const char* name : {"v3", "qwen2", "v3-fp8"}) {
    const Model model = load_tiny(name);
    for (const MlaForm form : {MlaForm::kAbsorbed, MlaForm::kExpanded}) {
      for (const DType dtype : {DType::kF32, DType::kBF16}) {
        const TempDir dir;
        const EngineOptions options{kContext, 0, 50, 2, dtype, form};
        const Request request{some_tokens(3, 210), 10, {}, {.top_logprobs = 1}, {}};
        const PrefixStoreOptions store = options_for(dir / "cache", model);
        const Life first = live(model, ctx, options, store, request);
        EXPECT_EQ(first.reuse.cached_tokens, 0);
        EXPECT_EQ(first.stats.saved, 4);
        EXPECT_EQ(block_files(dir.path()).size(), 4u);
        const Life second = live(model, ctx, options, store, request);
        EXPECT_EQ(second.reuse.cached_tokens, 209) << second.problem;
        EXPECT_EQ(second.stats.loaded, 4);
        EXPECT_EQ(second.stats.saved, 0);
        EXPECT_EQ(second.outcome, first.outcome);
        Request longer = request;
        longer.cache_scope = "another";
        EXPECT_EQ(live(model, ctx, options, store, longer).reuse.cached_tokens, 0);
      }
    }
  }
}

class DamagedFile : public testing::Test {
 protected:
  DamagedFile()
      : model_(load_tiny("qwen2")),
        ctx_(1),
        store_(options_for(dir_ / "cache", model_)),
        request_{some_tokens(3, 100), 3, {}, {.top_logprobs = 0}, {}} {
    first_ = live(model_, ctx_, options_, store_, request_);
    choose(true);
  }
  // The full block of the two, or the tail of 38 rows.
  void choose(bool full) {
    std::vector<fs::path> files = block_files(dir_.path());
    ASSERT_EQ(files.size(), 2u);
    std::sort(files.begin(), files.end(), [](const fs::path& a, const fs::path& b) {
      return fs::file_size(a) > fs::file_size(b);
    });
    file_ = files[full ? 0 : 1];
    good_ = read_file(file_, 1 << 24);
    found_without_ = full ? 0 : 64;
  }
  // The answer is the same, the file is not used, and the reason says `what`.
  void expect_ignored(const std::string& bytes, const std::string& what) {
    write_whole(file_, bytes);
    const Life life = live(model_, ctx_, options_, store_, request_);
    EXPECT_EQ(life.outcome, first_.outcome) << what;
    EXPECT_EQ(life.reuse.cached_tokens, found_without_) << what;
    EXPECT_EQ(life.stats.ignored, 1) << what;
    EXPECT_EQ(life.stats.saved, 1) << what;  // a good one takes its place
    EXPECT_NE(life.problem.find(what), std::string::npos) << life.problem;
    EXPECT_TRUE(life.problem.starts_with(file_.string())) << life.problem;
    EXPECT_EQ(read_file(file_, 1 << 24), good_) << what;
  }

  TempDir dir_;
  Model model_;
  Context ctx_;
  EngineOptions options_{.context_tokens = 128};
  PrefixStoreOptions store_;
  Request request_;
  Life first_;
  fs::path file_;
  std::string good_;
  int64_t found_without_ = 0;
};

TEST_F(DamagedFile, OfAnotherLengthIsIgnored) {
  for (const size_t length : {size_t{0}, size_t{1}, size_t{100}, sizeof(PrefixFileHeader),
                              good_.size() / 2, good_.size() - 1})
    expect_ignored(good_.substr(0, length),
                   fmt::format("{} bytes, expected {}", length, good_.size()));
  expect_ignored(good_ + "x", fmt::format("{} bytes, expected", good_.size() + 1));
  choose(false);
  for (const size_t length : {size_t{0}, size_t{1}, sizeof(PrefixFileHeader) - 1,
                              sizeof(PrefixFileHeader), good_.size() / 2, good_.size() - 1})
    expect_ignored(good_.substr(0, length), fmt::format("{} bytes, expected", length));
  expect_ignored(good_ + "x", fmt::format("{} bytes, expected", good_.size() + 1));
  expect_ignored(good_ + std::string(size_t{1} << 20, 'x'), " bytes, expected at most");
}

TEST_F(DamagedFile, WithAnyByteChangedIsIgnored) {
  for (const bool full : {true, false}) {
    choose(full);
    const size_t end = good_.size();
    std::vector<size_t> places;
    for (size_t i = 0; i < sizeof(PrefixFileHeader); i += 3) places.push_back(i);
    for (size_t i = sizeof(PrefixFileHeader); i < end; i += end / 50) places.push_back(i);
    for (size_t i = end - 9; i < end; ++i) places.push_back(i);
    for (const size_t place : places) {
      std::string bytes = good_;
      bytes[place] = static_cast<char>(bytes[place] ^ (1 << place % 8));
      expect_ignored(bytes, "expected");
      if (HasFailure()) FAIL() << "byte " << place << (full ? "" : " of the tail");
    }
  }
}

// Contents that are whole, but not what the name promises.
TEST_F(DamagedFile, OfAnotherTextModelOrProgramIsIgnored) {
  const auto changed = [&](auto change) {
    std::string bytes = good_;
    PrefixFileHeader header;
    std::memcpy(&header, bytes.data(), sizeof header);
    change(header);
    std::memcpy(bytes.data(), &header, sizeof header);
    const size_t body = bytes.size() - 8;
    const uint64_t sum = hash_bytes(std::as_bytes(std::span(bytes)).first(body));
    std::memcpy(bytes.data() + body, &sum, 8);
    return bytes;
  };
  using Header = PrefixFileHeader;
  expect_ignored(changed([](Header& h) { h.magic[0] = 'F'; }), "magic: found Fathomkv");
  expect_ignored(changed([](Header& h) { h.version = 3; }), "version: found 3, expected 2");
  expect_ignored(changed([](Header& h) { h.dtype = 99; }), "dtype: found 99");
  expect_ignored(changed([](Header& h) { h.form ^= 1; }), "form: found");
  expect_ignored(changed([](Header& h) { h.isa = 77; }), "instruction set: found 77");
  expect_ignored(changed([](Header& h) { h.bf16_dot ^= 1; }), "bf16 dot product: found");
  expect_ignored(changed([](Header& h) { h.precision ^= 1; }), "precision: found");
  expect_ignored(changed([](Header& h) { h.layers = 5; }), "layers: found 5");
  expect_ignored(changed([](Header& h) { h.block_tokens = 16; }), "block_tokens: found 16");
  expect_ignored(changed([](Header& h) { h.row_width = 1; }), "row_width: found 1");
  expect_ignored(changed([](Header& h) { h.model.low ^= 1; }), "model: found");
  expect_ignored(changed([](Header& h) { h.program.high ^= 1; }), "program: found");
  expect_ignored(changed([](Header& h) { h.before.low ^= 1; }), "beginning: found");
  expect_ignored(changed([](Header& h) { h.content.high ^= 1; }), "content: found");
  expect_ignored(changed([](Header& h) { h.tokens[63] ^= 1; }), "token 63: found");
  choose(false);
  expect_ignored(changed([](Header& h) { h.program.high ^= 1; }), "program: found");
  expect_ignored(changed([](Header& h) { h.tokens[63] = 1; }), "token 63: found");
  expect_ignored(changed([](Header& h) { h.tokens[20] = -1; }), "hash of the tokens: found");
  expect_ignored(changed([](Header& h) { h.tokens[0] ^= 1; }), "hash of the tokens: found");
  expect_ignored(changed([](Header& h) { h.tokens[0] = -1; }), "hash of the tokens: found");
}

TEST_F(DamagedFile, ThatHasGoneOrIsNoFileIsAMiss) {
  Engine engine(model_, ctx_, options_);
  PrefixStore disk(store_, ctx_, options_.form, engine.cache().view());
  engine.use_store(&disk);
  fs::remove(file_);  // by another process
  EXPECT_EQ(run_alone(engine, request_), first_.outcome);
  EXPECT_EQ(disk.stats().ignored, 0);
  EXPECT_EQ(disk.last_problem(), "");
  engine.save_to_store();
  EXPECT_TRUE(fs::exists(file_));
  fs::remove(file_);
  engine.save_to_store();
  EXPECT_TRUE(fs::exists(file_)) << "gone again, written again";
  EXPECT_FALSE(disk.stats().failed);
  fs::remove(file_);
  fs::create_directory(file_);
  EXPECT_EQ(live(model_, ctx_, options_, store_, request_).outcome, first_.outcome);
  EXPECT_TRUE(fs::is_directory(file_));
}

// Copies under other names that could be ours, older than what we saved: the first to go.
TEST_F(DamagedFile, UnderASecondNameChangesNoBooks) {
  for (const char* rest : {"-00000000000000000000000000000000.kv", ".kv"}) {
    for (const bool full : {true, false}) {
      choose(full);
      uint64_t bytes = 0;
      for (const fs::path& file : block_files(dir_.path())) bytes += fs::file_size(file);
      const fs::path copy = file_.parent_path() / (file_.filename().string().substr(0, 32) + rest);
      fs::copy_file(file_, copy);
      fs::last_write_time(copy, fs::file_time_type::clock::now() - std::chrono::hours(2));
      PrefixStoreOptions smaller = store_;
      smaller.max_bytes = bytes;
      Request parted = request_;
      parted.prompt[full ? 30 : 80] ^= 1;
      const Outcome alone = run_alone(model_, ctx_, options_, parted);
      EXPECT_EQ(live(model_, ctx_, options_, smaller, parted).outcome, alone) << copy;
      EXPECT_EQ(live(model_, ctx_, options_, smaller, request_).outcome, first_.outcome) << copy;
      fs::remove_all(store_.folder);
      live(model_, ctx_, options_, store_, request_);
    }
  }
}

TEST_F(DamagedFile, IsRemoved) {
  for (const std::string& bytes : {good_ + "x", good_.substr(1), "x" + good_.substr(1)}) {
    write_whole(file_, bytes);
    Engine engine(model_, ctx_, options_);
    PrefixStore disk(store_, ctx_, options_.form, engine.cache().view());
    engine.use_store(&disk);
    run_alone(engine, request_);
    EXPECT_FALSE(fs::exists(file_)) << bytes.size();
  }
}

TEST_F(DamagedFile, OfAnotherComputationIsNotEvenLookedAt) {
  PrefixStoreOptions other = store_;
  other.program = {9, 9};
  EXPECT_EQ(live(model_, ctx_, options_, other, request_).reuse.cached_tokens, 0);
  other = store_;
  other.model = {9, 9};
  EXPECT_EQ(live(model_, ctx_, options_, other, request_).reuse.cached_tokens, 0);
  EngineOptions other_dtype = options_;
  for (const DType dtype : {DType::kBF16, DType::kI8}) {
    if (!takes_cache_dtype(model_.config(), dtype)) continue;
    other_dtype.cache_dtype = dtype;
    EXPECT_EQ(live(model_, ctx_, other_dtype, store_, request_).reuse.cached_tokens, 0);
  }
  EXPECT_EQ(block_files(dir_.path()).size(), 8u);
}

TEST(PrefixStore, StaysWithinItsBoundTheLeastRecentlyUsedGoFirst) {
  const TempDir dir;
  const Model model = load_tiny("qwen2");
  Context ctx(1);
  const EngineOptions options{.context_tokens = 256, .cache_tokens = 2048};
  PrefixStoreOptions store = options_for(dir / "cache", model);
  // no tails
  const auto request = [](uint64_t i) { return Request{some_tokens(i, 128), 1, {}, {}, {}}; };
  live(model, ctx, options, store, request(1));
  const uint64_t file_bytes = fs::file_size(block_files(dir.path()).at(0));
  const fs::path stranger = dir.write("cache/notes.txt", "none of ours");
  const fs::path unfinished = block_files(dir.path()).at(0).string() + ".tmp123";
  write_whole(unfinished, "x");
  fs::last_write_time(unfinished, fs::file_time_type::clock::now() - std::chrono::hours(2));

  store.max_bytes = 5 * file_bytes;
  live(model, ctx, options, store, request(2));
  EXPECT_FALSE(fs::exists(unfinished));
  EXPECT_EQ(live(model, ctx, options, store, request(1)).stats.loaded, 2);  // used again
  const Life third = live(model, ctx, options, store, request(3));
  EXPECT_EQ(third.stats.evicted, 1);
  EXPECT_EQ(block_files(dir.path()).size(), 5u);
  EXPECT_EQ(live(model, ctx, options, store, request(2)).reuse.cached_tokens, 64) << "its end went";
  store.max_bytes = 2 * file_bytes;  // a smaller bound holds at once
  Engine engine(model, ctx, options);
  const PrefixStore small(store, ctx, options.form, engine.cache().view());
  EXPECT_EQ(block_files(dir.path()).size(), 2u);
  EXPECT_TRUE(fs::exists(stranger));
  store.max_bytes = file_bytes;  // what does not fit does not push out what is nearer to the begin
  fs::remove_all(dir / "cache");
  const Life one = live(model, ctx, options, store, request(1));
  EXPECT_EQ(one.stats.saved, 1);
  EXPECT_EQ(one.stats.evicted, 0);
  EXPECT_EQ(live(model, ctx, options, store, request(1)).reuse.cached_tokens, 64);
  store.max_bytes = file_bytes - 1;
  EXPECT_EQ(live(model, ctx, options, store, request(1)).stats.saved, 0);
}

TEST(PrefixStore, ABeginningOutlivesWhatFollowsItAlsoOnceItWasLoaded) {
  const TempDir dir;
  const Model model = load_tiny("qwen2");
  Context ctx(1);
  const EngineOptions options{.context_tokens = kContext};
  PrefixStoreOptions store = options_for(dir / "cache", model);
  const Request a{some_tokens(1, 64 * 3), 1, {}, {}, {}};
  const Request b{some_tokens(2, 64 * 2), 1, {}, {}, {}};
  live(model, ctx, options, store, a);
  store.max_bytes = 4 * fs::file_size(block_files(dir.path()).at(0));
  EXPECT_EQ(live(model, ctx, options, store, a).stats.loaded, 3);
  EXPECT_EQ(live(model, ctx, options, store, b).stats.evicted, 1);
  EXPECT_EQ(live(model, ctx, options, store, a).reuse.cached_tokens, 128);
}

// The longest of what begins alike is kept and found, whole blocks too; another user's is not.
TEST(PrefixStore, ATailIsFoundUntilSomethingBeginsWithIt) {
  const TempDir dir;
  const Model model = load_tiny("v3");
  Context ctx(1);
  const PrefixStoreOptions store = options_for(dir / "cache", model);
  const std::vector<int32_t> tokens = some_tokens(1, 140);
  const auto ask = [&](int64_t count, const char* scope = "") {
    Request request{{tokens.begin(), tokens.begin() + count}, 1, {}, {}, {}};
    request.cache_scope = scope;
    const Life life = live(model, ctx, {.context_tokens = 256}, store, request);
    EXPECT_EQ(life.problem, "");
    return std::pair{life.reuse.cached_tokens, life.stats.saved};
  };
  using Pair = std::pair<int64_t, int64_t>;
  EXPECT_EQ(ask(20), Pair(0, 1));
  EXPECT_EQ(ask(30), Pair(20, 1));
  EXPECT_EQ(block_files(dir.path()).size(), 1u);
  EXPECT_EQ(ask(20), Pair(19, 0)) << "is in the longer one";
  EXPECT_EQ(ask(140), Pair(30, 3));
  EXPECT_EQ(block_files(dir.path()).size(), 3u);
  EXPECT_EQ(ask(30), Pair(29, 0)) << "out of a full block";
  EXPECT_EQ(ask(138), Pair(137, 0));
  EXPECT_EQ(ask(30, "another"), Pair(0, 1));
  Request other{tokens, 1, {}, {}, {}};
  other.prompt[137] ^= 1;
  EXPECT_EQ(live(model, ctx, {.context_tokens = 256}, store, other).reuse.cached_tokens, 137);
}

// Nor is a tail saved that would never be read.
TEST(PrefixStore, NoFileIsReadForAFewEqualTokens) {
  const TempDir dir;
  const Model model = load_tiny("v3");
  Context ctx(1);
  const PrefixStoreOptions store = options_for(dir / "cache", model);
  const std::vector<int32_t> prompt = some_tokens(1, 64 + BlockPool::kAkin - 1);
  const auto ask = [&](const std::vector<int32_t>& tokens) {
    return live(model, ctx, {.context_tokens = 256}, store, {tokens, 1, {}, {}, {}});
  };
  EXPECT_EQ(ask(prompt).stats.saved, 1);
  const fs::path first = block_files(dir.path()).at(0);
  for (const int64_t equal : {int64_t{1}, BlockPool::kAkin - 1, BlockPool::kAkin}) {
    std::vector<int32_t> other = some_tokens(static_cast<uint64_t>(7 + equal), 60);
    std::copy_n(prompt.begin(), equal, other.begin());
    other[static_cast<size_t>(equal)] = prompt[static_cast<size_t>(equal)] ^ 1;
    const int64_t read = equal < BlockPool::kAkin ? 0 : 1;
    const Life life = ask(other);
    EXPECT_EQ(life.reuse.cached_tokens, read * equal);
    EXPECT_EQ(life.stats.loaded, read) << equal;
    EXPECT_EQ(life.reuse.end, read ? ReuseEnd::kTokenDiffers : ReuseEnd::kNothingCached) << equal;
    for (const fs::path& file : block_files(dir.path())) {
      if (file != first) fs::remove(file);
    }
  }
}

// As from memory.
TEST(PrefixStore, SaysWhyReuseEnded) {
  const TempDir dir;
  const Model model = load_tiny("v3");
  Context ctx(1);
  const PrefixStoreOptions store = options_for(dir / "cache", model);
  const std::vector<int32_t> prompt = some_tokens(1, 64);
  const auto reuse = [&](std::vector<int32_t> tokens) {
    const Request request{std::move(tokens), 1, {}, {}, {}};
    const Life life = live(model, ctx, {.context_tokens = 256}, store, request);
    EXPECT_EQ(life.problem, "");
    return std::pair{life.reuse.cached_tokens, life.reuse.end};
  };
  using Pair = std::pair<int64_t, ReuseEnd>;
  EXPECT_EQ(reuse(prompt), Pair(0, ReuseEnd::kNothingCached));
  EXPECT_EQ(reuse(prompt), Pair(63, ReuseEnd::kPromptEnd));
  std::vector<int32_t> longer = prompt;
  longer.insert(longer.end(), {1, 2, 3});
  EXPECT_EQ(reuse(longer), Pair(64, ReuseEnd::kPromptEnd));
  std::vector<int32_t> parted = prompt;
  parted[30] ^= 1;
  EXPECT_EQ(reuse(parted), Pair(30, ReuseEnd::kTokenDiffers));
  parted[0] ^= 1;
  EXPECT_EQ(reuse({parted.begin(), parted.begin() + 20}), Pair(0, ReuseEnd::kTokenDiffers));
  parted.resize(40);
  EXPECT_EQ(reuse(parted), Pair(20, ReuseEnd::kNothingCached)) << "that one only ends";
}

class Folder : public testing::Test {
 protected:
  Folder() : model_(load_tiny("v3")), ctx_(1), engine_(model_, ctx_, {.context_tokens = 256}) {}
  PrefixStore open() {
    return {options_for(folder_, model_), ctx_, MlaForm::kAbsorbed, engine_.cache().view()};
  }
  std::string error_of_open() {
    return error_of([&] { open(); });
  }
  // Makes all of it the unprivileged user's.
  void give_away() {
    if (::getuid() != 0) return;
    EXPECT_EQ(::chown(dir_.path().c_str(), 65534, 65534), 0);
    for (const auto& entry : fs::recursive_directory_iterator(dir_.path()))
      EXPECT_EQ(::lchown(entry.path().c_str(), 65534, 65534), 0);
  }

  TempDir dir_;
  fs::path folder_ = dir_ / "cache";
  Model model_;
  Context ctx_;
  Engine engine_;
};

TEST_F(Folder, OfAnotherComputationThatCannotBeReadIsSkipped) {
  open();
  const fs::path own = fs::directory_iterator(folder_)->path();
  const fs::path other = folder_ / std::string(32, 'a'), loop = folder_ / std::string(32, 'b');
  fs::create_directory(other);
  fs::create_directory_symlink(loop, loop);
  fs::permissions(other, fs::perms::none);
  give_away();
  {
    const Unprivileged scope;
    ASSERT_TRUE(fs::exists(own));
    EXPECT_NO_THROW(open());
    fs::permissions(own, fs::perms::none);
    EXPECT_TRUE(error_of_open().starts_with(own.string() + ": cannot list: ")) << error_of_open();
    fs::permissions(own, fs::perms::owner_all);
    fs::permissions(folder_, fs::perms::owner_exec | fs::perms::owner_write);
    EXPECT_TRUE(error_of_open().starts_with(folder_.string() + ": cannot list: "));
    fs::permissions(folder_, fs::perms::none);
    EXPECT_TRUE(error_of_open().starts_with(own.string() + ": cannot make this folder"));
    fs::permissions(folder_, fs::perms::owner_all);
  }
  fs::permissions(other, fs::perms::owner_all);
}

TEST_F(Folder, ThatOthersOwnOrMayWriteToIsRefused) {
  open();
  const fs::path own = fs::directory_iterator(folder_)->path();
  for (const fs::path& folder : {folder_, own}) {
    for (const auto& [perms, mode] :
         {std::pair{fs::perms::group_write, "0720"}, {fs::perms::others_write, "0702"}}) {
      fs::permissions(folder, fs::perms::owner_all | perms);
      const std::string error = error_of_open();
      EXPECT_TRUE(error.starts_with(folder.string() + ": this folder of the prefix cache: found " +
                                    "mode " + mode + ", owner "))
          << error;
    }
    fs::permissions(folder, fs::perms::owner_all | fs::perms::group_read);
    EXPECT_NO_THROW(open());
  }
  if (::getuid() != 0) return;
  give_away();
  EXPECT_NE(error_of_open().find("owner 65534, expected 0700, owner 0"), std::string::npos);
}

TEST_F(Folder, WhatCannotBeRemovedEndsTheWriting) {
  engine_.submit({some_tokens(1, 140), 1, {}, {}, {}});
  std::vector<TokenEvent> events;
  while (engine_.step(events)) {
  }
  PrefixStore first = open();
  engine_.use_store(&first);
  engine_.save_to_store();
  ASSERT_EQ(first.stats().saved, 3);
  const fs::path own = block_files(folder_).at(0).parent_path();
  give_away();
  const Unprivileged scope;
  fs::permissions(own, fs::perms::owner_read | fs::perms::owner_exec);
  PrefixStoreOptions options = options_for(folder_, model_);
  options.max_bytes = fs::file_size(block_files(folder_).at(0));
  const PrefixStore small(options, ctx_, MlaForm::kAbsorbed, engine_.cache().view());
  fs::permissions(own, fs::perms::owner_all);
  EXPECT_TRUE(small.stats().failed);
  EXPECT_EQ(small.stats().evicted, 0);
  EXPECT_NE(small.last_problem().find(": cannot remove: "), std::string::npos)
      << small.last_problem();
}

TEST(PrefixStore, AFailedWriteIsNoErrorAndEndsTheWriting) {
  const TempDir dir;
  const Model model = load_tiny("v3");
  Context ctx(1);
  Engine engine(model, ctx, {.context_tokens = 256});
  PrefixStore disk(options_for(dir / "cache", model), ctx, MlaForm::kAbsorbed,
                   engine.cache().view());
  engine.use_store(&disk);
  run_alone(engine, {some_tokens(1, 140), 1, {}, {}, {}});
  fs::remove_all(dir / "cache");
  engine.save_to_store();
  EXPECT_TRUE(disk.stats().failed);
  EXPECT_EQ(disk.stats().saved, 0);
  EXPECT_NE(disk.last_problem().find("cannot"), std::string::npos) << disk.last_problem();
  EXPECT_EQ(error_of([&] {
              PrefixStore(options_for(dir.write("file", "x"), model), ctx, MlaForm::kAbsorbed,
                          engine.cache().view());
            }).substr(0, (dir / "file").string().size() + 30),
            (dir / "file").string() + ": cannot make this folder for ");
}

TEST(PrefixStore, FilesAreForTheirOwnerAlone) {
  const TempDir dir;
  const Model model = load_tiny("v3");
  Context ctx(1);
  live(model, ctx, {.context_tokens = 256}, options_for(dir / "a/cache/", model),
       {some_tokens(1, 70), 1, {}, {}, {}});
  const fs::path file = block_files(dir.path()).at(0);
  EXPECT_EQ(fs::status(file).permissions(), fs::perms::owner_read | fs::perms::owner_write);
  EXPECT_EQ(fs::status(file.parent_path()).permissions(), fs::perms::owner_all);
  EXPECT_EQ(fs::status(dir / "a/cache").permissions(), fs::perms::owner_all);
}

TEST(ModelFingerprint, SeesAChangedWeightConfigOrName) {
  const TempDir dir;
  const fs::path source = FATHOM_SOURCE_DIR "/tests/golden/models/v3";
  const auto copy = [&](auto change) {
    fs::copy_file(source / "config.json", dir / "config.json",
                  fs::copy_options::overwrite_existing);
    const Safetensors file = Safetensors::open(source / "model.safetensors");
    std::vector<TensorToWrite> tensors;
    std::vector<std::byte> first(file.tensors()[0].data,
                                 file.tensors()[0].data + file.tensors()[0].bytes);
    change(first);
    for (const TensorInfo& t : file.tensors())
      tensors.push_back({t.name, t.dtype, t.shape, {t.data, t.bytes}});
    tensors[0].data = first;
    write_safetensors(dir / "model.safetensors", tensors);
    return model_fingerprint(Model::load(dir.path()));
  };
  const Hash128 whole = model_fingerprint(load_tiny("v3"));
  EXPECT_EQ(copy([](auto&) {}), whole) << "wherever it lies";
  EXPECT_NE(copy([](auto& bytes) { bytes[bytes.size() / 2] ^= std::byte{1}; }), whole);
  EXPECT_EQ(copy([](auto&) {}), whole);
  std::ofstream(dir / "config.json", std::ios::app) << "\n";
  EXPECT_NE(model_fingerprint(Model::load(dir.path())), whole);
  const std::string gguf = FATHOM_SOURCE_DIR "/tests/golden/gguf/";
  EXPECT_EQ(model_fingerprint(Model::load(gguf + "v3-BF16.gguf")),
            model_fingerprint(Model::load(gguf + "v3-BF16.gguf")));
  EXPECT_NE(model_fingerprint(Model::load(gguf + "qwen2-256-Q4_0.gguf")),
            model_fingerprint(Model::load(gguf + "qwen2-256-Q4_1.gguf")));
}

}  // namespace
}  // namespace fathom
