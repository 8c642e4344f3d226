#include "train/quantize_mix.h"

#include <fnmatch.h>

#include <algorithm>
#include <cctype>

#include "base/error.h"
#include "kernels/quantizer.h"

namespace fathom {
namespace {

using enum DType;

// One type everywhere, head included.
constexpr QuantizeMix uniform(std::string_view name, uint32_t file_type, DType type) {
  return {name, file_type, type, type, type, type, type, type};
}
constexpr QuantizeMix kMixes[] = {
    {"Q4_K_M", 15, kQ4_K, kQ6_K, kQ6_K, kQ6_K, kQ4_K, kQ6_K},
    {"Q4_K_S", 14, kQ4_K, kQ4_K, kQ4_K, kQ5_K, kQ4_K, kQ6_K},
    {"Q5_K_M", 17, kQ5_K, kQ6_K, kQ6_K, kQ6_K, kQ5_K, kQ6_K},
    {"Q5_K_S", 16, kQ5_K, kQ5_K, kQ5_K, kQ6_K, kQ5_K, kQ6_K},
    {"Q6_K", 18, kQ6_K, kQ6_K, kQ6_K, kQ8_0, kQ6_K, kQ6_K},
    {"Q3_K_M", 12, kQ3_K, kQ4_K, kQ4_K, kQ5_K, kQ3_K, kQ6_K},
    {"Q3_K_S", 11, kQ3_K, kQ3_K, kQ3_K, kQ4_K, kQ3_K, kQ6_K},
    {"Q2_K", 10, kQ2_K, kQ3_K, kQ4_K, kQ4_K, kQ2_K, kQ6_K},
    {"IQ4_XS", 30, kIQ4_XS, kIQ4_XS, kQ5_K, kQ5_K, kIQ4_XS, kQ6_K},
    {"IQ4_NL", 25, kIQ4_NL, kIQ4_NL, kQ5_K, kQ5_K, kIQ4_NL, kQ6_K},
    {"MXFP4", 38, kMXFP4, kMXFP4, kQ8_0, kQ8_0, kQ8_0, kQ8_0},
    {"Q4_0", 2, kQ4_0, kQ4_0, kQ4_0, kQ5_0, kQ4_0, kQ6_K},
    {"Q4_1", 3, kQ4_1, kQ4_1, kQ4_1, kQ5_1, kQ4_1, kQ6_K},
    {"Q5_0", 8, kQ5_0, kQ5_0, kQ5_0, kQ8_0, kQ5_0, kQ6_K},
    {"Q5_1", 9, kQ5_1, kQ5_1, kQ5_1, kQ8_0, kQ5_1, kQ6_K},
    uniform("Q8_0", 7, kQ8_0),
    uniform("BF16", 32, kBF16),
    uniform("F16", 1, kF16),
    uniform("F32", 0, kF32),
};

bool same_ignoring_case(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](unsigned char x, unsigned char y) {
    return std::tolower(x) == std::tolower(y);
  });
}

bool contains(std::string_view text, std::string_view part) { return text.find(part) != text.npos; }

// Kept in F32 whatever is asked: small, and the arithmetic behind them is f32.
bool stays_f32(const GgufTensor& t) {
  return !t.is_matrix() || contains(t.name, "ffn_gate_inp") || contains(t.name, "exp_probs_b");
}

struct ModelKind {
  bool experts = false;
  bool head = false;  // else the embedding is the head too
};

DType wanted_type(const std::string& name, const QuantizeMix& mix, const ModelKind& model) {
  if (name == "output.weight" || contains(name, "shared_head_head")) return mix.head;
  if (name == "token_embd.weight") return model.head ? mix.embedding : mix.head;
  if (contains(name, "nextn.embed_tokens")) return mix.embedding;
  if (contains(name, "_exps.")) return contains(name, "ffn_down") ? mix.down : mix.base;
  if (model.experts) return mix.kept;
  for (const char* part : {"attn_v.", "attn_v_b.", "attn_kv_b.", "attn_kv_a_mqa."}) {
    if (contains(name, part)) return mix.values;
  }
  return contains(name, "ffn_down") ? mix.down : mix.base;
}

DType fallback(DType type) {
  switch (type) {
    case kQ2_K:
    case kQ3_K:
    case kIQ4_XS:
      return kIQ4_NL;
    case kQ4_K:
      return kQ5_0;
    case kQ5_K:
      return kQ5_1;
    case kQ6_K:
      return kQ8_0;
    default:
      return kF16;
  }
}

bool fits(DType type, int64_t cols) { return cols % dtype_info(type).block_elements == 0; }

TypeChoice fitted(DType wanted, int64_t cols) {
  DType type = wanted;
  while (!fits(type, cols)) type = fallback(type);
  return {type, wanted};
}

void apply(const TypeOverride& o, const GgufSource& source, std::vector<TypeChoice>& choices) {
  bool used = false;
  for (size_t i = 0; i < choices.size(); ++i) {
    const GgufTensor& t = source.tensors()[i];
    if (fnmatch(o.pattern.c_str(), t.name.c_str(), 0) != 0 || stays_f32(t)) continue;
    if (!fits(o.type, t.cols())) {
      fail("{}: tensor {}: {} columns, expected a multiple of {} for {} (--tensor {})",
           source.path(), quoted(t.name), t.cols(), dtype_info(o.type).block_elements,
           dtype_name(o.type), quoted(o.pattern));
    }
    choices[i] = {o.type, o.type};
    used = true;
  }
  if (!used)
    fail("--tensor {}: matches no matrix of {} (norms, biases and the router stay F32)",
         quoted(o.pattern), source.path());
}

}  // namespace

std::span<const QuantizeMix> quantize_mixes() { return kMixes; }

const QuantizeMix& find_mix(std::string_view name) {
  std::string names;
  for (const QuantizeMix& mix : kMixes) {
    if (same_ignoring_case(mix.name, name)) return mix;
    names += (names.empty() ? "" : ", ") + std::string(mix.name);
  }
  fail("--type: found {}, expected one of {}", quoted(name), names);
}

TypeOverride parse_override(const std::string& text) {
  const size_t at = text.rfind('=');
  if (at == text.npos || at == 0)
    fail("--tensor: found {}, expected PATTERN=TYPE such as 'blk.0.*=Q8_0'", quoted(text));
  std::string names;
  for (int i = 0; i < kDTypeCount; ++i) {
    const auto type = static_cast<DType>(i);
    if (!can_quantize(type)) continue;
    if (same_ignoring_case(dtype_name(type), text.substr(at + 1)))
      return {text.substr(0, at), type};
    names += (names.empty() ? "" : ", ") + std::string(dtype_name(type));
  }
  fail("--tensor: found type {}, expected one of {}", quoted(text.substr(at + 1)), names);
}

std::vector<TypeChoice> choose_types(const GgufSource& source, const QuantizeMix& mix,
                                     std::span<const TypeOverride> overrides) {
  ModelKind model;
  for (const GgufTensor& t : source.tensors()) {
    if (contains(t.name, "_exps.")) model.experts = true;
    if (t.name == "output.weight") model.head = true;
  }
  std::vector<TypeChoice> choices;
  for (const GgufTensor& t : source.tensors()) {
    if (!dtype_info(t.dtype()).computable) {
      choices.push_back({t.dtype(), t.dtype()});
    } else if (stays_f32(t)) {
      choices.push_back({kF32, kF32});
    } else {
      choices.push_back(fitted(wanted_type(t.name, mix, model), t.cols()));
    }
  }
  for (const TypeOverride& o : overrides) apply(o, source, choices);
  return choices;
}

}  // namespace fathom
