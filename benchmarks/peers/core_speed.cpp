// How fast the core runs at this moment: a loop that fills its vector units. Twice as slow where another virtual machine
// runs on the core's other thread, of which nothing else tells.
#include <chrono>

typedef unsigned char Bytes __attribute__((vector_size(32)));

extern "C" double core_speed_seconds() {
  Bytes sums[8] = {};
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < 50000; ++i)
    for (Bytes& sum : sums) {
      sum += 1;
      asm volatile("" : "+x"(sum));  // each addition is made
    }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}
