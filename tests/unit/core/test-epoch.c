/* test-epoch.c - E1-E9 of core/epoch.h on a small cluster: a queue is the group (one order for all), and each host answers its actions at
 * once, unless the test says that it does not. Which schedules break what is the simulator's business; here is one test for each rule. */
#include "core/epoch.h"

#include <glib.h>
#include <string.h>

#define HOSTS 4u
#define VMS 3u
#define H(n) host_bit((struct host_id){ n })
#define FIRST ((struct generation){ 1u << EPOCH_LEADER_BITS | 1u })   /* the first generation, led by host 1 */
#define INTERVAL (100 * NSEC_PER_MSEC)

struct holding { uint64_t image, staged, complete; bool live; };

struct host {
	struct epoch *core;
	bool up, mute_stored, mute_placed;
	struct holding held[VMS];
	uint64_t captured, committed, released, discarded;
	unsigned places, runs, freezes, forgets, losts, invites;
	struct message_placement placement[VMS];
	struct generation remembered, seen;
};

struct cluster {
	struct host at[HOSTS + 1];
	GQueue group;                   /* struct letter */
	GQueue later;                   /* struct answer: what hosts answer, behind the step */
	host_mask members;
	nsec_t now;
	struct epoch_config config;
};

struct letter { struct host_id from; struct message m; };
struct answer { uint32_t host; struct epoch_event event; struct epoch_stored stored[VMS]; struct message_holding holdings[VMS]; };

static void step(struct cluster *c, uint32_t h, const struct epoch_event *event);

static struct answer *answer(struct cluster *c, uint32_t h, enum epoch_event_type type)
{
	struct answer *a = g_new0(struct answer, 1);
	a->host = h;
	a->event.type = type;
	g_queue_push_tail(&c->later, a);
	return a;
}

static void mcast(struct cluster *c, uint32_t h, const struct message *m)
{
	struct letter *l = g_new0(struct letter, 1);
	l->from.n = h;
	l->m = *m;
	g_queue_push_tail(&c->group, l);
}

static void say_hello(struct cluster *c, uint32_t h, const struct epoch_action *act)
{
	struct message *m = g_new0(struct message, 1);
	m->type = MESSAGE_HELLO;
	m->generation = act->generation;
	m->hello.state = act->joined ? HELLO_JOINED : HELLO_EMPTY;
	mcast(c, h, m);
	g_free(m);
}

static void capture(struct cluster *c, uint32_t h, const struct epoch_action *act)
{
	struct host *host = &c->at[h];
	host->captured = act->epoch.n;
	for (uint32_t v = 0; v < VMS; v++) {
		host->placement[v] = act->placement[v];
		if (act->placement[v].host.n != h)
			continue;
		host->held[v].staged = act->epoch.n;
		for (uint32_t b = 1; b <= HOSTS; b++)
			if (host_in(act->placement[v].backups, (struct host_id){ b }))
				c->at[b].held[v].staged = act->epoch.n;
	}
	if (host->mute_stored)
		return;
	struct answer *a = answer(c, h, EPOCH_EV_STORED);
	a->event.epoch = act->epoch;
	a->event.stored = a->stored;
	for (uint32_t v = 0; v < VMS; v++)
		if (act->placement[v].host.n == h)
			a->stored[a->event.count++] = (struct epoch_stored){ { v }, act->placement[v].backups };
}

static void move_to(struct host *host, uint64_t r)
{
	for (uint32_t v = 0; v < VMS; v++) {
		struct holding *held = &host->held[v];
		if (held->staged == r && r) {
			held->image = r;
			held->complete = held->complete ? held->complete : r;
		}
		held->staged = 0;
	}
}

static void place(struct cluster *c, uint32_t h, const struct epoch_action *act)
{
	struct host *host = &c->at[h];
	host->places++;
	move_to(host, act->epoch.n);
	for (uint32_t v = 0; v < VMS; v++) {
		host->placement[v] = act->placement[v];
		host->held[v].live = act->placement[v].host.n == h;
		if (act->epoch.n && host->held[v].live)
			g_assert_cmpuint(host->held[v].image, ==, act->epoch.n);
	}
	if (!host->mute_placed)
		answer(c, h, EPOCH_EV_PLACED)->event.generation = act->generation;
}

static void tell_holdings(struct cluster *c, uint32_t h, const struct epoch_action *act)
{
	struct answer *a = answer(c, h, EPOCH_EV_HOLDINGS);
	a->event.report = act->report;
	a->event.holdings = a->holdings;
	for (uint32_t v = 0; v < VMS; v++) {
		struct holding *held = &c->at[h].held[v];
		if (held->image || held->staged || held->live)
			a->holdings[a->event.count++] = (struct message_holding){
				{ v }, epoch_of(held->image), epoch_of(held->staged), epoch_of(held->complete ? held->complete : held->staged), held->live };
	}
}

static void carry_out(struct cluster *c, uint32_t h, const struct epoch_action *act)
{
	struct host *host = &c->at[h];
	switch (act->type) {
	case EPOCH_ACT_SEND: mcast(c, h, act->message); break;
	case EPOCH_ACT_HELLO: say_hello(c, h, act); break;
	case EPOCH_ACT_INVITE:
		host->invites++;
		for (uint32_t x = 1; x <= HOSTS; x++)
			if (host_in(c->members, (struct host_id){ x })) {
				struct answer *a = answer(c, x, EPOCH_EV_CONFIGURED);
				a->event.generation = act->generation;
				a->event.config = &c->config;
			}
		break;
	case EPOCH_ACT_CAPTURE: capture(c, h, act); break;
	case EPOCH_ACT_COMMIT: host->committed = act->epoch.n; move_to(host, act->epoch.n); break;
	case EPOCH_ACT_RELEASE: host->released = act->epoch.n; break;
	case EPOCH_ACT_DISCARD: host->discarded = act->epoch.n; break;
	case EPOCH_ACT_FREEZE: host->freezes++; break;
	case EPOCH_ACT_REPORT: tell_holdings(c, h, act); break;
	case EPOCH_ACT_PLACE: place(c, h, act); break;
	case EPOCH_ACT_RUN: host->runs++; break;
	case EPOCH_ACT_FORGET: host->forgets++; memset(host->held, 0, sizeof host->held); break;
	case EPOCH_ACT_LOST: host->losts++; break;
	case EPOCH_ACT_REMEMBER: host->remembered = act->generation; host->seen = act->seen; break;
	}
}

static void step(struct cluster *c, uint32_t h, const struct epoch_event *event)
{
	struct epoch_action out[EPOCH_ACTIONS_MAX];
	size_t n = epoch_step(c->at[h].core, c->now, event, out);
	for (size_t i = 0; i < n; i++)
		carry_out(c, h, &out[i]);
}

static bool one_answer(struct cluster *c)
{
	struct answer *a = g_queue_pop_head(&c->later);
	if (a && c->at[a->host].up)
		step(c, a->host, &a->event);
	g_free(a);
	return a != NULL;
}

static bool one_letter(struct cluster *c)
{
	struct letter *l = g_queue_pop_head(&c->group);
	for (uint32_t h = 1; l && h <= HOSTS; h++)
		if (c->at[h].up && host_in(c->members, (struct host_id){ h }))
			step(c, h, &(struct epoch_event){ .type = EPOCH_EV_MESSAGE, .from = l->from, .message = &l->m });
	g_free(l);
	return l != NULL;
}

static void settle(struct cluster *c)
{
	while (one_answer(c) || one_letter(c))
		;
}

static void members_now(struct cluster *c, host_mask members, bool quorate)
{
	c->members = members;
	for (uint32_t h = 1; h <= HOSTS; h++)
		if (host_in(members, (struct host_id){ h }))
			step(c, h, &(struct epoch_event){ .type = EPOCH_EV_MEMBERSHIP, .hosts = members, .quorate = quorate, .needed = 2 });
	settle(c);
}

static void start_host(struct cluster *c, uint32_t h)
{
	struct host *host = &c->at[h];
	host->core = epoch_new((struct host_id){ h });
	host->up = true;
	memset(host->held, 0, sizeof host->held);
	epoch_remember(host->core, host->remembered, host->seen);
}

static void kill_host(struct cluster *c, uint32_t h)
{
	c->at[h].up = false;
	g_clear_pointer(&c->at[h].core, epoch_free);
}

static void lose_host(struct cluster *c, uint32_t h)
{
	kill_host(c, h);
	members_now(c, c->members & ~H(h), host_count(c->members & ~H(h)) >= 2);
}

static void tick(struct cluster *c, nsec_t by)
{
	c->now += by;
	for (uint32_t h = 1; h <= HOSTS; h++)
		if (c->at[h].up)
			step(c, h, &(struct epoch_event){ .type = EPOCH_EV_TICK });
	settle(c);
}

static struct epoch_view view(struct cluster *c, uint32_t h)
{
	struct epoch_view v;
	epoch_view(c->at[h].core, &v);
	return v;
}

/* Hosts 1..3 run, VM v on host v + 1, host 4 is not there. */
static struct cluster *cluster_new(void)
{
	struct cluster *c = g_new0(struct cluster, 1);
	g_queue_init(&c->group);
	g_queue_init(&c->later);
	c->config = (struct epoch_config){ .vm_count = VMS, .backups = 1, .interval = INTERVAL };
	for (uint32_t h = 1; h <= 3; h++)
		start_host(c, h);
	members_now(c, H(1) | H(2) | H(3), true);
	for (uint32_t h = 1; h <= 3; h++)
		step(c, h, &(struct epoch_event){ .type = EPOCH_EV_CONFIGURED, .config = &c->config });
	settle(c);
	return c;
}

static void cluster_free(struct cluster *c)
{
	for (uint32_t h = 1; h <= HOSTS; h++)
		if (c->at[h].core)
			kill_host(c, h);
	g_queue_clear_full(&c->group, g_free);
	g_queue_clear_full(&c->later, g_free);
	g_free(c);
}

static void start_is_a_recovery_to_power_off(void)
{
	struct cluster *c = cluster_new();
	for (uint32_t h = 1; h <= 3; h++) {
		struct epoch_view v = view(c, h);
		g_assert_cmpint(v.state, ==, EPOCH_RUNNING);
		g_assert_cmpuint(v.generation.n, ==, 1);
		g_assert_cmpuint(v.committed.n, ==, 0);
		g_assert_cmpuint(v.placement[h - 1].host.n, ==, h);
		g_assert_cmpuint(v.leader.n, ==, 1);
		g_assert_cmpuint(c->at[h].runs, ==, 1);
	}
	cluster_free(c);
}

static void epochs_commit_and_release(void)
{
	struct cluster *c = cluster_new();
	g_assert_cmpint(epoch_deadline(c->at[1].core), ==, c->now + INTERVAL);
	g_assert_cmpint(epoch_deadline(c->at[2].core), ==, INT64_MAX);
	for (uint64_t r = 1; r <= 3; r++) {
		tick(c, INTERVAL);
		for (uint32_t h = 1; h <= 3; h++) {
			g_assert_cmpuint(c->at[h].captured, ==, r);
			g_assert_cmpuint(c->at[h].committed, ==, r);
			g_assert_cmpuint(c->at[h].released, ==, r);
			g_assert_true(view(c, h).protected_);
		}
	}
	cluster_free(c);
}

static void late_epoch_makes_none_behind_it_late(void)
{
	struct cluster *c = cluster_new();
	nsec_t start = c->now;
	tick(c, INTERVAL + INTERVAL / 4);
	g_assert_cmpuint(c->at[1].captured, ==, 1);
	g_assert_cmpint(epoch_deadline(c->at[1].core), ==, start + 2 * INTERVAL);
	tick(c, 3 * INTERVAL);    /* too late to be made up: from here on */
	g_assert_cmpuint(c->at[1].captured, ==, 2);
	g_assert_cmpint(epoch_deadline(c->at[1].core), ==, c->now + INTERVAL);
	cluster_free(c);
}

static void begin_waits_for_the_last_epoch(void)
{
	struct cluster *c = cluster_new();
	c->at[2].mute_stored = true;
	tick(c, INTERVAL);
	tick(c, 10 * INTERVAL);
	g_assert_cmpuint(c->at[1].captured, ==, 1);
	g_assert_cmpuint(c->at[1].committed, ==, 0);
	struct epoch_stored stored = { { 1 }, H(3) };
	step(c, 2, &(struct epoch_event){ .type = EPOCH_EV_STORED, .epoch = epoch_of(1), .stored = &stored, .count = 1 });
	c->at[2].mute_stored = false;
	settle(c);
	g_assert_cmpuint(c->at[1].committed, ==, 2);
	cluster_free(c);
}

static void forged_begin_is_dropped(void)
{
	struct cluster *c = cluster_new();
	struct message *m = g_new0(struct message, 1);
	*m = (struct message){ .type = MESSAGE_BEGIN, .generation = FIRST, .epoch = epoch_of(1), .hosts = H(1) | H(2) | H(3), .vm_count = VMS };
	struct { uint64_t g, r; uint32_t from; host_mask hosts; uint32_t vms; } bad[] = {
		{ 0, 1, 1, H(1) | H(2) | H(3), VMS }, { 1, 2, 1, H(1) | H(2) | H(3), VMS }, { 1, 1, 2, H(1) | H(2) | H(3), VMS },
		{ 1, 1, 1, H(1) | H(2), VMS },        { 1, 1, 1, H(1) | H(2) | H(3), VMS - 1 }, { 1, 1, 4, H(1) | H(2) | H(3), VMS },
	};
	for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
		m->generation.n = FIRST.n + 1 - bad[i].g, m->epoch.n = bad[i].r, m->hosts = bad[i].hosts, m->vm_count = bad[i].vms;
		step(c, 2, &(struct epoch_event){ .type = EPOCH_EV_MESSAGE, .from = { bad[i].from }, .message = m });
		g_assert_cmpuint(c->at[2].captured, ==, 0);
	}
	g_free(m);
	cluster_free(c);
}

static void not_stored_aborts_and_the_next_leaves_the_backup_out(void)
{
	struct cluster *c = cluster_new();
	c->at[2].mute_stored = true;
	tick(c, INTERVAL);
	host_mask failed = c->at[2].placement[1].backups;
	step(c, 2, &(struct epoch_event){ .type = EPOCH_EV_NOT_STORED, .epoch = epoch_of(1), .vm = { 1 }, .hosts = failed });
	struct epoch_stored late = { { 1 }, failed };
	step(c, 2, &(struct epoch_event){ .type = EPOCH_EV_STORED, .epoch = epoch_of(1), .stored = &late, .count = 1 });
	settle(c);
	c->at[2].mute_stored = false;
	g_assert_cmpuint(view(c, 1).committed.n, ==, 0);
	g_assert_cmpuint(c->at[1].discarded, ==, 0);
	tick(c, INTERVAL);
	for (uint32_t h = 1; h <= 3; h++) {
		g_assert_cmpuint(c->at[h].discarded, ==, 1);
		g_assert_cmpuint(c->at[h].committed, ==, 2);
		g_assert_cmpuint(c->at[h].freezes, ==, 0);
	}
	g_assert_cmpuint(c->at[2].placement[1].backups & failed, ==, 0);
	tick(c, 5 * NSEC_PER_SEC);
	g_assert_cmpuint(host_count(c->at[2].placement[1].backups), ==, 1);
	cluster_free(c);
}

static void leader_gives_up_out_of_patience(void)
{
	struct cluster *c = cluster_new();
	kill_host(c, 1), kill_host(c, 2), kill_host(c, 3);
	cluster_free(c);
	c = g_new0(struct cluster, 1);
	c->config = (struct epoch_config){ .vm_count = VMS, .backups = 1, .interval = INTERVAL, .patience = 5 * INTERVAL };
	start_host(c, 1), start_host(c, 2);
	members_now(c, H(1) | H(2), true);
	for (uint32_t h = 1; h <= 2; h++)
		step(c, h, &(struct epoch_event){ .type = EPOCH_EV_CONFIGURED, .config = &c->config });
	settle(c);
	c->at[2].mute_stored = true;
	tick(c, INTERVAL);
	g_assert_cmpint(epoch_deadline(c->at[1].core), ==, c->now + 5 * INTERVAL);
	tick(c, 5 * INTERVAL);
	g_assert_cmpuint(c->at[2].discarded, ==, 1);
	g_assert_cmpint(epoch_deadline(c->at[1].core), ==, c->now + 10 * INTERVAL);   /* the next one may be as large */
	c->at[2].mute_stored = false;
	tick(c, 10 * INTERVAL);
	g_assert_cmpuint(c->at[2].discarded, ==, 2);
	g_assert_cmpuint(c->at[2].committed, ==, 3);
	c->at[2].mute_stored = true;
	tick(c, INTERVAL);
	g_assert_cmpint(epoch_deadline(c->at[1].core), ==, c->now + 5 * INTERVAL);
	cluster_free(c);
}

static void release_needs_known_of_every_participant(void)
{
	struct cluster *c = cluster_new();
	struct message *m = g_new0(struct message, 1);
	tick(c, INTERVAL);
	c->at[1].mute_stored = c->at[2].mute_stored = c->at[3].mute_stored = true;
	tick(c, INTERVAL);
	for (uint32_t h = 1; h <= 3; h++) {
		*m = (struct message){ .type = MESSAGE_STORED, .generation = FIRST, .epoch = epoch_of(2) };
		step(c, 3, &(struct epoch_event){ .type = EPOCH_EV_MESSAGE, .from = { h }, .message = m });
	}
	g_assert_cmpuint(view(c, 3).committed.n, ==, 2);
	g_assert_cmpuint(c->at[3].committed, ==, 1);
	for (uint32_t h = 1; h <= 3; h++) {
		g_assert_cmpuint(c->at[3].released, ==, 1);
		*m = (struct message){ .type = MESSAGE_KNOWN, .generation = FIRST, .epoch = epoch_of(2) };
		step(c, 3, &(struct epoch_event){ .type = EPOCH_EV_MESSAGE, .from = { h }, .message = m });
	}
	g_assert_cmpuint(c->at[3].committed, ==, 2);
	g_assert_cmpuint(c->at[3].released, ==, 2);
	g_free(m);
	cluster_free(c);
}

static void loss_recovers_to_the_newest_committed(void)
{
	struct cluster *c = cluster_new();
	tick(c, INTERVAL), tick(c, INTERVAL);
	lose_host(c, 1);
	for (uint32_t h = 2; h <= 3; h++) {
		struct epoch_view v = view(c, h);
		g_assert_cmpint(v.state, ==, EPOCH_RUNNING);
		g_assert_cmpuint(v.generation.n, ==, 2);
		g_assert_cmpuint(v.committed.n, ==, 2);
		g_assert_cmpuint(v.released.n, ==, 2);
		g_assert_cmpuint(v.leader.n, ==, 2);
		g_assert_cmpuint(v.placement[0].host.n, ==, 2);
		g_assert_cmpuint(v.placement[1].host.n, ==, 2);
		g_assert_false(v.protected_);
	}
	tick(c, INTERVAL);
	g_assert_cmpuint(c->at[2].committed, ==, 3);
	g_assert_false(view(c, 2).protected_);   /* the first second belongs to those who wait outside */
	tick(c, NSEC_PER_SEC);
	g_assert_cmpuint(c->at[2].committed, ==, 4);
	g_assert_true(view(c, 2).protected_);
	cluster_free(c);
}

static void without_quorum_nothing_moves(void)
{
	struct cluster *c = cluster_new();
	tick(c, INTERVAL);
	kill_host(c, 1), kill_host(c, 2);
	members_now(c, H(3), false);
	tick(c, 10 * INTERVAL);
	g_assert_cmpint(view(c, 3).state, ==, EPOCH_GATHER);
	g_assert_cmpuint(c->at[3].freezes, ==, 1);
	g_assert_cmpuint(c->at[3].captured, ==, 1);
	g_assert_cmpuint(c->at[3].places, ==, 1);
	cluster_free(c);
}

static void no_image_is_lost_until_its_host_comes_back(void)
{
	struct cluster *c = cluster_new();
	tick(c, INTERVAL);
	host_mask backup = view(c, 1).placement[0].backups;
	uint32_t other = host_in(backup, (struct host_id){ 2 }) ? 2 : 3, stays = 5 - other;
	start_host(c, 4);
	kill_host(c, 1);
	members_now(c, H(stays) | H(4), true);   /* `other` is only cut off */
	g_assert_true(view(c, stays).lost);
	g_assert_cmpuint(c->at[stays].losts, ==, 1);
	g_assert_cmpint(view(c, stays).state, ==, EPOCH_GATHER);
	step(c, other, &(struct epoch_event){ .type = EPOCH_EV_MEMBERSHIP, .hosts = H(other), .quorate = false, .needed = 2 });
	settle(c);
	members_now(c, H(2) | H(3) | H(4), true);
	g_assert_cmpint(view(c, stays).state, ==, EPOCH_RUNNING);
	g_assert_false(view(c, stays).lost);
	g_assert_cmpuint(view(c, stays).committed.n, >=, 1);
	cluster_free(c);
}

static void another_loss_while_placing_starts_again(void)
{
	struct cluster *c = cluster_new();
	tick(c, INTERVAL);   /* backups are chosen before host 4 is there: no image is lost with it */
	start_host(c, 4);
	members_now(c, H(1) | H(2) | H(3) | H(4), true);
	tick(c, INTERVAL);
	g_assert_cmpuint(view(c, 4).participants, ==, H(1) | H(2) | H(3) | H(4));
	c->at[3].mute_placed = true;
	lose_host(c, 4);
	g_assert_cmpint(view(c, 1).state, ==, EPOCH_PLACING);
	g_assert_cmpuint(view(c, 1).generation.n, ==, 2);
	c->at[3].mute_placed = false;
	members_now(c, H(1) | H(2), true);
	kill_host(c, 3);
	for (uint32_t h = 1; h <= 2; h++)
		g_assert_cmpuint(view(c, h).generation.n, ==, 3);
	cluster_free(c);
}

static void trouble_recovers_in_place_and_avoids_who_cannot_place(void)
{
	struct cluster *c = cluster_new();
	tick(c, INTERVAL);
	step(c, 1, &(struct epoch_event){ .type = EPOCH_EV_TROUBLE, .vm = { 0 }, .reason = 1 });
	settle(c);
	g_assert_cmpuint(view(c, 2).generation.n, ==, 2);
	g_assert_cmpuint(view(c, 2).placement[0].host.n, ==, 1);
	c->at[1].mute_placed = true;
	step(c, 1, &(struct epoch_event){ .type = EPOCH_EV_TROUBLE, .vm = { 0 }, .reason = 1 });
	settle(c);
	g_assert_cmpint(view(c, 1).state, ==, EPOCH_PLACING);
	c->at[1].mute_placed = false;
	step(c, 1, &(struct epoch_event){ .type = EPOCH_EV_TROUBLE, .vm = { 0 }, .reason = 2 });
	settle(c);
	g_assert_cmpint(view(c, 1).state, ==, EPOCH_RUNNING);
	g_assert_cmpuint(view(c, 1).placement[0].host.n, !=, 1);
	cluster_free(c);
}

static void newcomer_is_invited_and_becomes_a_backup(void)
{
	struct cluster *c = cluster_new();
	tick(c, INTERVAL);
	lose_host(c, 3);
	start_host(c, 3);
	members_now(c, H(1) | H(2) | H(3), true);
	g_assert_cmpuint(view(c, 3).participants, ==, H(1) | H(2) | H(3));
	g_assert_cmpint(view(c, 3).state, ==, EPOCH_RUNNING);
	tick(c, INTERVAL);
	g_assert_cmpuint(view(c, 3).committed.n, ==, view(c, 1).committed.n);
	g_assert_cmpuint(view(c, 3).generation.n, ==, 2);
	cluster_free(c);
}

/* What it said before BEGIN took it in may be delivered behind that BEGIN: to the others it has left, so it must not go on and commit what they cannot. */
static void newcomer_leaves_with_those_who_hear_it_say_state(void)
{
	struct cluster *c = cluster_new();
	tick(c, INTERVAL);
	start_host(c, 4);
	members_now(c, H(1) | H(2) | H(3) | H(4), true);
	tick(c, INTERVAL);
	for (uint32_t h = 1; h <= 4; h++)
		c->at[h].mute_stored = true;
	tick(c, INTERVAL);
	uint64_t r = c->at[4].captured;
	struct message *m = g_new0(struct message, 1);
	*m = (struct message){ .type = MESSAGE_STATE, .generation = FIRST, .epoch = epoch_of(UINT64_MAX), .hosts = c->members };
	mcast(c, 4, m);
	*m = (struct message){ .type = MESSAGE_STORED, .generation = FIRST, .epoch = epoch_of(r) };
	for (uint32_t h = 1; h <= 3; h++)
		mcast(c, h, m);
	one_letter(c);
	for (uint32_t h = 1; h <= 4; h++)
		g_assert_cmpint(view(c, h).state, ==, EPOCH_GATHER);
	settle(c);
	for (uint32_t h = 1; h <= 4; h++) {
		g_assert_cmpuint(view(c, h).generation.n, ==, 2);
		g_assert_cmpuint(view(c, h).committed.n, ==, r - 1);
	}
	g_free(m);
	cluster_free(c);
}

static void returned_host_of_an_old_generation_forgets(void)
{
	struct cluster *c = cluster_new();
	tick(c, INTERVAL);
	step(c, 3, &(struct epoch_event){ .type = EPOCH_EV_MEMBERSHIP, .hosts = H(3), .quorate = false, .needed = 2 });
	settle(c);
	members_now(c, H(1) | H(2), true);
	g_assert_cmpuint(view(c, 1).generation.n, ==, 2);
	members_now(c, H(1) | H(2) | H(3), true);
	tick(c, INTERVAL), tick(c, INTERVAL);
	g_assert_cmpuint(c->at[3].forgets, ==, 1);
	g_assert_cmpuint(view(c, 3).generation.n, ==, 2);
	g_assert_cmpint(view(c, 3).state, ==, EPOCH_RUNNING);
	cluster_free(c);
}

static void witness_keeps_an_old_generation_from_starting(void)
{
	struct cluster *c = cluster_new();
	tick(c, INTERVAL);
	step(c, 3, &(struct epoch_event){ .type = EPOCH_EV_MEMBERSHIP, .hosts = H(3), .quorate = false, .needed = 2 });
	settle(c);
	members_now(c, H(1) | H(2), true);
	tick(c, INTERVAL);
	kill_host(c, 1), kill_host(c, 2);
	start_host(c, 2);   /* empty, but it remembers generation 2 */
	members_now(c, H(2) | H(3), true);
	tick(c, INTERVAL);
	g_assert_cmpint(view(c, 3).state, ==, EPOCH_GATHER);
	g_assert_true(view(c, 3).lost);
	cluster_free(c);
}

/* It has not heard what makes RECOVER valid. That it says so is enough: it makes the quorum that the others wait for. */
static void witness_that_drops_recover_says_so(void)
{
	struct cluster *c = cluster_new();
	struct epoch_action out[EPOCH_ACTIONS_MAX];
	tick(c, INTERVAL);
	struct message *m = g_new0(struct message, 1);
	*m = (struct message){ .type = MESSAGE_RECOVER, .generation = { 9u << EPOCH_LEADER_BITS | 1u }, .epoch = epoch_of(1), .hosts = H(1) | H(2), .vm_count = VMS };
	start_host(c, 4);
	step(c, 4, &(struct epoch_event){ .type = EPOCH_EV_MEMBERSHIP, .hosts = H(1) | H(2) | H(4), .quorate = true, .needed = 3 });
	size_t n = epoch_step(c->at[4].core, c->now, &(struct epoch_event){ .type = EPOCH_EV_MESSAGE, .from = { 1 }, .message = m }, out);
	g_assert_cmpuint(n, ==, 1);
	g_assert_cmpint(out[0].type, ==, EPOCH_ACT_SEND);
	g_assert_cmpint(out[0].message->type, ==, MESSAGE_TROUBLE);
	g_assert_cmpuint(out[0].message->generation.n, ==, m->generation.n);
	g_queue_clear_full(&c->group, g_free);

	c->at[1].mute_placed = c->at[2].mute_placed = true;
	kill_host(c, 4);
	lose_host(c, 3);
	start_host(c, 3);
	members_now(c, H(1) | H(2) | H(3), true);
	step(c, 1, &(struct epoch_event){ .type = EPOCH_EV_TROUBLE, .vm = { 0 }, .reason = 1 });
	settle(c);
	g_assert_cmpint(view(c, 1).state, ==, EPOCH_PLACING);
	g_assert_cmpuint(view(c, 1).participants, ==, H(1) | H(2));
	uint64_t before = view(c, 1).generation.n;
	*m = (struct message){ .type = MESSAGE_TROUBLE, .generation = view(c, 1).number, .vm = { VCFT_VM_MAX } };
	mcast(c, 3, m);
	settle(c);
	for (uint32_t h = 1; h <= 2; h++)
		g_assert_cmpuint(view(c, h).generation.n, ==, before + 1);
	g_free(m);
	cluster_free(c);
}

/* Host 1 alone sees generation 2 resumed; 2 and 3 part from it and act on generation 3, to the same checkpoint; 2 is lost before that is resumed. Host 1 and 3
 * hold all of it between them, neither does alone. */
static void those_who_parted_come_together_at_the_same_checkpoint(void)
{
	struct cluster *c = cluster_new();
	tick(c, INTERVAL);
	g_assert_true(host_in(view(c, 1).placement[1].backups, (struct host_id){ 3 }));
	step(c, 1, &(struct epoch_event){ .type = EPOCH_EV_TROUBLE, .vm = { 0 }, .reason = 1 });
	while (one_answer(c) || ((struct letter *)g_queue_peek_head(&c->group))->m.type != MESSAGE_RESUME)
		if (g_queue_is_empty(&c->later))
			one_letter(c);
	struct letter *resume = g_queue_pop_head(&c->group);
	step(c, 1, &(struct epoch_event){ .type = EPOCH_EV_MESSAGE, .from = resume->from, .message = &resume->m });
	g_free(resume);
	g_assert_cmpint(view(c, 1).state, ==, EPOCH_RUNNING);
	step(c, 1, &(struct epoch_event){ .type = EPOCH_EV_MEMBERSHIP, .hosts = H(1), .quorate = false, .needed = 2 });
	g_queue_clear_full(&c->group, g_free);
	c->at[2].mute_placed = true;
	members_now(c, H(2) | H(3), true);
	g_assert_cmpint(view(c, 3).state, ==, EPOCH_PLACING);
	g_assert_cmpuint(view(c, 3).generation.n, ==, 3);
	kill_host(c, 2);
	members_now(c, H(1) | H(3), true);
	for (uint32_t h = 1; h <= 3; h += 2) {
		g_assert_cmpint(view(c, h).state, ==, EPOCH_RUNNING);
		g_assert_false(view(c, h).lost);
		g_assert_cmpuint(view(c, h).committed.n, ==, 1);
	}
	cluster_free(c);
}

static void report_of_the_past_is_dropped(void)
{
	struct cluster *c = cluster_new();
	struct epoch_action out[EPOCH_ACTIONS_MAX];
	uint64_t first = 0;
	struct epoch_event loss = { .type = EPOCH_EV_MEMBERSHIP, .hosts = H(1) | H(2), .quorate = true, .needed = 2 };
	size_t n = epoch_step(c->at[1].core, c->now, &loss, out);
	for (size_t i = 0; i < n; i++)
		first = out[i].type == EPOCH_ACT_REPORT ? out[i].report : first;
	loss.hosts = H(1) | H(3);
	epoch_step(c->at[1].core, c->now, &loss, out);
	g_assert_cmpuint(first, >, 0);
	n = epoch_step(c->at[1].core, c->now, &(struct epoch_event){ .type = EPOCH_EV_HOLDINGS, .report = first }, out);
	g_assert_cmpuint(n, ==, 0);
	n = epoch_step(c->at[1].core, c->now, &(struct epoch_event){ .type = EPOCH_EV_HOLDINGS, .report = first + 1 }, out);
	g_assert_cmpuint(n, ==, 1);
	cluster_free(c);
}

static void hold_releases_only_what_is_protected(void)
{
	struct cluster *c = cluster_new();
	tick(c, INTERVAL);
	for (uint32_t h = 1; h <= 3; h++)
		g_assert_true(view(c, h).protected_);
	cluster_free(c);
	c = g_new0(struct cluster, 1);
	c->config = (struct epoch_config){ .vm_count = VMS, .backups = 2, .interval = INTERVAL, .hold_when_degraded = true };
	for (uint32_t h = 1; h <= 3; h++)
		start_host(c, h);
	members_now(c, H(1) | H(2) | H(3), true);
	for (uint32_t h = 1; h <= 3; h++)
		step(c, h, &(struct epoch_event){ .type = EPOCH_EV_CONFIGURED, .config = &c->config });
	settle(c);
	tick(c, INTERVAL);
	g_assert_cmpuint(c->at[1].released, ==, 1);
	lose_host(c, 3);
	tick(c, INTERVAL);
	g_assert_cmpuint(c->at[1].committed, ==, 2);
	g_assert_cmpuint(c->at[1].released, ==, 1);
	start_host(c, 3);
	members_now(c, H(1) | H(2) | H(3), true);
	tick(c, INTERVAL), tick(c, INTERVAL);
	g_assert_cmpuint(c->at[1].released, ==, c->at[1].committed);
	cluster_free(c);
}

static void checkpoint_on_demand(void)
{
	struct cluster *c = cluster_new();
	step(c, 2, &(struct epoch_event){ .type = EPOCH_EV_CHECKPOINT });
	settle(c);
	g_assert_cmpuint(c->at[1].captured, ==, 0);
	step(c, 1, &(struct epoch_event){ .type = EPOCH_EV_CHECKPOINT });
	settle(c);
	g_assert_cmpuint(c->at[1].committed, ==, 1);
	cluster_free(c);
}

static void down_ends_it_and_up_starts_anew(void)
{
	struct cluster *c = cluster_new();
	tick(c, INTERVAL);
	step(c, 2, &(struct epoch_event){ .type = EPOCH_EV_DOWN });
	settle(c);
	for (uint32_t h = 1; h <= 3; h++) {
		g_assert_cmpint(view(c, h).state, ==, EPOCH_EMPTY);
		g_assert_cmpuint(c->at[h].forgets, ==, 1);
	}
	for (uint32_t h = 1; h <= 3; h++)
		step(c, h, &(struct epoch_event){ .type = EPOCH_EV_CONFIGURED, .config = &c->config });
	settle(c);
	g_assert_cmpint(view(c, 1).state, ==, EPOCH_RUNNING);
	g_assert_cmpuint(view(c, 1).committed.n, ==, 0);
	tick(c, INTERVAL);
	g_assert_cmpuint(view(c, 1).committed.n, ==, 1);
	cluster_free(c);
}

static void start_waits_for_all(void)
{
	struct cluster *c = g_new0(struct cluster, 1);
	c->config = (struct epoch_config){ .vm_count = VMS, .backups = 1, .interval = INTERVAL };
	for (uint32_t h = 1; h <= 3; h++)
		start_host(c, h);
	members_now(c, H(1) | H(2) | H(3), true);
	for (uint32_t h = 1; h <= 2; h++)
		step(c, h, &(struct epoch_event){ .type = EPOCH_EV_CONFIGURED, .config = &c->config });
	while (one_letter(c) || one_answer(c))
		if (c->at[1].invites || c->at[2].invites)
			break;   /* the invitation would make host 3 join */
	g_assert_cmpint(view(c, 1).state, ==, EPOCH_GATHER);
	settle(c);
	g_assert_cmpint(view(c, 3).state, ==, EPOCH_RUNNING);
	g_assert_cmpuint(view(c, 1).participants, ==, H(1) | H(2) | H(3));
	cluster_free(c);
}

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	g_test_add_func("/epoch/start-is-a-recovery-to-power-off", start_is_a_recovery_to_power_off);
	g_test_add_func("/epoch/start-waits-for-all", start_waits_for_all);
	g_test_add_func("/epoch/epochs-commit-and-release", epochs_commit_and_release);
	g_test_add_func("/epoch/checkpoint-on-demand", checkpoint_on_demand);
	g_test_add_func("/epoch/late-epoch-makes-none-behind-it-late", late_epoch_makes_none_behind_it_late);
	g_test_add_func("/epoch/E1-begin-waits-for-the-last-epoch", begin_waits_for_the_last_epoch);
	g_test_add_func("/epoch/E1-E6-forged-begin-is-dropped", forged_begin_is_dropped);
	g_test_add_func("/epoch/E2-not-stored-aborts", not_stored_aborts_and_the_next_leaves_the_backup_out);
	g_test_add_func("/epoch/E2-leader-gives-up", leader_gives_up_out_of_patience);
	g_test_add_func("/epoch/E3-release-needs-known-of-every-participant", release_needs_known_of_every_participant);
	g_test_add_func("/epoch/E3-hold-releases-only-what-is-protected", hold_releases_only_what_is_protected);
	g_test_add_func("/epoch/E4-report-of-the-past-is-dropped", report_of_the_past_is_dropped);
	g_test_add_func("/epoch/E4-newcomer-leaves-with-the-others", newcomer_leaves_with_those_who_hear_it_say_state);
	g_test_add_func("/epoch/E5-loss-recovers-to-the-newest-committed", loss_recovers_to_the_newest_committed);
	g_test_add_func("/epoch/E5-another-loss-while-placing", another_loss_while_placing_starts_again);
	g_test_add_func("/epoch/E5-those-who-parted-come-together", those_who_parted_come_together_at_the_same_checkpoint);
	g_test_add_func("/epoch/E6-returned-host-forgets", returned_host_of_an_old_generation_forgets);
	g_test_add_func("/epoch/E6-newcomer-is-invited", newcomer_is_invited_and_becomes_a_backup);
	g_test_add_func("/epoch/E7-no-image-is-lost-until-it-comes-back", no_image_is_lost_until_its_host_comes_back);
	g_test_add_func("/epoch/E7-trouble", trouble_recovers_in_place_and_avoids_who_cannot_place);
	g_test_add_func("/epoch/E8-without-quorum-nothing-moves", without_quorum_nothing_moves);
	g_test_add_func("/epoch/E9-witness-keeps-an-old-generation-from-starting", witness_keeps_an_old_generation_from_starting);
	g_test_add_func("/epoch/E9-witness-that-drops-recover-says-so", witness_that_drops_recover_says_so);
	g_test_add_func("/epoch/down-and-up", down_ends_it_and_up_starts_anew);
	return g_test_run();
}
