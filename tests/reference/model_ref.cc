#include "tests/reference/model_ref.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/quantize.h"
#include "model/rope_table.h"

namespace fathom::reference {
namespace {

using Vector = std::vector<double>;
using Matrix = std::vector<Vector>;  // one row per token

double dot(const Vector& a, const Vector& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

Vector weight_row(const WeightView& w, int64_t r) {
  std::vector<float> row(static_cast<size_t>(w.cols));
  dequantize_weight(Isa::kPortable, w, r, 0, w.cols, row.data());
  return {row.begin(), row.end()};
}

// y = W x (+ b), row by row of W so that large matrices are widened once.
Matrix linear(Precision precision, const WeightView& w, Matrix x,
              std::span<const float> bias = {}) {
  const bool rounds_x = w.dtype == DType::kBF16 || w.dtype == DType::kF8E4M3;
  if (rounds_x && precision == Precision::kNative) {
    for (Vector& row : x) {
      for (double& v : row) v = bf16_to_f32(f32_to_bf16(static_cast<float>(v)));
    }
  }
  Matrix y(x.size(), Vector(static_cast<size_t>(w.rows)));
  for (int64_t r = 0; r < w.rows; ++r) {
    const Vector row = weight_row(w, r);
    for (size_t t = 0; t < x.size(); ++t) {
      y[t][static_cast<size_t>(r)] =
          dot(row, x[t]) + (bias.empty() ? 0.0 : bias[static_cast<size_t>(r)]);
    }
  }
  return y;
}

Matrix linear(Precision precision, const Linear& w, Matrix x, std::span<const float> bias = {}) {
  return linear(precision, w.weight, std::move(x), bias);
}

Vector rms_norm(const Vector& x, std::span<const float> weight, double eps) {
  const double scale = 1 / std::sqrt(dot(x, x) / static_cast<double>(x.size()) + eps);
  Vector y(x.size());
  for (size_t i = 0; i < x.size(); ++i) y[i] = x[i] * scale * weight[i];
  return y;
}

Matrix rms_norm(const Matrix& x, std::span<const float> weight, double eps) {
  Matrix y;
  for (const Vector& row : x) y.push_back(rms_norm(row, weight, eps));
  return y;
}

void rotate(const ModelConfig& c, const Vector& inv_freq, size_t position, double* x) {
  const size_t pairs = inv_freq.size();
  for (size_t p = 0; p < pairs; ++p) {
    const double angle = static_cast<double>(position) * inv_freq[p];
    const double cosine = std::cos(angle) * rope_magnitude(c),
                 sine = std::sin(angle) * rope_magnitude(c);
    double& a = c.rope.layout == RopeLayout::kInterleaved ? x[2 * p] : x[p];
    double& b = c.rope.layout == RopeLayout::kInterleaved ? x[2 * p + 1] : x[p + pairs];
    const double turned_a = a * cosine - b * sine, turned_b = a * sine + b * cosine;
    a = turned_a;
    b = turned_b;
  }
}

// Softmax attention of one head; q and k of width qk, v of width dv.
Matrix attend(const Matrix& q, const Matrix& k, const Matrix& v, double scale) {
  Matrix out;
  for (size_t t = 0; t < q.size(); ++t) {
    Vector p(t + 1);
    for (size_t j = 0; j <= t; ++j) p[j] = scale * dot(q[t], k[j]);
    const double largest = *std::max_element(p.begin(), p.end());
    double sum = 0;
    for (double& s : p) sum += s = std::exp(s - largest);
    Vector o(v[0].size());
    for (size_t j = 0; j <= t; ++j) {
      for (size_t i = 0; i < o.size(); ++i) o[i] += p[j] / sum * v[j][i];
    }
    out.push_back(o);
  }
  return out;
}

Vector slice(const Vector& x, int64_t begin, int64_t count) {
  return {x.begin() + begin, x.begin() + begin + count};
}

Matrix mla(Precision p, const ModelConfig& c, const MlaWeights& w, const Matrix& x) {
  const Vector inv_freq = rope_inv_freq(c);
  const int64_t nope = c.qk_nope_head_dim, turned = c.qk_rope_head_dim, dv = c.v_head_dim;
  Matrix q = c.q_lora_rank > 0
                 ? linear(p, w.q_b_proj, rms_norm(linear(p, w.q_a_proj, x), w.q_a_layernorm, 1e-6))
                 : linear(p, w.q_proj, x);
  Matrix kv_a = linear(p, w.kv_a_proj_with_mqa, x);
  Matrix latent;
  for (size_t t = 0; t < x.size(); ++t) {
    latent.push_back(rms_norm(slice(kv_a[t], 0, c.kv_lora_rank), w.kv_a_layernorm, 1e-6));
    rotate(c, inv_freq, t, kv_a[t].data() + c.kv_lora_rank);
  }
  const Matrix kv = linear(p, w.kv_b_proj, latent);
  Matrix heads(x.size());
  for (int64_t h = 0; h < c.num_attention_heads; ++h) {
    Matrix qh, kh, vh;
    for (size_t t = 0; t < x.size(); ++t) {
      qh.push_back(slice(q[t], h * (nope + turned), nope + turned));
      rotate(c, inv_freq, t, qh[t].data() + nope);
      kh.push_back(slice(kv[t], h * (nope + dv), nope));
      kh[t].insert(kh[t].end(), kv_a[t].begin() + c.kv_lora_rank, kv_a[t].end());
      vh.push_back(slice(kv[t], h * (nope + dv) + nope, dv));
    }
    const Matrix o = attend(qh, kh, vh, softmax_scale(c));
    for (size_t t = 0; t < x.size(); ++t) heads[t].insert(heads[t].end(), o[t].begin(), o[t].end());
  }
  return linear(p, w.o_proj, heads);
}

Matrix gqa(Precision p, const ModelConfig& c, const GqaWeights& w, const Matrix& x) {
  const Vector inv_freq = rope_inv_freq(c);
  Matrix q = linear(p, w.q_proj, x, w.q_bias), k = linear(p, w.k_proj, x, w.k_bias);
  const Matrix v = linear(p, w.v_proj, x, w.v_bias);
  Matrix heads(x.size());
  for (int64_t h = 0; h < c.num_attention_heads; ++h) {
    const int64_t group = h / (c.num_attention_heads / c.num_key_value_heads);
    Matrix qh, kh, vh;
    for (size_t t = 0; t < x.size(); ++t) {
      qh.push_back(slice(q[t], h * c.head_dim, c.head_dim));
      kh.push_back(slice(k[t], group * c.head_dim, c.head_dim));
      vh.push_back(slice(v[t], group * c.head_dim, c.head_dim));
      rotate(c, inv_freq, t, qh[t].data());
      rotate(c, inv_freq, t, kh[t].data());
    }
    const Matrix o = attend(qh, kh, vh, softmax_scale(c));
    for (size_t t = 0; t < x.size(); ++t) heads[t].insert(heads[t].end(), o[t].begin(), o[t].end());
  }
  return linear(p, w.o_proj, heads);
}

Matrix mlp(Precision p, const WeightView& gate_proj, const WeightView& up_proj,
           const WeightView& down_proj, const Matrix& x) {
  Matrix gate = linear(p, gate_proj, x);
  const Matrix up = linear(p, up_proj, x);
  for (size_t t = 0; t < x.size(); ++t) {
    for (size_t i = 0; i < gate[t].size(); ++i)
      gate[t][i] = gate[t][i] / (1 + std::exp(-gate[t][i])) * up[t][i];
  }
  return linear(p, down_proj, gate);
}

// The `count` largest by value, lower index first on ties.
std::vector<size_t> largest(const Vector& values, size_t count) {
  std::vector<size_t> order(values.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return values[a] > values[b]; });
  order.resize(count);
  return order;
}

struct Choice {
  std::vector<size_t> experts;
  Vector weights;
};

Choice choose(const RouterRule& r, std::span<const float> bias, const Vector& logits) {
  Vector s(logits.size());
  if (r.scoring_func == ScoringFunc::kSigmoid) {
    for (size_t e = 0; e < s.size(); ++e) s[e] = 1 / (1 + std::exp(-logits[e]));
  } else {
    const double top = *std::max_element(logits.begin(), logits.end());
    double sum = 0;
    for (size_t e = 0; e < s.size(); ++e) sum += s[e] = std::exp(logits[e] - top);
    for (double& v : s) v /= sum;
  }
  Vector c = s;
  if (r.topk_method == TopkMethod::kNoauxTc) {
    for (size_t e = 0; e < c.size(); ++e) c[e] += bias[e];
  }
  if (r.topk_method != TopkMethod::kGreedy) {
    const size_t size = c.size() / static_cast<size_t>(r.n_group);
    Vector group_score;
    for (size_t g = 0; g < static_cast<size_t>(r.n_group); ++g) {
      Vector group(c.begin() + static_cast<int64_t>(g * size),
                   c.begin() + static_cast<int64_t>((g + 1) * size));
      std::sort(group.rbegin(), group.rend());
      group_score.push_back(r.topk_method == TopkMethod::kNoauxTc
                                ? group[0] + (size > 1 ? group[1] : 0.0)
                                : group[0]);
    }
    const auto kept = largest(group_score, static_cast<size_t>(r.topk_group));
    for (size_t e = 0; e < c.size(); ++e) {
      if (std::find(kept.begin(), kept.end(), e / size) == kept.end())
        c[e] = r.topk_method == TopkMethod::kNoauxTc ? -INFINITY : 0.0;
    }
  }
  Choice choice{largest(c, static_cast<size_t>(r.num_experts_per_tok)), {}};
  double sum = 0;
  for (const size_t e : choice.experts) sum += s[e];
  const bool normed =
      r.norm_topk_prob && (r.scoring_func == ScoringFunc::kSigmoid || r.num_experts_per_tok > 1);
  const bool scaled = r.scoring_func == ScoringFunc::kSigmoid || !normed;
  for (const size_t e : choice.experts) {
    choice.weights.push_back(s[e] / (normed ? sum + 1e-20 : 1.0) *
                             (scaled ? r.routed_scaling_factor : 1.0));
  }
  return choice;
}

Matrix moe(Precision p, const ModelConfig& c, const MoeWeights& w, const Matrix& x) {
  Matrix y = w.shared_experts
                 ? mlp(p, w.shared_experts->gate_proj.weight, w.shared_experts->up_proj.weight,
                       w.shared_experts->down_proj.weight, x)
                 : Matrix(x.size(), Vector(static_cast<size_t>(c.hidden_size)));
  for (size_t t = 0; t < x.size(); ++t) {
    Vector logits;
    for (int64_t e = 0; e < c.n_routed_experts; ++e) {
      const float* row = w.gate.data() + e * c.hidden_size;
      logits.push_back(std::inner_product(x[t].begin(), x[t].end(), row, 0.0));
    }
    const Choice choice = choose(c.router, w.e_score_correction_bias, logits);
    for (size_t j = 0; j < choice.experts.size(); ++j) {
      const size_t e = choice.experts[j];
      const Matrix out =
          mlp(p, w.gate_proj.weight[e], w.up_proj.weight[e], w.down_proj.weight[e], {x[t]});
      for (size_t i = 0; i < out[0].size(); ++i) y[t][i] += choice.weights[j] * out[0][i];
    }
  }
  return y;
}

void add(Matrix& x, const Matrix& y) {
  for (size_t t = 0; t < x.size(); ++t) {
    for (size_t i = 0; i < x[t].size(); ++i) x[t][i] += y[t][i];
  }
}

void block(Precision p, const ModelConfig& c, const BlockWeights& w, Matrix& x) {
  const Matrix normed = rms_norm(x, w.input_layernorm, c.rms_norm_eps);
  add(x, w.mla ? mla(p, c, *w.mla, normed) : gqa(p, c, *w.gqa, normed));
  const Matrix again = rms_norm(x, w.post_attention_layernorm, c.rms_norm_eps);
  add(x, w.moe ? moe(p, c, *w.moe, again)
               : mlp(p, w.mlp->gate_proj.weight, w.mlp->up_proj.weight, w.mlp->down_proj.weight,
                     again));
}

std::vector<double> flatten(const Matrix& m) {
  std::vector<double> flat;
  for (const Vector& row : m) flat.insert(flat.end(), row.begin(), row.end());
  return flat;
}

}  // namespace

std::vector<double> model_logits(const Model& model, std::span<const int32_t> tokens, Precision p,
                                 std::vector<double>* hidden) {
  const ModelConfig& c = model.config();
  const ModelWeights& w = model.weights();
  Matrix x;
  for (const int32_t id : tokens) x.push_back(weight_row(w.embed_tokens.weight, id));
  for (const BlockWeights& layer : w.layers) block(p, c, layer, x);
  const Matrix normed = rms_norm(x, w.norm, c.rms_norm_eps);
  if (hidden != nullptr) *hidden = flatten(normed);
  return flatten(linear(p, w.lm_head, normed));
}

std::vector<double> mtp_logits(const Model& model, std::span<const int32_t> tokens, Precision p,
                               std::span<const double> hidden) {
  const ModelConfig& c = model.config();
  const MtpWeights& w = *model.weights().mtp;
  const auto d = static_cast<size_t>(c.hidden_size);
  Matrix pair;
  for (size_t t = 0; t + 1 < tokens.size(); ++t) {
    pair.push_back(rms_norm(weight_row(model.weights().embed_tokens.weight, tokens[t + 1]), w.enorm,
                            c.rms_norm_eps));
    const Vector h = rms_norm(Vector(hidden.begin() + static_cast<int64_t>(t * d),
                                     hidden.begin() + static_cast<int64_t>((t + 1) * d)),
                              w.hnorm, c.rms_norm_eps);
    pair[t].insert(pair[t].end(), h.begin(), h.end());
  }
  Matrix z = linear(p, w.eh_proj, pair);
  block(p, c, w.block, z);
  return flatten(
      linear(p, model.weights().lm_head, rms_norm(z, w.shared_head_norm, c.rms_norm_eps)));
}

}  // namespace fathom::reference
