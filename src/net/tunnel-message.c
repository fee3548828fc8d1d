/* tunnel-message.c - the messages of a tunnel, byte by byte (docs/format.md has the tables).
 *
 *   bytes of a connection ──tunnel_parse──► the first message, its frame in place        PART: more bytes are needed        BAD: end the connection
 *
 *  TM1 Each byte of a message, header included, is covered by a checksum: a message with a flipped bit is never taken. (A flipped length is found when as
 *      many bytes have come as it asks for.) HELLO and MARKER end with XXH3-64, FRAME has the low half of XXH3-64 before its frame. Against accidents, not
 *      attackers: that is the transport's part.
 *  TM2 What is taken has all numbers in range: host 1..VCFT_HOST_MAX, network < VCFT_NETWORK_MAX, epochs and generations <= VCFT_NUMBER_MAX, a frame of
 *      FRAME_LEAST..VCFT_FRAME_MAX bytes. A frame's checksum is worked out once, however many tunnels it goes into.
 *
 * Pure; any thread; no allocation. */
#include "net/net-private.h"

#include "base/must.h"
#include "base/wire.h"

#include <xxhash.h>

#define SUM_BYTES 8u
#define FRAME_SUMMED (TUNNEL_HEAD_BYTES - 4u)      /* bytes before a FRAME's checksum */

_Static_assert(TUNNEL_HELLO_BYTES == MESSAGE_HEADER_BYTES + 12 + SUM_BYTES, "TUNNEL_HELLO in base/messages.def");
_Static_assert(TUNNEL_MARKER_BYTES == MESSAGE_HEADER_BYTES + 16 + SUM_BYTES, "MARKER in base/messages.def");
_Static_assert(TUNNEL_HEAD_BYTES == MESSAGE_HEADER_BYTES + 24, "FRAME in base/messages.def");

/* ---- out ---- */

static void finish(uint8_t *out, enum message_type type, struct wire_writer *w)
{
	message_header_encode(out, type, w->used + SUM_BYTES);
	wire_put_u64(w, XXH3_64bits(out, MESSAGE_HEADER_BYTES + w->used));
	MUST("W3", wire_ok(w));
}

void tunnel_put_hello(uint8_t out[static TUNNEL_HELLO_BYTES], struct host_id host, struct generation generation)
{
	struct wire_writer w = wire_writer(out + MESSAGE_HEADER_BYTES, TUNNEL_HELLO_BYTES - MESSAGE_HEADER_BYTES);
	wire_put_u32(&w, host.n);
	wire_put_u64(&w, generation.n);
	finish(out, MESSAGE_TUNNEL_HELLO, &w);
}

void tunnel_put_marker(uint8_t out[static TUNNEL_MARKER_BYTES], struct generation generation, struct epoch_id r)
{
	struct wire_writer w = wire_writer(out + MESSAGE_HEADER_BYTES, TUNNEL_MARKER_BYTES - MESSAGE_HEADER_BYTES);
	wire_put_u64(&w, generation.n);
	wire_put_u64(&w, r.n);
	finish(out, MESSAGE_MARKER, &w);
}

static uint32_t frame_sum(const uint8_t *head, const uint8_t *data, size_t size)
{
	return (uint32_t)XXH3_64bits_withSeed(data, size, XXH3_64bits(head, FRAME_SUMMED));
}

void tunnel_put_frame_head(uint8_t head[static TUNNEL_HEAD_BYTES], const struct frame *f)
{
	message_header_encode(head, MESSAGE_FRAME, TUNNEL_HEAD_BYTES - MESSAGE_HEADER_BYTES + f->size);
	struct wire_writer w = wire_writer(head + MESSAGE_HEADER_BYTES, TUNNEL_HEAD_BYTES - MESSAGE_HEADER_BYTES);
	wire_put_u64(&w, f->generation.n);
	wire_put_u64(&w, f->colour.n);
	wire_put_u32(&w, f->network);
	wire_put_u32(&w, frame_sum(head, f->data, f->size));
	MUST("W3", wire_ok(&w));
}

/* ---- in ---- */

static bool numbers_fit(const struct tunnel_message *m)
{
	return m->generation.n <= VCFT_NUMBER_MAX && m->colour.n <= VCFT_NUMBER_MAX;
}

/* HELLO and MARKER: their checksum is the last field. */
static bool ends_checked(struct wire_reader *r, const uint8_t *message, size_t n)
{
	return wire_u64(r) == XXH3_64bits(message, n - SUM_BYTES) && wire_done(r);
}

static bool parse_hello(const uint8_t *message, size_t n, struct wire_reader r, struct tunnel_message *m)
{
	m->host.n = wire_u32(&r);
	m->generation.n = wire_u64(&r);
	return ends_checked(&r, message, n) && m->host.n && m->host.n <= VCFT_HOST_MAX;
}

static bool parse_marker(const uint8_t *message, size_t n, struct wire_reader r, struct tunnel_message *m)
{
	m->generation.n = wire_u64(&r);
	m->colour.n = wire_u64(&r);
	return ends_checked(&r, message, n);
}

static bool parse_frame(const uint8_t *message, struct wire_reader r, struct tunnel_message *m)
{
	m->generation.n = wire_u64(&r);
	m->colour.n = wire_u64(&r);
	m->network = wire_u32(&r);
	uint32_t sum = wire_u32(&r);
	m->size = (uint32_t)r.left;
	m->data = wire_bytes(&r, r.left);
	return wire_done(&r) && m->network < VCFT_NETWORK_MAX && m->size >= FRAME_LEAST && m->size <= VCFT_FRAME_MAX &&
	       sum == frame_sum(message, m->data, m->size);
}

enum tunnel_parsed tunnel_parse(const uint8_t *in, size_t n, struct tunnel_message *ret_message, size_t *ret_bytes)
{
	struct message_header h;
	if (n < MESSAGE_HEADER_BYTES)
		return TUNNEL_PART;
	if (!message_header_decode(in, CHANNEL_TUNNEL, &h))
		return TUNNEL_BAD;
	if (n - MESSAGE_HEADER_BYTES < h.length)
		return TUNNEL_PART;
	size_t bytes = MESSAGE_HEADER_BYTES + h.length;
	struct wire_reader r = wire_reader(in + MESSAGE_HEADER_BYTES, h.length);
	struct tunnel_message m = { .type = h.type };
	bool ok = h.type == MESSAGE_FRAME ? parse_frame(in, r, &m) : h.type == MESSAGE_MARKER ? parse_marker(in, bytes, r, &m) : parse_hello(in, bytes, r, &m);
	if (!ok || !numbers_fit(&m))
		return TUNNEL_BAD;
	*ret_message = m;
	*ret_bytes = bytes;
	return TUNNEL_WHOLE;
}
