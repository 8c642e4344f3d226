// Which tensor of a model gets which type: named mixes, their fallbacks, and overrides by pattern.
//
// A mix gives the bulk of a model (routed experts; the MLPs and most of attention in a dense model)
// its base type, and more bits to what is small and matters: the values and the down projections
// (which the residual stream gets unmixed), the head, and in a model of experts attention and
// shared experts, which every token passes through and which are a few percent of the bytes. Norms,
// biases and the router stay F32 always: rounding the router changes the choice of experts.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tensor/dtype.h"
#include "train/gguf_source.h"

namespace fathom {

struct QuantizeMix {
  std::string_view name;  // "Q4_K_M"
  uint32_t file_type;     // general.file_type
  DType base;
  DType down;    // down projections
  DType values;  // dense models: what carries values (attn_v, attn_kv_a_mqa, attn_kv_b, attn_v_b)
  DType kept;    // models of experts: attention, shared experts and dense layers
  DType embedding, head;
};
std::span<const QuantizeMix> quantize_mixes();
// By name, case ignored. Throws "--type: found 'x', expected one of ...".
const QuantizeMix& find_mix(std::string_view name);

// Matrices whose GGUF name matches `pattern` (* and ? as in file names) become `type`. Of several
// that match the last counts.
struct TypeOverride {
  std::string pattern;
  DType type;
};
// "PATTERN=TYPE", TYPE a name of dtype.h, case ignored.
TypeOverride parse_override(const std::string& text);

struct TypeChoice {
  DType type = DType::kF32;
  DType wanted = DType::kF32;  // differs where the rows are no whole blocks of it
};
// One choice per tensor of the source. Rows that are no multiple of 256 get a type of blocks of 32
// (Q2_K and Q3_K: IQ4_NL, Q4_K: Q5_0, Q5_K: Q5_1, Q6_K: Q8_0, IQ4_XS: IQ4_NL), those that are no
// multiple of 32 F16. Tensors of integers stay as they are. Throws where an override asks for what
// cannot be, or matches no matrix.
std::vector<TypeChoice> choose_types(const GgufSource& source, const QuantizeMix& mix,
                                     std::span<const TypeOverride> overrides);

}  // namespace fathom
