// GPT-2's alphabet, in which byte-level vocabularies spell bytes as printable characters: the
// visible ones of Latin-1 stand for themselves, the other 68 are U+0100 and on in byte order (space
// is U+0120).
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/utf8.h"

namespace fathom {

constexpr bool stands_for_itself(uint32_t byte) {
  return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}

inline constexpr std::array<uint32_t, 256> kCharOfByte = [] {
  std::array<uint32_t, 256> chars{};
  uint32_t next = 0x100;
  for (uint32_t byte = 0; byte < 256; ++byte) chars[byte] = stands_for_itself(byte) ? byte : next++;
  return chars;
}();

inline constexpr std::array<int32_t, 0x144> kByteOfChar = [] {  // -1: stands for no byte
  std::array<int32_t, 0x144> bytes{};
  bytes.fill(-1);
  for (uint32_t byte = 0; byte < 256; ++byte) bytes[kCharOfByte[byte]] = static_cast<int32_t>(byte);
  return bytes;
}();

inline std::string spell_bytes(std::string_view bytes) {
  std::string text;
  for (const char c : bytes) append_utf8(kCharOfByte[static_cast<unsigned char>(c)], text);
  return text;
}

}  // namespace fathom
