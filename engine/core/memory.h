// Zeroed memory, aligned for vectors; in huge pages where the system gives them, since an arena is touched all over in
// each run.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nasb {

class Memory {
 public:
  explicit Memory(size_t bytes);  // raises std::bad_alloc
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  uint8_t* data() const { return data_; }

 private:
  uint8_t* data_;
};

}  // namespace nasb
