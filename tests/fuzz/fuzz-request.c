/* fuzz-request.c - RQ1: a line of the control socket is refused with a reason, or has all that its verb needs. */
#include "agent/request.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct agent_request r;
	const char *why = "";
	if (!agent_request_parse((const char *)data, n, &r, &why)) {
		demand(why && *why);
		return 0;
	}
	demand(!why && (unsigned)r.verb <= VERB_BARE);
	demand(r.verb != VERB_UP || (g_utf8_validate(r.file, -1, NULL) && g_utf8_validate(r.directory, -1, NULL) && g_utf8_validate(r.text, -1, NULL)));
	demand((r.verb != VERB_CONSOLE && r.verb != VERB_BARE) || g_utf8_validate(r.vm, -1, NULL));
	demand(r.verb != VERB_BARE || (r.count >= 1 && r.count <= AGENT_BARE_MAX));
	agent_request_clear(&r);
	return 0;
}
