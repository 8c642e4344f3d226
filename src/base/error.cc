#include "base/error.h"

#include "base/utf8.h"

namespace fathom {

std::string Quoted::operator()(std::string_view name) const {
  constexpr size_t kMaxBytes = 128;
  std::string out = "'";
  size_t i = 0;
  while (i < name.size() && i < kMaxBytes) {
    const Utf8Char c = decode_utf8(name.substr(i));
    if (!c.valid || c.code_point < 0x20 || (c.code_point >= 0x7f && c.code_point < 0xa0)) {
      for (size_t b = 0; b < c.bytes; ++b) {
        out += fmt::format("\\x{:02x}", static_cast<unsigned char>(name[i + b]));
      }
    } else {
      out.append(name.substr(i, c.bytes));
    }
    i += c.bytes;
  }
  out += i < name.size() ? "…'" : "'";
  return out;
}

}  // namespace fathom
