/* faults.c - what goes wrong in a run: at random times, and, worse, just before or behind a chosen step of the protocol. */
#include "sim.h"

enum { CRASH_ONE, CRASH_TWO, CUT, MUTE, ONE_WAY, TUNNELS, RESET, DIE, HANG, WATCHDOG, FLAP, UPLINK, CHECKPOINT, KINDS };

/* In a storm hosts come back at once and cuts are short: everything happens in the middle of something else. */
static nsec_t until_better(struct world *w)
{
	return sim_between(w, 100 * USEC, w->plan.storm || w->plan.aimed || sim_chance(w, 500) ? 4 * MSEC : 40 * MSEC);
}

static void restart(struct world *w, void *argument)
{
	struct note *n = argument;
	(void)w;
	if (!n->host->up && n->host->life == n->life)
		host_start(n->host);
}

static void crash(struct host *h)
{
	struct world *w = h->world;
	if (!h->up)
		return;
	host_crash(h);
	if (w->plan.storm || sim_chance(w, 700))
		sim_after(w, until_better(w), restart, note_new(h));
}

static void reconnect(struct world *w)
{
	for (uint32_t a = 1; a <= w->plan.hosts; a++)
		for (uint32_t b = 1; b <= w->plan.hosts; b++)
			if (a != b)
				link_unblock(w, a, b);
}

static void heal_cut(struct world *w, void *argument)
{
	(void)argument;
	TRACE(w, NULL, "the network is whole");
	for (uint32_t x = 1; x <= HOSTS; x++)
		w->side[x] = 0;
	w->mute = 0;
	reconnect(w);
	ring_connectivity_changed(w);
}

static void cut_network(struct world *w, uint32_t alone)
{
	w->count.cuts++;
	for (uint32_t x = 1; x <= w->plan.hosts; x++)
		w->side[x] = (uint8_t)(alone ? x == alone : sim_random(w, sim_chance(w, 200) ? 3 : 2));
	TRACE(w, NULL, "the network is cut: %u %u %u %u %u", w->side[1], w->side[2], w->side[3], w->side[4], w->side[5]);
	ring_connectivity_changed(w);
	sim_after(w, until_better(w), heal_cut, NULL);
}

/* Its cable is broken in one direction: it hears the others, and they do not hear it. */
static void cut_off_mute(struct world *w, uint32_t x)
{
	cut_network(w, x);
	w->mute = x;
	TRACE(w, &w->host[x], "hears the others still");
}

/* Members come and go, each change in the middle of the last. */
static void flap(struct world *w, void *argument)
{
	struct note *n = argument;
	if (w->quiet || n->n == 0)
		return;
	n->n--;
	if (sim_chance(w, 500))
		cut_network(w, sim_chance(w, 500) ? 1 + (uint32_t)sim_random(w, w->plan.hosts) : 0);
	else
		heal_cut(w, NULL);
	sim_after(w, sim_between(w, 50 * USEC, 2 * MSEC), flap, n);
}

static void unblock(struct world *w, void *argument)
{
	struct note *n = argument;
	w->link[n->n][n->m].blocked = false;
	link_unblock(w, (uint32_t)n->n, (uint32_t)n->m);
}

static void block(struct world *w, uint32_t from, uint32_t to)
{
	struct note *n = note_new(&w->host[1]);
	n->n = from;
	n->m = to;
	if (from == to)
		return;
	TRACE(w, &w->host[from], "its connections to host %u stall", to);
	w->link[from][to].blocked = true;
	sim_after(w, sim_between(w, 100 * USEC, 15 * MSEC), unblock, n);
}

static struct host *some_host(struct world *w) { return &w->host[1 + sim_random(w, w->plan.hosts)]; }

static void die(struct world *w)
{
	struct host *h = some_host(w);
	uint32_t vm = (uint32_t)sim_random(w, w->plan.vms);
	if (!h->up || !h->vm[vm].here)
		return;
	h->vm[vm].running = false;
	host_trouble(h, vm, 1);
}

static void hang(struct host *h)
{
	struct world *w = h->world;
	TRACE(w, h, "hangs");
	h->slow_until = w->now + sim_between(w, 200 * USEC, 12 * MSEC);
}

/* The group's network is whole, that of tunnels and streams is cut. */
static void cut_tunnels(struct world *w, uint32_t x)
{
	for (uint32_t y = 1; y <= w->plan.hosts; y++) {
		block(w, x, y);
		block(w, y, x);
	}
}

static void uplink_free(struct world *w, void *argument)
{
	struct note *n = argument;
	if (!note_is_void(n) && w->now >= n->host->uplink_full_until)
		uplink_flush(n->host);
}

static void fill_uplink(struct host *h)
{
	struct world *w = h->world;
	h->uplink_full_until = w->now + sim_between(w, 100 * USEC, 8 * MSEC);
	sim_after(w, h->uplink_full_until - w->now, uplink_free, note_new(h));
}

static void crash_later(struct world *w, void *argument)
{
	struct note *n = argument;
	if (!note_is_void(n) && !w->quiet)
		crash(n->host);
}

/* It hangs, and the watchdog ends it; or the watchdog is wrong. */
static void bite(struct host *h)
{
	struct world *w = h->world;
	bool wrong = sim_chance(w, 400);
	TRACE(w, h, wrong ? "its watchdog bites for nothing" : "hangs until its watchdog bites");
	if (!wrong)
		h->slow_until = w->now + 20 * MSEC;
	sim_after(w, wrong ? 1 : sim_between(w, 2 * MSEC, 12 * MSEC), crash_later, note_new(h));
}

static void one_fault(struct world *w, void *argument)
{
	(void)argument;
	if (w->quiet)
		return;
	switch (w->plan.storm ? sim_random(w, 3) : sim_random(w, KINDS)) {
	case CRASH_ONE: crash(some_host(w)); break;
	case CRASH_TWO:
		crash(some_host(w));
		if (!w->plan.storm)
			crash(some_host(w));
		break;
	case CUT: cut_network(w, sim_chance(w, 300) ? some_host(w)->id.n : 0); break;
	case MUTE: cut_off_mute(w, some_host(w)->id.n); break;
	case ONE_WAY: block(w, some_host(w)->id.n, some_host(w)->id.n); break;
	case TUNNELS: cut_tunnels(w, some_host(w)->id.n); break;
	case WATCHDOG: bite(some_host(w)); break;
	case FLAP: {
		struct note *n = note_new(some_host(w));
		n->n = 2 + sim_random(w, 5);
		flap(w, n);
		break;
	}
	case UPLINK: fill_uplink(some_host(w)); break;
	case RESET: {
		uint32_t a = some_host(w)->id.n, b = some_host(w)->id.n;
		if (a != b)
			link_reset(w, a, b);
		break;
	}
	case DIE: die(w); break;
	case HANG: hang(some_host(w)); break;
	case CHECKPOINT: {
		struct host *h = some_host(w);
		if (h->up)
			host_step(h, &(struct epoch_event){ .type = EPOCH_EV_CHECKPOINT });
	}
	}
}

/* ---- triggers ---- */

static const struct { enum epoch_action_type action; enum message_type message; } moments[] = {
	{ EPOCH_ACT_SEND, MESSAGE_BEGIN },   { EPOCH_ACT_SEND, MESSAGE_STORED }, { EPOCH_ACT_SEND, MESSAGE_KNOWN },  { EPOCH_ACT_SEND, MESSAGE_KNOWN },
	{ EPOCH_ACT_SEND, MESSAGE_ABORT },   { EPOCH_ACT_SEND, MESSAGE_STATE },  { EPOCH_ACT_SEND, MESSAGE_RECOVER }, { EPOCH_ACT_SEND, MESSAGE_READY },
	{ EPOCH_ACT_SEND, MESSAGE_RESUME },  { EPOCH_ACT_CAPTURE, 0 },           { EPOCH_ACT_COMMIT, 0 },             { EPOCH_ACT_RELEASE, 0 },
	{ EPOCH_ACT_RELEASE, 0 },            { EPOCH_ACT_DISCARD, 0 },           { EPOCH_ACT_PLACE, 0 },              { EPOCH_ACT_RUN, 0 },
	{ EPOCH_ACT_REPORT, 0 },             { EPOCH_ACT_REMEMBER, 0 },          { EPOCH_ACT_HELLO, 0 },              { EPOCH_ACT_INVITE, 0 },
};

static const struct { enum epoch_action_type action; enum message_type message; } turning_points[3][6] = {
	{ { EPOCH_ACT_SEND, MESSAGE_STORED }, { EPOCH_ACT_SEND, MESSAGE_KNOWN }, { EPOCH_ACT_SEND, MESSAGE_KNOWN }, { EPOCH_ACT_COMMIT, 0 },
	  { EPOCH_ACT_RELEASE, 0 }, { EPOCH_ACT_SEND, MESSAGE_ABORT } },
	{ { EPOCH_ACT_PLACE, 0 }, { EPOCH_ACT_SEND, MESSAGE_STATE }, { EPOCH_ACT_SEND, MESSAGE_RECOVER }, { EPOCH_ACT_SEND, MESSAGE_READY },
	  { EPOCH_ACT_REPORT, 0 }, { EPOCH_ACT_PLACE, 0 } },
	{ { EPOCH_ACT_RUN, 0 }, { EPOCH_ACT_SEND, MESSAGE_RESUME }, { EPOCH_ACT_SEND, MESSAGE_READY }, { EPOCH_ACT_PLACE, 0 },
	  { EPOCH_ACT_RUN, 0 }, { EPOCH_ACT_SEND, MESSAGE_KNOWN } },
};

/* A commit is torn apart, then the recovery from it, then the one after that. */
static void aim(struct world *w, unsigned i)
{
	uint64_t k = sim_random(w, 6);
	w->trigger[i] = (struct trigger){ true, turning_points[i][k].action, turning_points[i][k].message, (uint32_t)(1 + sim_random(w, i ? 4 : 12)),
		                          sim_chance(w, 500), (uint8_t)(sim_chance(w, 650) ? 4 + sim_random(w, 2) : sim_random(w, 4)) };
}

/* ---- the shuttle: two sides that never meet, and a host, often an empty one, that makes a quorum with the one, then with the other ---- */

static void shuttle_to(struct world *w, uint8_t side)
{
	if (w->quiet)
		return;
	w->side[w->shuttle->id.n] = side;
	TRACE(w, w->shuttle, "goes to side %u", side);
	reconnect(w);
	ring_connectivity_changed(w);
}

static void shuttle_to_first(struct world *w, void *argument)
{
	(void)argument;
	shuttle_to(w, 0);
}

static void shuttle_to_second(struct world *w, void *argument)
{
	(void)argument;
	shuttle_to(w, 1);
}

static void shuttle_starts(struct world *w)
{
	static const struct { enum epoch_action_type action; enum message_type message; } leaves[] = {
		{ EPOCH_ACT_SEND, MESSAGE_RESUME }, { EPOCH_ACT_SEND, MESSAGE_RECOVER }, { EPOCH_ACT_SEND, MESSAGE_READY }, { EPOCH_ACT_RUN, 0 } };
	uint64_t k = sim_random(w, sizeof leaves / sizeof leaves[0]);
	struct note *n = note_new(w->shuttle = some_host(w));
	for (uint32_t x = 1; x <= w->plan.hosts; x++)
		w->side[x] = x == w->shuttle->id.n ? 2 : (uint8_t)sim_random(w, 2);
	w->count.cuts++;
	TRACE(w, w->shuttle, "is the shuttle; sides %u %u %u %u %u", w->side[1], w->side[2], w->side[3], w->side[4], w->side[5]);
	ring_connectivity_changed(w);
	if (w->shuttle->up && sim_chance(w, 700)) {
		host_crash(w->shuttle);
		n = note_new(w->shuttle);
		sim_after(w, sim_between(w, 100 * USEC, 2 * MSEC), restart, n);
	}
	sim_after(w, sim_between(w, 500 * USEC, 4 * MSEC), shuttle_to_first, NULL);
	sim_after(w, sim_between(w, 12 * MSEC, 25 * MSEC), shuttle_to_second, NULL);
	sim_after(w, sim_between(w, 15 * MSEC, 60 * MSEC), heal_cut, NULL);
	w->trigger[1] = (struct trigger){ true, leaves[k].action, leaves[k].message, 1, sim_chance(w, 300), 10 };
}

static void shuttle_leaves(struct world *w)
{
	if (sim_chance(w, 300))
		hang(w->shuttle);
	sim_after(w, sim_between(w, 1, sim_chance(w, 500) ? 40 * USEC : 400 * USEC), shuttle_to_second, NULL);
}

static void arm(struct world *w, struct trigger *t)
{
	uint64_t i = sim_random(w, sizeof moments / sizeof moments[0]);
	*t = (struct trigger){ true, moments[i].action, moments[i].message, (uint32_t)(1 + sim_random(w, 16)), sim_chance(w, 300),
		               (uint8_t)sim_random(w, 9) };
}

static void fire(struct host *h, const struct trigger *t)
{
	struct world *w = h->world;
	struct host *other = some_host(w);
	switch (t->what) {
	case 0: case 1: crash(h); break;
	case 2: sim_after(w, sim_between(w, 0, 300 * USEC), crash_later, note_new(h)); break;
	case 3: sim_after(w, sim_between(w, 0, 300 * USEC), crash_later, note_new(other)); break;
	case 4: cut_network(w, 0); break;
	case 5: cut_network(w, h->id.n); break;
	case 6: hang(other); break;
	case 7: cut_off_mute(w, h->id.n); break;
	case 8: bite(h); break;
	case 9: shuttle_starts(w); break;
	case 10: shuttle_leaves(w); break;
	}
}

void faults_on_action(struct host *h, const struct epoch_action *act, bool before)
{
	struct world *w = h->world;
	uint32_t life = h->life;
	if (w->quiet)
		return;
	for (unsigned i = 0; i < 3 && h->life == life; i++) {
		struct trigger *t = &w->trigger[i];
		if (!t->armed || t->before != before || t->action != act->type ||
		    (t->action == EPOCH_ACT_SEND && t->message != act->message->type) || --t->count)
			continue;
		t->armed = false;
		if (sim_tracing)
			sim_trace(w, h, "now, %s this step:", before ? "before" : "behind");
		fire(h, t);
		if (w->plan.shuttle)
			continue;
		if (w->plan.aimed && i < 2)
			aim(w, i + 1);
		else if (sim_chance(w, 400))
			arm(w, t);
	}
}

/* ---- plan ---- */

static void up(struct world *w, void *argument)
{
	host_mask all = 0;
	(void)argument;
	for (uint32_t x = 1; x <= w->plan.hosts; x++)
		all |= host_bit((struct host_id){ x });
	if (w->host[1].up && w->host[1].told == all && !w->host[1].configured)
		host_up(&w->host[1]);
	else if (!w->host[1].configured)
		sim_after(w, 1 * MSEC, up, NULL);
}

static void end_of_faults(struct world *w, void *argument)
{
	(void)argument;
	faults_heal(w);
}

void faults_heal(struct world *w)
{
	TRACE(w, NULL, "---- no more faults ----");
	w->quiet = true;
	w->plan.deaf = w->plan.refuse = w->plan.lose_ack = w->plan.die_at_ack = w->plan.torn = w->plan.fail_capture = w->plan.fail_place = w->plan.flicker = w->plan.slow = 0;
	for (uint32_t a = 1; a <= HOSTS; a++)
		for (uint32_t b = 1; b <= HOSTS; b++)
			w->link[a][b].blocked = false;
	for (uint32_t x = 1; x <= w->plan.hosts; x++)
		if (!w->host[x].up)
			host_start(&w->host[x]);
	heal_cut(w, NULL);
}

static unsigned sometimes(struct world *w, unsigned chance, unsigned most) { return sim_chance(w, chance) ? 1 + (unsigned)sim_random(w, most) : 0; }

static void plan_shuttle(struct world *w)
{
	static const struct { enum epoch_action_type action; enum message_type message; } moments_of_commit[] = {
		{ EPOCH_ACT_SEND, MESSAGE_STORED }, { EPOCH_ACT_SEND, MESSAGE_KNOWN }, { EPOCH_ACT_SEND, MESSAGE_ABORT }, { EPOCH_ACT_SEND, MESSAGE_STORED } };
	struct plan *p = &w->plan;
	if (w->seed % 4 != 3 || p->storm || p->aimed)
		return;
	uint64_t k = sim_random(w, sizeof moments_of_commit / sizeof moments_of_commit[0]);
	p->shuttle = true;
	p->hosts = sim_chance(w, 700) ? 3 : 5;
	p->backups = p->hosts - 1;
	p->slow = p->slow ? p->slow : 40;
	w->trigger[0] = (struct trigger){ true, moments_of_commit[k].action, moments_of_commit[k].message, (uint32_t)(1 + sim_random(w, 20)), sim_chance(w, 300), 9 };
	w->trigger[1].armed = w->trigger[2].armed = false;
}

void faults_plan(struct world *w)
{
	static const uint8_t hosts[] = { 2, 3, 3, 3, 3, 4, 4, 5 };
	struct plan *p = &w->plan;
	p->hosts = hosts[sim_random(w, sizeof hosts)];
	p->vms = 2 + (unsigned)sim_random(w, VMS - 1);
	p->backups = 1 + (unsigned)(sim_random(w, 3) == 0);
	p->faults = (unsigned)sim_random(w, 6);
	p->storm = sim_chance(w, 250);
	if (p->storm) {
		p->hosts = 3 + (unsigned)sim_random(w, 3) / 2;
		p->backups = p->hosts - 1;
		p->faults = 8 + (unsigned)sim_random(w, 25);
	}
	p->hold = sim_chance(w, 150);
	p->deaf = sometimes(w, 60, 40);
	p->deaf_run = p->deaf != 0;
	p->refuse = sometimes(w, 200, 60);
	p->lose_ack = sometimes(w, 150, 60);
	p->die_at_ack = sometimes(w, 150, 60);
	p->torn = sometimes(w, 150, 60);
	p->tight = sim_chance(w, 100);
	p->fail_capture = sometimes(w, 150, 60);
	p->fail_place = sometimes(w, 150, 200);
	p->flicker = sometimes(w, 200, 300);
	p->slow = sometimes(w, 400, 60);
	p->interval = sim_between(w, 1 * MSEC, 5 * MSEC);
	p->end = sim_between(w, 30 * MSEC, 90 * MSEC);
	for (unsigned i = 0; i < p->faults; i++)
		sim_after(w, sim_between(w, 8 * MSEC, p->end), one_fault, NULL);
	p->aimed = !p->storm && sim_chance(w, 350);
	if (p->aimed)
		aim(w, 0);
	for (unsigned i = p->aimed ? 1 : 0; i < 3; i++)
		if (sim_chance(w, 450))
			arm(w, &w->trigger[i]);
	plan_shuttle(w);
	for (uint32_t x = 1; x <= p->hosts; x++)
		host_start(&w->host[x]);
	sim_after(w, 3 * MSEC, up, NULL);
	sim_after(w, p->end, end_of_faults, NULL);
}
