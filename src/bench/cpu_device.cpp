// The CPU: host memory, a clock, and a ceiling that copies.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "bench/device.h"
#include "bench/text.h"

namespace bench {
namespace {

// What one pass over the data reads and writes at once; wide enough for memory, which is what
// limits most.
typedef uint64_t Vector __attribute__((vector_size(16), may_alias));
constexpr int64_t kWidth = sizeof(Vector);
constexpr int64_t kChunk = 128;               // vectors between buffer and buffer: 2 KiB, in L1
constexpr int64_t kThreadBytes = 256 * 1024;  // less work than this is not worth a thread

// The ways of moving.
enum Way { kCopy, kWide, kStreaming, kWays };

int64_t longest(const Move &move) {
  int64_t bytes = 0;
  for (const Move::Span &span : move.in) bytes = std::max(bytes, span.bytes);
  for (const Move::Span &span : move.out) bytes = std::max(bytes, span.bytes);
  return bytes;
}

// Vectors [begin, end) of a, or of a ^ b -> out.
using Combine = void (*)(const Vector *a, const Vector *b, Vector *out, int64_t begin, int64_t end);

void combine(const Vector *a, const Vector *b, Vector *out, int64_t begin, int64_t end) {
  if (b == nullptr)
    std::memcpy(out + begin, a + begin, static_cast<size_t>((end - begin) * kWidth));
  else
    for (int64_t i = begin; i < end; ++i) out[i] = a[i] ^ b[i];
}

#if defined(__x86_64__)
// The same by vectors of twice the width.
__attribute__((target("avx2"))) void combine_wide(const Vector *a, const Vector *b, Vector *out,
                                                  int64_t begin, int64_t end) {
  int64_t i = begin;
  for (; end - i >= 2; i += 2) {
    __m256i wide = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(a + i));
    if (b != nullptr)
      wide = _mm256_xor_si256(wide, _mm256_loadu_si256(reinterpret_cast<const __m256i *>(b + i)));
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(out + i), wide);
  }
  combine(a, b, out, i, end);
}

// The same past the cache, by the widest vectors.
__attribute__((target("avx2"))) void combine_streaming(const Vector *a, const Vector *b,
                                                       Vector *out, int64_t begin, int64_t end) {
  int64_t i = begin;
  if ((begin & 1) != 0 && i < end) combine(a, b, out, i, i + 1), ++i;
  for (; end - i >= 2; i += 2) {
    __m256i wide = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(a + i));
    if (b != nullptr)
      wide = _mm256_xor_si256(wide, _mm256_loadu_si256(reinterpret_cast<const __m256i *>(b + i)));
    _mm256_stream_si256(reinterpret_cast<__m256i *>(out + i), wide);
  }
  _mm_sfence();
  combine(a, b, out, i, end);
}

__attribute__((target("avx512f"))) void combine_streaming_512(const Vector *a, const Vector *b,
                                                              Vector *out, int64_t begin,
                                                              int64_t end) {
  int64_t i = begin;
  for (; (i & 3) != 0 && i < end; ++i) combine(a, b, out, i, i + 1);
  for (; end - i >= 4; i += 4) {
    __m512i wide = _mm512_loadu_si512(a + i);
    if (b != nullptr) wide = _mm512_xor_si512(wide, _mm512_loadu_si512(b + i));
    _mm512_stream_si512(reinterpret_cast<__m512i *>(out + i), wide);
  }
  _mm_sfence();
  combine(a, b, out, i, end);
}

Combine combine_by(int way) {
  if (way == kCopy || !__builtin_cpu_supports("avx2")) return combine;
  if (way == kWide) return combine_wide;
  return __builtin_cpu_supports("avx512f") ? combine_streaming_512 : combine_streaming;
}
#else
Combine combine_by(int) { return combine; }
#endif

// Any number of spans of any lengths: chunk by chunk, by way of a buffer.
void combine_any(const Move &move, int64_t begin, int64_t end) {
  Vector chunk[kChunk];
  for (int64_t first = begin; first < end; first += kChunk) {
    const auto count = [&](const Move::Span &span) {
      return std::max<int64_t>(0, std::min({span.bytes / kWidth, end, first + kChunk}) - first);
    };
    std::memset(chunk, 0, sizeof chunk);
    for (const Move::Span &span : move.in) {
      const Vector *from = static_cast<const Vector *>(span.data) + first;
      for (int64_t i = 0, n = count(span); i < n; ++i) chunk[i] ^= from[i];
    }
    __asm__ volatile("" : : "r"(chunk) : "memory");  // the chunk is used, written or not
    for (const Move::Span &span : move.out)
      if (const int64_t n = count(span))
        std::memcpy(static_cast<Vector *>(span.data) + first, chunk,
                    static_cast<size_t>(n * kWidth));
  }
}

void move_part(const Move &move, int way, int64_t begin, int64_t end) {
  const int64_t bytes = move.in[0].bytes, second = move.in[1].bytes;
  const bool plain = move.out[0].bytes == bytes && move.in[2].bytes == 0 &&
                     move.out[1].bytes == 0 && (second == 0 || second == bytes);
  if (plain)
    combine_by(way)(static_cast<const Vector *>(move.in[0].data),
                    second == 0 ? nullptr : static_cast<const Vector *>(move.in[1].data),
                    static_cast<Vector *>(move.out[0].data), begin, end);
  else combine_any(move, begin, end);
}

class CpuPass final : public Pass {
 public:
  explicit CpuPass(std::function<void()> calls) : calls_(std::move(calls)) {}
  double microseconds() override {
    const auto start = std::chrono::steady_clock::now();
    calls_();
    const auto end = std::chrono::steady_clock::now();
    return std::chrono::duration<double, std::micro>(end - start).count();
  }

 private:
  std::function<void()> calls_;
};

// The first number of a file, or of the line that begins with `key`; -1 without either.
double number_in(const char *file, const char *key) {
  std::ifstream stream(file);
  for (std::string line; std::getline(stream, line);)
    if (line.compare(0, std::strlen(key), key) == 0) {
      char *end = nullptr;
      const char *const text = line.c_str() + std::strlen(key);
      const double value = std::strtod(text, &end);
      return end == text ? -1 : value;
    }
  return -1;
}

class CpuDevice final : public Device {
 public:
  explicit CpuDevice(int threads) : threads_(std::max(1, threads)) {}

  // What the system has; a container (version 2 of cgroups) may have less.
  double free_bytes() override {
    double bytes = 1024 * number_in("/proc/meminfo", "MemAvailable:");
    if (bytes < 0) bytes = 1e18;
    const double limit = number_in("/sys/fs/cgroup/memory.max", "");
    const double used = number_in("/sys/fs/cgroup/memory.current", "");
    if (limit > 0 && used >= 0) bytes = std::min(bytes, limit - used);
    return bytes;
  }
  char *allocate(size_t bytes) override {
    void *memory = nullptr;
    if (posix_memalign(&memory, 4096, bytes) != 0)
      fail(kBroken, "there is no memory for %s", readable_bytes(double(bytes)).c_str());
    return static_cast<char *>(memory);
  }
  void release(char *memory) override { std::free(memory); }
  void upload(void *to, const void *from, size_t bytes) override { std::memcpy(to, from, bytes); }
  void download(void *to, const void *from, size_t bytes) override { std::memcpy(to, from, bytes); }
  void copy(void *to, const void *from, size_t bytes) override { std::memcpy(to, from, bytes); }
  void fill(void *memory, int byte, size_t bytes) override { std::memset(memory, byte, bytes); }
  void *stream() const override { return nullptr; }
  void synchronize() override {}

  int ways() const override { return kWays; }
  void move(const Move &move, int way) override {
    const int64_t vectors = longest(move) / kWidth;
    const int64_t parts =
        std::max<int64_t>(1, std::min<int64_t>(threads_, vectors * kWidth / kThreadBytes));
    std::vector<std::thread> threads;
    for (int64_t part = 1; part < parts; ++part)
      threads.emplace_back([&move, way, part, parts, vectors] {
        move_part(move, way, vectors * part / parts, vectors * (part + 1) / parts);
      });
    move_part(move, way, 0, vectors / parts);
    for (std::thread &thread : threads) thread.join();
  }
  std::unique_ptr<Pass> prepare(std::function<void()> calls, bool) override {
    return std::unique_ptr<Pass>(new CpuPass(std::move(calls)));
  }
  HostTime host_time(const std::function<void()> &, bool) override { return {}; }

 private:
  int threads_;
};

}  // namespace

std::unique_ptr<Device> make_cpu_device(int threads) {
  return std::unique_ptr<Device>(new CpuDevice(threads));
}

}  // namespace bench
