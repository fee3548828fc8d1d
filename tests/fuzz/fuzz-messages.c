/* fuzz-messages.c - whatever comes in by the group: message_decode() refuses it, or it encodes to the same bytes again (M1-M3).
 *
 * Input: first byte n. n < rows of messages.def: the rest is the payload of that row, its header is made here, so that payloads are reached at once.
 * Else: the rest is the whole message. */
#include "base/messages.h"
#include "base/wire.h"

#include <stdlib.h>
#include <string.h>

static const uint16_t types[] = {
#define MESSAGE(channel, name, number, least, most, text) number,
#include "base/messages.def"
#undef MESSAGE
};

static void try_message(const uint8_t *in, size_t n)
{
	static struct message m;
	if (!message_decode(in, n, &m))
		return;
	uint8_t *again = malloc(n);
	if (message_encode(&m, again, n) != n || memcmp(in, again, n) != 0)
		abort();
	free(again);
}

/* A copy of its own size, so that the sanitizer sees a read behind its end. */
static void try_payload(uint16_t type, const uint8_t *payload, size_t n)
{
	uint8_t *whole = malloc(MESSAGE_HEADER_BYTES + n);
	struct wire_writer w = wire_writer(whole, MESSAGE_HEADER_BYTES + n);
	wire_put_u32(&w, MESSAGE_MAGIC);
	wire_put_u16(&w, type);
	wire_put_u16(&w, 0);
	wire_put_u32(&w, (uint32_t)n);
	wire_put_bytes(&w, payload, n);
	try_message(whole, w.used);
	free(whole);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	if (n == 0)
		return 0;
	if (data[0] < sizeof types / sizeof types[0])
		try_payload(types[data[0]], data + 1, n - 1);
	else
		try_message(data + 1, n - 1);
	return 0;
}
