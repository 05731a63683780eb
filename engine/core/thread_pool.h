// A fork-join pool. Waiting threads spin for a bounded time, then sleep, so that a busy neighbour on the machine is not
// starved; who forks never waits for a thread that has not begun.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace nasb {

class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  using Work = std::function<void(int item, int thread)>;
  // Runs work(item, thread) for each item in [0, count), thread in [0, threads()). Each thread begins with a range of
  // its own, so that it meets the data that it has just written, and then helps the others. Where another call has the
  // pool, the caller runs all items itself. `work` must not throw.
  void parallel(int count, const Work& work);

 private:
  void worker(int thread);
  void drain(int thread);

  std::vector<std::thread> workers_;
  std::mutex forking_;
  const Work* work_ = nullptr;
  struct alignas(64) Range {
    std::atomic<int> next{0};
    int end = 0;
  };
  std::vector<Range> ranges_;
  std::atomic<bool> open_{false};
  std::atomic<int> inside_{0};
  std::atomic<unsigned> epoch_{0};
  std::atomic<bool> stop_{false};
  std::atomic<int> sleepers_{0};
  std::mutex sleeping_;
  std::condition_variable wake_;
};

// Processors that this process may use.
int available_threads();

}  // namespace nasb
