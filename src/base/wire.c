/* wire.c - see wire.h. */
#include "base/wire.h"

#include <endian.h>
#include <string.h>

const uint8_t *wire_bytes(struct wire_reader *r, size_t n)
{
	if (r->bad || n > r->left) {
		r->bad = true;
		return NULL;
	}
	const uint8_t *p = r->at;
	r->at += n;
	r->left -= n;
	return p;
}

static uint64_t get(struct wire_reader *r, size_t n)
{
	uint64_t v = 0;
	const uint8_t *p = wire_bytes(r, n);
	if (p)
		memcpy(&v, p, n);
	return le64toh(v);
}

uint8_t wire_u8(struct wire_reader *r) { return (uint8_t)get(r, 1); }
uint16_t wire_u16(struct wire_reader *r) { return (uint16_t)get(r, 2); }
uint32_t wire_u32(struct wire_reader *r) { return (uint32_t)get(r, 4); }
uint64_t wire_u64(struct wire_reader *r) { return get(r, 8); }

bool wire_done(const struct wire_reader *r) { return !r->bad && r->left == 0; }

void wire_put_bytes(struct wire_writer *w, const void *data, size_t n)
{
	if (w->bad || n > w->size - w->used) {
		w->bad = true;
		return;
	}
	if (n)
		memcpy(w->start + w->used, data, n);
	w->used += n;
}

static void put(struct wire_writer *w, uint64_t v, size_t n)
{
	v = htole64(v);
	wire_put_bytes(w, &v, n);
}

void wire_put_u8(struct wire_writer *w, uint8_t v) { put(w, v, 1); }
void wire_put_u16(struct wire_writer *w, uint16_t v) { put(w, v, 2); }
void wire_put_u32(struct wire_writer *w, uint32_t v) { put(w, v, 4); }
void wire_put_u64(struct wire_writer *w, uint64_t v) { put(w, v, 8); }

bool wire_ok(const struct wire_writer *w) { return !w->bad; }
