// Guesses at the next tokens of a sequence, which one step of the model then confirms or corrects.
//
// The engine puts the last token and its drafts through the model as one run of rows, samples the
// positions in turn, and goes on to the next row exactly while the sampled token is the draft. So
// every token that comes out was sampled from logits of the true text before it, by the same
// sampler state and the same random number as without drafts: rows are equal bit for bit however
// they are batched, and draws are a function of (seed, choice, position). The output is therefore
// the same function of the same draws, not merely of the same distribution, for whatever a drafter
// says. Drafts decide only how many tokens a step yields.
//
// The MTP layer (V3 §2.2) guesses token i + 2 from the main model's state of position i and token
// i + 1; its cache row of position i is a function of these, so it is computed once token i + 1 is
// known for sure. The guess is drawn by the request's own sampler with the random number of its
// position: two distributions that are alike give mostly the same token from the same number, also
// at temperature 1.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "engine/sampler.h"
#include "engine/step_rows.h"
#include "model/model.h"

namespace fathom {

enum class Speculation {
  kOff,
  kMtp,     // drafts of the model's own MTP layer
  kLookup,  // what followed the last tokens when they came before in the same text
  kBoth,    // the MTP layer's guess and what followed it, or a lookup alone that is as sure
  kAuto,    // kBoth if the model has that layer, else kLookup
};

// Appends at most `most` guesses of the tokens that follow `tokens` to `drafts`. Returns how many
// of the last tokens they are founded on, at most kMostMatch; 0: no guess. Whatever it says, texts
// stay the same; each guess must be in the vocabulary.
using TokenDrafter = std::function<int64_t(std::span<const int32_t> tokens, int64_t most,
                                           std::vector<int32_t>& drafts)>;

// Prompt lookup: the tokens behind the place where the longest end of `tokens` occurred before (at
// least kLeastMatch tokens, kMostMatch count), the last such place if there are several. Returns
// the length of the match. O(tokens).
inline constexpr int64_t kLeastMatch = 2, kMostMatch = 8;
int64_t draft_by_lookup(std::span<const int32_t> tokens, int64_t most,
                        std::vector<int32_t>& drafts);

// Tokens that may follow a text; a beginning of them is drafted.
struct Guesses {
  std::vector<int32_t> tokens;
  int64_t of_mtp = 0;  // the first ones, by the MTP layer; the others by the drafter
  int64_t match = 0;   // what the drafter returned

  void clear() {
    tokens.clear();
    of_mtp = match = 0;
  }
};

// How often guesses at one sequence were right of late, and so how many are worth a row. Those of
// the drafter cost nothing, so they are judged whether drafted or not; those of the MTP layer pause
// while too few are right, longer each time.
class DraftPace {
 public:
  bool mtp_paused() const { return pause_left_ > 0; }
  // So many of the first guesses are right with a chance of at least `pays`.
  int64_t worth(const Guesses& guesses, double pays) const;
  // Whether the MTP layer's guess instead of the drafter's first one gains `cost` tokens.
  bool mtp_gains(const Guesses& by_drafter, double cost) const;
  // After each decode step: `drafted` of the guesses had a row, and these tokens came.
  void note(const Guesses& guesses, int64_t drafted, std::span<const int32_t> came);

 private:
  double chance(const Guesses& guesses, int64_t i) const;  // if all before are right
  void note_mtp(int64_t drafted, int64_t accepted);

  double mtp_ = 0.7;  // share, decaying; begins well above what pays
  int32_t pause_ = 0, pause_left_ = 0;
  // Of the drafter's guesses, by what they are founded on.
  struct Share {
    double right;
    int32_t seen = 0;
  };
  std::array<Share, kMostMatch + 1> shares_{
      {{0.2}, {0.2}, {0.25}, {0.35}, {0.6}, {0.75}, {0.8}, {0.85}, {0.85}}};
};

// The MTP layer over the new rows of a step's sequences, all at once, and drafts for some of them.
class MtpDrafter {
 public:
  // All outlive the drafter. REQUIRES: model.has_mtp().
  MtpDrafter(const Model& model, const KvCacheView& cache, MlaForm form);

  // Room for steps of so many sequences and rows, so that run() allocates nothing.
  void reserve(int64_t sequences, int64_t rows);
  // Where the main model leaves the states of its step's rows.
  Rows hidden(int64_t rows);

  // A new list of work.
  void begin();
  // The next rows.rows rows of a sequence's MTP layer: their states are `kept`, then `fresh`;
  // next_tokens are the tokens one position on, so the last of them is the sequence's last token.
  // With a sampler, up to `most` tokens behind that one are appended to drafts. All must live until
  // run() is over.
  struct Rest {
    SequenceRows rows;
    int64_t expanded_end = 0;  // positions before it are expanded, others in the drafter's form
    std::span<const int32_t> next_tokens;
    ConstRows kept, fresh;
    Sampler* sampler = nullptr;
    int64_t most = 0;
    std::vector<int32_t>* drafts = nullptr;
  };
  void add(const Rest& rest);
  // Writes cache rows and drafts; samplers are as before, also if it throws.
  void run(Context& ctx);

 private:
  struct Job {
    Sampler* sampler;
    int64_t most;
    std::vector<int32_t>* drafts;
    SequenceRows last;  // the row that guesses next
    int64_t remembered = 0;
  };
  void forward(Context& ctx);
  void pick(Context& ctx);
  bool go_deeper();
  void forget();

  const Model& model_;
  const KvCacheView& cache_;
  MlaForm form_;
  std::vector<float> step_hidden_;
  // One forward_mtp().
  std::vector<int32_t> tokens_, logit_rows_;
  StepRows rows_;
  std::vector<float> hidden_, hidden_out_, logits_;
  std::vector<Job> jobs_;
  std::vector<size_t> picking_;  // jobs_ of logit_rows_
};

}  // namespace fathom
