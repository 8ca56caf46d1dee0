// Every launch configuration, chosen by shape and device. Shares are of an element-wise kernel that
// moves the same bytes, measured on an H200 (sm_90, 132 multiprocessors) with these kernels or
// prototypes of them.
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

// Rows of more than 4 vectors a thread are forward_long's, in shared memory.
constexpr int kLongVectors = 6;        // at least
constexpr int64_t kLongestRow = 4096;  // vectors of one block
constexpr size_t kLongReserve = 8192;  // bytes that forward_long needs besides

struct ForwardConfig {
  int vectors;  // per thread; 0: forward_exact takes it
  int threads;  // of a block that share a row
  int rows;     // of threads per block
  int cluster;  // blocks that share a row
};

// A row is `row_vectors` vectors of 16 bytes; a cluster may have `cluster_limit` blocks (1: there
// are none).
inline ForwardConfig choose_forward(int64_t row_vectors, int64_t tasks, int multiprocessors,
                                    int cluster_limit, size_t shared_memory) {
  ForwardConfig config = {4, 32, 1, 1};
  if (row_vectors <= 32) {
    // 262144x128 halves: 16 threads a row .951; a whole warp leaves half of it idle
    config = {1, round_up_to_power_of_two(row_vectors), 1, 1};
  } else if (row_vectors <= 64) {
    config.vectors = 2;
  } else if (row_vectors <= 2048) {
    // 1024 to 16384 halves: .97-.98; threads fit the width, idle ones cost 1-6 %
    config.threads = int(divide_up(row_vectors, 4 * 32)) * 32;
  } else {
    // In shared memory: 32768 halves .94. Beyond, blocks share a row, so that three fit a
    // multiprocessor: 65536 .93 (in one block .84), 131072 .92 (.81), 262144 .89 (.76)
    while (row_vectors > int64_t(config.cluster) * kLongestRow) {
      config.cluster *= 2;
      if (config.cluster > cluster_limit) return {0, 0, 1, 1};
    }
    config.threads = 512;
    config.vectors = int(divide_up(row_vectors, int64_t(config.cluster) * 512 * 2)) * 2;
    if (size_t(config.vectors) * 512 * 16 + kLongReserve > shared_memory) return {0, 0, 1, 1};
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
  int vectors;  // per thread and row; 0: the exact kernels take it
  int unroll;   // rows that a thread has in process
  int threads;  // of a block that share a row
  int groups;   // of threads in a block, each with rows of its own
  int stages;   // of the ring
  int cluster;  // blocks that share a row
  int blocks;   // of the whole grid; clusters of them where blocks share rows
};

// 32 KB of rows (x and dy) in process per multiprocessor is best for powers of two: half as many
// lose 15-20 %, twice as many 4-9 %. Two groups in one block beat two blocks (.985, .974 at 4096)
// and halve the partial rows. More than one wave of blocks costs 5-10 %: clusters of two use all of
// the 132 multiprocessors, larger ones ten in eleven. Copies by the warp (cp.async.bulk) were tried
// where one row is less than 32 KB: 5120 .77 (by the thread .79), 7168 .88 (.88), 20480 .65 (.72).
// More than 512 threads spill: 5120 .63.
inline BackwardConfig choose_backward(int64_t row_vectors, int multiprocessors, int cluster_limit) {
  if (row_vectors <= 32) {  // 262144x128: 16 threads a row, 2 rows, 2 blocks: .91
    const int threads = round_up_to_power_of_two(row_vectors);
    return {1, 2, threads, 256 / threads, 3, 1, multiprocessors * 2};
  }
  // 1024 .94, 2048 .956, 4096 .985, 8192 .986; 16384 in two blocks .97 (in one .92-.935)
  BackwardConfig config = {2, 1, 0, 1, 3, 1, multiprocessors};
  while (row_vectors > int64_t(config.cluster) * 1024 && config.cluster < cluster_limit)
    config.cluster *= 2;
  const int64_t own = divide_up(row_vectors, config.cluster);
  if (own > 2048) return {};
  if (own > 1024) config.vectors = 4, config.stages = 2;
  config.threads = int(divide_up(own, config.vectors * 32)) * 32;
  if (config.cluster == 1 && own <= 512) {
    const int fitting = int(1024 / own), most = config.threads == 32 ? 16 : 8;
    config.groups = fitting < most ? fitting : most;
    while (config.groups * config.threads > 512) --config.groups;
    config.stages = 2;
  }
  if (config.cluster == 2) config.blocks = multiprocessors / 2;
  if (config.cluster > 2) config.blocks = multiprocessors * 10 / 11 / config.cluster;
  if (config.blocks < 1) config.blocks = 1;
  return config;
}

// Rows of one partial sum of the column kernel: enough blocks to fill the device, few enough
// partial rows.
inline int64_t choose_column_chunks(int64_t tasks, int64_t column_tiles, int multiprocessors) {
  const int64_t wanted = divide_up(int64_t(multiprocessors) * 8, column_tiles);
  const int64_t most = divide_up(tasks, 32);
  return wanted < most ? wanted : most > 0 ? most : 1;
}

}  // namespace rmsnorm::cuda
