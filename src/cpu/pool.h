// The library's own threads, for callers who ask for them (cpu_threads) and bring none. They start
// with the first work that is worth it and sleep between calls. One call at a time has them: a call
// that finds them taken runs on its own thread, so that no call waits for another.
#pragma once

#include <pthread.h>

#include <atomic>
#include <cstdint>

#include "rmsnorm.h"

namespace rmsnorm::cpu {

class Pool {
 public:
  // `threads` with the caller's. NULL if there is no memory.
  static Pool *create(int threads);
  // No call may be using it. Waits until its threads have ended.
  static void destroy(Pool *pool);

  // task(arg, index) for every index in [0, count), on the pool's threads and the caller's. False
  // if another call has the pool: then nothing has run.
  bool run(int64_t count, rmsnorm_task_t task, void *arg);

 private:
  static void *worker(void *pool);
  void start();
  void work();
  void work_through();

  // The process that the threads are in, and whether a call has them: a fork leaves the child with
  // neither threads nor that call, whatever the memory says.
  std::atomic<int64_t> owner_;  // process * 2 + taken
  int threads_;                 // wanted besides the caller's
  int started_;
  pthread_mutex_t mutex_;
  pthread_cond_t wake_, idle_;

  // The job, under the mutex but for next_.
  rmsnorm_task_t task_;
  void *arg_;
  int64_t count_;
  std::atomic<int64_t> next_;  // index
  uint64_t job_;               // its number
  int working_;                // threads that are in it
  bool open_, stop_;           // open: threads may still join the job

  pthread_t handles_[1];  // of threads_
};

}  // namespace rmsnorm::cpu
