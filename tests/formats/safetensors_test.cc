#include "formats/safetensors.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "tests/base/test_files.h"

namespace fathom {
namespace {

std::string u64(uint64_t n) { return std::string(reinterpret_cast<const char*>(&n), sizeof n); }

// A file of this header and this many bytes of data.
std::string file_of(const std::string& header, size_t data_bytes) {
  return u64(header.size()) + header + std::string(data_bytes, 'd');
}

std::string refusal_of_bytes(const std::string& bytes) {
  return error_of([&] { Safetensors::parse(std::as_bytes(std::span(bytes)), "f"); });
}
std::string refusal(const std::string& header, size_t data_bytes) {
  return refusal_of_bytes(file_of(header, data_bytes));
}

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" +
         offsets + "}";
}

std::vector<std::byte> some_bytes(size_t count) {
  std::vector<std::byte> bytes(count);
  for (size_t i = 0; i < count; ++i) bytes[i] = static_cast<std::byte>(i * 7 + 1);
  return bytes;
}

TEST(Safetensors, WrittenTensorsReadBackWithNamesShapesTypesAndBytes) {
  const TempDir dir;
  const std::vector<std::byte> data = some_bytes(100);
  const std::span all(data);
  const std::vector<TensorToWrite> written = {
      {"b.weight", DType::kBF16, {3, 4}, all.first(24)},
      {"empty", DType::kF32, {0, 5}, {}},
      {"a \"quoted\" é\n", DType::kU8, {2, 1, 3}, all.subspan(24, 6)},
      {"scalar", DType::kF64, {}, all.subspan(30, 8)},
      {"fp8", DType::kF8E4M3, {7}, all.subspan(40, 7)},
      {"bool", DType::kBool, {1}, all.subspan(50, 1)},
  };
  const std::map<std::string, std::string> metadata = {{"format", "pt"}, {"note", "é\"\n"}};
  write_safetensors(dir / "f.safetensors", written, metadata);

  const Safetensors read = Safetensors::open(dir / "f.safetensors", 3);
  EXPECT_EQ(read.metadata(), metadata);
  ASSERT_EQ(read.tensors().size(), written.size());
  for (size_t i = 0; i < written.size(); ++i) {  // the order written is the order in the file
    const TensorInfo& tensor = read.tensors()[i];
    EXPECT_EQ(tensor.name, written[i].name);
    EXPECT_EQ(tensor.shape, written[i].shape);
    EXPECT_EQ(tensor.dtype, written[i].dtype);
    EXPECT_EQ(tensor.file, 3u);
    ASSERT_EQ(tensor.bytes, written[i].data.size());
    EXPECT_TRUE(std::equal(written[i].data.begin(), written[i].data.end(), tensor.data));
    EXPECT_EQ(read.find(written[i].name), &tensor);
  }
  EXPECT_EQ(read.find("b"), nullptr);
  // Mappings are page aligned, so the first tensor's address shows the alignment within the file.
  EXPECT_EQ(reinterpret_cast<uintptr_t>(read.tensors()[0].data) % 8, 0u);
}

TEST(Safetensors, TensorsMadeInPiecesAreTheSameFile) {
  const TempDir dir;
  const std::vector<std::byte> data = some_bytes((2 << 20) + 6);  // two whole pieces and a rest
  const auto count = static_cast<int64_t>(data.size() / 2);
  std::vector<TensorToWrite> tensors = {{"a", DType::kBF16, {count}, data},
                                        {"none", DType::kF32, {0}, {}}};
  const FileDigest whole = write_safetensors(dir / "whole", tensors);
  std::vector<uint64_t> begins;
  tensors[0].data = {};
  tensors[0].make = [&](uint64_t begin, std::span<std::byte> out) {
    begins.push_back(begin);
    std::copy_n(data.begin() + static_cast<std::ptrdiff_t>(begin), out.size(), out.begin());
  };
  tensors[1].make = [](uint64_t, std::span<std::byte>) { FAIL() << "nothing to make"; };
  EXPECT_EQ(write_safetensors(dir / "pieces", tensors), whole);
  EXPECT_EQ(digest_file(dir / "pieces"), whole);
  EXPECT_EQ(begins, (std::vector<uint64_t>{0, 1 << 20, 2 << 20}));
}

TEST(Safetensors, AFileWithoutTensorsIsLegal) {
  const TempDir dir;
  write_safetensors(dir / "f", {});
  EXPECT_TRUE(Safetensors::open(dir / "f").tensors().empty());
}

TEST(Safetensors, AFailedWriteKeepsTheOldFile) {
  const TempDir dir;
  std::filesystem::create_directories(dir / "f/x");  // a folder that rename cannot replace
  const std::string path = (dir / "f").string();
  EXPECT_EQ(error_of([&] { write_safetensors(path, {}); }),
            path + ": cannot rename to: Is a directory");
}

TEST(SafetensorsDeathTest, WritingWhatIsInconsistentIsABug) {
  const TempDir dir;
  const std::vector<std::byte> data = some_bytes(8);
  const TensorToWrite good{"a", DType::kF32, {2}, data};
  const auto write = [&](std::vector<TensorToWrite> tensors) {
    write_safetensors(dir / "f", tensors);
  };
  EXPECT_DEATH(write({good, good}), "bug at");
  EXPECT_DEATH(write({{"a", DType::kF32, {3}, data}}), "bug at");
  EXPECT_DEATH(write({{"__metadata__", DType::kF32, {2}, data}}), "bug at");
  EXPECT_DEATH(write({{"a\xff", DType::kF32, {2}, data}}), "bug at");
  EXPECT_DEATH(write({{"a", DType::kQ8_0, {32}, {}}}), "bug at");
}

TEST(Safetensors, PointersStayValidWhenMoved) {
  const TempDir dir;
  const std::vector<std::byte> data = some_bytes(8);
  write_safetensors(dir / "f", std::vector<TensorToWrite>{{"a", DType::kF32, {2}, data}});
  Safetensors first = Safetensors::open(dir / "f");
  const TensorInfo* tensor = first.find("a");
  const Safetensors second = std::move(first);
  EXPECT_EQ(second.find("a"), tensor);
  EXPECT_EQ(tensor->data[7], data[7]);
}

TEST(Safetensors, HeadersMayBePaddedAndOutOfFileOrder) {
  const std::string header = "{" + entry("b", "U8", "[1]", "[4,5]") + ", " +
                             entry("a", "F32", "[1]", "[0,4]") + "," +
                             entry("zero", "F32", "[7,0]", "[4,4]") + "}   ";
  const std::string bytes = file_of(header, 5);
  const Safetensors read = Safetensors::parse(std::as_bytes(std::span(bytes)), "f");
  ASSERT_EQ(read.tensors().size(), 3u);
  EXPECT_EQ(read.tensors()[0].name, "a");
  EXPECT_EQ(read.tensors()[1].name, "zero");
  EXPECT_EQ(read.tensors()[2].name, "b");
}

TEST(Safetensors, TheHeaderLengthIsCheckedAgainstTheFileAndTheLimit) {
  EXPECT_EQ(refusal_of_bytes(""), "f: 0 bytes, expected at least 8 (the header's length)");
  EXPECT_EQ(refusal_of_bytes("1234567"), "f: 7 bytes, expected at least 8 (the header's length)");
  EXPECT_EQ(refusal_of_bytes(u64(3) + "{}"), "f: header of 3 bytes, found only 2 (truncated)");
  const uint64_t limit = Limits{}.safetensors_header_bytes;
  EXPECT_EQ(refusal_of_bytes(u64(limit) + "{}"),
            "f: header of 100000000 bytes, found only 2 (truncated)");
  EXPECT_EQ(refusal_of_bytes(u64(limit + 1) + "{}"),
            "f: header of 100000001 bytes, expected at most 100000000");
  EXPECT_EQ(refusal_of_bytes(u64(UINT64_MAX) + "{}"),
            "f: header of 18446744073709551615 bytes, expected at most 100000000");
}

TEST(Safetensors, TheHeaderIsOneStrictJsonObject) {
  EXPECT_EQ(refusal("", 0), "f: header: found '', expected '{'");
  EXPECT_EQ(refusal(" {}", 0), "f: header: found ' ', expected '{'");
  EXPECT_EQ(refusal("[]", 0), "f: header: found '[', expected '{'");
  EXPECT_TRUE(refusal("{} x", 0).starts_with("f: header: invalid JSON: "));
  EXPECT_TRUE(refusal(std::string("{}\0", 3), 0).starts_with("f: header: invalid JSON: "));
  const std::string a = entry("a", "U8", "[1]", "[0,1]");
  EXPECT_EQ(refusal("{" + a + "," + entry("\\u0061", "U8", "[1]", "[1,2]") + "}", 2),
            "f: header: duplicate key 'a' (line 1, column " + std::to_string(a.size() + 10) + ")");
}

TEST(Safetensors, MetadataIsAnObjectOfStrings) {
  EXPECT_EQ(refusal(R"({"__metadata__":[]})", 0),
            "f: __metadata__: found an array, expected an object");
  EXPECT_EQ(refusal(R"({"__metadata__":{"a":1}})", 0),
            "f: __metadata__: 'a': found 1, expected a string");
}

TEST(Safetensors, EachFieldOfATensorIsTyped) {
  EXPECT_EQ(refusal(R"({"a":3})", 0), "f: tensor 'a': found 3, expected an object");
  EXPECT_EQ(refusal(R"({"a":{"shape":[],"data_offsets":[0,0]}})", 0),
            "f: tensor 'a': dtype: missing");
  EXPECT_EQ(refusal(R"({"a":{"dtype":"U8","data_offsets":[0,0]}})", 0),
            "f: tensor 'a': shape: missing");
  EXPECT_EQ(refusal(R"({"a":{"dtype":"U8","shape":[0]}})", 0),
            "f: tensor 'a': data_offsets: missing");
  EXPECT_EQ(refusal(R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":1}})", 0),
            "f: tensor 'a': found field 'x', expected only dtype, shape and data_offsets");
  EXPECT_EQ(refusal(R"({"a":{"dtype":1,"shape":[0],"data_offsets":[0,0]}})", 0),
            "f: tensor 'a': dtype: found 1, expected a string");
  EXPECT_EQ(refusal("{" + entry("a", "U8", "{}", "[0,0]") + "}", 0),
            "f: tensor 'a': shape: found an object, expected an array of integers");
  EXPECT_EQ(refusal("{" + entry("a", "U8", "[-1]", "[0,0]") + "}", 0),
            "f: tensor 'a': shape: found -1, expected an integer in [0, 9223372036854775807]");
  EXPECT_EQ(refusal("{" + entry("a", "U8", "[1.0]", "[0,1]") + "}", 1),
            "f: tensor 'a': shape: found 1.0, expected an integer in [0, 9223372036854775807]");
  EXPECT_EQ(refusal("{" + entry("a", "U8", "[1]", "[0]") + "}", 1),
            "f: tensor 'a': data_offsets: found 1 numbers, expected 2");
  EXPECT_EQ(refusal("{" + entry("a", "U8", "[1]", "[0,1,1]") + "}", 1),
            "f: tensor 'a': data_offsets: found 3 numbers, expected 2");
}

TEST(Safetensors, DtypesItDoesNotHaveAreRefusedByName) {
  for (const std::string dtype : {"F8_E8M0", "F4", "f32", "Q4_K", "", "C64"}) {
    EXPECT_EQ(refusal("{" + entry("a", dtype, "[0]", "[0,0]") + "}", 0),
              "f: tensor 'a': dtype '" + dtype + "' is not supported");
  }
}

TEST(Safetensors, SizesMustBeShapeTimesType) {
  EXPECT_EQ(refusal("{" + entry("a", "F32", "[2,3]", "[0,23]") + "}", 23),
            "f: tensor 'a': 23 bytes of data, expected 24 (shape [2, 3] of F32)");
  EXPECT_EQ(refusal("{" + entry("a", "F32", "[]", "[0,8]") + "}", 8),
            "f: tensor 'a': 8 bytes of data, expected 4 (shape [] of F32)");
  EXPECT_EQ(refusal("{" + entry("a", "BF16", "[0]", "[0,2]") + "}", 2),
            "f: tensor 'a': 2 bytes of data, expected 0 (shape [0] of BF16)");
  const std::string huge =
      "f: tensor 'a': shape [4294967296, 4294967296] of U8 is larger than any file";
  // wraps to 0
  EXPECT_EQ(refusal("{" + entry("a", "U8", "[4294967296,4294967296]", "[0,0]") + "}", 0), huge);
  EXPECT_EQ(refusal("{" + entry("a", "F64", "[2305843009213693952]", "[0,0]") + "}", 0),
            "f: tensor 'a': shape [2305843009213693952] of F64 is larger than any file");
  EXPECT_EQ(refusal("{" + entry("a", "U8", "[0,4611686018427387904,2]", "[0,0]") + "}", 0),
            "f: tensor 'a': shape [0, 4611686018427387904, 2] of U8 is larger than any file");
}

TEST(Safetensors, OffsetsLieInTheDataInOrder) {
  const std::string wrong = "expected an ordered pair within the 4 bytes of data";
  EXPECT_EQ(refusal("{" + entry("a", "U8", "[1]", "[1,0]") + "}", 4),
            "f: tensor 'a': data_offsets [1, 0], " + wrong);
  EXPECT_EQ(refusal("{" + entry("a", "U8", "[5]", "[0,5]") + "}", 4),
            "f: tensor 'a': data_offsets [0, 5], " + wrong);
  EXPECT_EQ(
      refusal("{" + entry("a", "U8", "[1]", "[9223372036854775806,9223372036854775807]") + "}", 4),
      "f: tensor 'a': data_offsets [9223372036854775806, 9223372036854775807], " + wrong);
  EXPECT_EQ(refusal("{" + entry("a", "U8", "[1]", "[0,18446744073709551616]") + "}", 4),
            "f: tensor 'a': data_offsets: found 1.8446744073709552e+19, expected an integer in [0, "
            "9223372036854775807]");
}

TEST(Safetensors, TensorsTileTheDataWithoutHoleOrOverlap) {
  const auto two = [](const std::string& second) {
    return "{" + entry("a", "U8", "[2]", "[0,2]") + "," + second + "}";
  };
  EXPECT_EQ(refusal(two(entry("b", "U8", "[2]", "[3,5]")), 5),
            "f: tensor 'b': begins at 3, expected 2 (a hole after the tensor before it)");
  EXPECT_EQ(refusal(two(entry("b", "U8", "[2]", "[1,3]")), 3),
            "f: tensor 'b': begins at 1, expected 2 (overlaps the tensor before it)");
  EXPECT_EQ(refusal(two(entry("b", "U8", "[2]", "[0,2]")), 2),
            "f: tensor 'b': begins at 0, expected 2 (overlaps the tensor before it)");
  EXPECT_EQ(refusal(two(entry("b", "U8", "[0]", "[1,1]")), 2),
            "f: tensor 'b': begins at 1, expected 2 (overlaps the tensor before it)");
  EXPECT_EQ(refusal("{" + entry("a", "U8", "[2]", "[1,3]") + "}", 3),
            "f: tensor 'a': begins at 1, expected 0 (a hole after the tensor before it)");
  EXPECT_EQ(refusal(two(entry("b", "U8", "[2]", "[2,4]")), 5),
            "f: 5 bytes of data, expected 4 (the end of the last tensor)");
  EXPECT_EQ(refusal("{}", 1), "f: 1 bytes of data, expected 0 (the end of the last tensor)");
}

TEST(Safetensors, RankAndNameLengthAreRefusedOneAboveTheLimit) {
  const std::string at_rank =
      file_of("{" + entry("a", "U8", "[1,1,1,1,1,1,1,1]", "[0,1]") + "}", 1);
  EXPECT_EQ(Safetensors::parse(std::as_bytes(std::span(at_rank)), "f").tensors()[0].shape.size(),
            Limits{}.tensor_rank);
  EXPECT_EQ(refusal("{" + entry("a", "U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]") + "}", 1),
            "f: tensor 'a': rank 9, expected at most 8");

  const std::string name(Limits{}.tensor_name_bytes, 'n');
  const std::string at_name = file_of("{" + entry(name, "U8", "[1]", "[0,1]") + "}", 1);
  EXPECT_NE(Safetensors::parse(std::as_bytes(std::span(at_name)), "f").find(name), nullptr);
  EXPECT_EQ(refusal("{" + entry(name + "n", "U8", "[1]", "[0,1]") + "}", 1),
            "f: tensor '" + std::string(128, 'n') + "…': name of 513 bytes, expected 1 to 512");
  EXPECT_EQ(refusal("{" + entry("", "U8", "[1]", "[0,1]") + "}", 1),
            "f: tensor '': name of 0 bytes, expected 1 to 512");
}

TEST(Safetensors, OpenErrorsBeginWithThePath) {
  const TempDir dir;
  const std::string path = dir.write("f.safetensors", "123").string();
  EXPECT_EQ(error_of([&] { Safetensors::open(path); }),
            path + ": 3 bytes, expected at least 8 (the header's length)");
}

}  // namespace
}  // namespace fathom
