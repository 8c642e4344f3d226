#include "cli/completion.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace fathom {

std::string bash_completion(const std::vector<CommandFlags>& commands) {
  std::string names, cases;
  for (const CommandFlags& command : commands) {
    names += (names.empty() ? "" : " ") + command.name;
    cases += fmt::format("    {}) words=\"{}\" ;;\n", command.name, fmt::join(command.flags, " "));
  }
  return fmt::format(
      "# bash completion of fathom: source <(fathom completion bash)\n"
      "_fathom() {{\n"
      "  local word=\"${{COMP_WORDS[COMP_CWORD]}}\" words=\"{}\"\n"
      "  [ \"$COMP_CWORD\" -gt 1 ] && case \"${{COMP_WORDS[1]}}\" in\n{}  esac\n"
      "  COMPREPLY=()\n"
      "  if [ \"$COMP_CWORD\" -eq 1 ] || [[ \"$word\" == -* ]]; then COMPREPLY=($(compgen -W "
      "\"$words\" -- \"$word\")); fi\n"
      "}}\n"
      "complete -o default -F _fathom fathom\n",
      names, cases);
}

}  // namespace fathom
