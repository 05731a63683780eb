// A fork-join pool. Waiting threads spin for a bounded time, then sleep, so that a busy neighbour on the machine is not
// starved; who forks never waits for a thread that has not begun.
#pragma once

#include <functional>
#include <memory>

namespace nasb {

class ThreadPool {
 public:
  // Where the system gives fewer threads, the pool has fewer.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  using Work = std::function<void(int item, int thread)>;
  // Runs work(item, thread) for each item in [0, count), thread in [0, threads()). Each thread begins with a range of
  // its own, so that it meets the data that it has just written, and then helps the others. Where another call has the
  // pool, and in a process forked from the pool's own, the caller runs all items itself. `work` must not throw.
  void parallel(int count, const Work& work);

  // The most threads that took part in one parallel() of the calling thread since it last asked.
  static int take_most_active();

 private:
  struct Shared;  // what the threads wait on; left behind in a forked process, where those threads do not exist

  int threads_ = 1;
  std::unique_ptr<Shared> shared_;
};

// Processors that this process may use.
int available_threads();

}  // namespace nasb
