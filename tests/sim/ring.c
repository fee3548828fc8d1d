/* ring.c - the group as corosync gives it, with all that it does not promise.
 *
 * A ring is a membership with a log. A message waits in its sender's outbox, gets its place in the log, reaches each member after a delay of its own (or never, if
 * the ring breaks first), and is handed over in the order of the log. What was handed over waits in the agent's inbox.
 *
 * RC1 When a ring breaks, those that go on together hand over the same: all that one of them has, in order, up to the first message that none has; behind that only
 *     messages of their own. Those that part may so differ in the last messages, and none of them knows.
 * RC2 Then each is told the members that it keeps (if some are gone), then the members of the new ring. A host that crashed and came back is gone in between.
 * RC3 Only the side that has the token gives places until the ring is replaced. What waits in outboxes goes into the new ring.
 * RC4 The quorum flag may come late: with the members comes "no", and "yes" later, at another moment on each host. */
#include "sim.h"

#include <string.h>

struct letter { struct host_id from; struct message *m; };

struct entry { struct letter *letter; host_mask received; };

struct ring {
	uint32_t number;
	host_mask members;
	struct list log;                /* struct entry */
	host_mask token;                /* the side that has it */
};

struct item { struct letter *letter; host_mask members; bool quorate; };

static bool is_in(const struct ring *r, const struct host *h) { return h->up && h->ring == r; }

/* ---- inbox ---- */

static void read_inbox(struct world *w, void *argument);

static void schedule_reading(struct host *h)
{
	struct world *w = h->world;
	if (h->reading || h->inbox.count == 0)
		return;
	h->reading = true;
	nsec_t delay = sim_between(w, 5 * USEC, 60 * USEC);
	if (w->now + delay < h->slow_until)
		delay = h->slow_until - w->now;
	sim_at(h, delay, read_inbox, note_new(h));
}

static void tell_members(struct host *h, const struct item *i)
{
	h->told = i->members;
	h->told_quorate = i->quorate;
	h->told_at = h->world->now;
	TRACE(h->world, h, "members: hosts %#llx%s", (unsigned long long)i->members >> 1, i->quorate ? ", quorate" : "");
	host_step(h, &(struct epoch_event){ .type = EPOCH_EV_MEMBERSHIP, .hosts = i->members, .quorate = i->quorate,
	                                    .needed = h->world->plan.hosts / 2 + 1 });
}

static void read_inbox(struct world *w, void *argument)
{
	struct note *n = argument;
	struct host *h = n->host;
	(void)w;
	if (note_is_void(n))
		return;
	h->reading = false;
	struct item *i = list_take(&h->inbox);
	if (i->letter)
		host_deliver(h, i->letter->from, i->letter->m);
	else
		tell_members(h, i);
	if (!note_is_void(n))
		schedule_reading(h);
}

static void hand_over(struct host *h, struct letter *letter)
{
	struct item *i = sim_alloc(sizeof *i);
	i->letter = letter;
	list_add(&h->inbox, i);
	schedule_reading(h);
}

static void hand_over_members(struct host *h, host_mask members, bool quorate)
{
	struct item *i = sim_alloc(sizeof *i);
	i->members = members;
	i->quorate = quorate;
	list_add(&h->inbox, i);
	schedule_reading(h);
}

/* ---- a whole ring ---- */

static void advance(struct host *h)
{
	struct ring *r = h->ring;
	while (h->position < r->log.count) {
		struct entry *e = r->log.at[h->position];
		if (!host_in(e->received, h->id))
			return;
		h->position++;
		hand_over(h, e->letter);
	}
}

static void receive(struct world *w, void *argument)
{
	struct note *n = argument;
	struct host *h = n->host;
	struct ring *r = n->p;
	if (note_is_void(n) || h->ring != r)
		return;
	struct entry *e = r->log.at[n->n];
	if (!link_reaches(w, e->letter->from, h->id) && e->letter->from.n != h->id.n && sim_chance(w, 500))
		return;
	link_passed(w, e->letter->from, h->id);
	e->received |= host_bit(h->id);
	advance(h);
}

static void give_place(struct world *w, void *argument);

static void schedule_ordering(struct host *h)
{
	if (h->ordering || h->outbox.count == 0 || !h->ring)
		return;
	h->ordering = true;
	sim_after(h->world, sim_between(h->world, 10 * USEC, 150 * USEC), give_place, note_new(h));
}

static void send_to_members(struct host *h, uint32_t place)
{
	struct world *w = h->world;
	struct ring *r = h->ring;
	for (uint32_t x = 1; x <= w->plan.hosts; x++) {
		struct host *to = &w->host[x];
		if (!is_in(r, to) || (to != h && !link_reaches(w, h->id, to->id)))
			continue;
		struct note *n = note_new(to);
		n->p = r;
		n->n = place;
		sim_after(w, to == h ? 20 * USEC : sim_between(w, 30 * USEC, sim_chance(w, w->plan.slow) ? 3 * MSEC : 200 * USEC), receive, n);
	}
}

/* RC3 */
static void give_place(struct world *w, void *argument)
{
	struct note *n = argument;
	struct host *h = n->host;
	(void)w;
	if (note_is_void(n))
		return;
	h->ordering = false;
	if (!h->ring || !host_in(h->ring->token, h->id) || h->outbox.count == 0)
		return;
	struct entry *e = sim_alloc(sizeof *e);
	e->letter = list_take(&h->outbox);
	list_add(&h->ring->log, e);
	send_to_members(h, h->ring->log.count - 1);
	schedule_ordering(h);
}

void ring_mcast(struct host *h, const struct message *m)
{
	struct letter *l = sim_alloc(sizeof *l);
	size_t size = offsetof(struct message, placement) + m->vm_count * sizeof m->holding[0];
	l->from = h->id;
	l->m = sim_alloc(size);
	memcpy(l->m, m, size);
	list_add(&h->outbox, l);
	schedule_ordering(h);
}

/* ---- a ring that breaks, a new one ---- */

static host_mask component_of(const struct world *w, const struct host *h)
{
	host_mask out = 0;
	for (uint32_t x = 1; x <= w->plan.hosts; x++)
		if (w->host[x].up && (x == h->id.n || w->side[x] == w->side[h->id.n]))
			out |= host_bit(w->host[x].id);
	return out;
}

/* A break: the token is on one side. */
static void split_token(struct world *w, struct ring *r)
{
	host_mask there = 0;
	for (uint32_t x = 1; x <= w->plan.hosts; x++)
		if (is_in(r, &w->host[x]))
			there |= host_bit(w->host[x].id);
	if (there == r->members && (component_of(w, &w->host[host_lowest(there).n]) & r->members) == r->members)
		return;   /* it is whole */
	host_mask had = r->token & there;
	uint32_t holder = 0, nth = had ? (uint32_t)sim_random(w, host_count(r->token)) : 0;
	for (uint32_t x = 1; x <= w->plan.hosts; x++)
		if (host_in(r->token, (struct host_id){ x }) && nth-- == 0)
			holder = x;
	r->token = holder && host_in(there, (struct host_id){ holder }) ? component_of(w, &w->host[holder]) & r->token : 0;
}

/* RC1: what the members of `together`, all of ring r, hand over yet. */
static void finish(struct world *w, struct ring *r, host_mask together)
{
	bool gap = false;
	for (uint32_t i = 0; i < r->log.count; i++) {
		struct entry *e = r->log.at[i];
		bool got = (e->received & together) || host_in(together, e->letter->from);
		gap = gap || !got;
		if (!got || (gap && !host_in(together, e->letter->from)))
			continue;
		for (uint32_t x = 1; x <= w->plan.hosts; x++) {
			struct host *h = &w->host[x];
			if (host_in(together, h->id) && i >= h->position) {
				h->position = i + 1;
				hand_over(h, e->letter);
			}
		}
	}
}

static bool has_quorum(const struct world *w, host_mask members) { return host_count(members) >= w->plan.hosts / 2 + 1; }

static void late_quorum(struct world *w, void *argument)
{
	struct note *n = argument;
	if (!note_is_void(n) && n->host->view == (host_mask)n->n)
		hand_over_members(n->host, (host_mask)n->n, has_quorum(w, (host_mask)n->n));
}

/* RC2, RC4 */
static void tell_change(struct host *h, host_mask kept, host_mask members)
{
	struct world *w = h->world;
	kept |= host_bit(h->id);
	if (h->view & ~kept)
		hand_over_members(h, h->view & kept, has_quorum(w, h->view & kept) && !sim_chance(w, 300));
	h->view = members;
	bool late = sim_chance(w, w->plan.flicker);
	hand_over_members(h, members, has_quorum(w, members) && !late);
	if (late) {
		struct note *n = note_new(h);
		n->n = members;
		sim_after(w, sim_between(w, 10 * USEC, 2 * MSEC), late_quorum, n);
	}
}

static void form(struct world *w, host_mask members)
{
	struct ring *new = sim_alloc(sizeof *new);
	new->number = ++w->rings;
	new->members = new->token = members;
	TRACE(w, NULL, "ring %u: hosts %#llx", new->number, (unsigned long long)members >> 1);
	host_mask done = 0;
	for (uint32_t x = 1; x <= w->plan.hosts; x++) {
		struct host *h = &w->host[x];
		if (!host_in(members & ~done, h->id))
			continue;
		host_mask together = 0;
		for (uint32_t y = x; y <= w->plan.hosts; y++)
			if (host_in(members, w->host[y].id) && w->host[y].ring == h->ring && (h->ring || y == x))
				together |= host_bit(w->host[y].id);
		if (h->ring)
			finish(w, h->ring, together);
		for (uint32_t y = x; y <= w->plan.hosts; y++)
			if (host_in(together, w->host[y].id))
				tell_change(&w->host[y], together, members);
		done |= together;
	}
	for (uint32_t x = 1; x <= w->plan.hosts; x++)
		if (host_in(members, w->host[x].id)) {
			w->host[x].ring = new;
			w->host[x].position = 0;
			schedule_ordering(&w->host[x]);
		}
}

/* A ring that a short cut did not break: what got lost is sent again. */
static void repair(struct world *w, struct ring *r)
{
	r->token = r->members;
	for (uint32_t i = 0; i < r->log.count; i++)
		for (uint32_t x = 1; x <= w->plan.hosts; x++)
			if (host_in(r->members, w->host[x].id) && !host_in(((struct entry *)r->log.at[i])->received, w->host[x].id)) {
				struct note *n = note_new(&w->host[x]);
				n->p = r;
				n->n = i;
				sim_after(w, sim_between(w, 30 * USEC, 300 * USEC), receive, n);
			}
	for (uint32_t x = 1; x <= w->plan.hosts; x++)
		if (is_in(r, &w->host[x]))
			schedule_ordering(&w->host[x]);
}

static void detect(struct world *w, void *argument)
{
	struct note *n = argument;
	struct host *h = n->host;
	if (note_is_void(n))
		return;
	host_mask members = component_of(w, h);
	bool same = h->ring && h->ring->members == members;
	for (uint32_t x = 1; x <= w->plan.hosts; x++)
		same = same && (!host_in(members, w->host[x].id) || w->host[x].ring == h->ring);
	if (!same)
		form(w, members);
	else
		repair(w, h->ring);
}

void ring_connectivity_changed(struct world *w)
{
	for (uint32_t x = 1; x <= w->plan.hosts; x++) {
		struct host *h = &w->host[x];
		if (!h->up)
			continue;
		if (h->ring)
			split_token(w, h->ring);
		sim_after(w, sim_between(w, 200 * USEC, sim_chance(w, 300) ? 15 * MSEC : 2 * MSEC), detect, note_new(h));
	}
}

/* RC4 without a cause. */
static void flicker(struct world *w, void *argument)
{
	struct host *h = &w->host[1 + sim_random(w, w->plan.hosts)];
	(void)argument;
	if (w->quiet)
		return;
	if (h->up && h->ring && h->inbox.count == 0 && h->told == h->view && sim_chance(w, w->plan.flicker)) {
		struct note *n = note_new(h);
		n->n = h->view;
		hand_over_members(h, h->view, false);
		sim_after(w, sim_between(w, 10 * USEC, 2 * MSEC), late_quorum, n);
	}
	sim_after(w, sim_between(w, 5 * MSEC, 40 * MSEC), flicker, NULL);
}

void ring_start(struct world *w) { flicker(w, NULL); }

void ring_host_gone(struct host *h)
{
	h->ring = NULL;
	h->view = h->told = 0;
	h->inbox.count = h->outbox.count = 0;
	h->reading = h->ordering = false;
}
