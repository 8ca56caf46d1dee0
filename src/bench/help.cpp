// rmsnorm-bench --help.
#include "bench/help.h"

namespace bench {

const char *const kHelp =
    R"(rmsnorm-bench: checks and times librmsnorm's calls beside an element-wise kernel ("ceiling")
that moves the same bytes.

usage: rmsnorm-bench [options]
       rmsnorm-bench --replay 'op=forward device=cpu:0 rows=...' [options]

What is run: every op with every dtype on every shape.
  -o, --op LIST          forward, add (forward with residual and residual_out), backward (dx and
                         dweight), glu-forward, glu-backward, or all               [all]
      --activation LIST  of the gated ones: silu, gelu_tanh, gelu_erf, or all      [silu]
  -d, --dtype LIST       f32, f16, bf16, f64, or all                               [f32]
      --weight-dtype D   of weight and dweight                                     [as x]
      --shapes LIST      ROWSxCOLS,...; in place of the next four:
  -b, --minbytes SIZE    bytes of x in the first step (K, M, G: 2^10, 2^20, 2^30)  [1M]
  -e, --maxbytes SIZE    and in the last                                           [64M]
  -f, --factor N         from step to step                                         [8]
      --cols N           columns of a row; as many rows as the bytes hold          [4096]
      --groups N         groups (heads) in a row, each of so many columns          [1]
      --row-stride N     elements from row to row                                  [groups * cols]
  -u, --misalign N       elements that every pointer is off a 256-byte boundary    [0]
      --overlap          the flag RMSNORM_FLAG_OVERLAP
      --eps X                                                                      [1e-6]
      --replay LINE      the call of one line of the library's log callback, in place of all
                         above; --device and --ordinal, where given, are put for the line's

Where:
      --device NAME      cpu or cuda                            [cuda, where there is a device]
      --ordinal N        which CUDA device                                         [0]
      --threads N        the context's cpu_threads; the ceiling's too              [0]

How:
  -c, --check 0|1        compares with the fp64 reference, outputs filled with NaN before  [1]
      --sets N           buffer sets that calls take in turn; 1: data stay in the cache
                                                    [as many as exceed the cache, 2 to 40]
  -n, --iters N          timed passes for each median; 0: no timing
                                            [11, or what half a second allows, from 3 on]
  -w, --warmup N         passes before them                                        [2]
  -G, --graph 0|1        CUDA: a pass is one graph                                 [1]
  -C, --host-time        CUDA: host time of a call too, beside bare launches of an empty kernel
  -J, --json FILE        all that the table says, and more
  -h, --help

A pass is one call on each buffer set (with --sets, again and again up to 40 calls); its time is
divided by them. Three medians are taken, in turn with the ceiling's, and the best counts.
GB/s are those of rows x cols tensors, each read or written once. The ceiling of forward reads x and
writes y, of backward reads x and dy and writes dx; add's is two launches of forward's. That of
glu-forward reads gate and up and writes y; glu-backward's is two launches, which read dy and gate
and write dgate, and read up and write dup. The CPU's is the best of several copies: memcpy, wide
vectors, streaming stores.

Environment: RMSNORM_LOG=1, or a file's path, writes each distinct call's log line there (1: to
stderr), for --replay. Exit code: 0; 1: an error beyond the header's bound; 2: a bad argument,
nothing measured; 3: CUDA, the library or the system failed.
)";

}  // namespace bench
