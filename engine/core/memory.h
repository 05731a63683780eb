// Zeroed memory, aligned for vectors; in huge pages where the system gives them, since an arena is touched all over in
// each run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

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

constexpr size_t kVectorAlignment = 64;

// Vectors of what kernels read: a load that crosses a cache line costs two.
template <class T>
struct AlignedAllocator {
  using value_type = T;
  AlignedAllocator() = default;
  template <class U>
  AlignedAllocator(const AlignedAllocator<U>&) {}
  T* allocate(size_t count) {
    if (count > SIZE_MAX / sizeof(T)) throw std::bad_alloc();
    return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{kVectorAlignment}));
  }
  void deallocate(T* values, size_t) { ::operator delete(values, std::align_val_t{kVectorAlignment}); }
  bool operator==(const AlignedAllocator&) const { return true; }
  bool operator!=(const AlignedAllocator&) const { return false; }
};

template <class T>
using AlignedVector = std::vector<T, AlignedAllocator<T>>;

}  // namespace nasb
