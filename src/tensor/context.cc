#include "tensor/context.h"

#include <algorithm>
#include <array>
#include <iterator>

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
    case Isa::kAvxVnni:
      return "AVX2 (VNNI)";
    case Isa::kAvx512:
      return "AVX-512 (VNNI)";
  }
  return "?";
}

std::optional<Isa> isa_named(std::string_view name) {
  constexpr std::string_view kNames[] = {"portable", "avx2", "avxvnni", "avx512"};  // as kIsas
  const auto* const found = std::find(std::begin(kNames), std::end(kNames), name);
  if (found == std::end(kNames)) return std::nullopt;
  return kIsas[found - kNames];
}

bool has_isa(Isa isa) {
#if defined(__x86_64__)
  // Asked once: a virtual machine answers CPUID only after a detour through its host.
  static const std::array<bool, std::size(kIsas)> has = [] {
    // gcc's feature test covers CPUID and the operating system's XCR0 together.
    __builtin_cpu_init();
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx >> 29 & 1);
    const bool avx2 = f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    // not every compiler we support has a name for it
    const bool avxvnni = avx2 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
    return std::array{true, avx2, avxvnni, avx512};
  }();
  const auto i = static_cast<size_t>(isa);
  return i < has.size() && has[i];
#else
  return isa == Isa::kPortable;
#endif
}

Isa detect_isa() {
  Isa best = Isa::kPortable;
  for (const Isa isa : kIsas) {
    if (has_isa(isa)) best = isa;
  }
  return best;
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
  FATHOM_CHECK(has_isa(isa), isa_name(isa));
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
