// Word problems from templates in three languages. {A} is a person, {N} {M} {K} are numbers, {T} is
// a thing; the answer is a formula of the numbers, so one verifier serves all.
#include <array>

#include "base/error.h"
#include "train/task_list.h"

namespace fathom {
namespace {

enum class Formula { kSum, kDifference, kProduct, kSumOfThree, kProductPlus, kProductMinus };

struct Template {
  Formula formula;
  const char* english;
  const char* german;
  const char* chinese;
};

constexpr Template kTemplates[] = {
    {Formula::kSum, "{A} has {N} {T} and gets {M} more. How many {T} does {A} have now?",
     "{A} hat {N} {T} und bekommt {M} dazu. Wie viele {T} hat {A} jetzt?",
     "{A}有{N}个{T}，又得到{M}个。{A}现在有多少个{T}？"},
    {Formula::kSum,
     "There are {N} {T} in one box and {M} in another. How many {T} are there in all?",
     "In einer Kiste liegen {N} {T}, in einer anderen {M}. Wie viele {T} sind es zusammen?",
     "一个箱子里有{N}个{T}，另一个箱子里有{M}个。一共有多少个{T}？"},
    {Formula::kSum, "{A} collected {N} {T} on Monday and {M} on Tuesday. How many {T} is that?",
     "{A} hat am Montag {N} {T} gesammelt und am Dienstag {M}. Wie viele {T} sind das?",
     "{A}星期一收集了{N}个{T}，星期二收集了{M}个。一共是多少个{T}？"},
    {Formula::kDifference, "{A} had {N} {T} and gave away {M}. How many {T} are left?",
     "{A} hatte {N} {T} und hat {M} verschenkt. Wie viele {T} bleiben?",
     "{A}有{N}个{T}，送掉了{M}个。还剩多少个{T}？"},
    {Formula::kDifference, "Of {N} {T}, {M} are red. How many {T} are not red?",
     "Von {N} {T} sind {M} rot. Wie viele {T} sind nicht rot?",
     "{N}个{T}中有{M}个是红色的。有多少个{T}不是红色的？"},
    {Formula::kDifference, "{A} wants {N} {T} and has {M}. How many {T} are missing?",
     "{A} braucht {N} {T} und hat {M}. Wie viele {T} fehlen?",
     "{A}需要{N}个{T}，已经有{M}个。还缺多少个{T}？"},
    {Formula::kProduct, "There are {M} bags with {K} {T} each. How many {T} are there?",
     "Es gibt {M} Beutel mit je {K} {T}. Wie viele {T} sind es?",
     "有{M}个袋子，每个袋子里有{K}个{T}。一共有多少个{T}？"},
    {Formula::kProduct, "{A} buys {K} {T} a day for {M} days. How many {T} does {A} buy?",
     "{A} kauft {M} Tage lang je {K} {T}. Wie viele {T} kauft {A}?",
     "{A}每天买{K}个{T}，买了{M}天。{A}一共买了多少个{T}？"},
    {Formula::kSumOfThree, "{A} finds {N} {T}, then {M}, then {K}. How many {T} are found?",
     "{A} findet {N} {T}, dann {M}, dann {K}. Wie viele {T} wurden gefunden?",
     "{A}先找到{N}个{T}，又找到{M}个，再找到{K}个。一共找到多少个{T}？"},
    {Formula::kProductPlus,
     "{A} has {N} {T} and buys {M} packs of {K}. How many {T} does {A} have then?",
     "{A} hat {N} {T} und kauft {M} Packungen zu je {K}. Wie viele {T} hat {A} dann?",
     "{A}有{N}个{T}，又买了{M}包，每包{K}个。{A}现在有多少个{T}？"},
    {Formula::kProductMinus, "{A} has {M} boxes of {K} {T} and loses {N}. How many {T} remain?",
     "{A} hat {M} Kisten mit je {K} {T} und verliert {N}. Wie viele {T} bleiben?",
     "{A}有{M}盒{T}，每盒{K}个，丢了{N}个。还剩多少个{T}？"},
};

struct Words {
  std::array<const char*, 8> people, things;
};
constexpr Words kWords[] = {
    {{"Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Hugo"},
     {"apples", "books", "stamps", "marbles", "pencils", "shells", "cards", "coins"}},
    {{"Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo"},
     {"Äpfel", "Bücher", "Briefmarken", "Murmeln", "Stifte", "Muscheln", "Karten", "Münzen"}},
    {{"小明", "小红", "小华", "小丽", "小刚", "小芳", "小强", "小云"},
     {"苹果", "玩具", "邮票", "弹珠", "铅笔", "贝壳", "卡片", "硬币"}},
};

std::string filled(std::string text, std::string_view mark, const std::string& value) {
  for (size_t at = text.find(mark); at != std::string::npos;
       at = text.find(mark, at + value.size())) {
    text.replace(at, mark.size(), value);
  }
  return text;
}

class WordProblem : public Task {
 public:
  explicit WordProblem(Language language) : language_(language) {}

  std::string_view name() const override {
    constexpr std::string_view kNames[] = {"word_problem_en", "word_problem_de", "word_problem_zh"};
    return kNames[static_cast<size_t>(language_)];
  }

  Problem problem(uint64_t seed, uint64_t index, Split split) const override {
    // One hash for all languages: a problem held out in one is not taught in another.
    return draw_in_split("word_problem", seed, index, split, [this](Dice& dice) {
      const auto which = static_cast<size_t>(dice.below(std::size(kTemplates)));
      const Template& t = kTemplates[which];
      int64_t n = dice.between(2, 60), m = dice.between(2, 40), k = dice.between(2, 20);
      if (t.formula == Formula::kDifference && n < m) std::swap(n, m);
      if (t.formula == Formula::kProduct || t.formula == Formula::kProductPlus ||
          t.formula == Formula::kProductMinus) {
        m = 2 + m % 9;
      }
      if (t.formula == Formula::kProductMinus) n = 1 + n % (m * k);
      Problem p;
      p.numbers = {static_cast<int64_t>(which), n, m, k};
      p.target = value(t.formula, n, m, k);
      p.answer = std::to_string(p.target);
      const Words& words = kWords[static_cast<size_t>(language_)];
      std::string text = language_ == Language::kEnglish  ? t.english
                         : language_ == Language::kGerman ? t.german
                                                          : t.chinese;
      text = filled(std::move(text), "{A}", words.people[static_cast<size_t>(dice.below(8))]);
      text = filled(std::move(text), "{T}", words.things[static_cast<size_t>(dice.below(8))]);
      text = filled(std::move(text), "{N}", std::to_string(n));
      text = filled(std::move(text), "{M}", std::to_string(m));
      p.question = filled(std::move(text), "{K}", std::to_string(k));
      return p;
    });
  }

  Verdict verify(const Problem& p, std::string_view answer) const override {
    return verify_integer(p.target, answer);
  }

  WorkedSolution solve(const Problem& p, uint64_t) const override {
    const int64_t n = p.numbers[1], m = p.numbers[2], k = p.numbers[3];
    std::string steps;
    switch (kTemplates[static_cast<size_t>(p.numbers[0])].formula) {
      case Formula::kSum:
        steps = fmt::format("{}+{}={}\n", n, m, n + m);
        break;
      case Formula::kDifference:
        steps = fmt::format("{}-{}={}\n", n, m, n - m);
        break;
      case Formula::kProduct:
        steps = fmt::format("{}*{}={}\n", m, k, m * k);
        break;
      case Formula::kSumOfThree:
        steps = fmt::format("{}+{}={}, {}+{}={}\n", n, m, n + m, n + m, k, n + m + k);
        break;
      case Formula::kProductPlus:
        steps = fmt::format("{}*{}={}, {}+{}={}\n", m, k, m * k, n, m * k, n + m * k);
        break;
      case Formula::kProductMinus:
        steps = fmt::format("{}*{}={}, {}-{}={}\n", m, k, m * k, m * k, n, m * k - n);
        break;
    }
    return {steps, p.answer};
  }

  std::string text(uint64_t seed, uint64_t index) const override {
    const Problem p = problem(seed, index, Split::kTrain);
    return p.question + "\n" + solve(p, 0).thought + p.answer + "\n";
  }

 private:
  static int64_t value(Formula formula, int64_t n, int64_t m, int64_t k) {
    switch (formula) {
      case Formula::kSum:
        return n + m;
      case Formula::kDifference:
        return n - m;
      case Formula::kProduct:
        return m * k;
      case Formula::kSumOfThree:
        return n + m + k;
      case Formula::kProductPlus:
        return n + m * k;
      case Formula::kProductMinus:
        return m * k - n;
    }
    return 0;
  }

  Language language_;
};

}  // namespace

std::unique_ptr<Task> make_word_problem(Language language) {
  return std::make_unique<WordProblem>(language);
}

}  // namespace fathom
