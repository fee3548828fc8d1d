/* wire.h - little-endian encoding of what leaves the process, and its untrusting decoder.
 *
 * W1 A reader never reads past its end: the first failed read makes all further ones fail and give 0.
 * W2 A message is decoded only if the reader ends exactly at the end: call wire_done() last.
 * W3 A writer never writes past its end: overflow is remembered, wire_ok() tells.
 * Any thread; no allocation. */
#ifndef VCFT_BASE_WIRE_H
#define VCFT_BASE_WIRE_H

#include "base/types.h"

struct wire_reader { const uint8_t *at; size_t left; bool bad; };
struct wire_writer { uint8_t *start; size_t used, size; bool bad; };

static inline struct wire_reader wire_reader(const void *data, size_t n) { return (struct wire_reader){ data, n, false }; }
static inline struct wire_writer wire_writer(void *data, size_t n) { return (struct wire_writer){ data, 0, n, false }; }

uint8_t wire_u8(struct wire_reader *r);
uint16_t wire_u16(struct wire_reader *r);
uint32_t wire_u32(struct wire_reader *r);
uint64_t wire_u64(struct wire_reader *r);
/* n bytes in place (borrowed from the buffer), NULL if they are not there. */
const uint8_t *wire_bytes(struct wire_reader *r, size_t n);
/* True if nothing failed and nothing is left (W2). */
bool wire_done(const struct wire_reader *r);

void wire_put_u8(struct wire_writer *w, uint8_t v);
void wire_put_u16(struct wire_writer *w, uint16_t v);
void wire_put_u32(struct wire_writer *w, uint32_t v);
void wire_put_u64(struct wire_writer *w, uint64_t v);
void wire_put_bytes(struct wire_writer *w, const void *data, size_t n);
bool wire_ok(const struct wire_writer *w);

#endif
