/* gate.c - see gate.h. Queues are rings of handles; `held` has one for each epoch, ascending, of which there are few. */
#include "core/gate.h"

#include "base/must.h"
#include "core/mutant.h"

#include <stdlib.h>

#define ROOM 64u                             /* of a ring at first */
#define NOBODY_SAW epoch_of(UINT64_MAX)      /* of a kept frame: it came while the gate stood */

enum gate_state { GATE_FROZEN, GATE_PLACING, GATE_RUNNING };

struct entry { void *frame; size_t bytes; struct epoch_id epoch; };
struct queue { struct entry *at; size_t head, count, room, bytes; };
struct held { struct queue frames; struct epoch_id epoch; struct held *next; };

struct gate {
	struct gate_options options;
	enum gate_state state;
	struct epoch_id released;
	struct held *held;                   /* ascending */
	struct queue ready;                  /* may leave */
	struct queue kept;                   /* U4 */
	size_t again;                        /* of kept, from its head on: to be delivered again */
};

/* ---- queues ---- */

static struct entry *entry_at(const struct queue *q, size_t i) { return &q->at[(q->head + i) & (q->room - 1)]; }

static void grow(struct queue *q)
{
	size_t room = q->room ? 2 * q->room : ROOM;
	struct entry *at = malloc(room * sizeof *at);
	MUST("U5", at != NULL);
	for (size_t i = 0; i < q->count; i++)
		at[i] = *entry_at(q, i);
	free(q->at);
	*q = (struct queue){ at, 0, q->count, room, q->bytes };
}

static void push(struct queue *q, struct entry e)
{
	if (q->count == q->room)
		grow(q);
	*entry_at(q, q->count++) = e;
	q->bytes += e.bytes;
}

static struct entry pop(struct queue *q)
{
	struct entry e = *entry_at(q, 0);
	q->head = (q->head + 1) & (q->room - 1);
	q->count--;
	q->bytes -= e.bytes;
	return e;
}

static void drop_first(struct gate *g, struct queue *q) { g->options.drop(pop(q).frame, g->options.user); }

/* Drop what is of no epoch beyond c, or of one; the others keep their order. */
static void sift(struct gate *g, struct queue *q, struct epoch_id c, bool keep_beyond)
{
	for (size_t left = q->count; left; left--) {
		if ((epoch_cmp(entry_at(q, 0)->epoch, c) > 0) == keep_beyond)
			push(q, pop(q));
		else
			drop_first(g, q);
	}
}

static void queue_free(struct gate *g, struct queue *q)
{
	while (q->count)
		drop_first(g, q);
	free(q->at);
}

/* ---- life ---- */

struct gate *gate_new(const struct gate_options *options)
{
	struct gate *g = calloc(1, sizeof *g);
	MUST("U5", g != NULL);
	g->options = *options;
	return g;
}

static void held_free(struct gate *g, struct held **at)
{
	struct held *h = *at;
	*at = h->next;
	queue_free(g, &h->frames);
	free(h);
}

void gate_free(struct gate *g)
{
	if (!g)
		return;
	while (g->held)
		held_free(g, &g->held);
	queue_free(g, &g->ready);
	queue_free(g, &g->kept);
	free(g);
}

/* ---- out ---- */

static size_t held_bytes(const struct gate *g)
{
	size_t bytes = g->ready.bytes;
	for (const struct held *h = g->held; h; h = h->next)
		bytes += h->frames.bytes;
	return bytes;
}

/* The frames of an epoch, made if it is the first. */
static struct queue *held_of(struct gate *g, struct epoch_id epoch)
{
	struct held **at = &g->held;
	while (*at && epoch_cmp((*at)->epoch, epoch) < 0)
		at = &(*at)->next;
	if (!*at || epoch_cmp((*at)->epoch, epoch) != 0) {
		struct held *h = calloc(1, sizeof *h);
		MUST("U5", h != NULL);
		h->epoch = epoch;
		h->next = *at;
		*at = h;
	}
	return &(*at)->frames;
}

static bool may_leave(const struct gate *g, struct epoch_id epoch) { return g->options.immediate || epoch_cmp(epoch, g->released) <= 0; }

bool gate_send(struct gate *g, void *frame, size_t bytes, struct epoch_id epoch)
{
	if (held_bytes(g) + bytes > g->options.held_bytes && !MUTANT(gate_no_bound))
		return false;
	push(may_leave(g, epoch) ? &g->ready : held_of(g, epoch), (struct entry){ frame, bytes, epoch });
	return true;
}

void *gate_next(const struct gate *g)
{
	if (g->state != GATE_RUNNING || g->ready.count == 0)
		return NULL;
	const struct entry *e = entry_at(&g->ready, 0);
	MUST("U1", may_leave(g, e->epoch) || MUTANT(gate_next_epoch));
	return e->frame;
}

void gate_sent(struct gate *g) { drop_first(g, &g->ready); }

static void open_up_to(struct gate *g, struct epoch_id r)
{
	while (g->held && epoch_cmp(g->held->epoch, r) <= 0) {
		struct queue *q = &g->held->frames;
		while (q->count && !MUTANT(gate_drop_on_release))
			push(&g->ready, pop(q));
		held_free(g, &g->held);
	}
}

void gate_release(struct gate *g, struct epoch_id r)
{
	if (g->state == GATE_FROZEN || epoch_cmp(r, g->released) <= 0)
		return;
	g->released = r;
	open_up_to(g, MUTANT(gate_next_epoch) ? epoch_next(r) : r);
	while (g->kept.count && epoch_cmp(entry_at(&g->kept, 0)->epoch, MUTANT(gate_forget_early) ? epoch_next(r) : r) <= 0)
		drop_first(g, &g->kept);
}

/* ---- in ---- */

void gate_keep(struct gate *g, void *frame, size_t bytes, struct epoch_id epoch)
{
	struct epoch_id came = g->state != GATE_RUNNING ? NOBODY_SAW : epoch.n ? epoch : epoch_next(g->released);
	push(&g->kept, (struct entry){ frame, bytes, came });
	while (g->kept.bytes > g->options.kept_bytes) {
		g->again -= g->again > 0;
		drop_first(g, &g->kept);
	}
}

void *gate_again(struct gate *g)
{
	if (g->again == 0)
		return NULL;
	g->again--;
	return pop(&g->kept).frame;
}

/* ---- states ---- */

void gate_freeze(struct gate *g) { g->state = GATE_FROZEN; }

void gate_rollback(struct gate *g, struct epoch_id c)
{
	MUST("U3", epoch_cmp(g->released, c) <= 0);
	g->state = GATE_PLACING;
	g->again = 0;
	if (!MUTANT(gate_redeliver_all))
		sift(g, &g->kept, c, true);
	struct held **at = &g->held;
	while (*at && epoch_cmp((*at)->epoch, c) <= 0 && !MUTANT(gate_drop_all))
		at = &(*at)->next;
	while (*at && !MUTANT(gate_drop_none))
		held_free(g, at);
	sift(g, &g->ready, c, false);   /* only an immediate gate has any that are newer */
}

void gate_run(struct gate *g)
{
	if (g->state != GATE_PLACING)
		return;
	g->state = GATE_RUNNING;
	g->again = MUTANT(gate_no_redelivery) ? 0 : g->kept.count;
}

void gate_view(const struct gate *g, struct gate_view *ret_view)
{
	*ret_view = (struct gate_view){ .released = g->released, .held_bytes = held_bytes(g), .held_frames = g->ready.count, .kept_frames = g->kept.count,
		                        .kept_bytes = g->kept.bytes, .waiting = g->ready.count > 0 };
	for (const struct held *h = g->held; h; h = h->next)
		ret_view->held_frames += h->frames.count;
}
