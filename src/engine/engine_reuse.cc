// What a request that starts finds already computed: in its own cache, and in the store on disk.
#include <algorithm>

#include "base/check.h"
#include "engine/engine.h"
#include "engine/engine_sequence.h"
#include "kernels/attention.h"

namespace fathom {

BlockPool::Content Engine::content(const Sequence& s, int64_t block) const {
  const auto i = static_cast<size_t>(block);
  return {s.block_before(block), s.hash_before(block), s.hashes[i], s.block_names(block)};
}

// Gives the sequence its blocks: those found, then own ones for the rest of its tokens. False, and
// nothing taken, if it has to wait.
bool Engine::start(Sequence& s) {
  s.prepare(options_.draft_tokens, mtp_ ? kKeyBlock * model_.config().hidden_size : 0);
  const int64_t growing = std::count_if(running_.begin(), running_.end(),
                                        [](const auto& other) { return other->still_grows(); });
  int64_t found = 0;
  ReuseEnd end = ReuseEnd::kDisabled;
  Copied copied;
  try {
    if (options_.prefix_cache) found = share_found(s, growing);
    if ((options_.prefix_cache && better_wait(s, found)) || !has_room(s, growing)) {
      cache_.release(s.block_rows);
      return false;
    }
    if (options_.prefix_cache) renew_alike(s, found);
    FATHOM_CHECK(cache_.reserve(s.block_rows, s.size()), s.size());
    if (options_.prefix_cache) {
      copied = copy_alike(s, found);
      end = reuse_end(s, found, copied);
    }
  } catch (...) {
    cache_.release(s.block_rows);
    throw;
  }
  // The MTP layer's last copied row may be of another next token.
  if (mtp_) copied.rows = std::max<int64_t>(0, copied.rows - 1);
  s.published = found;
  s.computed = s.complete = found * kKeyBlock + copied.rows;
  s.prefill_end = s.size();
  stats_.cached_tokens += s.computed;
  if (s.reuse.end == ReuseEnd::kNotStarted) s.reuse = {s.computed, end};
  return true;
}

// A block of its own that holds this content, from the store; kNone if that has none, or if the
// sequence cannot start anyway (a loaded block takes the room of a computed one).
int64_t Engine::load_stored(const Sequence& s, int64_t growing, const BlockPool::Content& content) {
  if (store_ == nullptr || !store_->has(content.hash) || !has_room(s, growing))
    return BlockPool::kNone;
  const int64_t block = cache_.pool().take();
  bool loaded = false;
  try {
    loaded = store_->load(content, cache_.view(), block * kKeyBlock);
  } catch (...) {
    cache_.pool().release(block);
    throw;
  }
  if (loaded) return cache_.pool().publish(block, content);
  cache_.pool().release(block);
  return BlockPool::kNone;
}

// Shares the longest beginning that is cached, in memory or in the store; returns its blocks.
int64_t Engine::share_found(Sequence& s, int64_t growing) {
  int64_t found = 0;
  for (; found < s.findable_blocks(); ++found) {
    const BlockPool::Content wanted = content(s, found);
    int64_t block = cache_.pool().find(wanted);
    if (block != BlockPool::kNone) {
      cache_.pool().share(block);
    } else if (block = load_stored(s, growing, wanted); block == BlockPool::kNone) {
      break;
    }
    s.block_rows.push_back(block * kKeyBlock);
  }
  return found;
}

// One block more than it needs now for everyone who grows (`growing` of the running), itself too:
// else it would soon be preempted, or preempt, for nothing. Alone it always has room: the cache
// holds a whole context.
bool Engine::has_room(const Sequence& s, int64_t growing) const {
  const int64_t missing = (s.size() + kKeyBlock - 1) / kKeyBlock - std::ssize(s.block_rows);
  if (!running_.empty() && missing < s.most_blocks() - std::ssize(s.block_rows)) ++growing;
  return missing + growing <= cache_.pool().available();
}

// Somebody's prefill has not yet come to a block that this sequence lacks, or, where no whole block
// is missing, to the rest of its prompt. The oldest prefill goes on in every step, so the wait
// ends.
bool Engine::better_wait(const Sequence& s, int64_t found) const {
  const std::span<const int32_t> wanted = s.findable_names(found);
  return std::any_of(running_.begin(), running_.end(), [&](const auto& other) {
    const Sequence& o = *other;
    if (!o.prefilling() || std::ssize(o.hashes) < found ||
        o.hash_before(found) != s.hash_before(found))
      return false;
    if (found < s.findable_blocks())
      return found < std::ssize(o.hashes) &&
             o.hashes[static_cast<size_t>(found)] == s.hashes[static_cast<size_t>(found)];
    const auto has = std::span(o.names).subspan(static_cast<size_t>(found * kKeyBlock));
    return !wanted.empty() && o.computed < s.size() - 1 && has.size() >= wanted.size() &&
           std::equal(wanted.begin(), wanted.end(), has.begin());
  });
}

// So that the room for its blocks is not made of what it is about to copy, if there is any else.
void Engine::renew_alike(const Sequence& s, int64_t found) {
  const BlockPool::Alike alike = cache_.pool().most_alike(
      s.block_before(found), s.hash_before(found), s.findable_names(found));
  if (alike.tokens >= BlockPool::kAkin) cache_.pool().renew(alike.block);
}

// Copies rows of the block behind the shared ones from whoever has the most equal tokens there: a
// cached block, a running sequence or the store.
Engine::Copied Engine::copy_alike(Sequence& s, int64_t found) {
  const std::span<const int32_t> wanted = s.findable_names(found);
  const int64_t parent = s.block_before(found);
  const BlockPool::Alike alike = cache_.pool().most_alike(parent, s.hash_before(found), wanted);
  Copied copied{alike.tokens, alike.differs};
  int64_t from = alike.block * kKeyBlock;
  for (const auto& other : running_) {
    const Sequence& o = *other;
    if (o.published != found || o.hash_before(found) != s.hash_before(found) ||
        o.block_before(found) != parent)
      continue;  // `found` is not the block it is filling, or it follows another text
    const auto has = std::span(o.names)
                         .first(static_cast<size_t>(o.complete))
                         .subspan(static_cast<size_t>(found * kKeyBlock));
    const int64_t equal =
        std::mismatch(has.begin(), has.end(), wanted.begin(), wanted.end()).first - has.begin();
    const bool differs = equal < std::min(std::ssize(has), std::ssize(wanted));
    if (equal == copied.rows) copied.token_differs |= differs;
    if (equal <= copied.rows) continue;
    copied = {equal, differs};
    from = o.block_rows[static_cast<size_t>(found)];
  }
  if (wanted.empty()) return copied;
  const int64_t to = s.block_rows[static_cast<size_t>(found)];
  if (store_ != nullptr && copied.rows < std::min(kKeyBlock, std::ssize(wanted))) {
    const PrefixStore::Loaded stored =
        store_->load_alike(s.hash_before(found), wanted, copied.rows, cache_.view(), to);
    if (stored.rows > 0) return {stored.rows, stored.token_differs};
    copied.token_differs |= stored.token_differs;
  }
  if (copied.rows == 0) return copied;
  cache_.copy_rows(from, to, copied.rows);
  return copied;
}

ReuseEnd Engine::reuse_end(const Sequence& s, int64_t found, Copied copied) const {
  const bool all_blocks = found == s.findable_blocks();
  if (found * kKeyBlock + copied.rows == s.size() - 1) return ReuseEnd::kPromptEnd;
  if (!all_blocks && cache_.pool().was_evicted(s.hashes[static_cast<size_t>(found)]))
    return ReuseEnd::kEvicted;
  if (copied.token_differs) return ReuseEnd::kTokenDiffers;
  return all_blocks && found > 0 ? ReuseEnd::kPromptEnd : ReuseEnd::kNothingCached;
}

}  // namespace fathom
