/* request.h - a line of the control socket, taken apart: what virtcft and other programs on this host ask the agent. */
#ifndef VCFT_AGENT_REQUEST_H
#define VCFT_AGENT_REQUEST_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

enum agent_verb { VERB_STATUS, VERB_UP, VERB_DOWN, VERB_CHECKPOINT, VERB_EVENTS, VERB_CONSOLE, VERB_BARE };

struct agent_request {
	enum agent_verb verb;
	const char *file, *directory, *text;    /* UP */
	const char *vm;                         /* CONSOLE BARE */
	unsigned count;                         /* BARE */
	bool follow;                            /* EVENTS */
	json_t *json;                           /* owns the texts */
};

#define AGENT_BARE_MAX 1000u

/* Take n bytes apart; false: refused, *ret_why says it in one line. */
bool agent_request_parse(const char *line, size_t n, struct agent_request *ret_request, const char **ret_why);
void agent_request_clear(struct agent_request *request);

#endif
