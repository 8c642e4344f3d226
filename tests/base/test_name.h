// The names of tests over models, such as "v2-lite": gtest allows no dashes.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

namespace fathom {

inline constexpr auto kNamedByParameter = [](const auto& test) {
  std::string name = test.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
};

}  // namespace fathom
