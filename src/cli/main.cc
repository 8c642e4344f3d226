// The program: the one place that turns exceptions into messages and exit codes.
#include <filesystem>
#include <new>

#include "base/error.h"
#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/output.h"

namespace fathom {
namespace {

int report(ExitCode code, std::string_view text) {
  note("error: {}", text);
  return static_cast<int>(code);
}

}  // namespace
}  // namespace fathom

int main(int argc, char** argv) {
  using namespace fathom;
  keep_streams_closed();
  try {
    install_signal_handlers();
    return run_command(argc, argv);
  } catch (const Error& error) {
    return report(error.code(), error.what());
  } catch (const ClosedPipe&) {
    return 0;  // whoever read has read enough
  } catch (const Interrupted&) {
    return 130;
  } catch (const std::filesystem::filesystem_error& error) {
    const bool full = error.code() == std::errc::no_space_on_device;
    return report(full ? ExitCode::kNoResources : ExitCode::kBadInput,
                  fmt::format("{}: {}", error.path1().string(), error.code().message()));
  } catch (const std::bad_alloc&) {
    return report(ExitCode::kNoResources, "out of memory");
  } catch (const std::exception& error) {
    return report(ExitCode::kInternal, std::string("internal: ") + error.what());
  }
}
