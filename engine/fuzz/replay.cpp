// Runs the harness once on each file named, where there is no libFuzzer: the tests replay the corpus so, under
// AddressSanitizer. A file that takes too long ends it (SIGALRM); the last line says which.
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

constexpr unsigned kMostSeconds = 60;  // of any file under sanitizers on a busy machine; without a fault, 1 or 2

int main(int count, char** paths) {
  for (int i = 1; i < count; ++i) {
    std::ifstream file(paths[i], std::ios::binary);
    const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    std::fprintf(stderr, "%s: %zu bytes\n", paths[i], bytes.size());
    alarm(kMostSeconds);
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  }
  return 0;
}
