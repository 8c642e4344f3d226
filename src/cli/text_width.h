// Columns that characters take on a terminal.
#pragma once

#include <cstdint>
#include <string_view>

namespace fathom {

// 0 for combining marks, joiners and variation selectors, 2 for East Asian wide and emoji, else 1.
// Control characters: 0.
int char_columns(uint32_t code_point);
int text_columns(std::string_view text);

}  // namespace fathom
