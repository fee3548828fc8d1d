/* fuzz-disk-control.c - D15: what agent and disk plugin say to each other is refused, or encodes to the same bytes again. */
#include "disk/control.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct control_request request;
	struct control_answer answer;
	uint8_t again[CONTROL_ANSWER_BYTES];
	if (control_request_decode(data, n, &request)) {
		control_request_encode(again, &request);
		demand(n == CONTROL_REQUEST_BYTES && memcmp(again, data, n) == 0);
	}
	if (control_answer_decode(data, n, &answer)) {
		control_answer_encode(again, &answer);
		demand(n == CONTROL_ANSWER_BYTES && memcmp(again, data, n) == 0);
	}
	return 0;
}
