// Threads that wait for numbered chunks of work.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace anabranch {

// Each thread has a range of consecutive chunks, which it takes from the front: what they read
// streams from memory as one piece. Who has none left takes from the back of another's, so a slow
// core holds up nobody else. Between jobs a thread spins for some tens of microseconds, then sleeps.
// The caller takes chunks too: in the child of a fork, which has no other threads, it does all the
// work.
//
// One job at a time; the owner sees to that.
class Pool {
 public:
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Whether this is the child of a fork. Its copy must not be destroyed: it would wait for threads
  // that only the parent has.
  bool orphaned() const;

  // Call `work(chunk, thread)` for all chunks in [0, chunks), then return. The first exception of a
  // chunk is thrown again here, after all other chunks have run.
  template <class Work>
  void run(int64_t chunks, const Work& work) {
    if (chunks == 1 || workers_.empty()) {
      for (int64_t chunk = 0; chunk < chunks; ++chunk) work(chunk, 0);
      return;
    }
    run(chunks, [](const void* context, int64_t chunk, int thread) {
      (*static_cast<const Work*>(context))(chunk, thread);
    }, &work);
  }

 private:
  using Call = void (*)(const void* context, int64_t chunk, int thread);

  // Chunks left of a thread: next (low 32 bits) and end (high). One word, so that a thread that
  // comes late takes a chunk of the present job or none; and while it has one, the job cannot end.
  struct alignas(64) Range {
    std::atomic<uint64_t> word{0};

    int64_t take(bool back);  // -1: none left
  };

  void run(int64_t chunks, Call call, const void* context);
  void help(int thread);
  void serve(int thread);
  void end();

  std::vector<Range> ranges_;
  alignas(64) std::atomic<uint64_t> jobs_{0};  // begun so far
  Call call_ = nullptr;
  const void* context_ = nullptr;
  alignas(64) std::atomic<int64_t> done_{0};
  std::exception_ptr error_;
  std::mutex error_mutex_;

  std::atomic<int> sleeping_{0};
  std::atomic<bool> stop_{false};
  std::mutex sleep_mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
  int64_t process_;
};

}  // namespace anabranch
