#include "train/event_file.h"

#include <array>
#include <bit>

namespace fathom {
namespace {

constexpr std::array<uint32_t, 256> kCrcTable = [] {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = value >> 1 ^ (value & 1 ? 0x82f63b78 : 0);
    table[i] = value;
  }
  return table;
}();

void append_fixed(std::string& out, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) out += static_cast<char>(value >> 8 * i & 0xff);
}

// Protobuf's wire types.
enum WireType { kVarint = 0, kFixed64 = 1, kLength = 2, kFixed32 = 5 };

void append_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  out += static_cast<char>(value);
}
void append_tag(std::string& out, int field, WireType type) {
  append_varint(out, static_cast<uint64_t>(field << 3 | type));
}
void append_bytes(std::string& out, int field, std::string_view bytes) {
  append_tag(out, field, kLength);
  append_varint(out, bytes.size());
  out += bytes;
}

std::string event(double wall_time, int64_t step, int field, std::string_view payload) {
  std::string bytes;
  append_tag(bytes, 1, kFixed64);
  append_fixed(bytes, std::bit_cast<uint64_t>(wall_time), 8);
  if (step != 0) {  // protobuf leaves out what is zero
    append_tag(bytes, 2, kVarint);
    append_varint(bytes, static_cast<uint64_t>(step));
  }
  append_bytes(bytes, field, payload);

  std::string record;
  append_fixed(record, bytes.size(), 8);
  append_fixed(record, masked_crc32c(record), 4);
  record += bytes;
  append_fixed(record, masked_crc32c(bytes), 4);
  return record;
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  uint32_t crc = 0xffffffff;
  for (const char c : bytes)
    crc = crc >> 8 ^ kCrcTable[(crc ^ static_cast<unsigned char>(c)) & 0xff];
  return ~crc;
}

uint32_t masked_crc32c(std::string_view bytes) { return std::rotr(crc32c(bytes), 15) + 0xa282ead8; }

std::string event_file_version(double wall_time) { return event(wall_time, 0, 3, "brain.Event:2"); }

std::string event_session_start(double wall_time, int64_t step) {
  std::string session;
  append_tag(session, 1, kVarint);
  append_varint(session, 1);  // START
  return event(wall_time, step, 7, session);
}

std::string event_scalars(double wall_time, int64_t step,
                          std::span<const std::pair<std::string, double>> scalars) {
  std::string summary;
  for (const auto& [tag, number] : scalars) {
    std::string value;
    append_bytes(value, 1, tag);
    append_tag(value, 2, kFixed32);
    append_fixed(value, std::bit_cast<uint32_t>(static_cast<float>(number)), 4);
    append_bytes(summary, 1, value);
  }
  return event(wall_time, step, 5, summary);
}

}  // namespace fathom
