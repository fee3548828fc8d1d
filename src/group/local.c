/* local.c - the group of one host: what is multicast comes back, in order, from the loop.
 *
 * L1 The membership {1}, quorate, comes first; then each message once, in the order of group_mcast(). L2 Callbacks come from an idle source, never from
 * inside a call. Thread: the loop's. Nothing can be lost, so lost() is never called. */
#include "group/group.h"

struct group {
	struct group_callbacks callbacks;
	void *user;
	GQueue queue;          /* GBytes */
	unsigned source;
	bool told, delivering, leaving;
};

static const struct host_id self = { 1 };

static void free_group(struct group *g)
{
	if (g->source)
		g_source_remove(g->source);
	g_queue_clear_full(&g->queue, (GDestroyNotify)g_bytes_unref);
	g_free(g);
}

/* One callback; a message that is sent meanwhile comes after those that are queued. */
static void step(struct group *g)
{
	if (!g->told) {
		g->told = true;
		g->callbacks.membership(host_bit(self), true, g->user);
		return;
	}
	g_autoptr(GBytes) message = g_queue_pop_head(&g->queue);
	gsize n;
	const uint8_t *data = g_bytes_get_data(message, &n);
	g->callbacks.deliver(self, data, n, g->user);
}

static gboolean on_idle(void *data)
{
	struct group *g = data;
	g->delivering = true;
	step(g);
	g->delivering = false;
	if (!g->leaving && !g_queue_is_empty(&g->queue))
		return G_SOURCE_CONTINUE;
	g->source = 0;
	if (g->leaving)
		free_group(g);
	return G_SOURCE_REMOVE;
}

static void wake(struct group *g)
{
	if (!g->source)
		g->source = g_idle_add_full(G_PRIORITY_HIGH, on_idle, g, NULL);
}

static struct group *local_join(const struct group_callbacks *callbacks, void *user, GError **error)
{
	struct group *g = g_new0(struct group, 1);
	(void)error;
	g->callbacks = *callbacks;
	g->user = user;
	g_queue_init(&g->queue);
	wake(g);
	return g;
}

static struct host_id local_self(const struct group *g)
{
	(void)g;
	return self;
}

static void local_mcast(struct group *g, const void *data, size_t n)
{
	g_queue_push_tail(&g->queue, g_bytes_new(data, n));
	wake(g);
}

static void local_leave(struct group *g)
{
	g->leaving = true;
	if (!g->delivering)
		free_group(g);
}

const struct group_backend group_local = {
	.name = "local", .join = local_join, .self = local_self, .mcast = local_mcast, .leave = local_leave,
};
