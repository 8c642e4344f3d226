// Random numbers without state: a number is a function of (seed, purpose, sequence, position), so
// neighbours in a batch, the order of work and a resume cannot change it. The mixing is
// SplitMix64's finaliser applied per key word.
#pragma once

#include <cstdint>

namespace fathom {

// What a number is for; keeps the streams of different uses apart under one seed.
enum class RandomPurpose : uint64_t {
  kSampling = 1,
  kInit = 2,
  kShuffle = 3,
  kData = 4,
  kTest = 5
};

struct RandomKey {
  uint64_t seed = 0;
  RandomPurpose purpose = RandomPurpose::kTest;
  uint64_t sequence = 0;
};

constexpr uint64_t mix_bits(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
  x = (x ^ x >> 27) * 0x94d049bb133111eb;
  return x ^ x >> 31;
}

// 64 uniform bits for one position of a stream.
constexpr uint64_t random_bits(const RandomKey& key, uint64_t position) {
  uint64_t h = mix_bits(key.seed);
  h = mix_bits(h ^ static_cast<uint64_t>(key.purpose));
  h = mix_bits(h ^ key.sequence);
  return mix_bits(h ^ position);
}

// Uniform in [0, 1), 53 bits.
constexpr double random_uniform(const RandomKey& key, uint64_t position) {
  return static_cast<double>(random_bits(key, position) >> 11) * 0x1p-53;
}

// Standard normal (Box-Muller on positions 2p and 2p+1).
double random_normal(const RandomKey& key, uint64_t position);

}  // namespace fathom
