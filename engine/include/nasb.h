/* C API of the engine: runs the 1-bit ONNX files that `nasb export` writes. No C++ exception crosses it.
 *
 * A session is made once and may run from several threads at once. Functions that can fail return a nasb_status and, on
 * failure, leave a text for nasb_last_error(); what they would have written is then undefined, except that a failed
 * create stores NULL. Pointers that a session hands out live until nasb_destroy().
 */
#ifndef NASB_H
#define NASB_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define NASB_API __attribute__((visibility("default")))
#else
#define NASB_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Version of this interface: the same number means that programs built with this header run with that library. */
#define NASB_API_VERSION 1

typedef struct nasb_session nasb_session;

/* Numbers never change their meaning. */
typedef enum nasb_status {
  NASB_OK = 0,
  NASB_ERROR_FILE = 1,        /* missing, damaged, or not an ONNX file */
  NASB_ERROR_UNSUPPORTED = 2, /* valid ONNX with something that the engine does not know; the text names the node */
  NASB_ERROR_ARGUMENT = 3,    /* a value that a function does not accept */
  NASB_ERROR_INTERNAL = 4,    /* a fault of the engine */
  NASB_ERROR_MEMORY = 5       /* out of memory */
} nasb_status;

/* Begin with `nasb_options options = NASB_OPTIONS_DEFAULT;`. */
typedef struct nasb_options {
  size_t struct_size; /* sizeof(nasb_options) of the program: later versions add fields at the end */
  int32_t threads;    /* 0: as many as the process may use; at most 256 */
  const char* kernel; /* of binary convolutions, e.g. "reference", "avx2", "neon"; NULL or "": the best here */
} nasb_options;

#define NASB_OPTIONS_DEFAULT {sizeof(nasb_options), 0, NULL}

/* NASB_API_VERSION of the library, and the version of the engine, e.g. "0.1.0". */
NASB_API int nasb_api_version(void);
NASB_API const char* nasb_version(void);

/* What the last failure in the calling thread was: one line, never NULL, valid until the thread's next failure. */
NASB_API const char* nasb_last_error(void);

/* Loads a model. `options` may be NULL. The memory may be freed afterwards. */
NASB_API nasb_status nasb_create_from_file(const char* path, const nasb_options* options, nasb_session** session);
NASB_API nasb_status nasb_create_from_memory(const void* data, size_t size, const nasb_options* options,
                                             nasb_session** session);
/* NULL is accepted. No call on the session may be under way. */
NASB_API void nasb_destroy(nasb_session* session);

/* Of one image: channels, height, width. */
NASB_API nasb_status nasb_input_shape(const nasb_session* session, int64_t shape[3]);
/* Floats of one image and of its output; 0 for NULL. */
NASB_API size_t nasb_input_size(const nasb_session* session);
NASB_API size_t nasb_output_size(const nasb_session* session);
NASB_API int nasb_threads(const nasb_session* session);
/* The kernel that the session chose, as in nasb_options, e.g. "avx2"; NULL for NULL. */
NASB_API const char* nasb_kernel(const nasb_session* session);

/* Classes that the file names (0 where it names none); NULL where index >= nasb_class_count(). UTF-8. */
NASB_API size_t nasb_class_count(const nasb_session* session);
NASB_API const char* nasb_class_name(const nasb_session* session, size_t index);
/* A metadata entry of the file, e.g. "nasb.preprocessing"; NULL where there is none. UTF-8. */
NASB_API const char* nasb_metadata(const nasb_session* session, const char* key);

/* Turns an image into the network's input as the file's metadata say (resize, crop, normalize), exactly as in
 * training's evaluation. pixels: [height][width][channels], 8 bits, channels 1 (grey) or 3 (RGB); image:
 * nasb_input_size() floats. */
NASB_API nasb_status nasb_preprocess(const nasb_session* session, const uint8_t* pixels, int32_t width, int32_t height,
                                     int32_t channels, float* image);

/* images: [batch][channels][height][width], normalized; output: [batch][nasb_output_size()] real scores, e.g. logits.
 */
NASB_API nasb_status nasb_run(const nasb_session* session, const float* images, size_t batch, float* output);

#ifdef __cplusplus
}
#endif

#endif /* NASB_H */
