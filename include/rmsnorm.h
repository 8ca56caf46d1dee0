/*
 * librmsnorm: RMSNorm forward and backward with fused residual add, and gated activations (SwiGLU,
 * GeGLU), on CPU and CUDA.
 * This header is the whole interface and its manual. C99; no CUDA header is needed.
 * SPDX-License-Identifier: Apache-2.0
 *
 * In short
 *
 *   rmsnorm_context_t *context = NULL;
 *   rmsnorm_context_create(NULL, &context);                    // NULL options: the CPU
 *   rmsnorm_forward_params_t p = RMSNORM_FORWARD_PARAMS_INIT;  // all zero: nothing optional
 *   p.rows = 128, p.cols = 4096, p.eps = 1e-6;
 *   p.x.data = x, p.x.row_stride = 4096, p.x.dtype = RMSNORM_DTYPE_F32;
 *   p.weight.data = weight, p.weight.dtype = RMSNORM_DTYPE_F32;
 *   p.y.data = y, p.y.row_stride = 4096, p.y.dtype = RMSNORM_DTYPE_F32;
 *   rmsnorm_status_t status = rmsnorm_forward(context, &p, NULL, 0, NULL);
 *   rmsnorm_context_destroy(context);
 *
 * Rules that hold for every function
 *   - It never throws, prints, exits, allocates device memory or waits for the device, and it
 *     leaves the current CUDA device and the caller's CUDA error as they were. (The first use of a
 *     kernel lets the driver load code, which may synchronise; RMSNORM_CONTEXT_PRELOAD does
 *     that once, at creation.)
 *   - Any number of threads may call it at once, with one context or many. Calls that may run at
 *     once need outputs and workspaces of their own; calls on one stream may share a workspace.
 *   - A call that is refused has written nothing. On failure rmsnorm_last_error() has the text:
 *     it names the argument, its value and the rule.
 *   - CUDA calls are asynchronous and ordered by the stream; they may be captured in a graph, which
 *     keeps the params' pointers, not the params. CPU calls are done when they return.
 *   - Pointers are trusted: a context made with RMSNORM_CONTEXT_CHECK_POINTERS asks the CUDA driver
 *     about each one. Lifetimes are the caller's: memory must live until the stream has passed the
 *     call, a context until every call on it has returned.
 *   - Sizes and strides are in elements, int64_t. Structs begin with struct_size, and grow at the
 *     end only. All-zero bytes are a valid value of each optional field.
 */
#ifndef RMSNORM_H
#define RMSNORM_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define RMSNORM_API __attribute__((visibility("default")))
#else
#define RMSNORM_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Identity ------------------------------------------------------------------------------- */

#define RMSNORM_VERSION_MAJOR 0
#define RMSNORM_VERSION_MINOR 1
#define RMSNORM_VERSION_PATCH 0
/* The ABI that this header describes, the SOVERSION of the library. */
#define RMSNORM_ABI_VERSION 1

/* The loaded library's version: major * 10000 + minor * 100 + patch. */
RMSNORM_API int32_t rmsnorm_version(void);
/* The loaded library's ABI version. A program may go on if it equals RMSNORM_ABI_VERSION. */
RMSNORM_API int32_t rmsnorm_abi_version(void);
/* Static text of key=value pairs: version, CUDA version and architectures (or cuda=off), ISAs. */
RMSNORM_API const char *rmsnorm_build_info(void);

/* ---- Errors --------------------------------------------------------------------------------- */

/* 0: success. 1xxx: the caller's mistake. 2xxx: not supported, or not available here. 3xxx: out of
 * memory. 4xxx: CUDA failed. 5xxx: a bug of this library. Codes are never renumbered. Beside what a
 * function's comment lists, whatever calls CUDA may return ARCHITECTURE, OUT_OF_MEMORY, CUDA and
 * CUDA_EARLIER, and all may return INTERNAL. */
typedef int32_t rmsnorm_status_t;
enum {
  RMSNORM_SUCCESS = 0,
  RMSNORM_ERROR_NULL = 1001,        /* a required pointer is NULL, a required tensor absent */
  RMSNORM_ERROR_VALUE = 1002,       /* a scalar is out of its range */
  RMSNORM_ERROR_SHAPE = 1003,       /* rows, groups or cols */
  RMSNORM_ERROR_STRIDE = 1004,      /* two output elements coincide, or a view exceeds 2^62 bytes */
  RMSNORM_ERROR_ALIGNMENT = 1005,   /* data is not a multiple of the element size */
  RMSNORM_ERROR_ALIAS = 1006,       /* two arguments share memory in a way that is not allowed */
  RMSNORM_ERROR_DTYPE = 1007,       /* a dtype that does not go with the others */
  RMSNORM_ERROR_WORKSPACE = 1008,   /* the workspace is too small or NULL */
  RMSNORM_ERROR_STRUCT_SIZE = 1009, /* struct_size is none that was ever published */
  RMSNORM_ERROR_DEVICE = 1010,      /* no device with that ordinal */
  RMSNORM_ERROR_POINTER = 1011,     /* CHECK_POINTERS: the context's device cannot use the memory */
  RMSNORM_ERROR_STREAM = 1012,      /* a stream was given to a CPU context */
  RMSNORM_ERROR_CALLBACK = 1013,    /* parallel_for returned a value other than 0 */
  RMSNORM_ERROR_NOT_SUPPORTED = 2001,
  RMSNORM_ERROR_NEWER_LIBRARY = 2002,     /* a flag, enum value or field that this version lacks */
  RMSNORM_ERROR_BACKEND_NOT_BUILT = 2003, /* the library was built without CUDA */
  RMSNORM_ERROR_NO_DRIVER = 2004,         /* there is no CUDA driver */
  RMSNORM_ERROR_DRIVER_TOO_OLD = 2005,
  RMSNORM_ERROR_NO_DEVICE = 2006,    /* a driver, but no device */
  RMSNORM_ERROR_ARCHITECTURE = 2007, /* the build has no kernels for this device */
  RMSNORM_ERROR_OUT_OF_MEMORY = 3001,
  RMSNORM_ERROR_CUDA = 4001,
  RMSNORM_ERROR_CUDA_EARLIER = 4002, /* reported now, caused by work before this call */
  RMSNORM_ERROR_INTERNAL = 5001
};

/* The constant's name, "RMSNORM_ERROR_STRIDE"; "unknown status" for any other number. Static. */
RMSNORM_API const char *rmsnorm_status_name(rmsnorm_status_t status);
/* Copies the text of this thread's latest failure to buf (at most capacity bytes, with the final
 * NUL; buf may be NULL if capacity is 0) and returns the bytes that the whole text needs, NUL
 * included. A success leaves the text as it is; before any failure it is "". */
RMSNORM_API size_t rmsnorm_last_error(char *buf, size_t capacity);

/* ---- Tensors -------------------------------------------------------------------------------- */

/* DLPack's type code * 256 + bits. 0: the tensor is absent. */
typedef int32_t rmsnorm_dtype_t;
enum {
  RMSNORM_DTYPE_NONE = 0,
  RMSNORM_DTYPE_F16 = 0x0210,
  RMSNORM_DTYPE_F32 = 0x0220,
  RMSNORM_DTYPE_F64 = 0x0240,
  RMSNORM_DTYPE_BF16 = 0x0410
};

/*
 * A view of rows x groups x cols elements: element (r, g, c) stands at
 * data + r * row_stride + g * group_stride + c, strides counted in elements.
 *
 * Each (row, group) of cols elements is normalised on its own. groups = 1 is plain RMSNorm; heads
 * as groups normalise q and k in place inside a packed QKV tensor: rows tokens, groups heads, cols
 * head_dim, row_stride the packed width, group_stride head_dim. Batch x sequence with a gap is
 * rows x groups as well.
 *
 * Inputs may have any strides, zero and negative too; the stride of a dimension of size 1 is
 * ignored. In an output no two elements may coincide. data must be a multiple of the element size:
 * 16 bytes is fastest, every alignment gives the same bits. weight, bias, dweight and dbias are
 * vectors of cols: row_stride 0, group_stride 0 (one vector for all groups) or any (one per group).
 * rstd has one element per (row, group).
 *
 * A tensor is present if its dtype is not 0. An absent one is all zero. Present with NULL data is
 * refused unless it has no elements; the size and name queries ignore data. reserved must be 0.
 */
typedef struct rmsnorm_tensor_t { /* what a call writes */
  void *data;
  int64_t row_stride;
  int64_t group_stride;
  rmsnorm_dtype_t dtype;
  int32_t reserved;
} rmsnorm_tensor_t;

typedef struct rmsnorm_input_t { /* what a call reads */
  const void *data;
  int64_t row_stride;
  int64_t group_stride;
  rmsnorm_dtype_t dtype;
  int32_t reserved;
} rmsnorm_input_t;

#define RMSNORM_TENSOR_INIT \
  { NULL, 0, 0, RMSNORM_DTYPE_NONE, 0 }
#define RMSNORM_INPUT_INIT \
  { NULL, 0, 0, RMSNORM_DTYPE_NONE, 0 }

/* ---- Devices -------------------------------------------------------------------------------- */

/* DLPack's device types. */
typedef int32_t rmsnorm_device_t;
enum { RMSNORM_DEVICE_CPU = 1, RMSNORM_DEVICE_CUDA = 2 };

typedef struct rmsnorm_device_info_t {
  size_t struct_size;
  rmsnorm_device_t device;
  int32_t ordinal;
  int32_t compute_capability; /* CUDA: major * 10 + minor; CPU: 0 */
  int32_t processors;         /* CUDA: multiprocessors; CPU: logical processors online */
  int32_t supported;          /* 1: a context can be created */
  int32_t reserved;           /* 0 */
  int64_t memory_bytes;
  int64_t cache_bytes; /* CUDA: the L2 cache; CPU: the last-level cache, 0 where unknown */
  char name[128];
  char isa[32]; /* the code that runs there: "avx2", "sm_90" */
} rmsnorm_device_info_t;

#define RMSNORM_DEVICE_INFO_INIT                                      \
  {                                                                   \
    sizeof(rmsnorm_device_info_t), 0, 0, 0, 0, 0, 0, 0, 0, {0}, { 0 } \
  }

/* Zeroes struct_size bytes at info, then sets info->struct_size. Never fails. */
RMSNORM_API void rmsnorm_device_info_init(void *info, size_t struct_size);

/* The number of devices. CUDA: 0 and success where there is no driver or none of its devices.
 * Errors: NULL (count), NEWER_LIBRARY (device), BACKEND_NOT_BUILT, DRIVER_TOO_OLD,
 * CUDA. */
RMSNORM_API rmsnorm_status_t rmsnorm_device_count(rmsnorm_device_t device, int32_t *count);

/* Describes one device; writes at most info->struct_size bytes. Creates no CUDA context.
 * Errors: those of rmsnorm_device_count, NULL (info), STRUCT_SIZE, NO_DRIVER, NO_DEVICE, DEVICE. */
RMSNORM_API rmsnorm_status_t rmsnorm_device_info(rmsnorm_device_t device, int32_t ordinal,
                                                 rmsnorm_device_info_t *info);

/* ---- Context -------------------------------------------------------------------------------- */

/* A device and what was decided about it once. Immutable: share it between threads. */
typedef struct rmsnorm_context_t rmsnorm_context_t;

enum {
  /* CUDA: load every kernel now, so that no later call lets the driver load code. */
  RMSNORM_CONTEXT_PRELOAD = 1,
  /* CUDA: ask the driver about each pointer of each call, and refuse what the device cannot use. */
  RMSNORM_CONTEXT_CHECK_POINTERS = 2,
  /* CPU: large outputs (y and residual_out, dx and dresidual, dgate and dup) stay in the cache as
   * far as they fit. Without it, those of 16 MiB or more (or the last-level cache's size, if that
   * is less) are written past it, which is faster where input and output would not have stayed
   * there anyway. The bits are the same. */
  RMSNORM_CONTEXT_KEEP_CACHED = 4
};

/* Called once per accepted operation, on the calling thread, before it runs: one line of key=value
 * pairs without a newline, valid during the call. It must not unwind through the library. */
typedef void (*rmsnorm_log_t)(void *user, const char *line);

/* Runs task(arg, index) for every index in [0, count) once, on any threads, and returns when all
 * are done: 0, or another number if it could not. It may be called from several threads at once. */
typedef void (*rmsnorm_task_t)(void *arg, int64_t index);
typedef int32_t (*rmsnorm_parallel_for_t)(void *user, int64_t count, rmsnorm_task_t task,
                                          void *arg);

typedef struct rmsnorm_context_options_t {
  size_t struct_size;
  rmsnorm_device_t device; /* 0 is read as the CPU */
  int32_t ordinal;         /* CPU: 0 */
  uint32_t flags;          /* RMSNORM_CONTEXT_* */
  /* CPU: 0 or 1, the caller's thread alone; n, up to 1024: n - 1 threads of the library's own work
   * beside the caller's. They start with the first large call, also in a child after fork, sleep
   * between calls, and end with the context. One call at a time has them; calls that run meanwhile
   * do without. Not beside parallel_for. */
  int32_t cpu_threads;
  rmsnorm_log_t log; /* NULL: silent */
  void *log_user;
  rmsnorm_parallel_for_t parallel_for; /* CPU: NULL runs on the caller's thread */
  void *parallel_for_user;
} rmsnorm_context_options_t;

#define RMSNORM_CONTEXT_OPTIONS_INIT \
  { sizeof(rmsnorm_context_options_t), RMSNORM_DEVICE_CPU, 0, 0, 0, NULL, NULL, NULL, NULL }

/* Zeroes struct_size bytes at options, then sets its struct_size. Never fails. */
RMSNORM_API void rmsnorm_context_options_init(void *options, size_t struct_size);

/* Creates a context; *context is NULL after a failure. options NULL: the CPU, the caller's thread.
 * CUDA: makes the device's primary context, if it was not there yet, and keeps it until destroyed.
 * Errors: NULL (context), STRUCT_SIZE, VALUE, NEWER_LIBRARY, BACKEND_NOT_BUILT, NO_DRIVER,
 * DRIVER_TOO_OLD, NO_DEVICE, DEVICE, ARCHITECTURE, OUT_OF_MEMORY, CUDA. */
RMSNORM_API rmsnorm_status_t rmsnorm_context_create(const rmsnorm_context_options_t *options,
                                                    rmsnorm_context_t **context);

/* Destroys a context; NULL is allowed. Work that is already in a stream goes on undisturbed. */
RMSNORM_API void rmsnorm_context_destroy(rmsnorm_context_t *context);

/* ---- Numerics -------------------------------------------------------------------------------- */
/*
 * ulp: the distance between the neighbours of the exact result in the output's dtype. "Exact" is
 * the formula in real arithmetic on the given elements, h after its rounding; with
 * RMSNORM_ROUNDING_LLAMA each of the two roundings keeps y's bound for its own argument. Where a
 * bound reaches beyond the dtype's largest number, the result may be Inf. Every bound is tested.
 *
 * CPU. y: at most 0.501 ulp for fp32, fp16 and bf16, 2 ulp for fp64, for every finite h; with a
 *   bias, plus 2^-48 of |h * rstd * weight|, which only shows where the two cancel. rstd: 0.501 ulp
 *   (fp64 2).
 *   dx: 0.501 ulp (fp64 2) + 2^-40 * (rstd * (|w dy| + |xhat| * mean|w dy xhat|) +
 *   |dresidual_out|).
 *   dweight, dbias: 0.501 ulp (fp64 2) + 2^-40 * sum of the absolute terms; fp64 plus 2^-1075 for
 *   each of the rows, which only shows where terms are subnormal.
 *   The same bits on every ISA, thread count, split of the work, alignment and stride.
 * CUDA. y: fp32 at most 1 ulp, fp16 and bf16 0.51 ulp, fp64 2 ulp, for every finite h; with a bias,
 *   plus 2^-22 of |h * rstd * weight|. rstd: 1 ulp if x, y or h is fp32 or fp64, else 0.5 ulp +
 *   2^-20 of its value.
 *   dx: 0.51 ulp (fp32 1, fp64 2) + 2^-19 * (rstd * (|w dy| + |xhat| * mean|w dy xhat|) +
 *   |dresidual_out|) (fp64: 2^-40); where x and dy are not fp64, plus 2^-148 * rstd *
 *   (1 + mean|w dy xhat|), which only shows in subnormal results. dweight, dbias: 0.51 ulp (fp32 1,
 *   fp64 2) + 2^-18 * sum of the absolute terms (fp64: 2^-40), at any number of rows; plus 2^-149
 *   of 1 + |x| (fp64: 2^-1075) for each row, which only shows in subnormal results.
 *   Deterministic. y, rstd and dx of a row depend on its elements, weight, bias, scalars, cols,
 *   dtypes and the GPU's architecture: not on rows, the row's position, strides, alignment,
 *   aliasing, OVERLAP, or which other outputs are asked for. dweight and dbias depend on the shape
 *   and the multiprocessor count as well.
 * Both. A NaN in a row makes its y NaN. An Inf gives NaN at its place and signed zeros elsewhere.
 *   mean(h^2) + eps = 0 makes the row NaN.
 */

/* Where y is rounded. */
typedef int32_t rmsnorm_rounding_t;
enum {
  /* Once, at the end. */
  RMSNORM_ROUNDING_ONCE = 0,
  /* t = h * rstd rounded to h's dtype, then y = t * (weight + weight_offset) + bias rounded to y's:
   * the rounding points of LlamaRMSNorm in Hugging Face transformers. */
  RMSNORM_ROUNDING_LLAMA = 1
};

enum {
  /* CUDA, from sm_90 on, a hint that changes no bits: the kernel may start before the stream's
   * previous one ends (programmatic dependent launch). Before it waits for that, it reads only
   * weight and bias: no unfinished work in the stream may write those, and every kernel so launched
   * before it in the chain must wait for its predecessor. This library's always do. */
  RMSNORM_FLAG_OVERLAP = 1,
  /* Backward: add to what dweight and dbias hold, rounding once (fp32 main gradients). */
  RMSNORM_FLAG_ACCUMULATE = 2
};

/* ---- Forward --------------------------------------------------------------------------------- */
/*
 *   h    = x + residual                  (residual present; else h = x)
 *   rstd = 1 / sqrt(mean(h^2) + eps)     (the mean over cols)
 *   y    = h * rstd * (weight + weight_offset) + bias
 *
 * RMSNorm: Zhang and Sennrich, "Root Mean Square Layer Normalization", NeurIPS 2019. Gemma's
 * 1 + weight is weight_offset = 1.
 *
 * h is rounded to residual_out's dtype; without residual_out, to x's and residual's dtype if they
 * are equal, else to fp32. The rounded h is what is normalised and what backward wants as x. An
 * absent weight is 1, an absent bias 0. residual_out receives h and needs residual; rstd receives
 * rstd, fp32 (fp64 if all is fp64). Dtypes: each tensor fp32, fp16 or bf16 on its own, or fp64 for
 * all.
 *
 * Memory: y may be x; residual_out may be residual or x (same data, strides and dtype). Two outputs
 * never share an element. Views of equal strides whose columns do not meet may interleave in one
 * allocation; any other overlap with an output is refused. The workspace overlaps nothing.
 */
typedef struct rmsnorm_forward_params_t {
  size_t struct_size;
  int64_t rows;         /* 0 or more; 0: nothing is done */
  int64_t groups;       /* 0 is read as 1 */
  int64_t cols;         /* 1 or more */
  double eps;           /* 0 or more, finite; 0 means 0 */
  double weight_offset; /* finite; unless all is fp64: 0, or a normal fp32 magnitude */
  rmsnorm_rounding_t rounding;
  uint32_t flags; /* RMSNORM_FLAG_OVERLAP */
  rmsnorm_input_t x;
  rmsnorm_input_t residual; /* optional */
  rmsnorm_input_t weight;   /* optional */
  rmsnorm_input_t bias;     /* optional */
  rmsnorm_tensor_t y;
  rmsnorm_tensor_t residual_out; /* optional */
  rmsnorm_tensor_t rstd;         /* optional */
} rmsnorm_forward_params_t;

#define RMSNORM_FORWARD_PARAMS_INIT                                                     \
  {                                                                                     \
    sizeof(rmsnorm_forward_params_t), 0, 0, 0, 0.0, 0.0, RMSNORM_ROUNDING_ONCE, 0,      \
        RMSNORM_INPUT_INIT, RMSNORM_INPUT_INIT, RMSNORM_INPUT_INIT, RMSNORM_INPUT_INIT, \
        RMSNORM_TENSOR_INIT, RMSNORM_TENSOR_INIT, RMSNORM_TENSOR_INIT                   \
  }

/* Zeroes struct_size bytes at params, then sets its struct_size. Never fails. */
RMSNORM_API void rmsnorm_forward_params_init(void *params, size_t struct_size);

/*
 * Normalises. stream: CUDA, a cudaStream_t (NULL is the legacy default stream; 1 and 2 are CUDA's
 * own handles) of the context's device; CPU, NULL. workspace: device memory (CPU: host memory) of
 * at least the size that rmsnorm_forward_workspace_size tells, of any alignment, contents undefined
 * before and after; NULL if that is 0.
 * Errors: NULL, VALUE, SHAPE, STRIDE, ALIGNMENT, ALIAS, DTYPE, WORKSPACE, STRUCT_SIZE, POINTER,
 * STREAM, CALLBACK, NOT_SUPPORTED, NEWER_LIBRARY, CUDA, CUDA_EARLIER.
 */
RMSNORM_API rmsnorm_status_t rmsnorm_forward(const rmsnorm_context_t *context,
                                             const rmsnorm_forward_params_t *params,
                                             void *workspace, size_t workspace_size, void *stream);

/* Bytes of workspace for such a call. It depends on shape, dtypes, presence, flags and context,
 * never on addresses or strides, and does not decrease as rows grow: ask once, for the largest
 * batch.
 * Errors: those of rmsnorm_forward that do not concern memory. */
RMSNORM_API rmsnorm_status_t rmsnorm_forward_workspace_size(const rmsnorm_context_t *context,
                                                            const rmsnorm_forward_params_t *params,
                                                            size_t *size);

/* A name is at most this long, its NUL included. */
#define RMSNORM_KERNEL_NAME_SIZE 128

/* Writes the name of the kernel and configuration that such a call would run, for logs and
 * benchmarks; its form may change between versions. Errors: as above, and VALUE if capacity is too
 * small. */
RMSNORM_API rmsnorm_status_t rmsnorm_forward_kernel_name(const rmsnorm_context_t *context,
                                                         const rmsnorm_forward_params_t *params,
                                                         char *name, size_t capacity);

/* ---- Backward -------------------------------------------------------------------------------- */
/*
 * With xhat = x * rstd, w = weight + weight_offset and the mean over cols:
 *
 *   dx      = rstd * (w * dy - xhat * mean(w * dy * xhat)) + dresidual_out
 *   dweight = sum over rows (and groups, if group_stride is 0) of dy * xhat
 *   dbias   = the same sum of dy
 *
 * x is what was normalised: forward's x, or its residual_out where there was a residual. dx is then
 * the gradient of both x and residual; dresidual receives the same value in a dtype of its own.
 * dresidual_out is the gradient that arrives at residual_out by other ways. rstd is forward's;
 * absent, or in a row where it is 0, Inf or subnormal, it is computed from x and eps. An absent
 * weight is 1, and dweight is still defined. weight, dweight and dbias are all shared by the
 * groups (group_stride 0) or all per group. rounding is ignored: a cast differentiates as the
 * identity. rows 0: dweight and dbias become 0, or stay with ACCUMULATE. At least one output is
 * present.
 *
 * Memory: dx may be dy, x or dresidual_out (same data, strides and dtype); the rest as in forward.
 */
typedef struct rmsnorm_backward_params_t {
  size_t struct_size;
  int64_t rows;   /* these, and their rules, as in forward */
  int64_t groups; /* 0 is read as 1 */
  int64_t cols;
  double eps; /* used where rstd is computed */
  double weight_offset;
  rmsnorm_rounding_t rounding; /* ignored, but one of the enum's */
  uint32_t flags;              /* RMSNORM_FLAG_OVERLAP, RMSNORM_FLAG_ACCUMULATE */
  rmsnorm_input_t dy;
  rmsnorm_input_t x;
  rmsnorm_input_t weight;        /* optional */
  rmsnorm_input_t rstd;          /* optional */
  rmsnorm_input_t dresidual_out; /* optional */
  rmsnorm_tensor_t dx;           /* optional */
  rmsnorm_tensor_t dresidual;    /* optional */
  rmsnorm_tensor_t dweight;      /* optional */
  rmsnorm_tensor_t dbias;        /* optional */
} rmsnorm_backward_params_t;

#define RMSNORM_BACKWARD_PARAMS_INIT                                                       \
  {                                                                                        \
    sizeof(rmsnorm_backward_params_t), 0, 0, 0, 0.0, 0.0, RMSNORM_ROUNDING_ONCE, 0,        \
        RMSNORM_INPUT_INIT, RMSNORM_INPUT_INIT, RMSNORM_INPUT_INIT, RMSNORM_INPUT_INIT,    \
        RMSNORM_INPUT_INIT, RMSNORM_TENSOR_INIT, RMSNORM_TENSOR_INIT, RMSNORM_TENSOR_INIT, \
        RMSNORM_TENSOR_INIT                                                                \
  }

/* Zeroes struct_size bytes at params, then sets its struct_size. Never fails. */
RMSNORM_API void rmsnorm_backward_params_init(void *params, size_t struct_size);

/* Arguments, workspace and errors as in rmsnorm_forward. */
RMSNORM_API rmsnorm_status_t rmsnorm_backward(const rmsnorm_context_t *context,
                                              const rmsnorm_backward_params_t *params,
                                              void *workspace, size_t workspace_size, void *stream);

/* As rmsnorm_forward_workspace_size. */
RMSNORM_API rmsnorm_status_t rmsnorm_backward_workspace_size(
    const rmsnorm_context_t *context, const rmsnorm_backward_params_t *params, size_t *size);

/* As rmsnorm_forward_kernel_name. */
RMSNORM_API rmsnorm_status_t rmsnorm_backward_kernel_name(const rmsnorm_context_t *context,
                                                          const rmsnorm_backward_params_t *params,
                                                          char *name, size_t capacity);

/* ---- Gated activations ----------------------------------------------------------------------- */
/*
 *   y = act(gate) * up          act(g) = g * s(g)
 *
 *   SILU       s(g) = 1 / (1 + exp(-g))                      SwiGLU
 *   GELU_TANH  s(g) = (1 + tanh(sqrt(2 / pi) * (g + 0.044715 g^3))) / 2      GeGLU, approximated
 *   GELU_ERF   s(g) = (1 + erf(g / sqrt(2))) / 2             GeGLU
 *
 * Backward computes all from gate and up, so that forward has nothing to keep:
 *
 *   dgate = dy * up * act'(gate)     act'(g) = s(g) + g * s'(g)
 *   dup   = dy * act(gate)
 *
 * Shazeer, "GLU Variants Improve Transformer", 2020; Hendrycks and Gimpel, "Gaussian Error Linear
 * Units", 2016. All tensors have the shape rows x groups x cols. Packed rows [gate | up] are two
 * views with the packed width as row_stride, up's data cols elements further. Dtypes: each tensor
 * fp32, fp16 or bf16 on its own, or fp64 for all. No workspace is needed today; ask all the same.
 *
 * Bounds, in the tails too. y, dup, CPU: fp32, fp16 and bf16 0.501 ulp, fp64 2 ulp; CUDA: fp16 and
 * bf16 0.51 ulp, fp32 2 ulp (SILU) and 4 ulp (GELU), fp64 8 ulp. dgate the same and, because its
 * two terms may cancel, 2^-40 (CUDA: fp32 2^-20, fp16 and bf16 2^-17; fp64 2^-48) of |dy * up| *
 * (s(g) + |g * s'(g)|). The CPU gives the same bits on every ISA, thread count, split, alignment
 * and stride; on CUDA an element depends on its operands, the dtypes and the GPU's architecture
 * alone. A NaN or -Inf gate gives NaN, and an Inf gate a NaN dgate; else an Inf spreads as it is,
 * but where act(gate) or act'(gate) is next to nothing, Inf times it may be NaN.
 *
 * Memory: y may be gate or up; dgate may be gate or dy, dup may be up or dy (same data, strides and
 * dtype); the rest as in rmsnorm_forward.
 */
typedef int32_t rmsnorm_activation_t;
enum {
  RMSNORM_ACTIVATION_SILU = 0,
  RMSNORM_ACTIVATION_GELU_TANH = 1,
  RMSNORM_ACTIVATION_GELU_ERF = 2
};

typedef struct rmsnorm_glu_forward_params_t {
  size_t struct_size;
  int64_t rows;   /* 0 or more; 0: nothing is done */
  int64_t groups; /* 0 is read as 1 */
  int64_t cols;   /* 1 or more */
  rmsnorm_activation_t activation;
  uint32_t flags; /* RMSNORM_FLAG_OVERLAP */
  rmsnorm_input_t gate;
  rmsnorm_input_t up;
  rmsnorm_tensor_t y;
} rmsnorm_glu_forward_params_t;

#define RMSNORM_GLU_FORWARD_PARAMS_INIT                                                            \
  {                                                                                                \
    sizeof(rmsnorm_glu_forward_params_t), 0, 0, 0, RMSNORM_ACTIVATION_SILU, 0, RMSNORM_INPUT_INIT, \
        RMSNORM_INPUT_INIT, RMSNORM_TENSOR_INIT                                                    \
  }

/* Zeroes struct_size bytes at params, then sets its struct_size. Never fails. */
RMSNORM_API void rmsnorm_glu_forward_params_init(void *params, size_t struct_size);

/* Arguments, workspace and errors as in rmsnorm_forward. */
RMSNORM_API rmsnorm_status_t rmsnorm_glu_forward(const rmsnorm_context_t *context,
                                                 const rmsnorm_glu_forward_params_t *params,
                                                 void *workspace, size_t workspace_size,
                                                 void *stream);

/* As rmsnorm_forward_workspace_size. */
RMSNORM_API rmsnorm_status_t rmsnorm_glu_forward_workspace_size(
    const rmsnorm_context_t *context, const rmsnorm_glu_forward_params_t *params, size_t *size);

/* As rmsnorm_forward_kernel_name. */
RMSNORM_API rmsnorm_status_t rmsnorm_glu_forward_kernel_name(
    const rmsnorm_context_t *context, const rmsnorm_glu_forward_params_t *params, char *name,
    size_t capacity);

/* At least one output is present. */
typedef struct rmsnorm_glu_backward_params_t {
  size_t struct_size;
  int64_t rows;   /* as in forward */
  int64_t groups; /* 0 is read as 1 */
  int64_t cols;
  rmsnorm_activation_t activation;
  uint32_t flags; /* RMSNORM_FLAG_OVERLAP */
  rmsnorm_input_t dy;
  rmsnorm_input_t gate;
  rmsnorm_input_t up;
  rmsnorm_tensor_t dgate; /* optional */
  rmsnorm_tensor_t dup;   /* optional */
} rmsnorm_glu_backward_params_t;

#define RMSNORM_GLU_BACKWARD_PARAMS_INIT                                                 \
  {                                                                                      \
    sizeof(rmsnorm_glu_backward_params_t), 0, 0, 0, RMSNORM_ACTIVATION_SILU, 0,          \
        RMSNORM_INPUT_INIT, RMSNORM_INPUT_INIT, RMSNORM_INPUT_INIT, RMSNORM_TENSOR_INIT, \
        RMSNORM_TENSOR_INIT                                                              \
  }

/* Zeroes struct_size bytes at params, then sets its struct_size. Never fails. */
RMSNORM_API void rmsnorm_glu_backward_params_init(void *params, size_t struct_size);

/* Arguments, workspace and errors as in rmsnorm_forward. */
RMSNORM_API rmsnorm_status_t rmsnorm_glu_backward(const rmsnorm_context_t *context,
                                                  const rmsnorm_glu_backward_params_t *params,
                                                  void *workspace, size_t workspace_size,
                                                  void *stream);

/* As rmsnorm_forward_workspace_size. */
RMSNORM_API rmsnorm_status_t rmsnorm_glu_backward_workspace_size(
    const rmsnorm_context_t *context, const rmsnorm_glu_backward_params_t *params, size_t *size);

/* As rmsnorm_forward_kernel_name. */
RMSNORM_API rmsnorm_status_t rmsnorm_glu_backward_kernel_name(
    const rmsnorm_context_t *context, const rmsnorm_glu_backward_params_t *params, char *name,
    size_t capacity);

#ifdef __cplusplus
}
#endif
#endif /* RMSNORM_H */
