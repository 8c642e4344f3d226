// Training data: documents of tokens from different sources, packed into the batches of a run.
//
// A source gives document i as a function of i alone. The packer takes them in order, so the whole
// state of a run's data is one number: the next document. Nothing is shuffled twice and nothing is
// lost: what a document is cut to and how many were dropped is counted.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "model/batch.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"
#include "train/tasks.h"

namespace fathom {

struct Document {
  std::vector<int32_t> tokens;
  // [tokens]: whether predicting this token counts; all true in pre-training
  std::vector<bool> learned;
};

class DocumentSource {
 public:
  virtual ~DocumentSource() = default;
  // Replaces `out`. An endless source takes any index; a finite one repeats, in a new order each
  // time.
  virtual void document(uint64_t index, Document& out) const = 0;
  // Of files that the documents come from: a resumed run must find the same.
  virtual uint64_t fingerprint() const { return 0; }
};

// Document `index` of an endless walk over n, a new permutation each epoch.
uint64_t shuffled(uint64_t seed, uint64_t index, uint64_t n);

// BOS, the text, EOS; every token learned.
Document text_document(const Tokenizer& tokenizer, std::string_view text);
// The prompt as inference renders it (encode_chat with generation prompt), then thought and answer
// as the model shall write them, and the end of sentence; learned is what the model writes.
Document conversation_document(const Tokenizer& tokenizer, ChatFormat format,
                               std::string_view question, const WorkedSolution& solution);

// Pre-training texts of tasks, mixed by weight.
std::unique_ptr<DocumentSource> task_texts(const Tokenizer& tokenizer,
                                           std::span<const std::pair<std::string, double>> tasks,
                                           uint64_t seed);
// Conversations about problems of one split. thought_share: of so many the model learns thought and
// answer, of the others the answer at once, after an empty thought: a rare habit of thinking, for
// reinforcement learning to find.
std::unique_ptr<DocumentSource> task_conversations(
    const Tokenizer& tokenizer, ChatFormat format,
    std::span<const std::pair<std::string, double>> tasks, uint64_t seed,
    Split split = Split::kTrain, double thought_share = 1);

class Messages;  // conversations of a file, tokenised
// JSONL, one {"messages": [{"role", "content", "reasoning_content"?}, ...]} a line, the last one
// the assistant's. Each of the assistant's turns is learned after exactly the tokens that inference
// would have before it: where a format drops old thoughts from the history, each turn is a document
// of its own. Read whole, once for all splits. Throws "FILE:LINE: ...".
std::shared_ptr<const Messages> read_messages(const Tokenizer& tokenizer, ChatFormat format,
                                              const std::string& path);
// Shuffled anew each epoch. split: every twentieth conversation is held out for validation, and
// kTrain has the others; absent = all. Throws if there are none.
std::unique_ptr<DocumentSource> message_documents(std::shared_ptr<const Messages> messages,
                                                  uint64_t seed,
                                                  std::optional<Split> split = std::nullopt);

struct PackingCounts {
  int64_t documents = 0, tokens = 0;
  // longer than the sequence length, in fine-tuning: half an answer teaches nothing
  int64_t dropped = 0;
  int64_t cut = 0;  // in pre-training such a document becomes several
};

// A step's documents, in memory of its own that is used again.
class StepBatch {
 public:
  void clear();
  void add(std::span<const int32_t> tokens, const std::vector<bool>& learned, size_t begin);
  int64_t tokens() const { return static_cast<int64_t>(tokens_.size()); }
  // The documents in groups of at most `micro_batch_tokens` (at least one document each). Valid
  // until clear().
  std::span<const TrainBatch> micro_batches(int64_t micro_batch_tokens);

 private:
  std::vector<int32_t> tokens_, targets_;
  std::vector<int64_t> lengths_;
  std::vector<TrainBatch> parts_;
};

class Packer {
 public:
  // cut: split documents longer than sequence_length instead of dropping them.
  Packer(const DocumentSource& source, int64_t sequence_length, bool cut)
      : source_(source), sequence_length_(sequence_length), cut_(cut) {}

  // Whole documents in order, as many as fit into `tokens`, at least one.
  void next(int64_t tokens, StepBatch& batch);

  uint64_t position() const { return next_; }  // the next document: all that a resume needs
  void seek(uint64_t position);
  const PackingCounts& counts() const { return counts_; }

 private:
  const DocumentSource& source_;
  int64_t sequence_length_;
  bool cut_;
  uint64_t next_ = 0;
  // document_ is document next_, read for the batch before but without room there
  bool loaded_ = false;
  Document document_;
  PackingCounts counts_;
};

}  // namespace fathom
