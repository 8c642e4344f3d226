// GGUF's names for the tensors of this family, derived from the Hugging Face ones (models of arch
// deepseek2, qwen2, llama).
#pragma once

#include <string>
#include <string_view>

namespace fathom {

// "model.layers.3.self_attn.q_a_proj.weight" -> "blk.3.attn_q_a.weight". Expert tensors are stacked
// in GGUF: use the name of any expert with its number left out,
// "model.layers.3.mlp.experts.gate_proj.weight". FATHOM_CHECKs that the name is known.
std::string gguf_tensor_name(std::string_view hugging_face_name);

}  // namespace fathom
