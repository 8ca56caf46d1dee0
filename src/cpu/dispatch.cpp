// The processor is asked once, by CPUID and XGETBV (the operating system must save the wide
// registers too). Every table here has been run by this project's tests, and gives the bits of the
// generic one; one that has not been run does not belong in kTables.
#include "cpu/dispatch.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace rmsnorm::cpu {

const RowTable *const kTables[kTableCount] = {&kAvx512Rows, &kAvx2Rows, &kNeonRows, &kGenericRows};

namespace {

struct Features {
  bool avx2 = false, avx512 = false;  // with all that the tables of this name use
};

Features detect() {
  Features found;
#if defined(__x86_64__)
  const auto bit = [](unsigned word, int index) { return (word >> index & 1u) != 0; };
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0) return found;
  const bool fma = bit(c, 12), osxsave = bit(c, 27), avx = bit(c, 28), f16c = bit(c, 29);
  if (!fma || !osxsave || !avx || !f16c) return found;
  unsigned low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned kYmm = 0x06, kZmm = 0xe6;  // the registers that the system saves
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return found;
  found.avx2 = bit(b, 5) && (low & kYmm) == kYmm;
  const bool f = bit(b, 16), dq = bit(b, 17), bw = bit(b, 30), vl = bit(b, 31);
  found.avx512 = found.avx2 && f && dq && bw && vl && (low & kZmm) == kZmm;
#endif
  return found;
}

}  // namespace

bool runs_here(const RowTable &table) {
  if (table.forward == nullptr) return false;
  const Features features = detect();
  if (&table == &kAvx512Rows) return features.avx512;
  if (&table == &kAvx2Rows) return features.avx2;
  return true;
}

const RowTable &choose_rows(const char *cap) {
  const auto is_cap = [cap](const RowTable &table) {
    return cap != nullptr && table.forward != nullptr && std::strcmp(cap, table.isa) == 0;
  };
  int first = 0;
  for (int i = 0; i < kTableCount; ++i)
    if (is_cap(*kTables[i])) first = i;
  for (int i = first; i < kTableCount; ++i)
    if (runs_here(*kTables[i])) return *kTables[i];
  return kGenericRows;
}

const RowTable &chosen_rows() {
  static std::atomic<const RowTable *> chosen{
      nullptr};  // constant-initialised; a race finds the same
  const RowTable *table = chosen.load(std::memory_order_relaxed);
  if (table == nullptr) {
    table = &choose_rows(std::getenv("RMSNORM_CPU_ISA"));
    chosen.store(table, std::memory_order_relaxed);
  }
  return *table;
}

}  // namespace rmsnorm::cpu
