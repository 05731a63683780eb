#include "core/protobuf.h"

#include <cstring>

#include "core/error.h"
#include "core/utf8.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "The loader copies numbers as they stand in the file: little endian."
#endif

namespace nasb::protobuf {
namespace {

const char* name(Wire wire) {
  switch (wire) {
    case Wire::kVarint:
      return "a varint";
    case Wire::kFixed64:
      return "8 bytes";
    case Wire::kBytes:
      return "a length and bytes";
    case Wire::kFixed32:
      return "4 bytes";
  }
  return "unknown";
}

}  // namespace

void Message::fail(const std::string& problem, size_t at) const {
  throw Error(ErrorCode::kFile, std::string(what_) + ": " + problem + " (byte " + std::to_string(at) + ")");
}

uint64_t Message::varint(size_t* at, size_t end) const {
  const size_t start = *at;
  uint64_t value = 0;
  for (int i = 0; i < 10; ++i) {
    if (*at >= end) fail("ends in the middle of a number", start);
    const uint8_t byte = file_[(*at)++];
    if (i == 9 && byte > 1) fail("a number has more than 64 bits", start);
    value |= static_cast<uint64_t>(byte & 0x7F) << (7 * i);
    if (byte < 0x80) return value;
  }
  fail("a number has more than 10 bytes", start);
}

bool Message::next(Field* field) {
  if (at_ >= end_) return false;
  field->at = at_;
  const uint64_t tag = varint(&at_, end_);
  if (tag >> 3 == 0 || tag >> 32 != 0)
    fail("field number " + std::to_string(tag >> 3) + " is not protobuf's", field->at);
  field->number = static_cast<uint32_t>(tag >> 3);
  const auto label = [&] { return "field " + std::to_string(field->number); };
  field->value = 0;
  field->begin = field->end = at_;
  size_t size = 0;
  switch (tag & 7) {
    case 0:
      field->wire = Wire::kVarint;
      field->value = varint(&at_, end_);
      return true;
    case 1:
      field->wire = Wire::kFixed64;
      size = 8;
      break;
    case 2: {
      field->wire = Wire::kBytes;
      const uint64_t length = varint(&at_, end_);
      if (length > end_ - at_) {
        fail(
            label() + " has " + std::to_string(length) + " bytes, but only " + std::to_string(end_ - at_) + " are left",
            field->at);
      }
      field->begin = at_;
      at_ += static_cast<size_t>(length);
      field->end = at_;
      return true;
    }
    case 5:
      field->wire = Wire::kFixed32;
      size = 4;
      break;
    default:
      fail(label() + " has wire type " + std::to_string(tag & 7) + ", which ONNX does not use", field->at);
  }
  if (end_ - at_ < size) fail(label() + " is cut off", field->at);
  // Little endian, as every CPU that the engine is built for.
  std::memcpy(&field->value, file_ + at_, size);
  at_ += size;
  field->end = at_;
  return true;
}

void Message::expect(const Field& field, Wire wire) const {
  if (field.wire != wire) {
    fail("field " + std::to_string(field.number) + " is " + name(field.wire) + ", not " + name(wire), field.at);
  }
}

Message Message::message(const Field& field, const char* what) const {
  expect(field, Wire::kBytes);
  return Message(file_, field.begin, field.end, what);
}

std::string Message::bytes(const Field& field) const {
  expect(field, Wire::kBytes);
  return std::string(reinterpret_cast<const char*>(file_) + field.begin, field.end - field.begin);
}

std::string Message::long_text(const Field& field) const {
  expect(field, Wire::kBytes);
  for (size_t at = field.begin; at < field.end;) {
    const size_t length = utf8_length(file_ + at, field.end - at);
    if (length == 0 || file_[at] == 0) fail("field " + std::to_string(field.number) + " is not text in UTF-8", at);
    at += length;
  }
  return bytes(field);
}

std::string Message::text(const Field& field) const {
  std::string result = long_text(field);
  for (size_t i = 0; i < result.size(); ++i) {
    const uint8_t byte = static_cast<uint8_t>(result[i]);
    if (byte < 0x20 || byte == 0x7F) fail("a name holds a control character", field.begin + i);
  }
  return result;
}

int64_t Message::integer(const Field& field) const {
  expect(field, Wire::kVarint);
  return static_cast<int64_t>(field.value);
}

float Message::number(const Field& field) const {
  expect(field, Wire::kFixed32);
  const uint32_t bits = static_cast<uint32_t>(field.value);
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

void Message::integers(const Field& field, std::vector<int64_t>* values) const {
  if (field.wire == Wire::kVarint) {
    values->push_back(integer(field));
    return;
  }
  expect(field, Wire::kBytes);
  for (size_t at = field.begin; at < field.end;) values->push_back(static_cast<int64_t>(varint(&at, field.end)));
}

void Message::numbers(const Field& field, std::vector<float>* values) const {
  if (field.wire == Wire::kFixed32) {
    values->push_back(number(field));
    return;
  }
  expect(field, Wire::kBytes);
  const size_t size = field.end - field.begin;
  if (size % sizeof(float) != 0)
    fail("field " + std::to_string(field.number) + " is not a whole number of floats", field.at);
  const size_t before = values->size();
  values->resize(before + size / sizeof(float));
  if (size > 0) std::memcpy(values->data() + before, file_ + field.begin, size);
}

std::string quoted(const std::string& text) {
  constexpr size_t kLongest = 200;
  size_t length = text.size();
  if (length > kLongest) {  // never in the middle of a character
    length = kLongest;
    while (length > 0 && (static_cast<uint8_t>(text[length]) & 0xC0) == 0x80) --length;
  }
  return "\"" + text.substr(0, length) + (length < text.size() ? "..." : "") + "\"";
}

}  // namespace nasb::protobuf
