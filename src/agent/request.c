/* request.c - see request.h.
 *
 *  RQ1 A request is one JSON object with a known verb, no key twice, and what the verb needs, each value of its type; keys that are not known are no matter.
 *      What a verb gets is whole: it looks at no JSON.
 *
 * Pure; any thread. */
#include "agent/request.h"

#include <string.h>

static const char *text_of(const json_t *json, const char *key) { return json_string_value(json_object_get(json, key)); }

static const char *parse_none(struct agent_request *r)
{
	(void)r;
	return NULL;
}

static const char *parse_up(struct agent_request *r)
{
	r->file = "cluster.yaml";
	bool ok = json_unpack(r->json, "{s?s, s:s, s:s}", "file", &r->file, "directory", &r->directory, "text", &r->text) == 0;
	return ok ? NULL : "up needs directory and text";
}

static const char *parse_events(struct agent_request *r)
{
	r->follow = json_is_true(json_object_get(r->json, "follow"));
	return NULL;
}

static const char *parse_console(struct agent_request *r)
{
	r->vm = text_of(r->json, "vm");
	return r->vm ? NULL : "console needs a VM";
}

static const char *parse_bare(struct agent_request *r)
{
	json_int_t count = json_integer_value(json_object_get(r->json, "count"));
	r->vm = text_of(r->json, "vm");
	r->count = count >= 1 && count <= AGENT_BARE_MAX ? (unsigned)count : 0;
	return r->vm && r->count ? NULL : "bare needs a VM that runs on this host and a count of 1 to 1000";
}

static const struct { const char *name; enum agent_verb verb; const char *(*parse)(struct agent_request *); } verbs[] = {
	{ "status", VERB_STATUS, parse_none }, { "up", VERB_UP, parse_up }, { "down", VERB_DOWN, parse_none },
	{ "checkpoint", VERB_CHECKPOINT, parse_none }, { "events", VERB_EVENTS, parse_events }, { "console", VERB_CONSOLE, parse_console },
	{ "bare", VERB_BARE, parse_bare },
};

static const char *parse_verb(struct agent_request *r)
{
	const char *name = text_of(r->json, "verb");
	for (size_t i = 0; name && i < G_N_ELEMENTS(verbs); i++)
		if (!strcmp(name, verbs[i].name)) {
			r->verb = verbs[i].verb;
			return verbs[i].parse(r);
		}
	return "unknown verb";
}

bool agent_request_parse(const char *line, size_t n, struct agent_request *ret_request, const char **ret_why)
{
	struct agent_request r = { .json = json_loadb(line, n, JSON_REJECT_DUPLICATES, NULL) };
	*ret_why = r.json ? parse_verb(&r) : "not a JSON object on one line";
	if (*ret_why)
		agent_request_clear(&r);
	else
		*ret_request = r;
	return !*ret_why;
}

void agent_request_clear(struct agent_request *r) { g_clear_pointer(&r->json, json_decref); }
