/* events.h - what happened, for people and scripts: a ring of JSON objects, each with `time` (ns, monotonic) and `event`.
 * Names are those of docs/design.md section 9. Loop's thread. */
#ifndef VCFT_AGENT_EVENTS_H
#define VCFT_AGENT_EVENTS_H

#include <jansson.h>

struct events;

typedef void (*events_listener)(const char *line, void *user);

struct events *events_new(void);
void events_free(struct events *events);
/* Say it: takes the reference to fields (an object, may be NULL), adds time and event. */
void events_say(struct events *events, const char *event, json_t *fields);
/* Listen from now on; past: first get those kept (the newest EVENTS_KEPT). Returns an id. */
unsigned events_listen(struct events *events, events_listener listener, void *user, int past);
void events_unlisten(struct events *events, unsigned id);

#define EVENTS_KEPT 1024

#endif
