// parse_config on arbitrary bytes: only fathom::Error may come out, and what it accepts must
// survive being written and read again.
#include <cstdlib>

#include "base/error.h"
#include "model/config.h"
#include "model/rope_table.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace fathom;
  try {
    const ModelConfig config =
        parse_config({reinterpret_cast<const char*>(data), size}, "config.json");
    rope_inv_freq(config);
    const std::string written = write_config(config);
    if (write_config(parse_config(written, "written")) != written) std::abort();
  } catch (const Error&) {
  }
  return 0;
}
