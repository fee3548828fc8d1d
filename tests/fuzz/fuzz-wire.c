/* fuzz-wire.c - W1-W3: any sequence of reads gives what stands there, then zeros, and never reads on; what is written reads back. */
#include "base/wire.h"
#include "fuzz.h"

static uint64_t read_one(struct wire_reader *r, unsigned width)
{
	return width == 1 ? wire_u8(r) : width == 2 ? wire_u16(r) : width == 4 ? wire_u32(r) : wire_u64(r);
}

static void write_one(struct wire_writer *w, unsigned width, uint64_t v)
{
	if (width == 1)
		wire_put_u8(w, (uint8_t)v);
	else if (width == 2)
		wire_put_u16(w, (uint16_t)v);
	else if (width == 4)
		wire_put_u32(w, (uint32_t)v);
	else
		wire_put_u64(w, v);
}

/* Input: number of fields, their widths, then the bytes that are read. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct input in = { data, n };
	size_t fields = take(&in, 1), used = 0;
	const uint8_t *widths = take_bytes(&in, &fields);
	uint8_t *whole = malloc(in.left), *again = malloc(in.left);   /* of their own size: the sanitizer sees a step beyond */
	memcpy(whole, in.at, in.left);
	struct wire_reader r = wire_reader(whole, in.left);
	struct wire_writer w = wire_writer(again, in.left);
	for (size_t i = 0; i < fields; i++) {
		unsigned width = 1u << (widths[i] & 3);
		bool fits = wire_ok(&w) && width <= in.left - used;
		uint64_t v = read_one(&r, width);
		demand(r.bad == !fits && (fits || v == 0));
		write_one(&w, width, v);
		demand(wire_ok(&w) == fits);
		used += fits ? width : 0;
	}
	demand(wire_done(&r) == (wire_ok(&w) && used == in.left) && w.used == used && memcmp(whole, again, used) == 0);
	free(whole);
	free(again);
	return 0;
}
