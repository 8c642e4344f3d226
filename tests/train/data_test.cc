// Documents, their masks, and packing that loses nothing and resumes anywhere.
#include "train/data.h"

#include <gtest/gtest.h>

#include <fstream>
#include <set>

#include "base/error.h"
#include "tests/base/test_files.h"
#include "text/character_tokenizer.h"

namespace fathom {
namespace {

Tokenizer characters() {
  return Tokenizer::from_json(character_tokenizer_json(), "tokenizer.json",
                              character_tokenizer_config_json());
}

// The text of the tokens that count.
std::string learned_text(const Tokenizer& t, const Document& d) {
  std::vector<int32_t> ids;
  for (size_t i = 0; i < d.tokens.size(); ++i) {
    if (d.learned[i]) ids.push_back(d.tokens[i]);
  }
  return t.decode(ids);
}

TEST(Documents, ConversationIsWhatInferenceFeedsThenWhatTheModelWrites) {
  const Tokenizer t = characters();
  const Document d = conversation_document(t, ChatFormat::kDeepseekR1, "1+1?", {"1+1=2\n", "2"});
  EXPECT_EQ(t.decode(d.tokens),
            "<｜begin▁of▁sentence｜><｜User｜>1+1?<｜Assistant｜><think>\n1+1=2\n</"
            "think>\n\n2<｜end▁of▁sentence｜>");
  EXPECT_EQ(learned_text(t, d), "1+1=2\n</think>\n\n2<｜end▁of▁sentence｜>");
  const ChatMessage user{ChatMessage::Role::kUser, "1+1?", {}, {}};
  const std::vector<int32_t> prompt = encode_chat(t, ChatFormat::kDeepseekR1, {&user, 1}, {});
  EXPECT_TRUE(std::equal(prompt.begin(), prompt.end(), d.tokens.begin()));
  // </think> is one token, not eight characters.
  EXPECT_EQ(std::count(d.tokens.begin(), d.tokens.end(), *t.find("</think>")), 1);
}

TEST(Documents, TextIsLearnedWholeBetweenItsMarks) {
  const Tokenizer t = characters();
  const Document d = text_document(t, "ab");
  EXPECT_EQ(t.decode(d.tokens), "<｜begin▁of▁sentence｜>ab<｜end▁of▁sentence｜>");
  EXPECT_EQ(std::count(d.learned.begin(), d.learned.end(), true), 4);
}

// Documents of the lengths given, again and again; token = number of the document.
class Lengths : public DocumentSource {
 public:
  explicit Lengths(std::vector<size_t> lengths) : lengths_(std::move(lengths)) {}
  void document(uint64_t index, Document& out) const override {
    const size_t n = lengths_[index % lengths_.size()];
    out.tokens.assign(n, static_cast<int32_t>(index));
    out.learned.assign(n, true);
  }

 private:
  std::vector<size_t> lengths_;
};

std::vector<int32_t> flat(StepBatch& batch, int64_t micro) {
  std::vector<int32_t> tokens;
  for (const TrainBatch& part : batch.micro_batches(micro)) {
    int64_t sum = 0;
    for (const int64_t n : part.document_lengths) sum += n;
    EXPECT_EQ(sum, static_cast<int64_t>(part.tokens.size()));
    EXPECT_EQ(part.targets.size(), part.tokens.size());
    EXPECT_TRUE(sum <= micro || part.document_lengths.size() == 1);
    tokens.insert(tokens.end(), part.tokens.begin(), part.tokens.end());
  }
  return tokens;
}

TEST(Packer, KeepsEveryTokenOnceInOrderWhateverTheMicroBatches) {
  const Lengths source({5, 3, 9, 1, 20, 7, 2});
  for (const int64_t micro : {1, 8, 1000}) {
    Packer packer(source, 100, true);
    StepBatch batch;
    std::vector<int32_t> all;
    while (all.size() < 500) {
      packer.next(32, batch);
      EXPECT_LE(batch.tokens(), 32);
      const auto part = flat(batch, micro);
      all.insert(all.end(), part.begin(), part.end());
    }
    std::vector<int32_t> expected;
    Document d;
    for (uint64_t i = 0; expected.size() < all.size(); ++i) {
      source.document(i, d);
      expected.insert(expected.end(), d.tokens.begin(), d.tokens.end());
    }
    EXPECT_EQ(all, expected);
    EXPECT_EQ(packer.counts().tokens, static_cast<int64_t>(all.size()));
  }
}

TEST(Packer, CutsLongTextsAndDropsLongAnswers) {
  const Lengths source({25, 4});
  Packer cuts(source, 10, true);
  StepBatch batch;
  cuts.next(29, batch);
  const auto parts = batch.micro_batches(1000);
  EXPECT_EQ(
      std::vector<int64_t>(parts[0].document_lengths.begin(), parts[0].document_lengths.end()),
      (std::vector<int64_t>{10, 10, 5, 4}));
  EXPECT_EQ(cuts.counts().cut, 1);
  Packer drops(source, 10, false);
  drops.next(8, batch);
  EXPECT_EQ(flat(batch, 8), (std::vector<int32_t>{1, 1, 1, 1, 3, 3, 3, 3}));
  EXPECT_EQ(drops.counts().dropped, 3);
  const Lengths hopeless({25});
  Packer never(hopeless, 10, false);
  EXPECT_THROW(never.next(8, batch), Error);
}

TEST(Packer, ResumesAtEveryBatch) {
  const Lengths source({5, 3, 9, 1, 30, 7, 2});
  Packer packer(source, 12, true);
  StepBatch batch;
  for (int i = 0; i < 20; ++i) {
    const uint64_t position = packer.position();
    packer.next(32, batch);
    const auto expected = flat(batch, 1000);
    Packer resumed(source, 12, true);
    resumed.seek(position);
    resumed.next(32, batch);
    EXPECT_EQ(flat(batch, 1000), expected) << i;
  }
}

TEST(StepBatch, TargetsStayInTheDocumentAndFollowTheMask) {
  StepBatch batch;
  batch.add(std::vector<int32_t>{7, 8, 9}, {false, false, true}, 0);
  batch.add(std::vector<int32_t>{4, 5}, {true, true}, 0);
  const TrainBatch part = batch.micro_batches(100)[0];
  EXPECT_EQ(std::vector<int32_t>(part.targets.begin(), part.targets.end()),
            (std::vector<int32_t>{-1, 9, -1, 5, -1}));
}

struct Jsonl {
  explicit Jsonl(const std::string& text) { std::ofstream(folder.path() / "chat.jsonl") << text; }
  std::string path() const { return (folder.path() / "chat.jsonl").string(); }
  TempDir folder;
};

TEST(JsonlMessages, LearnsTheAssistantsTurns) {
  const Tokenizer t = characters();
  const Jsonl file(
      R"({"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"yes","reasoning_content":"hm\n"}]})"
      "\n\n"
      R"({"messages":[{"role":"system","content":"S"},{"role":"user","content":"a"},{"role":"assistant","content":"b"}]})"
      "\n");
  const auto source = message_documents(read_messages(t, ChatFormat::kDeepseekR1, file.path()), 1);
  std::set<std::string> seen;
  for (uint64_t i = 0; i < 2; ++i) {
    Document d;
    source->document(i, d);
    seen.insert(learned_text(t, d));
  }
  EXPECT_EQ(seen, (std::set<std::string>{"hm\n</think>\n\nyes<｜end▁of▁sentence｜>",
                                         "</think>\n\nb<｜end▁of▁sentence｜>"}));
}

// R1's history has no thoughts, so the second turn follows other tokens than the first one ended
// with.
TEST(JsonlMessages, EveryTurnIsLearnedAfterWhatInferenceWouldFeed) {
  const Tokenizer t = characters();
  const Jsonl file(
      R"({"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b","reasoning_content":"x\n"},)"
      R"({"role":"user","content":"c"},{"role":"assistant","content":"d","reasoning_content":"y\n"}]})"
      "\n");
  const auto source = message_documents(read_messages(t, ChatFormat::kDeepseekR1, file.path()), 1);
  std::set<std::string> whole, learned;
  for (uint64_t i = 0; i < 2; ++i) {
    Document d;
    source->document(i, d);
    whole.insert(t.decode(d.tokens));
    learned.insert(learned_text(t, d));
  }
  EXPECT_EQ(learned, (std::set<std::string>{"x\n</think>\n\nb<｜end▁of▁sentence｜>",
                                            "y\n</think>\n\nd<｜end▁of▁sentence｜>"}));
  EXPECT_TRUE(
      whole.contains("<｜begin▁of▁sentence｜><｜User｜>a<｜Assistant｜>b<｜end▁of▁sentence｜><"
                     "｜User｜>c<｜Assistant｜><think>\ny\n</think>"
                     "\n\nd<｜end▁of▁sentence｜>"));
}

TEST(JsonlMessages, AreReadOnceAndWhatIsHeldOutIsNotTrainedOn) {
  const Tokenizer t = characters();
  std::string text;
  for (int i = 0; i < 60; ++i) {
    text += R"({"messages":[{"role":"user","content":"q"},{"role":"assistant","content":")" +
            std::to_string(i) + "\"}]}\n";
  }
  const Jsonl small(text.substr(0, text.find('\n') + 1));
  std::shared_ptr<const Messages> messages;
  {
    const Jsonl file(text);
    messages = read_messages(t, ChatFormat::kDeepseekR1, file.path());
  }  // gone: both splits come from one reading
  std::set<std::string> seen[2];
  for (const Split split : {Split::kTrain, Split::kValidation}) {
    const auto source = message_documents(messages, 1, split);
    for (uint64_t i = 0; i < 200; ++i) {
      Document d;
      source->document(i, d);
      seen[split == Split::kValidation].insert(learned_text(t, d));
    }
  }
  EXPECT_EQ(seen[0].size(), 57u);
  EXPECT_EQ(seen[1].size(), 3u);
  for (const std::string& held_out : seen[1]) EXPECT_FALSE(seen[0].contains(held_out));
  EXPECT_NE(error_of([&] {
              message_documents(read_messages(t, ChatFormat::kDeepseekR1, small.path()), 1,
                                Split::kValidation);
            }).find("expected at least 20"),
            std::string::npos);
}

TEST(TaskConversations, ValidationsProblemsAreHeldOut) {
  const Tokenizer t = characters();
  const std::vector<std::pair<std::string, double>> tasks = {{"countdown", 1.0}};
  for (const Split split : {Split::kTrain, Split::kValidation}) {
    const auto source = task_conversations(t, ChatFormat::kDeepseekR1, tasks, 4, split);
    for (uint64_t i = 0; i < 300; ++i) {
      Document d;
      source->document(i, d);
      int64_t a = 0, b = 0, c = 0;
      const std::string text = t.decode(d.tokens);
      ASSERT_EQ(
          std::sscanf(text.c_str() + text.find("Use "), "Use %ld, %ld and %ld to", &a, &b, &c), 3)
          << text;
      EXPECT_EQ(split_of(hash_numbers("countdown", {a, b, c})), split);
    }
  }
}

TEST(TaskConversations, AShareOfThemShowsItsThought) {
  const Tokenizer t = characters();
  const std::vector<std::pair<std::string, double>> tasks = {{"digit_sum", 1.0}};
  const auto source =
      task_conversations(t, ChatFormat::kDeepseekR1, tasks, 1, Split::kTrain, 0.125);
  int aloud = 0;
  for (uint64_t i = 0; i < 800; ++i) {
    Document d;
    source->document(i, d);
    const std::string text = learned_text(t, d);
    aloud += text.find(':') != std::string::npos ? 1 : 0;
    if (text.find(':') == std::string::npos) {
      EXPECT_TRUE(text.starts_with("</think>\n\n")) << text;
    }
  }
  EXPECT_NEAR(aloud, 100, 40);  // more than four standard deviations
}

TEST(JsonlMessages, EachEpochIsAPermutationAndTheyDiffer) {
  const Tokenizer t = characters();
  std::string text;
  for (int i = 0; i < 50; ++i) {
    text += R"({"messages":[{"role":"user","content":"q"},{"role":"assistant","content":")" +
            std::to_string(i) + "\"}]}\n";
  }
  const Jsonl file(text);
  const auto source = message_documents(read_messages(t, ChatFormat::kDeepseekR1, file.path()), 1);
  std::vector<std::vector<std::string>> epochs(2);
  for (uint64_t i = 0; i < 100; ++i) {
    Document d;
    source->document(i, d);
    epochs[i / 50].push_back(learned_text(t, d));
  }
  EXPECT_NE(epochs[0], epochs[1]);
  for (auto& epoch : epochs)
    EXPECT_EQ(std::set<std::string>(epoch.begin(), epoch.end()).size(), 50u);
}

TEST(JsonlMessages, RefusesWithFileLineAndField) {
  const Tokenizer t = characters();
  const std::pair<const char*, const char*> kCases[] = {
      {"", ": no conversation, expected one JSON object a line"},
      {"nonsense\n", "chat.jsonl:1: "},
      {"\n\n{\"messages\": 3}\n", "chat.jsonl:3: messages: expected an array"},
      {"{\"messages\": []}\n", "chat.jsonl:1: messages: expected an array of at least one message"},
      {"{\"messages\": [{\"role\":\"user\",\"content\":\"x\"}]}\n",
       "the last one is not the assistant's"},
      {"{\"messages\": [{\"role\":\"wizard\",\"content\":\"x\"}]}\n",
       "chat.jsonl:1: messages[0]: role: found 'wizard', expected system, user or assistant"},
      {"{\"messages\": [{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{}]}]}\n",
       "chat.jsonl:1: messages[0]: tool_calls: found, expected none"},
      {"{\"messages\": [{\"role\":\"user\"}]}\n", "messages[0]: content"},
      {"{\"messages\": [{\"role\":\"user\",\"content\":7}]}\n", "messages[0]: content"},
      {"{\"text\": \"x\"}\n", "chat.jsonl:1: messages"},
  };
  for (const auto& [text, message] : kCases) {
    const Jsonl file(text);
    try {
      read_messages(t, ChatFormat::kDeepseekR1, file.path());
      ADD_FAILURE() << text;
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(message), std::string::npos) << e.what();
    }
  }
}

}  // namespace
}  // namespace fathom
