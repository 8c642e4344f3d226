#include "tensor/context.h"

#include <gtest/gtest.h>

#include <fstream>
#include <set>
#include <sstream>
#include <string>

namespace fathom {
namespace {

#if defined(__x86_64__) && defined(__linux__)
// The kernel's list of features is a second opinion on CPUID and XGETBV.
TEST(Context, TheInstructionSetIsTheStrongestWhoseFeaturesTheSystemLists) {
  std::ifstream cpuinfo("/proc/cpuinfo");
  std::set<std::string> flags;
  for (std::string line; std::getline(cpuinfo, line);) {
    if (!line.starts_with("flags")) continue;
    std::istringstream words(line.substr(line.find(':') + 1));
    for (std::string word; words >> word;) flags.insert(word);
    break;
  }
  if (flags.empty()) GTEST_SKIP() << "no flags in /proc/cpuinfo";
  const auto all = [&](std::initializer_list<const char*> names) {
    for (const char* name : names) {
      if (!flags.contains(name)) return false;
    }
    return true;
  };
  const bool avx2 = all({"avx2", "fma", "f16c"});
  const bool avx512 = avx2 && all({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"});
  const bool avxvnni = avx2 && has_isa(Isa::kAvxVnni);
  EXPECT_EQ(has_isa(Isa::kAvx2), avx2);
  if (all({"avx_vnni"})) {  // listed since Linux 5.12
    EXPECT_TRUE(has_isa(Isa::kAvxVnni));
  }
  EXPECT_EQ(detect_isa(), avx512    ? Isa::kAvx512
                          : avxvnni ? Isa::kAvxVnni
                          : avx2    ? Isa::kAvx2
                                    : Isa::kPortable);
  EXPECT_EQ(has_bf16_dot(), avx512 && all({"avx512_bf16"}));
}
#endif

TEST(Context, EachInstructionSetHasAName) {
  std::set<std::string_view> names;
  for (const Isa isa : kIsas) EXPECT_TRUE(names.insert(isa_name(isa)).second);
  EXPECT_FALSE(names.contains("?"));
}

TEST(Context, AWeakerInstructionSetCanBeChosen) {
  EXPECT_EQ(Context(1, Isa::kPortable).isa(), Isa::kPortable);
  EXPECT_EQ(Context(1).isa(), detect_isa());
}

TEST(Context, EveryWorkerHasScratchOfItsOwn) {
  Context ctx(3);
  EXPECT_EQ(ctx.pool().threads(), 3);
  std::set<Arena*> arenas = {&ctx.scratch()};
  for (int w = 0; w < 3; ++w) EXPECT_TRUE(arenas.insert(&ctx.worker_scratch(w)).second);
}

TEST(ContextDeathTest, AnInstructionSetTheCpuLacksIsRefused) {
  if (detect_isa() == Isa::kAvx512) {
    EXPECT_DEATH(Context(1, static_cast<Isa>(std::ssize(kIsas))), "has_isa");
  } else {
    EXPECT_DEATH(Context(1, Isa::kAvx512), "has_isa");
  }
}

}  // namespace
}  // namespace fathom
