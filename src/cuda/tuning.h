// Every launch configuration, chosen by shape and device. Shares are of an element-wise kernel that
// moves the same bytes, measured on an H200 (sm_90, 132 multiprocessors) with prototypes of these
// kernels.
//
// threads and vectors decide a row's reduction tree: they depend on cols, dtype and device alone,
// never on the number of rows, so that a row's bits do not either.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rmsnorm::cuda {

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int round_up_to_power_of_two(int64_t value) {
  int power = 1;
  while (power < value) power *= 2;
  return power;
}

// ---- Forward
// -------------------------------------------------------------------------------------

struct ForwardConfig {
  int vectors;  // per thread, in registers; 0: not forward_rows
  int threads;  // per row; 0: forward_exact takes it
  int rows;     // per block
  size_t shared_memory;
};

// A row is `row_vectors` vectors of 16 bytes; a block may have `shared_memory` bytes.
inline ForwardConfig choose_forward(int64_t row_vectors, int64_t tasks, int multiprocessors,
                                    size_t shared_memory) {
  if (row_vectors > 1024) {
    // 16384 halves: 256 threads, .982; 32768 and 65536: 512 threads, .965 and .986.
    const int threads = row_vectors <= 2048 ? 256 : 512;
    const size_t bytes = size_t(divide_up(row_vectors, threads)) * threads * 16;
    return bytes <= shared_memory ? ForwardConfig{0, threads, 1, bytes} : ForwardConfig{0, 0, 1, 0};
  }
  ForwardConfig config = {4, 32, 1, 0};
  if (row_vectors <= 32) {
    config.vectors =
        1;  // 262144x128 halves: 16 threads a row .951; a whole warp leaves half of it idle
    config.threads = round_up_to_power_of_two(row_vectors);
  } else if (row_vectors <= 64) {
    config.vectors = 2;
  } else {  // 1024 to 8192 halves: .974-.99; threads fit the width, idle ones cost 1-6 %
    config.threads = int(divide_up(row_vectors, 4 * 32)) * 32;
  }
  // 4096 halves: two rows a block .984, one .964. Few rows: spread them over the multiprocessors.
  while (config.rows * 2 * config.threads <= 256 &&
         (config.rows * config.threads < 32 ||
          tasks >= int64_t(config.rows) * 2 * multiprocessors * 4))
    config.rows *= 2;
  return config;
}

// ---- Backward
// ------------------------------------------------------------------------------------

struct BackwardConfig {
  int vectors;  // per thread; 0: the exact kernels take it
  int threads;  // per row
  int groups;   // rows in process in a block, a power of two
  int stages;   // of the ring
  int blocks_per_multiprocessor;
};

// 32 KB of rows (x and dy) in process per multiprocessor is best for powers of two, whatever the
// loader: half as many lose 15-20 %, twice as many 4-9 %. Two groups in one block beat two blocks
// (.985, .974 at 4096) and halve the partial rows.
inline BackwardConfig choose_backward(int64_t row_vectors) {
  if (row_vectors <= 32) {  // 262144x128: 16 threads a row, 3 blocks, .92
    const int threads = round_up_to_power_of_two(row_vectors);
    return {1, threads, 256 / threads, 3, 3};
  }
  if (row_vectors <= 1024) {  // 1024 .94, 2048 .956, 4096 .985, 8192 .986
    const int threads = int(divide_up(row_vectors, 2 * 32)) * 32;
    const int groups = threads <= 32    ? 16
                       : threads <= 64  ? 8
                       : threads <= 128 ? 4
                       : threads <= 256 ? 2
                                        : 1;
    return {2, threads, groups, groups == 1 ? 3 : 2, 1};
  }
  if (row_vectors <= 2048)  // 16384: .92-.935 without a cluster
    return {4, int(divide_up(row_vectors, 4 * 32)) * 32, 1, 2, 1};
  return {0, 0, 0, 0, 0};
}

// Rows of one partial sum of the column kernel: enough blocks to fill the device, few enough
// partial rows.
inline int64_t choose_column_chunks(int64_t tasks, int64_t column_tiles, int multiprocessors) {
  const int64_t wanted = divide_up(int64_t(multiprocessors) * 8, column_tiles);
  const int64_t most = divide_up(tasks, 32);
  return wanted < most ? wanted : most > 0 ? most : 1;
}

}  // namespace rmsnorm::cuda
