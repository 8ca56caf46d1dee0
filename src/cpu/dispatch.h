// Which table of row functions runs on this processor.
#pragma once

#include "cpu/rows.h"

namespace rmsnorm::cpu {

// All tables, best first: those that are empty or that the processor cannot run too. kTableCount of
// them.
constexpr int kTableCount = 4;
extern const RowTable *const kTables[kTableCount];

// Whether the table has functions and this processor and operating system can run them.
bool runs_here(const RowTable &table);

// The best table that runs here, up to the one that `cap` names; NULL or a name that no table here
// has: any.
const RowTable &choose_rows(const char *cap);

// choose_rows of the environment variable RMSNORM_CPU_ISA, as it was at the first call.
const RowTable &chosen_rows();

}  // namespace rmsnorm::cpu
