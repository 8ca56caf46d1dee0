// Every launch configuration, chosen by shape and device. Shares are of an element-wise kernel that
// moves the same bytes, measured on an H200 (sm_90, 132 multiprocessors) with these kernels or
// prototypes of them.
//
// What decides a row's reduction tree depends on cols, dtype and device alone, never on the number
// of rows, so that a row's bits do not either.
#pragma once

#include <algorithm>
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

enum class ForwardKernel { kExact, kShort, kRows, kLong };

struct ForwardConfig {
  ForwardKernel kernel;
  int vectors;  // per thread
  int threads;  // of a block that share a row
  int rows;     // of threads per block
  int cluster;  // blocks that share a row
  bool dense;   // forward_rows: RowBlocks::kDense
};

constexpr int64_t kLongestRow = 4096;  // forward_long's vectors of one block
constexpr size_t kLongReserve = 8192;  // bytes that forward_long needs besides

// Whether x and residual stay in the L2 longer than y does (InputPolicy): where x alone fills it.
// 32768x8192 250 us (258), add 497 (518). Smaller ones gain 2 % by it, which a neighbour that would
// have found y in the L2 loses: 4096x4096 and two multiplications 51.9 us (51.0), but of 8192 rows
// 102.6 (105.1).
inline bool keeps_inputs(int64_t x_bytes, int l2_bytes) { return x_bytes >= l2_bytes; }

// Lanes and vectors for a row of at most 96 vectors, so that the fewest of them are idle. Blocks of
// two warps, as soon replaced as a warp is done: 262144x128 34.5 us (of eight: 35.2), fp32 69.9
// (75.7), 2048x128 2.22 (2.35).
inline ForwardConfig choose_short(int64_t row_vectors) {
  ForwardConfig best = {ForwardKernel::kShort, 0, 0, 0, 1, false};
  for (int vectors = 1; vectors <= 3; ++vectors) {
    const int lanes = round_up_to_power_of_two(divide_up(row_vectors, vectors));
    if (lanes <= 32 && (best.vectors == 0 || lanes * vectors < best.threads * best.vectors))
      best.vectors = vectors, best.threads = lanes;
  }
  best.rows = 64 / best.threads;
  return best;
}

// A row is `row_vectors` vectors of 16 bytes; a cluster may have `cluster_limit` blocks (1: there
// are none). `adds`: a residual; `plain`: forward_rows has kernels of 2 vectors. Unaligned rows:
// see for_unaligned.
inline ForwardConfig choose_forward(int64_t row_vectors, int64_t tasks, bool adds, bool plain,
                                    int multiprocessors, int cluster_limit, size_t shared_memory) {
  if (row_vectors <= 96) return choose_short(row_vectors);
  if (row_vectors <= 2048) {
    // 1024 to 16384 halves: .97-.98; threads fit the width, idle ones cost 1-6 %
    ForwardConfig config = {ForwardKernel::kRows, 4, 0, 1, 1, false};
    // A residual needs the registers: 32768x4096 261 us (with 1 258), but 1x4096 1.64 (1.75). Rows
    // that the device has room for at once are sooner done with 2: 1x4096 1.56 us (with 4 1.79,
    // with 1 1.68), 1x8192 1.93 (2.09, 2.11), 300x6144 3.98 (4.06); more rows are not:
    // 1000x2880 5.3 (4.6)
    const bool few = tasks * divide_up(row_vectors, 64) * 32 <= int64_t(multiprocessors) * 1024;
    if (plain && (adds || few)) config.vectors = 2;
    // So few and so long that blocks had better share them, each of about 128 threads: 1x8192 1.78
    // us (1.91), 1x16384 1.86 (2.66), 32x16384 2.87 (3.35), 64x16384 3.54 (3.72); 64x8192 no gain,
    // 1x6144 none
    if (plain && row_vectors > 768 && tasks * (row_vectors > 1024 ? 2 : 4) <= multiprocessors) {
      config.vectors = 2;
      while (config.cluster * 256 < row_vectors && config.cluster * 2 <= cluster_limit)
        config.cluster *= 2;
    }
    // Of rows of these lengths ordinary blocks leave a multiprocessor up to half empty: 12288 1.03
    // (.94), 11264 1.02 (.92), fp32 6144 1.04 (.91), but 13312 .95 (.98); add 9728 1.05 (.91),
    // 12288 1.05 (.97), 16384 1.05 (1.04), fp32 5120 1.06 (.82), but 9216 1.04 (1.07)
    config.dense =
        plain && !few && row_vectors > (adds ? 1152 : 1280) && (adds || row_vectors <= 1536);
    if (config.dense) config.vectors = 4;
    config.threads = int(divide_up(row_vectors, config.cluster * config.vectors * 32)) * 32;
    // 4096 halves: two rows a block .984, one .964. Few rows: spread them over the multiprocessors.
    if (config.vectors == 4 && config.threads <= 128 && tasks >= int64_t(multiprocessors) * 8)
      config.rows = 2;
    return config;
  }
  // In shared memory: 32768 halves 1.00. Beyond, blocks share a row, so that three fit a
  // multiprocessor: 65536 .98 (in one block .84), 131072 .96 (.81), 262144 .89 (.76)
  ForwardConfig config = {ForwardKernel::kLong, 0, 0, 1, 1, false};
  while (row_vectors > int64_t(config.cluster) * kLongestRow) config.cluster *= 2;
  // As few idle lanes as may be: 20480 .99 in 320 threads (in 512 .95), 18432 .99 in 384 (.93)
  const int64_t own = divide_up(row_vectors, config.cluster);
  int64_t fewest = INT64_MAX;
  for (int threads = 512; threads >= 256; threads -= 32) {
    const int64_t vectors = divide_up(own, threads * 2) * 2;
    if (vectors * threads >= fewest) continue;
    fewest = vectors * threads;
    config.vectors = int(vectors), config.threads = threads;
  }
  if (config.cluster > cluster_limit || size_t(fewest) * 16 + kLongReserve > shared_memory)
    return {ForwardKernel::kExact, 0, 0, 1, 1, false};
  return config;
}

// The configuration of rows that are not aligned: forward_rows has for them no kernels of clusters
// or dense blocks, and none of 4 vectors that adds.
inline ForwardConfig for_unaligned(ForwardConfig config, int64_t row_vectors, bool adds) {
  if (config.cluster == 1 && !config.dense) return config;
  if (config.kernel != ForwardKernel::kRows) return config;
  const int vectors = config.dense && !adds ? 4 : 2;
  const int threads = int(divide_up(row_vectors, vectors * 32)) * 32;
  return {ForwardKernel::kRows, vectors, threads, 1, 1, false};
}

// ---- Backward
// ------------------------------------------------------------------------------------

struct BackwardConfig {
  int vectors;  // per thread and row; 1: short rows; 0: the exact kernels take it
  int threads;  // of a block that share a row
  int groups;   // of threads in a block, each with rows of its own
  int stages;   // of the ring
  int cluster;  // blocks that share a row
  int blocks;   // of the whole grid; clusters of them where blocks share rows
  bool paced;   // blocks are held together more tightly
};

// Rows of more than 32 vectors: `own` of them in each of `cluster` blocks that share a row, and as
// many groups of threads as 512 threads are enough for and 32 KB of rows in process. More threads
// want registers that rows need: 640 of 96 gave 4096 .92 (.97), 6144 .84 (.92).
inline BackwardConfig backward_in_cluster(int64_t row_vectors, int cluster) {
  BackwardConfig config = {2, 0, 1, 3, cluster, 0, false};
  const int64_t own = divide_up(row_vectors, cluster);
  if (own > 1024) config.vectors = 4;
  config.threads = int(divide_up(own, config.vectors * 32)) * 32;
  config.groups = int(std::min({int64_t(15), 1024 / own, int64_t(512 / config.threads)}));
  if (config.groups < 1) config.groups = 1;
  return config;
}

// 32 KB of rows (x and dy) in process per multiprocessor is best: half as many lose 15-20 %, twice
// as many 4-9 %. Two groups in one block beat two blocks and halve the partial rows. What a row in
// one block does not fill, parts of more rows do: 4608 .97 (.85), 5120 .97 (.87), 10240 .95 (.87),
// 18432 .92 (.79). More than one wave of blocks costs 5-10 %: clusters of two use all of the 132
// multiprocessors, larger ones ten in eleven. `odd`: cols are no multiple of the vector.
//
// dx's tree is the same in any cluster, so that the number of tasks may choose it.
inline BackwardConfig choose_backward(int64_t row_vectors, bool odd, int64_t tasks,
                                      int multiprocessors, int cluster_limit) {
  if (row_vectors <= 32) {  // 262144x128: 16 threads a row, 2 rows, 2 blocks: .92
    const int threads = round_up_to_power_of_two(row_vectors);
    return {1, threads, 256 / threads, 3, 1, multiprocessors * 2, false};
  }
  int cluster = 1;
  while (row_vectors > int64_t(cluster) * 1024 && cluster < cluster_limit) cluster *= 2;
  if (row_vectors > int64_t(cluster) * 2048) return {};
  BackwardConfig config = backward_in_cluster(row_vectors, cluster);
  const auto filled = [&](const BackwardConfig &c) {
    return c.groups * divide_up(row_vectors, c.cluster);
  };
  const bool few = tasks * row_vectors <= int64_t(multiprocessors) * 8192;
  for (int more = 2 * cluster; more <= 4 * cluster && more <= cluster_limit; more *= 2) {
    const BackwardConfig other = backward_in_cluster(row_vectors, more);
    const int64_t own = filled(config), others = filled(other);
    // Fewer blocks have fewer partial rows: in two of 4096 32768 rows take 190 us (193), 2048 18.2
    // (19.0), in four 55 for 8192 (54), but 12.0 for 1024 (12.4)
    const bool fewer = !odd && others == own &&
                       other.threads * more == config.threads * config.cluster &&
                       (more == 2 || few);
    // Unaligned rows want a fifth more for it: 3001 .74 (.67), 4097 .63 (.49), but 5125 .59 (.61)
    if (fewer || (odd ? others * 5 > own * 6 : others > own)) config = other;
  }
  config.paced = filled(config) > 896;
  // Rows that do not fill the 32 KB want one more in flight, 9216 .94 (.93), 5376 .95 (.92), and so
  // do those of many blocks: 24576 .92 (.91)
  if (!config.paced || config.cluster > 8) config.stages = 4;
  config.blocks = config.cluster <= 2 ? multiprocessors / config.cluster
                                      : multiprocessors * 10 / 11 / config.cluster;
  if (config.blocks < 1) config.blocks = 1;
  return config;
}

struct FewConfig {
  int threads;        // that share a row
  int groups;         // of them in a block; 0: too many rows for backward_few
  int strip_vectors;  // side by side in a strip
  int lanes;          // that share the rows of one, each at most 32
};

// Rows, of whole vectors, that few blocks can sum by columns while the others find dx. Against
// backward_rows and sum_partials, us: 64x4096 3.3 (5.7), 300x6144 7.4 (8.5), 512x4096 7.9 (9.0),
// 800x5120 12.1 (12.7), 512x1024 4.9 (5.9); 1000x2880 no gain, 1024x4096 12.5 (12.0), 2048x512 10.9
// (8.3). Strips of 4 where there are multiprocessors enough: 512x4096 7.5 (of 8: 8.9), 300x6144 8.2
// (7.2).
inline FewConfig choose_few(int64_t row_vectors, int64_t tasks, int multiprocessors) {
  if (row_vectors <= 32 || row_vectors > 1024) return {};
  if (tasks == 0 || tasks > (row_vectors > 256 ? row_vectors * 2 : 512)) return {};
  if (tasks * row_vectors > int64_t(multiprocessors) * 3900) return {};
  FewConfig few = {backward_in_cluster(row_vectors, 1).threads, 1, 4, 0};
  if (few.threads < 256) few.groups = 256 / few.threads;
  if (divide_up(row_vectors, 4) * 4 > int64_t(multiprocessors) * 5) few.strip_vectors = 8;
  // Whole warps, with 4 rows a lane while there are so few.
  const int most = few.groups * few.threads / few.strip_vectors;
  const int of_warp = 32 / few.strip_vectors;
  const int64_t wanted = divide_up(divide_up(tasks, 4), of_warp) * of_warp;
  few.lanes = wanted < most ? int(wanted) : most;
  return few;
}

// Rows of one partial sum of the column kernel: enough blocks to fill the device, few enough
// partial rows.
inline int64_t choose_column_chunks(int64_t tasks, int64_t column_tiles, int multiprocessors) {
  const int64_t wanted = divide_up(int64_t(multiprocessors) * 8, column_tiles);
  const int64_t most = divide_up(tasks, 32);
  return wanted < most ? wanted : most > 0 ? most : 1;
}

// ---- Gated activations
// ------------------------------------------------------------------------------------

// Whether halves are taken in vectors of 8 bytes: while all are in process at once. 1x14336 1.15 us
// (of 16: 1.23), back 1.27 (1.46); 64x11008 2.69 (2.72), back 3.39 (3.55); 16384x14336 328 (319),
// back 561 (544). `vectors`: of 16 bytes.
inline bool is_glu_narrow(int64_t vectors, int multiprocessors) {
  return vectors <= int64_t(multiprocessors) * 1024;
}

// Threads of a block, one vector each: few vectors are spread over the multiprocessors. Two vectors
// a thread were no faster anywhere, and slower for 64 rows (.79, .90).
inline int choose_glu_threads(int64_t vectors, int least, int multiprocessors) {
  int threads = 256;
  while (threads > least && vectors <= int64_t(multiprocessors) * threads) threads /= 2;
  return threads;
}

}  // namespace rmsnorm::cuda
