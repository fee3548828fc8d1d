/* fuzz-promise.c - PM1: a line of the file `generation` is refused, or is the very one that is written for its numbers; one flipped bit and it is refused. */
#include "agent/promise.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct promise p, q;
	char line[PROMISE_BYTES];
	if (promise_parse((const char *)data, n, &p)) {
		promise_format(p, line);
		demand(n == PROMISE_BYTES && !memcmp(data, line, n));
	}
	struct input in = { data, n };
	struct promise any = { { take(&in, 8) }, { take(&in, 8) } };
	promise_format(any, line);
	demand(promise_parse(line, PROMISE_BYTES, &q) && q.lived.n == any.lived.n && q.seen.n == any.seen.n);
	unsigned bit = (unsigned)take(&in, 2) % (8 * PROMISE_BYTES);
	line[bit / 8] = (char)(line[bit / 8] ^ 1 << bit % 8);
	demand(!promise_parse(line, PROMISE_BYTES, &q));
	return 0;
}
