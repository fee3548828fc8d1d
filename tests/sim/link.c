/* link.c - tunnels between hosts: FIFO, each frame with its delay. A cut stalls a tunnel; when it heals, TCP goes on where it was, or the connection
 * is gone with all that was in it: then nothing of that generation may pass any more, markers least of all, until a recovery (TROUBLE). */
#include "sim.h"

struct cargo { uint32_t from, to, connection; struct frame *frame; struct generation generation; struct epoch_id colour; };

/* A mute host is cut off from the others, but hears them; a deaf one is heard by them. */
bool link_reaches(const struct world *w, struct host_id from, struct host_id to)
{
	return w->side[from.n] == w->side[to.n] || w->mute == to.n || w->deaf == from.n;
}

void link_passed(struct world *w, struct host_id from, struct host_id to)
{
	w->met.one_way += link_reaches(w, from, to) && !link_reaches(w, to, from);
}

bool link_is_open(const struct world *w, struct host_id from, struct host_id to)
{
	return link_reaches(w, from, to) && !w->link[from.n][to.n].blocked;
}

static bool is_open(const struct world *w, uint32_t a, uint32_t b) { return link_is_open(w, w->host[a].id, w->host[b].id); }

static void unload(struct world *w, const struct cargo *c)
{
	struct host *to = &w->host[c->to];
	struct link *l = &w->link[c->from][c->to];
	if (!to->up || c->connection != l->connection || generation_cmp(c->generation, l->broken) <= 0)
		return;
	link_passed(w, w->host[c->from].id, to->id);
	if (c->frame) {
		struct tagged *t = sim_alloc(sizeof *t);
		*t = (struct tagged){ c->frame, c->generation, c->colour };
		guest_receive(to, t);
	} else if (generation_cmp(c->generation, to->generation) == 0 && epoch_cmp(c->colour, to->marker[c->from]) > 0) {
		to->marker[c->from] = c->colour;
		host_check_record(to);
	}
}

static void arrive(struct world *w, void *argument)
{
	struct cargo *c = argument;
	struct link *l = &w->link[c->from][c->to];
	if (!is_open(w, c->from, c->to) || l->stalled.count)
		list_add(&l->stalled, c);
	else
		unload(w, c);
}

static void load(struct host *from, struct host_id to, struct frame *f, struct generation g, struct epoch_id colour)
{
	struct world *w = from->world;
	struct link *l = &w->link[from->id.n][to.n];
	struct cargo *c = sim_alloc(sizeof *c);
	*c = (struct cargo){ from->id.n, to.n, l->connection, f, g, colour };
	nsec_t at = w->now + sim_between(w, 10 * USEC, sim_chance(w, w->plan.slow) ? 5 * MSEC : 300 * USEC);
	l->last = at > l->last ? at : l->last + 1;
	sim_at(&w->host[to.n], l->last - w->now, arrive, c);
}

void link_send(struct host *from, struct host_id to, struct frame *f, struct generation g, struct epoch_id colour) { load(from, to, f, g, colour); }
void link_marker(struct host *from, struct host_id to, struct generation g, struct epoch_id r) { load(from, to, NULL, g, r); }

static void grace_over(struct world *w, void *argument)
{
	struct note *n = argument;
	(void)w;
	if (!note_is_void(n) && host_view(n->host).state == EPOCH_RUNNING && host_view(n->host).number.n <= n->n)
		host_trouble(n->host, VCFT_VM_MAX, 4);
}

static void forget_connection(struct world *w, uint32_t a, uint32_t b)
{
	w->link[a][b].connection++;
	w->link[a][b].stalled.count = 0;
}

/* The newest generation in which this end can have sent anything. */
static uint64_t newest_run(const struct host *h) { return h->running || h->generation.n == 0 ? h->generation.n : h->generation.n - 1; }

void link_reset(struct world *w, uint32_t a, uint32_t b)
{
	struct host *x = &w->host[a], *y = &w->host[b];
	uint64_t newest = newest_run(x) > newest_run(y) ? newest_run(x) : newest_run(y);
	forget_connection(w, a, b);
	if (!x->up || !y->up || newest <= w->link[a][b].broken.n)
		return;
	TRACE(w, x, "tunnel to host %u is broken in generation %llu", b, (unsigned long long)newest);
	w->link[a][b].broken.n = newest;
	struct host *end[2] = { x, y };
	for (int i = 0; i < 2; i++) {
		struct note *n = note_new(end[i]);
		n->n = newest;
		sim_at(end[i], sim_between(w, 1 * MSEC, 3 * MSEC), grace_over, n);
		n = note_new(end[i]);
		n->n = newest;
		sim_at(end[i], 20 * MSEC, grace_over, n);
	}
}

static void unload_stalled(struct world *w, void *argument)
{
	const struct cargo *c = argument;
	struct link *l = &w->link[c->from][c->to];
	if (!is_open(w, c->from, c->to))
		return;
	struct list all = l->stalled;
	l->stalled = (struct list){ 0 };
	for (uint32_t i = 0; i < all.count; i++)
		unload(w, all.at[i]);
}

void link_unblock(struct world *w, uint32_t a, uint32_t b)
{
	const struct link *l = &w->link[a][b];
	if (!is_open(w, a, b) || l->stalled.count == 0)
		return;
	if (sim_chance(w, 500))
		link_reset(w, a, b);
	else
		sim_at(&w->host[b], 0, unload_stalled, l->stalled.at[0]);
}

void link_host_gone(struct world *w, uint32_t h)
{
	for (uint32_t x = 1; x <= w->plan.hosts; x++) {
		forget_connection(w, x, h);
		forget_connection(w, h, x);
		w->link[x][h].broken = w->link[h][x].broken = (struct generation){ 0 };
	}
}
