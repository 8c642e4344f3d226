#include "tensor/context.h"

#include "base/check.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace fathom {

std::string_view isa_name(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return "portable";
    case Isa::kAvx2:
      return "AVX2+FMA";
    case Isa::kAvx512:
      return "AVX-512 (VNNI)";
  }
  return "?";
}

Isa detect_isa() {
#if defined(__x86_64__)
  // gcc's feature test covers CPUID and the operating system's XCR0 together.
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx >> 29 & 1);
  if (!avx2 || !f16c) return Isa::kPortable;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vnni");
  return avx512 ? Isa::kAvx512 : Isa::kAvx2;
#else
  return Isa::kPortable;
#endif
}

bool has_bf16_dot() {
#if defined(__x86_64__)
  // AVX512_BF16 is leaf 7.1 EAX bit 5; not every compiler we support has a name for it. Asked once:
  // a virtual machine answers only after a detour through its host.
  static const bool has = [] {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return detect_isa() == Isa::kAvx512 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) &&
           (eax >> 5 & 1) != 0;
  }();
  return has;
#else
  return false;
#endif
}

Context::Context(int threads, Isa isa, Precision precision)
    : pool_(threads), isa_(isa), precision_(precision), scratch_(std::make_unique<Arena>()) {
  FATHOM_CHECK(isa <= detect_isa(), isa_name(isa));
  for (int w = 0; w < threads; ++w) {
    worker_scratch_.push_back(std::make_unique<Arena>());
    serial_.push_back(std::unique_ptr<Context>(new Context(Serial{}, isa, precision)));
  }
}

Context::Context(Serial, Isa isa, Precision precision)
    : pool_(1), isa_(isa), precision_(precision), scratch_(std::make_unique<Arena>()) {
  worker_scratch_.push_back(std::make_unique<Arena>());
}

Context::~Context() = default;

}  // namespace fathom
