/* post.c - see post.h. The box lives as long as somebody refers to it: its owner, or something under way.
 * The loop's own lock orders what was written before the post with what is read behind it; `sent` says the same where the thread sanitizer
 * can see it, which cannot look into GLib. */
#include "agent/post.h"

#include <glib.h>
#include <stdbool.h>

struct post_box { gatomicrefcount references; bool closed; };

struct post { struct post_box *box; void (*tell)(void *); void *data; void (*drop)(void *); bool sent; };

struct post_box *post_box_new(void)
{
	struct post_box *box = g_new0(struct post_box, 1);
	g_atomic_ref_count_init(&box->references);
	return box;
}

struct post_box *post_box_ref(struct post_box *box)
{
	g_atomic_ref_count_inc(&box->references);
	return box;
}

void post_box_unref(struct post_box *box)
{
	if (g_atomic_ref_count_dec(&box->references))
		g_free(box);
}

void post_box_close(struct post_box *box)
{
	box->closed = true;
	post_box_unref(box);
}

static gboolean deliver(gpointer data)
{
	struct post *p = data;
	if (__atomic_load_n(&p->sent, __ATOMIC_ACQUIRE) && !p->box->closed)
		p->tell(p->data);
	return G_SOURCE_REMOVE;
}

static void done(gpointer data)
{
	struct post *p = data;
	if (p->drop)
		p->drop(p->data);
	post_box_unref(p->box);
	g_free(p);
}

void post_box_send(struct post_box *box, void (*tell)(void *data), void *data, void (*drop)(void *data))
{
	struct post *p = g_new(struct post, 1);
	*p = (struct post){ .box = box, .tell = tell, .data = data, .drop = drop };
	post_box_ref(box);
	__atomic_store_n(&p->sent, true, __ATOMIC_RELEASE);
	g_idle_add_full(G_PRIORITY_HIGH, deliver, p, done);
}

/* ---- a queue ---- */
struct post_queue { struct post_box *box; GAsyncQueue *tasks; GThread *thread; };

struct task { void (*work)(void *); void (*tell)(void *); void *data; void (*drop)(void *); bool given; };

static void add(struct post_queue *queue, struct task task)
{
	struct task *t = g_memdup2(&task, sizeof task);
	__atomic_store_n(&t->given, true, __ATOMIC_RELEASE);
	g_async_queue_push(queue->tasks, t);
}

/* A task without work is the last one. */
static gpointer work_off(gpointer data)
{
	struct post_queue *queue = data;
	for (;;) {
		g_autofree struct task *t = g_async_queue_pop(queue->tasks);
		if (!__atomic_load_n(&t->given, __ATOMIC_ACQUIRE) || !t->work)
			return NULL;
		t->work(t->data);
		post_box_send(queue->box, t->tell, t->data, t->drop);
	}
}

struct post_queue *post_queue_new(struct post_box *box)
{
	struct post_queue *queue = g_new(struct post_queue, 1);
	*queue = (struct post_queue){ .box = box, .tasks = g_async_queue_new() };
	queue->thread = g_thread_new("queue", work_off, queue);
	return queue;
}

void post_queue_free(struct post_queue *queue)
{
	add(queue, (struct task){ 0 });
	g_thread_join(queue->thread);
	g_async_queue_unref(queue->tasks);
	g_free(queue);
}

void post_queue_add(struct post_queue *queue, void (*work)(void *data), void (*tell)(void *data), void *data, void (*drop)(void *data))
{
	add(queue, (struct task){ work, tell, data, drop });
}
