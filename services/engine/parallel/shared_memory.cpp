// Sums and gathers over the processes of one machine, in memory that all of them have mapped. Plain C: called by ctypes,
// without Python's lock.
//
// Each rank writes its numbers into a buffer of its own and says so; once all have, each reads all of them. There are
// two buffers, used in turn: who writes into one again has seen everybody arrive at the other, so nobody reads it still.
// Numbers are added in the order of the ranks, so all get the same bits.
#include <sched.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>

namespace {

constexpr int64_t LINE = 64, BLOCK = 1024;
constexpr int SPINS = 4096, YIELDS = 100'000;
constexpr long NAP_NS = 50'000;
constexpr int ABORTED = 1, DIFFERENT = 2;

struct alignas(LINE) Rank {
  std::atomic<uint64_t> arrived; // exchanges
  std::atomic<int64_t> bytes[2]; // in each of its buffers
};

struct alignas(LINE) Header {
  std::atomic<uint32_t> aborted;
};

static_assert(std::atomic<uint64_t>::is_always_lock_free && std::atomic<int64_t>::is_always_lock_free);

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

struct Group {
  char* memory;
  int rank, size;
  int64_t capacity; // bytes of a buffer

  Header& header() const { return *reinterpret_cast<Header*>(memory); }
  Rank& at(int each) const { return reinterpret_cast<Rank*>(memory + sizeof(Header))[each]; }
  char* buffer(int parity, int each) const {
    return memory + sizeof(Header) + size * sizeof(Rank) + (parity * size + each) * capacity;
  }

  // Waits awake at first: the others are at the same layer. Then it lets others have the processor.
  bool wait(int each, uint64_t target) const {
    for (int64_t turn = 0; at(each).arrived.load(std::memory_order_acquire) < target; ++turn) {
      if (header().aborted.load(std::memory_order_relaxed)) return false;
      if (turn < SPINS) {
        pause();
      } else if (turn < SPINS + YIELDS) {
        sched_yield();
      } else {
        const timespec nap{0, NAP_NS};
        nanosleep(&nap, nullptr);
      }
    }
    return true;
  }

  // `read` is called once all have written their `bytes`, with the buffers' parity.
  template <class Read> int exchange(const void* values, int64_t bytes, Read read) const {
    Rank& own = at(rank);
    const uint64_t next = own.arrived.load(std::memory_order_relaxed) + 1;
    const int parity = next % 2;
    std::memcpy(buffer(parity, rank), values, bytes);
    own.bytes[parity].store(bytes, std::memory_order_relaxed);
    own.arrived.store(next, std::memory_order_release);
    for (int each = 0; each < size; ++each) {
      if (!wait(each, next)) return ABORTED;
      if (at(each).bytes[parity].load(std::memory_order_relaxed) != bytes) return DIFFERENT;
    }
    read(parity);
    return 0;
  }
};

float widened(float number) { return number; }
float widened(uint16_t bits) { // bfloat16
  const uint32_t wide = uint32_t{bits} << 16;
  float number;
  std::memcpy(&number, &wide, sizeof number);
  return number;
}

void narrow(float number, float& out) { out = number; }
void narrow(float number, uint16_t& out) { // to the nearest, of two the even one
  uint32_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  out = number != number ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

template <class T> int sum(const Group& group, T* values, int64_t count) {
  const int64_t most = group.capacity / int64_t{sizeof(T)};
  for (int64_t begin = 0; begin < count; begin += most) {
    const int64_t part = std::min(most, count - begin);
    const int failed = group.exchange(values + begin, part * sizeof(T), [&](int parity) {
      float total[BLOCK];
      for (int64_t start = 0; start < part; start += BLOCK) {
        const int64_t end = std::min(BLOCK, part - start);
        for (int each = 0; each < group.size; ++each) {
          const T* read = reinterpret_cast<const T*>(group.buffer(parity, each)) + start;
          if (each == 0)
            for (int64_t i = 0; i < end; ++i) total[i] = widened(read[i]);
          else
            for (int64_t i = 0; i < end; ++i) total[i] += widened(read[i]);
        }
        for (int64_t i = 0; i < end; ++i) narrow(total[i], values[begin + start + i]);
      }
    });
    if (failed) return failed;
  }
  return 0;
}

} // namespace

extern "C" {

int64_t parley_bytes(int size, int64_t capacity) {
  return sizeof(Header) + size * (int64_t{sizeof(Rank)} + 2 * capacity);
}

int parley_sum(char* memory, int rank, int size, int64_t capacity, void* values, int64_t count, int is_bfloat16) {
  const Group group{memory, rank, size, capacity};
  return is_bfloat16 ? sum(group, static_cast<uint16_t*>(values), count)
                     : sum(group, static_cast<float*>(values), count);
}

// `values`: rows of `width` bytes; `out`: rows of all ranks' widths beside each other.
int parley_gather(char* memory, int rank, int size, int64_t capacity, const char* values, char* out, int64_t rows,
                  int64_t width) {
  const Group group{memory, rank, size, capacity};
  for (int64_t begin = 0; begin < rows * width; begin += capacity) {
    const int64_t part = std::min(capacity, rows * width - begin);
    const int failed = group.exchange(values + begin, part, [&](int parity) {
      for (int each = 0; each < size; ++each) {
        const char* read = group.buffer(parity, each);
        for (int64_t at = begin; at < begin + part;) {
          const int64_t row = at / width, column = at % width;
          const int64_t run = std::min(width - column, begin + part - at);
          std::memcpy(out + (row * size + each) * width + column, read + (at - begin), run);
          at += run;
        }
      }
    });
    if (failed) return failed;
  }
  return 0;
}

// From now on every exchange fails, also those that are being waited for.
void parley_abort(char* memory) {
  reinterpret_cast<Header*>(memory)->aborted.store(1, std::memory_order_relaxed);
}
}
