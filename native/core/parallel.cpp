#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "system.h"

namespace densecl {
namespace {

thread_local int threadCount = 0;

// Consecutive units of a job, which threads take one by one.
struct alignas(64) Share {
  std::atomic<int64_t> next{0};
  int64_t end = 0;
};

struct Job {
  Job(const std::function<void(int64_t)>& body, int64_t units, int helpers) : body(body), shares(helpers + 1), helpers(helpers) {
    const int64_t count = helpers + 1;
    for (int64_t i = 0; i < count; ++i) {
      shares[i].next = units * i / count;
      shares[i].end = units * (i + 1) / count;
    }
  }

  const std::function<void(int64_t)>& body;
  std::vector<Share> shares;
  int helpers;                  // pool threads that may still join
  std::atomic<int> running{0};  // changed with the pool locked
  std::exception_ptr error;

  // Consecutive units read what lies side by side: a thread does share `own`, and then what others have left of theirs.
  void work(std::mutex& mutex, size_t own) {
    for (size_t i = 0; i < shares.size(); ++i) {
      Share& share = shares[(own + i) % shares.size()];
      for (int64_t unit; (unit = share.next.fetch_add(1)) < share.end;) {
        try {
          body(unit);
        } catch (...) {
          std::lock_guard<std::mutex> lock(mutex);
          if (!error) error = std::current_exception();
          for (Share& each : shares) each.next = each.end;
        }
      }
    }
  }
};

// One job at a time; a second caller (another environment of the process) runs its job inline.
class Pool {
 public:
  // Never destroyed: its threads wait until the process ends.
  static Pool& instance() {
    static Pool* pool = [] {
      stayLoaded();
      return new Pool();
    }();
    return *pool;
  }

  void run(int64_t units, int helpers, const std::function<void(int64_t)>& body) {
    std::unique_lock<std::mutex> owner(owner_, std::try_to_lock);
    Job job(body, units, helpers);
    if (owner.owns_lock()) {
      std::unique_lock<std::mutex> lock(mutex_);
      while (static_cast<int>(workers_) < helpers) {
        std::thread([this] { loop(); }).detach();
        ++workers_;
      }
      job_ = &job;
      published_.fetch_add(1, std::memory_order_release);
      lock.unlock();
      wake_.notify_all();
    }
    job.work(mutex_, 0);
    if (owner.owns_lock()) {
      std::unique_lock<std::mutex> lock(mutex_);
      job_ = nullptr;
      lock.unlock();
      // The others are about to end too.
      spinWhile([&] { return job.running.load(std::memory_order_acquire) != 0; });
      lock.lock();
      done_.wait(lock, [&] { return job.running == 0; });
    }
    if (job.error) std::rethrow_exception(job.error);
  }

 private:
  void loop() {
    threadCount = 1;
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      if (!(job_ != nullptr && job_->helpers > 0)) {
        // A step launches hundreds of short jobs: look for the next one before sleeping.
        lock.unlock();
        spinWhile([&] { return published_.load(std::memory_order_acquire) == seen; });
        lock.lock();
        wake_.wait(lock, [&] { return job_ != nullptr && job_->helpers > 0; });
      }
      seen = published_.load(std::memory_order_relaxed);
      Job* job = job_;
      const int own = job->helpers--;
      ++job->running;
      lock.unlock();
      job->work(mutex_, own);
      lock.lock();
      if (--job->running == 0) done_.notify_all();
    }
  }

  // Whoever sleeps takes some 50 us to be woken, on a virtual machine at least: longer than most units, and than what passes between two
  // ops of a step.
  template <class Condition>
  static void spinWhile(Condition condition) {
    using Clock = std::chrono::steady_clock;
    constexpr std::chrono::microseconds longest{100};
    constexpr int looks = 64;  // between two of the clock
    for (const auto begin = Clock::now(); condition() && Clock::now() - begin < longest;)
      for (int look = 0; look < looks && condition(); ++look) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
      }
  }

  std::mutex owner_, mutex_;
  std::condition_variable wake_, done_;
  std::atomic<uint64_t> published_{0};
  Job* job_ = nullptr;
  size_t workers_ = 0;
};

}  // namespace

int threads() {
  if (threadCount == 0) threadCount = std::max(1u, std::thread::hardware_concurrency());
  return threadCount;
}

void setThreads(int count) { threadCount = std::max(1, count); }

void parallelFor(int64_t units, const std::function<void(int64_t)>& body) {
  const int helpers = static_cast<int>(std::min<int64_t>(threads(), units)) - 1;
  if (helpers <= 0) {
    for (int64_t unit = 0; unit < units; ++unit) body(unit);
  } else {
    Pool::instance().run(units, helpers, body);
  }
}

void parallelRange(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  if (count <= 0) return;
  const int64_t chunks = std::max<int64_t>(1, std::min<int64_t>(count / std::max<int64_t>(1, grain), threads() * 4));
  if (chunks == 1) return body(0, count);
  parallelFor(chunks, [&](int64_t i) { body(count * i / chunks, count * (i + 1) / chunks); });
}

}  // namespace densecl
