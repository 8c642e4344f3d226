#include "formats/checkpoint.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "tests/base/test_files.h"
#include "tests/formats/gguf_builder.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

constexpr std::byte kData[8] = {};

// A safetensors file of F32 tensors [2] of these names.
void write_tensors(const fs::path& path, const std::vector<std::string>& names) {
  std::vector<TensorToWrite> tensors;
  for (const std::string& name : names) tensors.push_back({name, DType::kF32, {2}, kData});
  write_safetensors(path, tensors);
}

std::string refusal(const fs::path& path) {
  return error_of([&] { Checkpoint::open(path); });
}

constexpr const char* kIndex = "model.safetensors.index.json";

TEST(Checkpoint, AFolderWithOneFileGivesItsTensorsAndSideFiles) {
  const TempDir dir;
  write_tensors(dir / "model.safetensors", {"b", "a"});
  dir.write("config.json", "{}");
  Checkpoint opened = Checkpoint::open(dir.path());
  const TensorInfo* b = opened.find("b");
  const Checkpoint model = std::move(opened);
  EXPECT_EQ(model.kind(), Checkpoint::Kind::kFolder);
  EXPECT_EQ(model.path(), dir.path());
  EXPECT_EQ(model.gguf(), nullptr);
  ASSERT_EQ(model.tensors().size(), 2u);
  EXPECT_EQ(model.tensors()[0], b);
  EXPECT_EQ(model.find("b"), b);
  EXPECT_EQ(b->name, "b");
  EXPECT_EQ(model.find("c"), nullptr);
  EXPECT_EQ(model.file_name(*b), (dir / "model.safetensors").string());
  EXPECT_EQ(model.side_file("config.json", 2), "{}");
  EXPECT_EQ(model.side_file("tokenizer.json", 2), std::nullopt);
  EXPECT_EQ(error_of([&] { model.side_file("config.json", 1); }),
            (dir / "config.json").string() + ": 2 bytes, expected at most 1");
  EXPECT_EQ(error_of([&] { model.side_file("../config.json", 2); }),
            dir.path().string() + ": file name '../config.json', expected a plain name");
}

TEST(Checkpoint, OneSafetensorsFileSeesTheFilesBesideIt) {
  const TempDir dir;
  write_tensors(dir / "other.safetensors", {"a"});
  dir.write("config.json", "{}");
  const Checkpoint model = Checkpoint::open(dir / "other.safetensors");
  EXPECT_EQ(model.kind(), Checkpoint::Kind::kSafetensors);
  EXPECT_EQ(model.side_file("config.json", 99), "{}");
  EXPECT_NE(model.find("a"), nullptr);
}

TEST(Checkpoint, AGgufIsKnownByNameOrMagicAndHasNoSideFiles) {
  const TempDir dir;
  const std::string bytes =
      GgufBuilder().str("general.architecture", "llama").tensor("t", {2}, 0, "12345678").bytes();
  dir.write("config.json", "{}");
  for (const char* name : {"m.gguf", "blob"}) {
    dir.write(name, bytes);
    Checkpoint opened = Checkpoint::open(dir / name);
    const Checkpoint model = std::move(opened);
    EXPECT_EQ(model.kind(), Checkpoint::Kind::kGguf);
    ASSERT_NE(model.gguf(), nullptr);
    EXPECT_EQ(model.gguf()->string("general.architecture"), "llama");
    EXPECT_EQ(model.find("t"), &model.gguf()->tensors()[0]);
    EXPECT_EQ(model.file_name(*model.find("t")), (dir / name).string());
    EXPECT_EQ(model.side_file("config.json", 99), std::nullopt);
  }
}

TEST(Checkpoint, AFolderMayHoldOneGgufModelEvenIfSplit) {
  const TempDir dir;
  for (const uint16_t no : {0, 1}) {
    GgufBuilder part;
    part.key("split.no", 2, le_bytes(no))
        .key("split.count", 2, le_bytes<uint16_t>(2))
        .key("split.tensors.count", 5, le_bytes(2));
    dir.write("m-0000" + std::to_string(no + 1) + "-of-00002.gguf",
              part.tensor("t" + std::to_string(no), {2}, 0, "12345678").bytes());
  }
  dir.write("config.json", "{}");
  const Checkpoint model = Checkpoint::open(dir.path());
  EXPECT_EQ(model.kind(), Checkpoint::Kind::kFolder);
  ASSERT_NE(model.gguf(), nullptr);
  EXPECT_EQ(model.tensors().size(), 2u);
  EXPECT_EQ(model.file_name(*model.find("t1")), (dir / "m-00002-of-00002.gguf").string());
  EXPECT_EQ(model.side_file("config.json", 99), "{}");
  dir.write("another.gguf", "GGUF");
  EXPECT_EQ(refusal(dir.path()), dir.path().string() +
                                     ": holds 2 GGUF models ('another.gguf', "
                                     "'m-00001-of-00002.gguf', ...), expected one: name the file");
}

TEST(Checkpoint, WhatIsNoModelIsRefused) {
  const TempDir dir;
  const std::string folder = dir.path().string();
  EXPECT_EQ(refusal(dir.path()), folder +
                                     ": holds no model, expected model.safetensors, "
                                     "model.safetensors.index.json or a .gguf file");
  EXPECT_EQ(refusal(dir / "missing"), folder + "/missing: cannot open: No such file or directory");
  EXPECT_EQ(refusal(dir.write("m.bin", "PK\x03\x04")),
            folder + "/m.bin: expected a folder, a .safetensors file or a GGUF");
  EXPECT_EQ(refusal(dir.write("empty", "")),
            folder + "/empty: expected a folder, a .safetensors file or a GGUF");
  write_tensors(dir / "model.safetensors", {});
  dir.write(kIndex, "{}");
  EXPECT_EQ(
      refusal(dir.path()),
      folder + ": holds both model.safetensors and model.safetensors.index.json, expected one");
}

class ShardedCheckpoint : public testing::Test {
 protected:
  void SetUp() override {
    write_tensors(dir_ / "one.safetensors", {"a", "b"});
    write_tensors(dir_ / "two.safetensors", {"c"});
  }
  std::string refusal_of_index(const std::string& index) {
    dir_.write(kIndex, index);
    return refusal(dir_.path());
  }
  std::string index_path() const { return (dir_ / kIndex).string(); }
  const TempDir dir_;
};

TEST_F(ShardedCheckpoint, OpensAllShardsOfTheIndex) {
  dir_.write(
      kIndex,
      R"({"metadata": {"total_size": 24}, "weight_map": {"c": "two.safetensors", "a": "one.safetensors", "b": "one.safetensors"}})");
  Checkpoint opened = Checkpoint::open(dir_.path());
  const TensorInfo* c = opened.find("c");
  const Checkpoint model = std::move(opened);
  ASSERT_EQ(model.tensors().size(), 3u);
  EXPECT_EQ(model.find("c"), c);
  EXPECT_EQ(model.file_name(*c), (dir_ / "two.safetensors").string());
  EXPECT_EQ(model.file_name(*model.find("a")), (dir_ / "one.safetensors").string());
  EXPECT_EQ(model.tensors()[2], c);
  model.check_unchanged();
  fs::last_write_time(dir_ / "two.safetensors",
                      fs::last_write_time(dir_ / "two.safetensors") + std::chrono::seconds(1));
  EXPECT_EQ(error_of([&] { model.check_unchanged(); }),
            (dir_ / "two.safetensors").string() + ": changed while in use");
}

TEST_F(ShardedCheckpoint, TheIndexIsTyped) {
  EXPECT_EQ(refusal_of_index("[]"), index_path() + ": found an array, expected an object");
  EXPECT_EQ(refusal_of_index("{}"), index_path() + ": weight_map: missing");
  EXPECT_EQ(refusal_of_index(R"({"weight_map": 3})"),
            index_path() + ": weight_map: found 3, expected an object");
  EXPECT_EQ(refusal_of_index(R"({"weight_map": {"a": 3}})"),
            index_path() + ": weight_map: 'a': found 3, expected a file name");
  EXPECT_TRUE(refusal_of_index("{").starts_with(index_path() + ": invalid JSON"));
  EXPECT_EQ(refusal_of_index(std::string(Limits{}.config_file_bytes + 1, ' ')),
            index_path() + ": 16777217 bytes, expected at most 16777216");
}

TEST_F(ShardedCheckpoint, TheIndexAndTheShardsMustAgreeTensorForTensor) {
  const std::string one = (dir_ / "one.safetensors").string(),
                    two = (dir_ / "two.safetensors").string();
  EXPECT_EQ(
      refusal_of_index(
          R"({"weight_map": {"a": "one.safetensors", "b": "one.safetensors", "x": "one.safetensors"}})"),
      one + ": tensor 'x': missing (the index places it here)");
  EXPECT_EQ(refusal_of_index(R"({"weight_map": {"a": "one.safetensors"}})"),
            one + ": tensor 'b': not in the index");
  write_tensors(dir_ / "two.safetensors", {"c", "b"});  // "b" in both
  EXPECT_EQ(
      refusal_of_index(
          R"({"weight_map": {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}})"),
      two + ": tensor 'b': the index places it in 'one.safetensors'");
  EXPECT_EQ(
      refusal_of_index(R"({"weight_map": {"a": "one.safetensors", "c": "three.safetensors"}})"),
      index_path() + ": weight_map: file 'three.safetensors': missing");
}

TEST_F(ShardedCheckpoint, ShardNamesArePlainComponents) {
  for (const std::string name : {"../one.safetensors", "sub/one.safetensors", "/etc/passwd", "..",
                                 ".", "", "a\\\\b", "one\\u0000x"}) {
    const std::string text = refusal_of_index(R"({"weight_map": {"a": ")" + name + R"("}})");
    EXPECT_TRUE(text.starts_with(dir_.path().string() + ": file name '") &&
                text.ends_with("', expected a plain name"))
        << text;
  }
}

TEST_F(ShardedCheckpoint, LinksMayNotLeaveTheFolder) {
  const TempDir outside;
  write_tensors(outside / "secret.safetensors", {"a"});
  fs::create_symlink(outside / "secret.safetensors", dir_ / "link.safetensors");
  EXPECT_EQ(refusal_of_index(R"({"weight_map": {"a": "link.safetensors"}})"),
            (dir_ / "link.safetensors").string() + ": is a link that leaves its folder");
  fs::create_directory_symlink(outside.path(), dir_ / "folder");
  fs::create_symlink("one.safetensors", dir_ / "inside.safetensors");
  dir_.write(kIndex, R"({"weight_map": {"a": "inside.safetensors", "b": "inside.safetensors"}})");
  EXPECT_EQ(Checkpoint::open(dir_.path()).tensors().size(), 2u);
  fs::create_symlink(outside / "secret.safetensors", dir_ / "config.json");
  const Checkpoint model = Checkpoint::open(dir_.path());
  EXPECT_EQ(error_of([&] { model.side_file("config.json", 999); }),
            (dir_ / "config.json").string() + ": is a link that leaves its folder");
}

TEST_F(ShardedCheckpoint, FilesAreRefusedOneAboveTheLimit) {
  std::string map;
  for (uint64_t i = 0; i <= Limits{}.split_files; ++i) {
    if (i == Limits{}.split_files) {  // at the limit the first missing file is the complaint
      EXPECT_EQ(refusal_of_index(R"({"weight_map": {)" + map + "}}"),
                index_path() + ": weight_map: file '0': missing");
    }
    map += (i > 0 ? ",\"" : "\"") + std::to_string(i) + "\":\"" + std::to_string(i) + "\"";
  }
  EXPECT_EQ(refusal_of_index(R"({"weight_map": {)" + map + "}}"),
            index_path() + ": weight_map: 1025 files, expected at most 1024");
}

TEST(Checkpoint, ASnapshotOfTheHuggingFaceCacheMayLinkIntoItsOwnBlobsOnly) {
  const TempDir dir;
  const fs::path snapshot = dir / "models--x/snapshots/rev";
  fs::create_directories(snapshot);
  fs::create_directories(dir / "models--x/blobs");
  write_tensors(dir / "models--x/blobs/abc", {"a"});
  fs::create_symlink("../../blobs/abc", snapshot / "model.safetensors");
  EXPECT_NE(Checkpoint::open(snapshot).find("a"), nullptr);
  write_tensors(dir / "elsewhere", {"a"});
  fs::remove(snapshot / "model.safetensors");
  fs::create_symlink("../../../elsewhere", snapshot / "model.safetensors");
  EXPECT_EQ(refusal(snapshot),
            (snapshot / "model.safetensors").string() + ": is a link that leaves its folder");
}

}  // namespace
}  // namespace fathom
