#include "engine/draft.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "kernels/attention.h"

namespace fathom {

int64_t draft_by_lookup(std::span<const int32_t> tokens, int64_t most,
                        std::vector<int32_t>& drafts) {
  const int64_t size = std::ssize(tokens);
  const auto at = [&](int64_t i) { return tokens[static_cast<size_t>(i)]; };
  int64_t longest = kLeastMatch - 1, follows = 0;
  for (int64_t end = size - 1; end > longest && longest < kMostMatch; --end) {
    if (at(end - 1) != at(size - 1)) continue;
    int64_t length = 1;
    while (length < std::min(end, kMostMatch) && at(end - 1 - length) == at(size - 1 - length))
      ++length;
    if (length > longest) {
      longest = length;
      follows = end;
    }
  }
  if (longest < kLeastMatch) return 0;
  // Past the end of the text go the drafts themselves: what repeats goes on repeating.
  const size_t begin = drafts.size();
  for (int64_t i = follows; i < follows + most; ++i)
    drafts.push_back(i < size ? at(i) : drafts[begin + static_cast<size_t>(i - size)]);
  return longest;
}

double DraftPace::chance(const Guesses& guesses, int64_t i) const {
  if (i < guesses.of_mtp) return mtp_;
  const int64_t match = guesses.match + i - guesses.of_mtp;  // those before count, if right
  return shares_[static_cast<size_t>(std::clamp<int64_t>(match, 0, kMostMatch))].right;
}

int64_t DraftPace::worth(const Guesses& guesses, double pays) const {
  const int64_t size = std::ssize(guesses.tokens);
  int64_t count = guesses.of_mtp;
  double all_right = count > 0 ? mtp_ : 1;
  while (count < size && (all_right *= chance(guesses, count)) >= pays) ++count;
  return count;
}

bool DraftPace::mtp_gains(const Guesses& by_drafter, double cost) const {
  if (by_drafter.tokens.empty()) return true;
  const double first = chance(by_drafter, 0);
  double behind = 1, all_right = 1;
  for (int64_t i = 1; i < std::ssize(by_drafter.tokens); ++i)
    behind += all_right *= chance(by_drafter, i);
  return (mtp_ - first) * behind > cost;
}

void DraftPace::note(const Guesses& guesses, int64_t drafted, std::span<const int32_t> came) {
  constexpr int32_t kFirst = 4, kRemembered = 12;  // weight of what was known before: kFirst - 1
  int64_t right = 0;
  for (bool goes_on = true;
       goes_on && right < std::min(std::ssize(guesses.tokens), std::ssize(came));
       right += goes_on) {
    goes_on = guesses.tokens[static_cast<size_t>(right)] == came[static_cast<size_t>(right)];
    if (right < guesses.of_mtp) continue;
    const int64_t match = guesses.match + right - guesses.of_mtp;
    Share& share = shares_[static_cast<size_t>(std::clamp<int64_t>(match, 0, kMostMatch))];
    share.right += (goes_on - share.right) / (kFirst + share.seen);
    share.seen = std::min(share.seen + 1, kRemembered - kFirst);
  }
  const int64_t by_mtp = std::min(drafted, guesses.of_mtp);
  note_mtp(by_mtp, std::min(right, by_mtp));
}

void DraftPace::note_mtp(int64_t drafted, int64_t accepted) {
  constexpr double kPays = 0.35, kForget = 1.0 / 6;
  constexpr int32_t kFirstPause = 16, kLongestPause = 256;
  if (pause_left_ > 0) {
    // Then a few tries tell whether the text has changed.
    if (--pause_left_ == 0) mtp_ = kPays + 0.1;
    return;
  }
  if (drafted == 0) return;
  mtp_ += kForget * (static_cast<double>(accepted) / static_cast<double>(drafted) - mtp_);
  if (mtp_ < kPays) {
    pause_ = std::clamp(2 * pause_, kFirstPause, kLongestPause);
    pause_left_ = pause_;
  } else if (mtp_ > kPays + 0.2) {
    pause_ = 0;
  }
}

MtpDrafter::MtpDrafter(const Model& model, const KvCacheView& cache, MlaForm form)
    : model_(model), cache_(cache), form_(form) {
  FATHOM_CHECK(model.has_mtp());
}

void MtpDrafter::reserve(int64_t sequences, int64_t rows) {
  const auto states = [&](int64_t count) {
    return static_cast<size_t>(count * model_.config().hidden_size);
  };
  const auto count = static_cast<size_t>(sequences);
  const int64_t with_kept = rows + sequences * kKeyBlock;
  step_hidden_.reserve(states(rows));
  tokens_.reserve(static_cast<size_t>(with_kept));
  hidden_.reserve(states(with_kept));
  hidden_out_.reserve(states(sequences));
  rows_.reserve(sequences);
  logit_rows_.reserve(count);
  jobs_.reserve(count);
  picking_.reserve(count);
  logits_.reserve(count * static_cast<size_t>(model_.config().vocab_size));
}

Rows MtpDrafter::hidden(int64_t rows) {
  const int64_t hidden_size = model_.config().hidden_size;
  step_hidden_.resize(static_cast<size_t>(rows * hidden_size));
  return {step_hidden_.data(), rows, hidden_size, hidden_size};
}

void MtpDrafter::begin() {
  tokens_.clear();
  logit_rows_.clear();
  rows_.clear();
  hidden_.clear();
  jobs_.clear();
  picking_.clear();
}

void MtpDrafter::add(const Rest& rest) {
  FATHOM_CHECK(rest.rows.rows == std::ssize(rest.next_tokens) &&
                   rest.rows.rows == rest.kept.rows + rest.fresh.rows,
               rest.rows.rows, rest.next_tokens.size(), rest.kept.rows, rest.fresh.rows);
  tokens_.insert(tokens_.end(), rest.next_tokens.begin(), rest.next_tokens.end());
  rows_.add(rest.rows, rest.expanded_end, form_);
  for (const ConstRows& from : {rest.kept, rest.fresh}) {
    FATHOM_CHECK(from.stride == from.cols || from.rows == 0, from.stride);
    hidden_.insert(hidden_.end(), from.data, from.data + from.rows * from.cols);
  }
  if (rest.most == 0) return;
  picking_.push_back(jobs_.size());
  logit_rows_.push_back(static_cast<int32_t>(std::ssize(tokens_) - 1));
  const int64_t position = rest.rows.position + rest.rows.rows - 1;
  jobs_.push_back({rest.sampler, rest.most, rest.drafts, {1, position, rest.rows.block_rows}});
}

void MtpDrafter::run(Context& ctx) {
  if (tokens_.empty()) return;
  struct Forget {
    MtpDrafter& drafter;
    ~Forget() { drafter.forget(); }
  } forget{*this};
  forward(ctx);
  pick(ctx);
  while (go_deeper()) {
    forward(ctx);
    pick(ctx);
  }
}

void MtpDrafter::forward(Context& ctx) {
  const int64_t hidden_size = model_.config().hidden_size, vocab_size = model_.config().vocab_size;
  const int64_t rows = std::ssize(tokens_), wanted = std::ssize(logit_rows_);
  hidden_out_.resize(static_cast<size_t>(wanted * hidden_size));
  logits_.resize(static_cast<size_t>(wanted * vocab_size));
  Rows out{hidden_out_.data(), wanted, hidden_size, hidden_size};
  model_.forward_mtp(ctx, {tokens_, rows_.sequences, logit_rows_, &cache_, form_, rows_.forms},
                     {hidden_.data(), rows, hidden_size, hidden_size},
                     {logits_.data(), wanted, vocab_size, vocab_size}, &out);
}

void MtpDrafter::pick(Context& ctx) {
  const auto vocab_size = static_cast<size_t>(model_.config().vocab_size);
  ctx.pool().run(std::ssize(picking_), [&](int64_t item, int) {
    const auto i = static_cast<size_t>(item);
    Job& job = jobs_[picking_[i]];
    // the guessing row's token is one behind it, what it guesses two
    const auto token = job.sampler->pick(std::span(logits_).subspan(i * vocab_size, vocab_size),
                                         job.last.position + 2);
    if (!token) {
      job.most = 0;
      return;
    }
    job.drafts->push_back(*token);
    job.sampler->remember(*token);
    ++job.remembered;
  });
}

// The state behind the MTP layer stands for the main model's of the next position. The row is
// written where the true one will be; it is no part of any block that others may find.
bool MtpDrafter::go_deeper() {
  const auto hidden_size = static_cast<size_t>(model_.config().hidden_size);
  tokens_.clear();
  logit_rows_.clear();
  rows_.clear();
  size_t count = 0;
  for (size_t i = 0; i < picking_.size(); ++i) {
    const size_t index = picking_[i];
    Job& job = jobs_[index];
    const int64_t position = job.last.position + 1;
    if (job.remembered >= job.most || position >= std::ssize(job.last.block_rows) * kKeyBlock)
      continue;
    std::memcpy(hidden_.data() + count * hidden_size, hidden_out_.data() + i * hidden_size,
                hidden_size * sizeof(float));
    job.last.position = position;
    tokens_.push_back(job.drafts->back());
    logit_rows_.push_back(static_cast<int32_t>(count));
    rows_.add(job.last, 0, form_);
    picking_[count++] = index;
  }
  picking_.resize(count);
  hidden_.resize(count * hidden_size);
  return count > 0;
}

void MtpDrafter::forget() {
  for (Job& job : jobs_) {
    for (int64_t i = 0; i < job.remembered; ++i)
      job.sampler->forget((*job.drafts)[job.drafts->size() - 1 - static_cast<size_t>(i)]);
    job.remembered = 0;
  }
}

}  // namespace fathom
