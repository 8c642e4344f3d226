// TensorBoard's event file, written by hand: scalars only, no dependency.
//
// A record is: length (u64), masked CRC-32C of those 8 bytes (u32), the bytes, masked CRC-32C of
// the bytes (u32), all little-endian. The bytes are a protobuf Event: 1 wall_time (double), 2 step
// (int64) and one of 3 file_version (string), 5 summary (message of repeated 1 value: 1 tag
// (string), 2 simple_value (float)), 7 session_log (message: 1 status, START = 1). The first event
// of a file carries the version "brain.Event:2". A session start at step s makes readers forget
// what earlier files say about s and later steps.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace fathom {

// Records, ready to be appended to a file. wall_time in seconds since 1970.
std::string event_file_version(double wall_time);
std::string event_session_start(double wall_time, int64_t step);
std::string event_scalars(double wall_time, int64_t step,
                          std::span<const std::pair<std::string, double>> scalars);

uint32_t crc32c(
    std::string_view bytes);  // Castagnoli, reflected 0x82f63b78; crc32c("123456789") = 0xe3069283
// Rotated right by 15 and offset, so that a CRC over data that holds CRCs stays good.
uint32_t masked_crc32c(std::string_view bytes);

}  // namespace fathom
