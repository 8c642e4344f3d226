#include "train/data.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "base/random.h"
#include "formats/json.h"

namespace fathom {
namespace {

constexpr uint64_t kLargestJsonl = uint64_t{4} << 30;

void append(const std::vector<int32_t>& ids, bool learned, Document& document) {
  document.tokens.insert(document.tokens.end(), ids.begin(), ids.end());
  document.learned.resize(document.tokens.size(), learned);
}

int32_t end_of_sentence(const Tokenizer& tokenizer) {
  const std::vector<int32_t> ends = tokenizer.eos_ids();
  if (ends.empty()) fail("tokenizer: no end-of-sentence token, expected one to train with");
  return ends[0];
}

// What the model writes after the generation prompt.
std::string completion(const std::optional<ThinkingMarks>& marks, const WorkedSolution& s) {
  if (!marks) return s.thought.empty() ? s.answer : s.thought + "\n" + s.answer;
  const std::string begin = marks->prompt_opens ? "" : std::string(marks->begin) + "\n";
  return begin + s.thought + std::string(marks->end) + "\n\n" + s.answer;
}

class Mix {
 public:
  explicit Mix(std::span<const std::pair<std::string, double>> tasks) {
    double total = 0;
    for (const auto& [name, weight] : tasks) {
      tasks_.push_back(make_task(name));
      ends_.push_back(total += weight);
    }
    for (double& end : ends_) end /= total;
  }
  const Task& pick(uint64_t seed, uint64_t index) const {
    const double at = random_uniform({.seed = seed, .purpose = RandomPurpose::kShuffle}, index);
    const auto which = std::upper_bound(ends_.begin(), ends_.end(), at) - ends_.begin();
    return *tasks_[std::min(static_cast<size_t>(which), tasks_.size() - 1)];
  }

 private:
  std::vector<std::unique_ptr<Task>> tasks_;
  std::vector<double> ends_;
};

class TaskTexts : public DocumentSource {
 public:
  TaskTexts(const Tokenizer& tokenizer, std::span<const std::pair<std::string, double>> tasks,
            uint64_t seed)
      : tokenizer_(tokenizer), mix_(tasks), seed_(seed) {}
  void document(uint64_t index, Document& out) const override {
    out = text_document(tokenizer_, mix_.pick(seed_, index).text(seed_, index));
  }

 private:
  const Tokenizer& tokenizer_;
  Mix mix_;
  uint64_t seed_;
};

class TaskConversations : public DocumentSource {
 public:
  TaskConversations(const Tokenizer& tokenizer, ChatFormat format,
                    std::span<const std::pair<std::string, double>> tasks, uint64_t seed,
                    Split split, double thought_share)
      : tokenizer_(tokenizer),
        format_(format),
        mix_(tasks),
        seed_(seed),
        split_(split),
        thought_share_(thought_share) {}
  void document(uint64_t index, Document& out) const override {
    const Task& task = mix_.pick(seed_, index);
    const Problem problem = task.problem(seed_, index, split_);
    WorkedSolution solution = task.solve(problem, seed_ ^ mix_bits(index));
    // Another sequence than the choice of the task (Mix).
    const RandomKey key{.seed = seed_, .purpose = RandomPurpose::kShuffle, .sequence = 1};
    if (random_uniform(key, index) >= thought_share_) solution.thought.clear();
    out = conversation_document(tokenizer_, format_, problem.question, solution);
  }

 private:
  const Tokenizer& tokenizer_;
  ChatFormat format_;
  Mix mix_;
  uint64_t seed_;
  Split split_;
  double thought_share_;
};

constexpr size_t kHoldOut = 20;  // one conversation of so many

std::vector<ChatMessage> read_conversation(const JsonObject& object) {
  const std::string& place = object.place();
  const nlohmann::json& list = object.value("messages");
  if (!list.is_array() || list.empty())
    fail("{}: messages: expected an array of at least one message", place);
  std::vector<ChatMessage> messages;
  for (size_t i = 0; i < list.size(); ++i) {
    const JsonObject m(list[i], fmt::format("{}: messages[{}]", place, i));
    messages.push_back(read_message(m));
  }
  if (messages.back().role != ChatMessage::Role::kAssistant) {
    fail("{}: messages: the last one is not the assistant's, expected an answer to learn", place);
  }
  return messages;
}

// What one conversation becomes.
std::vector<Document> render(const Tokenizer& tokenizer, ChatFormat format,
                             const std::vector<ChatMessage>& messages) {
  const std::optional<ThinkingMarks> marks = thinking_marks(format, {});
  std::vector<Document> documents;
  Document d;
  for (size_t i = 0; i < messages.size(); ++i) {
    if (messages[i].role != ChatMessage::Role::kAssistant) continue;
    const std::vector<int32_t> prompt =
        encode_chat(tokenizer, format, std::span(messages).first(i), {});
    const bool goes_on = prompt.size() >= d.tokens.size() &&
                         std::equal(d.tokens.begin(), d.tokens.end(), prompt.begin());
    if (!goes_on) documents.push_back(std::exchange(d, {}));
    append({prompt.begin() + std::ssize(d.tokens), prompt.end()}, false, d);
    append(tokenizer.encode(completion(marks, {messages[i].reasoning, messages[i].content}), true),
           true, d);
    append({end_of_sentence(tokenizer)}, true, d);
  }
  documents.push_back(std::move(d));
  return documents;
}

}  // namespace

class Messages {
 public:
  Messages(const Tokenizer& tokenizer, ChatFormat format, const std::string& path) : path_(path) {
    const std::string text = read_file(path, kLargestJsonl);
    fingerprint_ = hash_bytes(std::as_bytes(std::span(text)));
    for_each_json_line(text, path, [&](const JsonObject& line, size_t) {
      const bool held_out = ++conversations_ % kHoldOut == 0;
      for (Document& d : render(tokenizer, format, read_conversation(line)))
        documents_.push_back({std::move(d), held_out});
    });
    if (conversations_ == 0) fail("{}: no conversation, expected one JSON object a line", path);
  }

  // Numbers of the documents of a split.
  std::vector<size_t> of(std::optional<Split> split) const {
    std::vector<size_t> numbers;
    for (size_t i = 0; i < documents_.size(); ++i) {
      if (!split || documents_[i].held_out == (*split == Split::kValidation)) numbers.push_back(i);
    }
    if (numbers.empty()) {
      fail("{}: {} conversations, expected at least {}: every {}th is held out to validate with",
           path_, conversations_, kHoldOut, kHoldOut);
    }
    return numbers;
  }
  const Document& document(size_t number) const { return documents_[number].document; }
  uint64_t fingerprint() const { return fingerprint_; }

 private:
  struct Entry {
    Document document;
    bool held_out;
  };
  std::string path_;
  uint64_t fingerprint_ = 0;
  size_t conversations_ = 0;
  std::vector<Entry> documents_;
};

namespace {

class MessageDocuments : public DocumentSource {
 public:
  MessageDocuments(std::shared_ptr<const Messages> messages, uint64_t seed,
                   std::optional<Split> split)
      : messages_(std::move(messages)), numbers_(messages_->of(split)), seed_(seed) {}

  void document(uint64_t index, Document& out) const override {
    out =
        messages_->document(numbers_[static_cast<size_t>(shuffled(seed_, index, numbers_.size()))]);
  }
  uint64_t fingerprint() const override { return messages_->fingerprint(); }

 private:
  // Also the other split's.
  std::shared_ptr<const Messages> messages_;
  std::vector<size_t> numbers_;
  uint64_t seed_;
};

}  // namespace

// A four-round Feistel network on the bits of n - 1, walked until it lands inside.
uint64_t shuffled(uint64_t seed, uint64_t index, uint64_t n) {
  const uint64_t epoch = index / n;
  index %= n;
  int half = 1;
  while (uint64_t{1} << (2 * half) < n) ++half;
  const uint64_t mask = (uint64_t{1} << half) - 1;
  do {
    for (uint64_t round = 0; round < 4; ++round) {
      const uint64_t left = index >> half, right = index & mask;
      const RandomKey key{
          .seed = seed, .purpose = RandomPurpose::kShuffle, .sequence = epoch * 4 + round};
      index = right << half | (left ^ (random_bits(key, right) & mask));
    }
  } while (index >= n);
  return index;
}

Document text_document(const Tokenizer& tokenizer, std::string_view text) {
  Document d;
  if (const auto bos = tokenizer.bos_id()) append({*bos}, true, d);
  append(tokenizer.encode(text, false), true, d);
  append({end_of_sentence(tokenizer)}, true, d);
  return d;
}

Document conversation_document(const Tokenizer& tokenizer, ChatFormat format,
                               std::string_view question, const WorkedSolution& solution) {
  const ChatMessage user{ChatMessage::Role::kUser, std::string(question), {}, {}};
  Document d;
  append(encode_chat(tokenizer, format, {&user, 1}, {}), false, d);
  append(tokenizer.encode(completion(thinking_marks(format, {}), solution), true), true, d);
  append({end_of_sentence(tokenizer)}, true, d);
  return d;
}

std::unique_ptr<DocumentSource> task_texts(const Tokenizer& tokenizer,
                                           std::span<const std::pair<std::string, double>> tasks,
                                           uint64_t seed) {
  return std::make_unique<TaskTexts>(tokenizer, tasks, seed);
}

std::unique_ptr<DocumentSource> task_conversations(
    const Tokenizer& tokenizer, ChatFormat format,
    std::span<const std::pair<std::string, double>> tasks, uint64_t seed, Split split,
    double thought_share) {
  return std::make_unique<TaskConversations>(tokenizer, format, tasks, seed, split, thought_share);
}

std::shared_ptr<const Messages> read_messages(const Tokenizer& tokenizer, ChatFormat format,
                                              const std::string& path) {
  return std::make_shared<const Messages>(tokenizer, format, path);
}

std::unique_ptr<DocumentSource> message_documents(std::shared_ptr<const Messages> messages,
                                                  uint64_t seed, std::optional<Split> split) {
  return std::make_unique<MessageDocuments>(std::move(messages), seed, split);
}

void StepBatch::clear() {
  tokens_.clear();
  targets_.clear();
  lengths_.clear();
}

void StepBatch::add(std::span<const int32_t> tokens, const std::vector<bool>& learned,
                    size_t begin) {
  lengths_.push_back(static_cast<int64_t>(tokens.size()));
  for (size_t t = 0; t < tokens.size(); ++t) {
    tokens_.push_back(tokens[t]);
    targets_.push_back(t + 1 < tokens.size() && learned[begin + t + 1] ? tokens[t + 1] : -1);
  }
}

std::span<const TrainBatch> StepBatch::micro_batches(int64_t micro_batch_tokens) {
  parts_.clear();
  size_t token = 0, document = 0;
  while (document < lengths_.size()) {
    size_t documents = 0;
    int64_t tokens = 0;
    while (document + documents < lengths_.size() &&
           (documents == 0 || tokens + lengths_[document + documents] <= micro_batch_tokens)) {
      tokens += lengths_[document + documents++];
    }
    const auto count = static_cast<size_t>(tokens);
    parts_.push_back({std::span(tokens_).subspan(token, count),
                      std::span(lengths_).subspan(document, documents),
                      std::span(targets_).subspan(token, count)});
    token += count;
    document += documents;
  }
  return parts_;
}

void Packer::seek(uint64_t position) {
  next_ = position;
  loaded_ = false;
}

void Packer::next(int64_t tokens, StepBatch& batch) {
  batch.clear();
  // Bounds a source that has only documents to drop.
  constexpr int kMostDropped = 100000;
  for (int dropped = 0;;) {
    if (!loaded_) source_.document(next_, document_);
    loaded_ = true;
    const auto length = static_cast<int64_t>(document_.tokens.size());
    if (length > sequence_length_ && !cut_) {
      ++counts_.dropped;
      if (++dropped > kMostDropped) {
        fail("data: {} documents in a row are longer than sequence_length {}", dropped - 1,
             sequence_length_);
      }
    } else {
      if (batch.tokens() > 0 && batch.tokens() + length > tokens) return;
      if (length > sequence_length_) ++counts_.cut;
      for (int64_t begin = 0; begin < length; begin += sequence_length_) {
        const int64_t count = std::min(sequence_length_, length - begin);
        batch.add(std::span(document_.tokens)
                      .subspan(static_cast<size_t>(begin), static_cast<size_t>(count)),
                  document_.learned, static_cast<size_t>(begin));
      }
      ++counts_.documents;
      counts_.tokens += length;
    }
    ++next_;
    loaded_ = false;
  }
}

}  // namespace fathom
