/* post.c - see post.h. The box lives as long as somebody refers to it: its owner, or something under way. */
#include "agent/post.h"

#include <glib.h>
#include <stdbool.h>

struct post_box { gatomicrefcount references; bool closed; };

struct post { struct post_box *box; void (*tell)(void *); void *data; void (*drop)(void *); };

struct post_box *post_box_new(void)
{
	struct post_box *box = g_new0(struct post_box, 1);
	g_atomic_ref_count_init(&box->references);
	return box;
}

static void unref(struct post_box *box)
{
	if (g_atomic_ref_count_dec(&box->references))
		g_free(box);
}

void post_box_close(struct post_box *box)
{
	box->closed = true;
	unref(box);
}

static gboolean deliver(gpointer data)
{
	struct post *p = data;
	if (!p->box->closed)
		p->tell(p->data);
	return G_SOURCE_REMOVE;
}

static void done(gpointer data)
{
	struct post *p = data;
	if (p->drop)
		p->drop(p->data);
	unref(p->box);
	g_free(p);
}

void post_box_send(struct post_box *box, void (*tell)(void *data), void *data, void (*drop)(void *data))
{
	struct post *p = g_new(struct post, 1);
	*p = (struct post){ box, tell, data, drop };
	g_atomic_ref_count_inc(&box->references);
	g_idle_add_full(G_PRIORITY_HIGH, deliver, p, done);
}
