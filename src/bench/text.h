// What every file of the bench needs for talking: one-line errors that end the program, and text
// made by printf's rules.
#pragma once

#include <string>

namespace bench {

// Exit codes.
constexpr int kBeyondBound = 1;  // a result is further from the exact one than rmsnorm.h allows
constexpr int kBadInput = 2;     // nothing has been measured
constexpr int kBroken = 3;       // CUDA, the library or the system failed on the way

// Prints "rmsnorm-bench: TEXT" as one line to stderr and exits.
[[noreturn]] __attribute__((format(printf, 2, 3))) void fail(int code, const char *format, ...);

__attribute__((format(printf, 1, 2))) std::string print(const char *format, ...);

// "RMSNORM_ERROR_STRIDE: y.row_stride = 12 makes ...": the library's latest failure.
std::string library_error(int status);

// 1.5 GiB, 64 MiB: for people.
std::string readable_bytes(double bytes);

}  // namespace bench
