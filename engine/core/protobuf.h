// Protobuf's wire format, one field at a time: every length is checked against its parent before anything is looked at.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace nasb::protobuf {

enum class Wire : uint8_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

struct Field {
  uint32_t number = 0;
  Wire wire = Wire::kVarint;
  uint64_t value = 0;         // of a varint, fixed64 or fixed32
  size_t begin = 0, end = 0;  // of bytes: offsets in the file
  size_t at = 0;              // where the field's tag stands
};

// A message: a range of the file. It owns nothing; `what` ("graph", "node") is for errors and must outlive it.
class Message {
 public:
  Message(const uint8_t* file, size_t begin, size_t end, const char* what)
      : file_(file), at_(begin), end_(end), what_(what) {}

  // The next field, or false at the end. Raises Error on what is not protobuf.
  bool next(Field* field);

  // The readers below raise Error where the field has another wire type.
  Message message(const Field& field, const char* what) const;
  std::string bytes(const Field& field) const;
  std::string text(const Field& field) const;       // valid UTF-8 without control characters, checked
  std::string long_text(const Field& field) const;  // valid UTF-8 without NUL, checked
  int64_t integer(const Field& field) const;
  float number(const Field& field) const;
  // Repeated numbers, packed or not; appended.
  void integers(const Field& field, std::vector<int64_t>* values) const;
  void numbers(const Field& field, std::vector<float>* values) const;

  const uint8_t* file() const { return file_; }
  const char* what() const { return what_; }
  [[noreturn]] void fail(const std::string& problem, size_t at) const;

 private:
  uint64_t varint(size_t* at, size_t end) const;
  void expect(const Field& field, Wire wire) const;

  const uint8_t* file_;
  size_t at_, end_;
  const char* what_;
};

// `text` for a message to the user: in quotes, cut to a bearable length.
std::string quoted(const std::string& text);

}  // namespace nasb::protobuf
