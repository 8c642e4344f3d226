#include "train/metrics.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr uint64_t kLargestMetrics = uint64_t{1} << 32;

double wall_time() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// Castagnoli's polynomial, reflected.
uint32_t crc32c(std::string_view data) {
  static constexpr std::array<uint32_t, 256> kTable = [] {
    std::array<uint32_t, 256> table{};
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t crc = i;
      for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
      table[i] = crc;
    }
    return table;
  }();
  uint32_t crc = ~0u;
  for (const char c : data) crc = crc >> 8 ^ kTable[(crc ^ static_cast<unsigned char>(c)) & 0xff];
  return ~crc;
}

template <class T>
void append_bytes(std::string& out, T value) {
  static_assert(std::endian::native == std::endian::little);
  char bytes[sizeof value];
  std::memcpy(bytes, &value, sizeof value);
  out.append(bytes, sizeof value);
}

uint32_t masked_crc(std::string_view data) {
  const uint32_t crc = crc32c(data);
  return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

void append_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  out += static_cast<char>(value);
}

void append_field(std::string& out, int field, std::string_view bytes) {
  append_varint(out, static_cast<uint64_t>(field) << 3 | 2);
  append_varint(out, bytes.size());
  out += bytes;
}

bool write_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    bytes.remove_prefix(static_cast<size_t>(n));
  }
  return true;
}

// The lines up to `step`, whole ones only.
std::string lines_until(const fs::path& path, int64_t step) {
  std::error_code error;
  if (step == 0 || !fs::exists(path, error)) return {};
  const std::string text = read_file(path, kLargestMetrics);
  std::string kept;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    if (end == std::string::npos) break;
    const std::string line = text.substr(begin, end - begin);
    const Json value = Json::parse(line, nullptr, false);
    if (value.is_object() && value.value("step", int64_t{-1}) >= 0 && value.value("step", int64_t{-1}) <= step) kept += line + "\n";
    begin = end + 1;
  }
  return kept;
}

}  // namespace

std::string tensorboard_record(std::string_view data) {
  std::string record;
  append_bytes(record, static_cast<uint64_t>(data.size()));
  append_bytes(record, masked_crc(std::string_view(record).substr(0, 8)));
  record += data;
  append_bytes(record, masked_crc(data));
  return record;
}

std::string tensorboard_version_event(double time) {
  std::string event("\x09", 1);  // wall_time = 1, double
  append_bytes(event, time);
  append_field(event, 3, "brain.Event:2");  // file_version = 3
  return event;
}

std::string tensorboard_scalar_event(double time, int64_t step, std::string_view tag, float scalar) {
  std::string value;
  append_field(value, 1, tag);  // Summary.Value.tag = 1
  value += '\x15';              // simple_value = 2, float
  append_bytes(value, scalar);
  std::string summary;
  append_field(summary, 1, value);  // Summary.value = 1
  std::string event("\x09", 1);
  append_bytes(event, time);
  event += '\x10';  // step = 2, varint
  append_varint(event, static_cast<uint64_t>(step));
  append_field(event, 5, summary);  // summary = 5
  return event;
}

MetricsLog::MetricsLog(const fs::path& run, int64_t step) {
  try {
    std::error_code error;
    fs::create_directories(run, error);
    const fs::path lines = run / "metrics.jsonl";
    write_file_atomically(lines, lines_until(lines, step));
    jsonl_ = ::open(lines.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
    const std::string name = fmt::format("events.out.tfevents.{:010}.fathom.{}", static_cast<int64_t>(wall_time()), step);
    events_ = ::open((run / name).c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (jsonl_ < 0 || events_ < 0 || !write_all(events_, tensorboard_record(tensorboard_version_event(wall_time())))) {
      fail(fmt::format("{}: cannot open: {}", run.string(), std::strerror(errno)));
    }
  } catch (const Error& e) {
    fail(e.what());
  }
}

MetricsLog::~MetricsLog() {
  if (jsonl_ >= 0) ::close(jsonl_);
  if (events_ >= 0) ::close(events_);
}

void MetricsLog::fail(const std::string& what) {
  if (!broken_) warning_ = what + " (metrics are not written from here on)";
  broken_ = true;
}

std::string MetricsLog::take_warning() { return std::exchange(warning_, {}); }

void MetricsLog::write(int64_t step, const std::string& kind, const Json& fields) {
  if (broken_) return;
  Json line = {{"step", step}, {"kind", kind}};
  line.update(fields);
  std::string records;
  const double time = wall_time();
  for (const auto& [name, value] : fields.items()) {
    if (!value.is_number()) continue;
    records += tensorboard_record(tensorboard_scalar_event(time, step, kind + "/" + name, value.get<float>()));
  }
  const std::string text = line.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  if (!write_all(jsonl_, text) || !write_all(events_, records)) fail(fmt::format("metrics: cannot write: {}", std::strerror(errno)));
}

}  // namespace fathom
