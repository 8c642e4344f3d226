#include "model/expert_cache.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/clock.h"
#include "base/direct_file.h"
#include "base/error.h"
#include "base/random.h"
#include "model/expert_slots.h"
#include "model/tensor_names.h"

namespace fathom {
namespace {

constexpr const char* kParts[] = {"gate_proj", "up_proj", "down_proj"};
constexpr size_t kPartCount = 3;
constexpr size_t kPage = DirectFile::kAlignment;
// Requests in flight: a disk needs several to reach its rate, of a size at which its overhead does
// not count. Threads that read sleep nearly all of the time.
constexpr int kReaders = 8;
constexpr size_t kReadBytes = 1 << 20;
// Experts of a wave. More would let multiplying wait, fewer would let the disk wait.
constexpr int32_t kWaveExperts = 16;

uint64_t round_up(uint64_t bytes, uint64_t to) { return (bytes + to - 1) / to * to; }

// One matrix of one expert in its file.
struct Piece {
  const TensorInfo* tensor = nullptr;
  uint64_t offset = 0, bytes = 0;  // in the file
  size_t skip() const { return offset % kPage; }
  uint64_t begin() const { return offset - skip(); }
  size_t wanted() const { return skip() + bytes; }  // from begin()
};

// All of them: [layer][expert][part]; layers without experts have none.
struct Table {
  std::vector<Piece> pieces;
  std::vector<int64_t> first_expert;  // of each layer, -1 = dense
  uint64_t part_room[kPartCount] = {};
  uint64_t slot_bytes() const { return part_room[0] + part_room[1] + part_room[2]; }
};

bool usable(const TensorInfo& tensor, const std::byte* data) {
  const size_t alignment = tensor.dtype == DType::kF32                                   ? 4
                           : tensor.dtype == DType::kF16 || tensor.dtype == DType::kBF16 ? 2
                                                                                         : 1;
  return reinterpret_cast<uintptr_t>(data) % alignment == 0;
}

std::optional<Piece> find_piece(const Checkpoint& checkpoint, const ModelConfig& c, int64_t layer,
                                int64_t expert, const char* part) {
  const bool stacked = checkpoint.gguf() != nullptr;
  const std::string mlp = fmt::format("model.layers.{}.mlp.experts.", layer);
  const TensorInfo* tensor =
      checkpoint.find(stacked ? gguf_tensor_name(fmt::format("{}{}.weight", mlp, part))
                              : fmt::format("{}{}.{}.weight", mlp, expert, part));
  if (tensor == nullptr) return std::nullopt;
  const auto count = static_cast<uint64_t>(stacked ? c.n_routed_experts : 1);
  if (tensor->bytes == 0 || tensor->bytes % count != 0) return std::nullopt;
  const uint64_t bytes = tensor->bytes / count;
  const std::byte* data = tensor->data + (stacked ? static_cast<uint64_t>(expert) * bytes : 0);
  if (!usable(*tensor, data)) return std::nullopt;
  return Piece{tensor, static_cast<uint64_t>(data - checkpoint.file(*tensor).bytes().data()),
               bytes};
}

std::optional<Table> find_pieces(const Checkpoint& checkpoint, const ModelConfig& c) {
  if (c.n_routed_experts == 0) return std::nullopt;
  Table table;
  for (int64_t layer = 0; layer <= c.num_hidden_layers; ++layer) {
    table.first_expert.push_back(-1);
    const bool mtp = layer == c.num_hidden_layers;
    if (!c.is_moe_layer(layer) || (mtp && !find_piece(checkpoint, c, layer, 0, kParts[0])))
      continue;
    table.first_expert.back() = std::ssize(table.pieces) / static_cast<int64_t>(kPartCount);
    for (int64_t expert = 0; expert < c.n_routed_experts; ++expert) {
      for (size_t part = 0; part < kPartCount; ++part) {
        const auto piece = find_piece(checkpoint, c, layer, expert, kParts[part]);
        if (!piece) return std::nullopt;
        table.pieces.push_back(*piece);
        // a piece may begin anywhere on its first page
        table.part_room[part] =
            std::max(table.part_room[part], round_up(piece->bytes, kPage) + kPage);
      }
    }
  }
  return table.pieces.empty() ? std::nullopt : std::optional(std::move(table));
}

std::vector<DirectFile> open_files(const Checkpoint& checkpoint, const Table& table,
                                   std::vector<uint32_t>& file_of) {
  std::vector<DirectFile> files;
  std::vector<uint32_t> opened;  // their numbers in the checkpoint
  for (const Piece& piece : table.pieces) {
    const auto found = std::find(opened.begin(), opened.end(), piece.tensor->file);
    file_of.push_back(static_cast<uint32_t>(found - opened.begin()));
    if (found != opened.end()) continue;
    opened.push_back(piece.tensor->file);
    files.emplace_back(checkpoint.file(*piece.tensor).path());
  }
  checkpoint.check_unchanged();  // what was opened is what was mapped
  return files;
}

// Anonymous memory in whole pages, huge ones where the system has them: it comes as it is written.
class PageMemory {
 public:
  explicit PageMemory(uint64_t bytes) : bytes_(bytes) {
    void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
      fail_resource("expert cache: cannot get {} bytes of memory: {}", bytes, std::strerror(errno));
    data_ = static_cast<std::byte*>(memory);
    ::madvise(memory, bytes, MADV_HUGEPAGE);
  }
  ~PageMemory() { ::munmap(data_, bytes_); }
  PageMemory(const PageMemory&) = delete;
  PageMemory& operator=(const PageMemory&) = delete;
  std::byte* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  uint64_t bytes_;
};

Table pieces_of(const Checkpoint& checkpoint, const ModelConfig& config) {
  std::optional<Table> table = find_pieces(checkpoint, config);
  FATHOM_CHECK(table.has_value());
  return std::move(*table);
}

}  // namespace

std::optional<ExpertLayout> expert_layout(const Checkpoint& checkpoint, const ModelConfig& c) {
  const auto table = find_pieces(checkpoint, c);
  if (!table) return std::nullopt;
  const auto per_token = static_cast<int32_t>(c.router.num_experts_per_tok);
  ExpertLayout layout{.experts = std::ssize(table->pieces) / static_cast<int64_t>(kPartCount),
                      .slot_bytes = table->slot_bytes(),
                      .least_slots = std::max(2, per_token)};
  for (int64_t layer = 0; layer <= c.num_hidden_layers; ++layer) {
    const int64_t first = table->first_expert[static_cast<size_t>(layer)];
    if (first < 0) continue;
    uint64_t bytes = 0;
    for (int64_t i = 0; i < c.n_routed_experts * static_cast<int64_t>(kPartCount); ++i)
      bytes +=
          table->pieces[static_cast<size_t>(first) * kPartCount + static_cast<size_t>(i)].bytes;
    layout.bytes += bytes;
    if (layer < c.num_hidden_layers) {
      layout.token_bytes +=
          bytes / static_cast<uint64_t>(c.n_routed_experts) * static_cast<uint64_t>(per_token);
    }
  }
  return layout;
}

double measure_expert_reads(const Checkpoint& checkpoint, const ModelConfig& config,
                            double seconds) {
  const Table table = pieces_of(checkpoint, config);
  std::vector<uint32_t> file_of;
  const std::vector<DirectFile> files = open_files(checkpoint, table, file_of);
  const PageMemory memory(kReaders * kReadBytes);
  const double begin = seconds_now();
  std::atomic<uint64_t> total{0};
  std::exception_ptr error;
  std::mutex mutex;
  std::vector<std::thread> readers;
  const auto start = [&](int r) {
    readers.emplace_back([&, r] {
      std::byte* const out = memory.data() + static_cast<size_t>(r) * kReadBytes;
      // Another run begins elsewhere, or it would find what the one before left in some cache.
      const RandomKey key{static_cast<uint64_t>(begin * 1e9), RandomPurpose::kTest,
                          static_cast<uint64_t>(r)};
      uint64_t draws = 0;
      try {
        while (seconds_now() - begin < seconds) {
          const size_t i = random_bits(key, draws++) % table.pieces.size();
          const Piece& piece = table.pieces[i];
          for (size_t at = 0; at < piece.wanted() && seconds_now() - begin < seconds;
               at += kReadBytes) {
            const size_t wanted = std::min(kReadBytes, piece.wanted() - at);
            files[file_of[i]].read(piece.begin() + at, out, round_up(wanted, kPage), wanted);
            total.fetch_add(wanted);
          }
        }
      } catch (...) {
        const std::lock_guard lock(mutex);
        error = std::current_exception();
      }
    });
  };
  try {
    for (int r = 0; r < kReaders; ++r) start(r);
  } catch (const std::system_error&) {  // as many as the system gives, if any
    if (readers.empty()) fail_resource("threads: the system gives none to read experts with");
  }
  for (std::thread& reader : readers) reader.join();
  if (error) std::rethrow_exception(error);
  return static_cast<double>(total.load()) / (seconds_now() - begin);
}

struct ExpertCache::State {
  State(const Checkpoint& checkpoint, const ModelConfig& c, Table found, uint64_t bytes);
  ~State();

  // One request of a reader: part of a piece, into the slot of its expert.
  struct Read {
    int64_t expert;
    int32_t slot;
    uint32_t part;
    size_t begin;  // within [0, wanted())
  };

  const Piece& piece(int64_t expert, size_t part) const {
    return table.pieces[static_cast<size_t>(expert) * kPartCount + part];
  }
  std::byte* room(int32_t slot, size_t part) const {
    std::byte* at = memory.data() + static_cast<uint64_t>(slot) * table.slot_bytes();
    for (size_t p = 0; p < part; ++p) at += table.part_room[p];
    return at;
  }
  bool used(int64_t e) const {
    return layer_offsets[static_cast<size_t>(e) + 1] > layer_offsets[static_cast<size_t>(e)];
  }

  void read_loop();
  void request_wave();
  void wait_for_wave();
  void release(int64_t begin, int64_t end);
  void abandon();
  std::exception_ptr first_error() {
    const std::lock_guard lock(mutex);
    return error;
  }

  const Table table;
  std::vector<uint32_t> file_of;
  const std::vector<DirectFile> files;
  const PageMemory memory;
  ExpertSlots slots;
  const int64_t experts_per_layer;

  // Of the layer that is being worked on. Experts [0, released) are done, [released, requested)
  // pinned.
  bool under_way = false;
  std::vector<int64_t> layer_offsets;  // a copy: an error may end the step that had them
  int64_t first_expert = 0, released = 0, ready = 0, requested = 0;
  int32_t wave_size = 0;
  ExpertSlots::Use use = ExpertSlots::Use::kAgain;
  Experts views[kPartCount];
  std::vector<int64_t> offsets;

  // Shared with the readers.
  std::mutex mutex;
  std::condition_variable wake, done;
  std::vector<Read> queue;  // a ring: room for every slot's reads
  size_t queue_begin = 0, queue_size = 0;
  std::vector<int32_t> open_reads;  // of each slot
  std::vector<bool> failed;         // of each slot
  std::exception_ptr error;         // the first
  bool stop = false;
  ExpertCacheStats stats;

  std::vector<std::thread> readers;
};

namespace {

int32_t slots_in(uint64_t bytes, const Table& table) {
  const uint64_t all = table.pieces.size() / kPartCount;
  const uint64_t slots = std::min(bytes / table.slot_bytes(), all);
  FATHOM_CHECK(slots >= 2, bytes, table.slot_bytes());
  return static_cast<int32_t>(slots);
}

}  // namespace

ExpertCache::State::State(const Checkpoint& checkpoint, const ModelConfig& c, Table found,
                          uint64_t bytes)
    : table(std::move(found)),
      files(open_files(checkpoint, table, file_of)),
      memory(static_cast<uint64_t>(slots_in(bytes, table)) * table.slot_bytes()),
      slots(std::ssize(table.pieces) / static_cast<int64_t>(kPartCount), slots_in(bytes, table)),
      experts_per_layer(c.n_routed_experts),
      layer_offsets(static_cast<size_t>(c.n_routed_experts) + 1),
      offsets(layer_offsets.size()),
      open_reads(static_cast<size_t>(slots.slots())),
      failed(static_cast<size_t>(slots.slots())) {
  size_t reads = 0;
  for (const uint64_t part : table.part_room) reads += part / kReadBytes + 1;
  queue.resize(reads * static_cast<size_t>(slots.slots()));
  try {
    for (int r = 0; r < kReaders; ++r) readers.emplace_back([this] { read_loop(); });
  } catch (const std::exception& problem) {
    if (readers.empty()) fail_resource("expert cache: cannot start a thread: {}", problem.what());
  }
}

ExpertCache::State::~State() {
  {
    const std::lock_guard lock(mutex);
    stop = true;
  }
  wake.notify_all();
  for (std::thread& reader : readers) reader.join();
}

void ExpertCache::State::read_loop() {
  std::unique_lock lock(mutex);
  while (true) {
    wake.wait(lock, [&] { return stop || queue_size > 0; });
    if (stop) return;
    const Read read = queue[queue_begin];
    queue_begin = (queue_begin + 1) % queue.size();
    --queue_size;
    lock.unlock();
    const Piece& p = piece(read.expert, read.part);
    const size_t wanted = std::min(kReadBytes, p.wanted() - read.begin);
    std::exception_ptr problem;
    try {
      const size_t file = file_of[static_cast<size_t>(read.expert) * kPartCount + read.part];
      files[file].read(p.begin() + read.begin, room(read.slot, read.part) + read.begin,
                       round_up(wanted, kPage), wanted);
    } catch (const Error& e) {
      problem = std::make_exception_ptr(
          Error(e.code(), fmt::format("{} (tensor {})", e.what(), quoted(p.tensor->name))));
    } catch (...) {
      problem = std::current_exception();
    }
    lock.lock();
    if (!problem) stats.read_bytes += wanted;
    if (problem) failed[static_cast<size_t>(read.slot)] = true;
    if (problem && !error) error = problem;
    if (--open_reads[static_cast<size_t>(read.slot)] == 0) done.notify_one();
  }
}

// Pins the experts of the next wave and asks for those that are missing.
void ExpertCache::State::request_wave() {
  const std::lock_guard lock(mutex);
  bool any = false;
  for (int32_t count = 0; requested < experts_per_layer && count < wave_size; ++requested) {
    if (!used(requested)) continue;
    ++count;
    const int64_t expert = first_expert + requested;
    const ExpertSlots::Place place = slots.pin(expert, use);
    ++(place.hit ? stats.hits : stats.misses);
    const auto slot = static_cast<size_t>(place.slot);
    if (!place.hit) {
      failed[slot] = false;
      for (uint32_t part = 0; part < kPartCount; ++part) {
        for (size_t at = 0; at < piece(expert, part).wanted(); at += kReadBytes) {
          FATHOM_CHECK(queue_size < queue.size());
          queue[(queue_begin + queue_size++) % queue.size()] = {expert, place.slot, part, at};
          ++open_reads[slot];
        }
      }
      any = true;
    }
    for (size_t part = 0; part < kPartCount; ++part) {
      views[part].weight[static_cast<size_t>(requested)].data =
          room(place.slot, part) + piece(expert, part).skip();
    }
  }
  if (any) wake.notify_all();
}

void ExpertCache::State::release(int64_t begin, int64_t end) {
  for (int64_t e = begin; e < end; ++e) {
    if (used(e)) slots.unpin(first_expert + e);
  }
}

// Experts [ready, end of the wave) are there when it returns.
void ExpertCache::State::wait_for_wave() {
  const auto open = [&](int64_t e) {
    return used(e) && open_reads[static_cast<size_t>(slots.slot_of(first_expert + e))] > 0;
  };
  int64_t end = ready;
  std::unique_lock lock(mutex);
  const double begin = seconds_now();
  for (int32_t count = 0; end < requested && count < wave_size; ++end) {
    if (!used(end)) continue;
    ++count;
    done.wait(lock, [&] { return !open(end); });
  }
  while (end < requested && !used(end)) ++end;
  stats.wait_seconds += seconds_now() - begin;
  ready = end;
}

// After an error: no read is under way, nothing is pinned, and what was not read is forgotten.
void ExpertCache::State::abandon() {
  {
    std::unique_lock lock(mutex);
    done.wait(lock, [&] {
      return std::all_of(open_reads.begin(), open_reads.end(), [](int32_t n) { return n == 0; });
    });
    error = nullptr;
  }
  release(released, requested);
  for (int64_t e = released; e < requested; ++e) {
    const int64_t expert = first_expert + e;
    if (used(e) && failed[static_cast<size_t>(slots.slot_of(expert))]) slots.forget(expert);
  }
  released = ready = requested = 0;
  under_way = false;
}

ExpertCache::ExpertCache(const Checkpoint& checkpoint, const ModelConfig& config, uint64_t bytes)
    : state_(std::make_unique<State>(checkpoint, config, pieces_of(checkpoint, config), bytes)) {}

ExpertCache::~ExpertCache() = default;

void ExpertCache::begin(int64_t layer, std::span<const int64_t> offsets, const Experts& gate_proj,
                        const Experts& up_proj, const Experts& down_proj) {
  State& s = *state_;
  FATHOM_CHECK(gate_proj.lora_a.empty() && up_proj.lora_a.empty() && down_proj.lora_a.empty());
  FATHOM_CHECK(std::ssize(offsets) == s.experts_per_layer + 1, offsets.size());
  if (s.under_way) s.abandon();  // someone else's error ended the step
  s.under_way = true;
  std::copy(offsets.begin(), offsets.end(), s.layer_offsets.begin());
  s.views[0].weight = gate_proj.weight;
  s.views[1].weight = up_proj.weight;
  s.views[2].weight = down_proj.weight;
  s.first_expert = s.table.first_expert[static_cast<size_t>(layer)];
  FATHOM_CHECK(s.first_expert >= 0, layer);
  s.released = s.ready = s.requested = 0;
  int64_t wanted = 0;
  for (int64_t e = 0; e < s.experts_per_layer; ++e) wanted += s.used(e) ? 1 : 0;
  s.use =
      2 * wanted > s.experts_per_layer ? ExpertSlots::Use::kInPassing : ExpertSlots::Use::kAgain;
  // Two waves are pinned at a time, unless one holds everything.
  const int32_t slots = s.slots.slots();
  s.wave_size =
      wanted <= std::min(slots, kWaveExperts) ? kWaveExperts : std::min(slots / 2, kWaveExperts);
  s.request_wave();
}

std::optional<ExpertWave> ExpertCache::next() {
  State& s = *state_;
  if (!s.under_way) return std::nullopt;
  s.release(s.released, s.ready);
  s.released = s.ready;
  const int64_t first = s.ready;
  s.request_wave();
  s.wait_for_wave();
  if (const std::exception_ptr error = s.first_error()) {
    s.abandon();
    std::rethrow_exception(error);
  }
  const int64_t begin = s.layer_offsets[static_cast<size_t>(first)];
  const int64_t end = s.layer_offsets[static_cast<size_t>(s.ready)];
  if (begin == end) {
    s.release(s.released, s.requested);
    s.under_way = false;
    return std::nullopt;
  }
  for (size_t e = 0; e < s.offsets.size(); ++e)
    s.offsets[e] = std::clamp(s.layer_offsets[e], begin, end) - begin;
  return ExpertWave{begin, end - begin, s.offsets, &s.views[0], &s.views[1], &s.views[2]};
}

ExpertCacheStats ExpertCache::stats() const {
  const std::lock_guard lock(state_->mutex);
  return state_->stats;
}

int32_t ExpertCache::slots() const { return state_->slots.slots(); }
uint64_t ExpertCache::bytes() const { return state_->memory.bytes(); }

}  // namespace fathom
