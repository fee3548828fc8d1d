/* control.c - the codec of control.h. */
#include "disk/control.h"

#include "base/must.h"
#include "base/wire.h"

#include <assert.h>
#include <string.h>

static_assert(CONTROL_TEXT_MAX == 215, "control answer: text");

static const char *const names[] = {
	[CONTROL_PING] = "ping", [CONTROL_SEAL] = "seal", [CONTROL_COMMIT] = "commit", [CONTROL_MERGE] = "merge", [CONTROL_ROLLBACK] = "rollback",
};

const char *control_verb_name(enum control_verb verb)
{
	return (size_t)verb < sizeof names / sizeof names[0] ? names[verb] : NULL;
}

void control_request_encode(uint8_t out[static CONTROL_REQUEST_BYTES], const struct control_request *request)
{
	struct wire_writer w = wire_writer(out, CONTROL_REQUEST_BYTES);
	wire_put_u32(&w, CONTROL_MAGIC);
	wire_put_u16(&w, (uint16_t)request->verb);
	wire_put_u16(&w, 0);
	wire_put_u64(&w, request->sequence);
	wire_put_u64(&w, request->epoch.n);
	MUST("D15", wire_ok(&w) && w.used == CONTROL_REQUEST_BYTES);
}

bool control_request_decode(const uint8_t *in, size_t n, struct control_request *ret_request)
{
	struct wire_reader r = wire_reader(in, n);
	uint32_t magic = wire_u32(&r);
	uint16_t verb = wire_u16(&r), zero = wire_u16(&r);
	uint64_t sequence = wire_u64(&r), epoch = wire_u64(&r);
	if (!wire_done(&r) || magic != CONTROL_MAGIC || zero != 0 || !control_verb_name(verb))
		return false;
	*ret_request = (struct control_request){ verb, sequence, epoch_of(epoch) };
	return true;
}

void control_answer_encode(uint8_t out[static CONTROL_ANSWER_BYTES], const struct control_answer *answer)
{
	size_t text = strnlen(answer->text, CONTROL_TEXT_MAX);
	memset(out, 0, CONTROL_ANSWER_BYTES);
	struct wire_writer w = wire_writer(out, CONTROL_ANSWER_BYTES);
	wire_put_u32(&w, CONTROL_MAGIC);
	wire_put_u16(&w, answer->damaged ? 2 : answer->failed);
	wire_put_u16(&w, (uint16_t)text);
	wire_put_u64(&w, answer->sequence);
	wire_put_u64(&w, answer->open.n);
	wire_put_u64(&w, answer->blocks);
	wire_put_u64(&w, answer->count);
	wire_put_bytes(&w, answer->text, text);
	MUST("D15", wire_ok(&w));
}

static bool all_zero(const uint8_t *p, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (p[i])
			return false;
	return true;
}

bool control_answer_decode(const uint8_t *in, size_t n, struct control_answer *ret_answer)
{
	struct wire_reader r = wire_reader(in, n);
	uint32_t magic = wire_u32(&r);
	uint16_t status = wire_u16(&r), text = wire_u16(&r);
	struct control_answer a = { .failed = status != 0, .damaged = status == 2, .sequence = wire_u64(&r) };
	a.open = epoch_of(wire_u64(&r));
	a.blocks = wire_u64(&r);
	a.count = wire_u64(&r);
	const uint8_t *from = wire_bytes(&r, CONTROL_TEXT_MAX + 1);
	if (!wire_done(&r) || !from || magic != CONTROL_MAGIC || status > 2 || text > CONTROL_TEXT_MAX)
		return false;
	if (memchr(from, 0, text) || !all_zero(from + text, CONTROL_TEXT_MAX + 1 - text))
		return false;
	memcpy(a.text, from, text);
	*ret_answer = a;
	return true;
}
