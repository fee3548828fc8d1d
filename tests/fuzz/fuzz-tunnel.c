/* fuzz-tunnel.c - bytes of a tunnel: TM1, TM2. What is taken has its numbers in range and is, byte for byte, what would have been sent.
 *
 * Input: a byte; 0: the rest as it is. Else: the rest is a FRAME's, MARKER's or HELLO's payload, to which header and checksum are made here. */
#include "net/net-private.h"
#include "fuzz.h"

#include <xxhash.h>

static size_t encode_again(const struct tunnel_message *m, uint8_t *out)
{
	if (m->type == MESSAGE_TUNNEL_HELLO) {
		tunnel_put_hello(out, m->host, m->generation);
		return TUNNEL_HELLO_BYTES;
	}
	if (m->type == MESSAGE_MARKER) {
		tunnel_put_marker(out, m->generation, m->colour);
		return TUNNEL_MARKER_BYTES;
	}
	struct frame *f = malloc(sizeof *f + m->size);
	*f = (struct frame){ .size = m->size, .generation = m->generation, .colour = m->colour, .network = m->network };
	memcpy(f->data, m->data, m->size);
	tunnel_put_frame_head(out, f);
	memcpy(out + TUNNEL_HEAD_BYTES, m->data, m->size);
	free(f);
	return TUNNEL_HEAD_BYTES + m->size;
}

static void check(const struct tunnel_message *m)
{
	demand(m->generation.n <= VCFT_NUMBER_MAX && m->colour.n <= VCFT_NUMBER_MAX);
	if (m->type == MESSAGE_FRAME)
		demand(m->network < VCFT_NETWORK_MAX && m->size >= FRAME_LEAST && m->size <= VCFT_FRAME_MAX);
	if (m->type == MESSAGE_TUNNEL_HELLO)
		demand(m->host.n >= 1 && m->host.n <= VCFT_HOST_MAX);
}

static void parse_all(const uint8_t *data, size_t n)
{
	static uint8_t again[TUNNEL_HEAD_BYTES + VCFT_FRAME_MAX];
	struct tunnel_message m;
	size_t bytes;
	while (tunnel_parse(data, n, &m, &bytes) == TUNNEL_WHOLE) {
		demand(bytes <= n);
		check(&m);
		demand(encode_again(&m, again) == bytes && memcmp(again, data, bytes) == 0);
		data += bytes;
		n -= bytes;
	}
}

static void put_sum(uint8_t *message, enum message_type type, size_t n)
{
	uint8_t *frame_sum = message + TUNNEL_HEAD_BYTES - 4;
	if (type == MESSAGE_FRAME) {
		uint32_t sum = (uint32_t)XXH3_64bits_withSeed(frame_sum + 4, n - TUNNEL_HEAD_BYTES, XXH3_64bits(message, TUNNEL_HEAD_BYTES - 4));
		memcpy(frame_sum, &sum, sizeof sum);
	} else {
		uint64_t sum = XXH3_64bits(message, n - 8);
		memcpy(message + n - 8, &sum, sizeof sum);
	}
}

static void parse_payload(enum message_type type, struct input in)
{
	size_t n = type == MESSAGE_FRAME ? in.left : type == MESSAGE_MARKER ? 24 : 20;
	if (n < 38 && type == MESSAGE_FRAME)
		return;
	uint8_t *message = calloc(1, MESSAGE_HEADER_BYTES + n);
	message_header_encode(message, type, n);
	memcpy(message + MESSAGE_HEADER_BYTES, in.at, n < in.left ? n : in.left);
	put_sum(message, type, MESSAGE_HEADER_BYTES + n);
	parse_all(message, MESSAGE_HEADER_BYTES + n);
	free(message);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct input in = { data, n };
	static const enum message_type types[] = { MESSAGE_FRAME, MESSAGE_MARKER, MESSAGE_TUNNEL_HELLO };
	uint64_t kind = take(&in, 1);
	if (kind)
		parse_payload(types[kind % 3], in);
	else
		parse_all(in.at, in.left);
	return 0;
}
