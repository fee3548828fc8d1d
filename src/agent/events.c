/* events.c - see events.h. */
#include "agent/events.h"

#include "base/clock.h"

#include <glib.h>

struct listener { unsigned id; events_listener call; void *user; };

struct events {
	GQueue kept;              /* of char *, oldest first */
	GArray *listeners;
	unsigned last_id;
};

struct events *events_new(void)
{
	struct events *e = g_new0(struct events, 1);
	g_queue_init(&e->kept);
	e->listeners = g_array_new(FALSE, FALSE, sizeof(struct listener));
	return e;
}

void events_free(struct events *e)
{
	g_queue_clear_full(&e->kept, free);
	g_array_unref(e->listeners);
	g_free(e);
}

/* A listener may stop listening within its call: each is looked up by its id. */
static void tell(struct events *e, const char *line)
{
	g_autoptr(GArray) now = g_array_copy(e->listeners);
	for (guint i = 0; i < now->len; i++)
		for (guint j = 0; j < e->listeners->len; j++) {
			struct listener l = g_array_index(e->listeners, struct listener, j);
			if (l.id == g_array_index(now, struct listener, i).id) {
				l.call(line, l.user);
				break;
			}
		}
}

void events_say(struct events *e, const char *event, json_t *fields)
{
	json_t *object = fields ? fields : json_object();
	json_object_set_new(object, "time", json_integer(clock_now()));
	json_object_set_new(object, "event", json_string(event));
	char *line = json_dumps(object, JSON_COMPACT);
	json_decref(object);
	if (!line)
		return;
	g_queue_push_tail(&e->kept, line);
	if (e->kept.length > EVENTS_KEPT)
		free(g_queue_pop_head(&e->kept));
	tell(e, line);
}

unsigned events_listen(struct events *e, events_listener call, void *user, int past)
{
	struct listener l = { ++e->last_id, call, user };
	for (GList *i = past ? e->kept.head : NULL; i; i = i->next)
		call(i->data, user);
	g_array_append_val(e->listeners, l);
	return l.id;
}

void events_unlisten(struct events *e, unsigned id)
{
	for (guint i = 0; i < e->listeners->len; i++)
		if (g_array_index(e->listeners, struct listener, i).id == id) {
			g_array_remove_index(e->listeners, i);
			return;
		}
}
