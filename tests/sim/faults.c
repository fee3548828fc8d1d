/* faults.c - what goes wrong in a run: at random times, and, worse, just before or behind a chosen step of the protocol.
 *
 * A host that is stopped (SIGSTOP) does nothing: its messages, streams, frames, timers and the rest of its step wait (sim_at) and come at once when it goes on,
 * unless its watchdog has ended it before. What is of corosync and of the kernel goes on. How often what was met: world.met, in the report. */
#include "sim.h"

enum { CRASH_ONE, CRASH_TWO, CUT, STOP, MUTE, DEAF, ONE_WAY, TUNNELS, RESET, DIE, HANG, WATCHDOG, FLAP, UPLINK, FULL, CHECKPOINT, KINDS };

#define WATCHDOG_PATIENCE (2 * MSEC)

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
	w->mute = w->deaf = 0;
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
	w->met.mute++;
	TRACE(w, &w->host[x], "hears the others still");
}

/* Broken in the other direction: they hear it, in their tunnels and streams and what of the group is under way, and it hears nobody. Nothing comes back to
 * corosync's questions either, so that it is excluded. */
static void cut_off_deaf(struct world *w, uint32_t x)
{
	cut_network(w, x);
	w->deaf = x;
	w->met.deaf++;
	TRACE(w, &w->host[x], "is heard by the others still");
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

static void dies(struct world *w, void *argument)
{
	struct note *n = argument;
	(void)w;
	if (note_is_void(n) || !n->host->vm[n->vm].here)
		return;
	n->host->vm[n->vm].running = false;
	host_trouble(n->host, n->vm, 1);
}

static void die(struct world *w)
{
	struct note *n = note_new(some_host(w));
	n->vm = (uint32_t)sim_random(w, w->plan.vms);
	sim_at(n->host, 0, dies, n);
}

static void demand_checkpoint(struct world *w, void *argument)
{
	struct note *n = argument;
	(void)w;
	if (!note_is_void(n))
		host_step(n->host, &(struct epoch_event){ .type = EPOCH_EV_CHECKPOINT });
}

/* Its loop is busy: messages and ticks wait, threads go on. */
static void hang(struct host *h)
{
	struct world *w = h->world;
	TRACE(w, h, "hangs");
	h->slow_until = w->now + sim_between(w, 200 * USEC, 12 * MSEC);
}

static void crash_later(struct world *w, void *argument)
{
	struct note *n = argument;
	if (!note_is_void(n) && !w->quiet)
		crash(n->host);
}

static void bites(struct world *w, void *argument)
{
	struct note *n = argument;
	if (note_is_void(n) || w->quiet)
		return;
	w->met.ended++;
	TRACE(w, n->host, "is ended by its watchdog");
	crash(n->host);
}

static void stop_for(struct host *h, nsec_t time)
{
	struct world *w = h->world;
	if (!h->up)
		return;
	TRACE(w, h, "is stopped for %.3f ms", (double)time / MSEC);
	w->met.stopped++;
	h->stopped_until = w->now + time > h->stopped_until ? w->now + time : h->stopped_until;
}

/* SIGSTOP, then SIGCONT; unless its watchdog, which may be stopped as well, ends it before. */
static void stop(struct host *h)
{
	struct world *w = h->world;
	bool watched = !sim_chance(w, 300);
	nsec_t time = sim_between(w, 50 * USEC, watched ? 3 * MSEC : 12 * MSEC);
	stop_for(h, time);
	if (watched && time > WATCHDOG_PATIENCE)
		sim_after(w, WATCHDOG_PATIENCE, bites, note_new(h));
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
	sim_at(h, h->uplink_full_until - w->now, uplink_free, note_new(h));
}

/* No room for what backups take: what is coming in stops in its midst, and nothing is begun, until there is. */
void faults_fill(struct host *h, nsec_t time)
{
	TRACE(h->world, h, "has no room for backups for %.3f ms", (double)time / MSEC);
	h->full_until = h->world->now + time;
	h->full_for = 0;
}

/* Now, or when the next epoch has come in half. */
static void fill_backups(struct host *h)
{
	struct world *w = h->world;
	nsec_t time = sim_between(w, 300 * USEC, sim_chance(w, 300) ? 60 * MSEC : 12 * MSEC);
	if (sim_chance(w, 500))
		faults_fill(h, time);
	else
		h->full_for = time;
}

/* It hangs, and the watchdog ends it; or the watchdog is wrong. */
static void bite(struct host *h)
{
	struct world *w = h->world;
	bool wrong = sim_chance(w, 400);
	if (!wrong)
		stop_for(h, 20 * MSEC);
	sim_after(w, wrong ? 1 : sim_between(w, WATCHDOG_PATIENCE, 12 * MSEC), bites, note_new(h));
}

static void one_fault(struct world *w, void *argument)
{
	(void)argument;
	if (w->quiet)
		return;
	switch (w->plan.storm ? sim_random(w, STOP + 1) : sim_random(w, KINDS)) {
	case CRASH_ONE: crash(some_host(w)); break;
	case CRASH_TWO:
		crash(some_host(w));
		if (!w->plan.storm)
			crash(some_host(w));
		break;
	case CUT: cut_network(w, sim_chance(w, 300) ? some_host(w)->id.n : 0); break;
	case MUTE: cut_off_mute(w, some_host(w)->id.n); break;
	case DEAF: cut_off_deaf(w, some_host(w)->id.n); break;
	case STOP: stop(some_host(w)); break;
	case FULL: fill_backups(some_host(w)); break;
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
		struct note *n = note_new(some_host(w));
		sim_at(n->host, 0, demand_checkpoint, n);
	}
	}
}

/* ---- triggers ---- */

enum { CRASH, CRASH_TOO, CRASH_SOON, CRASH_OTHER, CUT_NETWORK, CUT_OFF, HANG_OTHER, CUT_OFF_MUTE, CUT_OFF_DEAF, BITE, STOP_HERE, STOP_OTHER, FILL_OTHER,
       SHUTTLE_STARTS, SHUTTLE_LEAVES };

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
		                          sim_chance(w, 500), (uint8_t)(sim_chance(w, 650) ? CUT_NETWORK + sim_random(w, 2) : sim_random(w, CUT_NETWORK)) };
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
	w->trigger[1] = (struct trigger){ true, leaves[k].action, leaves[k].message, 1, sim_chance(w, 300), SHUTTLE_LEAVES };
}

static void shuttle_leaves(struct world *w)
{
	if (sim_chance(w, 300))
		(sim_chance(w, 500) ? hang : stop)(w->shuttle);
	sim_after(w, sim_between(w, 1, sim_chance(w, 500) ? 40 * USEC : 400 * USEC), shuttle_to_second, NULL);
}

static void arm(struct world *w, struct trigger *t)
{
	uint64_t i = sim_random(w, sizeof moments / sizeof moments[0]);
	*t = (struct trigger){ true, moments[i].action, moments[i].message, (uint32_t)(1 + sim_random(w, 16)), sim_chance(w, 300),
		               (uint8_t)sim_random(w, SHUTTLE_STARTS) };
}

static void fire(struct host *h, const struct trigger *t)
{
	struct world *w = h->world;
	struct host *other = some_host(w);
	switch (t->what) {
	case CRASH: case CRASH_TOO: crash(h); break;
	case CRASH_SOON: sim_after(w, sim_between(w, 0, 300 * USEC), crash_later, note_new(h)); break;
	case CRASH_OTHER: sim_after(w, sim_between(w, 0, 300 * USEC), crash_later, note_new(other)); break;
	case CUT_NETWORK: cut_network(w, 0); break;
	case CUT_OFF: cut_network(w, h->id.n); break;
	case HANG_OTHER: hang(other); break;
	case CUT_OFF_MUTE: cut_off_mute(w, h->id.n); break;
	case CUT_OFF_DEAF: cut_off_deaf(w, h->id.n); break;
	case BITE: bite(h); break;
	case STOP_HERE: stop(h); break;
	case STOP_OTHER: stop(other); break;
	case FILL_OTHER: fill_backups(other); break;
	case SHUTTLE_STARTS: shuttle_starts(w); break;
	case SHUTTLE_LEAVES: shuttle_leaves(w); break;
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
		sim_at(&w->host[1], 1 * MSEC, up, NULL);
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
	for (uint32_t x = 1; x <= w->plan.hosts; x++) {
		w->host[x].full_until = w->host[x].full_for = 0;
		if (!w->host[x].up)
			host_start(&w->host[x]);
	}
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
	w->trigger[0] = (struct trigger){ true, moments_of_commit[k].action, moments_of_commit[k].message, (uint32_t)(1 + sim_random(w, 20)), sim_chance(w, 300),
		                          SHUTTLE_STARTS };
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
	p->deaf = sometimes(w, 100, 300);
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
	sim_at(&w->host[1], 3 * MSEC, up, NULL);
	sim_after(w, p->end, end_of_faults, NULL);
}
