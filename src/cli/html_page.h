// The one look of the pages that this program writes: a file that loads nothing, light or dark as
// the reader has it, readable from a telephone's width on.
#pragma once

#include <string>
#include <string_view>

namespace fathom {

// title, window_title and subtitle are text; body is HTML.
std::string html_page(std::string_view title, std::string_view window_title,
                      std::string_view subtitle, std::string_view body);

}  // namespace fathom
