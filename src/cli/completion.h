// `fathom completion`: what a shell needs to complete commands and flags.
#pragma once

#include <string>
#include <vector>

namespace fathom {

struct CommandFlags {
  std::string name;
  std::vector<std::string> flags;  // "--model"
};
std::string bash_completion(const std::vector<CommandFlags>& commands);

}  // namespace fathom
