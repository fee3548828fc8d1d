/* host.c - one host: the agent's part, as src/agent/ plays it. Events go into the core, actions are carried out, answers come later. */
#include "sim.h"

#include <string.h>

#define PATIENCE (12 * MSEC)

struct epoch_view host_view(const struct host *h)
{
	struct epoch_view v;
	epoch_view(h->core, &v);
	return v;
}

/* ---- start and end ---- */

void host_start(struct host *h)
{
	TRACE(h->world, h, "starts, remembers generation %llu, seen %llu", (unsigned long long)h->remembered.n, (unsigned long long)h->seen.n);
	h->up = true;
	h->life++;
	h->core = epoch_new(h->id);
	epoch_remember(h->core, h->remembered, h->seen);
	uplink_open(h);
	ring_connectivity_changed(h->world);
}

static void drop_vms(struct host *h)
{
	for (uint32_t i = 0; i < VMS; i++) {
		uint32_t life = h->vm[i].life + 1;
		nsec_t last_cut = h->vm[i].last_cut;
		h->vm[i] = (struct sim_vm){ .life = life, .last_cut = last_cut };
	}
	h->early.count = 0;
	h->running = h->frozen = false;
	h->capture = epoch_of(0);
	h->generation = h->preparing_for = (struct generation){ 0 };
	h->configured = h->preparing = false;
	memset(h->placement, 0, sizeof h->placement);
	memset(h->marker, 0, sizeof h->marker);
}

void host_crash(struct host *h)
{
	TRACE(h->world, h, "crashes");
	h->world->count.crashes++;
	check_forgot(h, "crash");
	h->up = false;
	h->life++;
	epoch_free(h->core);
	h->core = NULL;
	h->report++;
	h->tick_at = 0;
	h->stopped_until = h->slow_until = h->full_until = h->full_for = 0;
	h->todo_count = h->done = 0;
	h->copies = (struct copy_host){ 0 };
	drop_vms(h);
	uplink_close(h);
	ring_host_gone(h);
	link_host_gone(h->world, h->id.n);
	ring_connectivity_changed(h->world);
}

/* ---- configuration ---- */

static void configured(struct world *w, void *argument)
{
	struct note *n = argument;
	struct host *h = n->host;
	if (note_is_void(n) || !h->configured || !h->preparing)
		return;
	h->preparing = false;
	host_step(h, &(struct epoch_event){ .type = EPOCH_EV_CONFIGURED, .generation = h->preparing_for, .config = &w->config });
}

static void on_config(struct host *h, const struct message *m)
{
	if (h->configured)
		return;
	h->configured = h->preparing = true;
	h->preparing_for = m->generation;
	sim_at(h, sim_between(h->world, 20 * USEC, 3 * MSEC), configured, note_new(h));
}

static void say_config(struct host *h, struct generation g)
{
	struct message m;
	memset(&m, 0, offsetof(struct message, placement));
	m.type = MESSAGE_CONFIG;
	m.generation = g;
	ring_mcast(h, &m);
}

void host_up(struct host *h) { say_config(h, (struct generation){ 0 }); }

static void say_hello(struct host *h, const struct epoch_action *act)
{
	struct message m;
	memset(&m, 0, offsetof(struct message, placement));
	m.type = MESSAGE_HELLO;
	m.generation = act->generation;
	m.hello.state = act->joined ? HELLO_JOINED : HELLO_EMPTY;
	ring_mcast(h, &m);
}

/* ---- a checkpoint ---- */

void host_check_record(struct host *h)
{
	if (!h->marked || h->recorded || h->failed || !h->running)
		return;
	for (uint32_t x = 1; x <= HOSTS; x++)
		if (host_in(h->others, (struct host_id){ x }) && epoch_cmp(h->marker[x], h->capture) < 0)
			return;
	h->recorded = true;
	for (uint32_t i = 0; i < h->world->plan.vms; i++) {
		struct sim_vm *v = &h->vm[i];
		if (!v->here)
			continue;
		v->cut->record_count = v->record.count;
		v->cut->record = sim_alloc(v->record.count * sizeof *v->cut->record);
		if (v->record.count)
			memcpy(v->cut->record, v->record.at, v->record.count * sizeof *v->cut->record);
		v->recorded = true;
		check_captured(h, i, v->cut);
	}
	copies_send(h);
}

static void all_cut(struct host *h)
{
	h->marked = true;
	for (uint32_t x = 1; x <= HOSTS; x++)
		if (host_in(h->others, (struct host_id){ x }))
			link_marker(h, (struct host_id){ x }, h->generation, h->capture);
	host_check_record(h);
}

/* The port moves on also if the capture fails, or the epoch was given up meanwhile. */
static void cut(struct world *w, void *argument)
{
	struct note *n = argument;
	struct host *h = n->host;
	if (note_is_void(n) || h->generation.n != n->m || !h->running)
		return;
	bool current = h->capture.n == n->n;
	if (current)
		copies_capture(h, n->vm);
	guest_cut(h, n->vm, epoch_of(n->n));
	if (!current || h->failed)
		return;
	if (sim_chance(w, w->plan.fail_capture)) {
		h->failed = true;
		host_step(h, &(struct epoch_event){ .type = EPOCH_EV_NOT_STORED, .epoch = h->capture, .vm = { n->vm } });
	} else if (--h->to_cut == 0) {
		all_cut(h);
	}
}

static void begin_capture(struct host *h, const struct epoch_action *act)
{
	struct world *w = h->world;
	h->capture = act->epoch;
	h->failed = h->marked = h->recorded = false;
	h->to_cut = 0;
	h->others = 0;
	h->generation = act->generation;
	h->running = true;   /* a newcomer has no VMs, and is never told to run */
	copies_generation(h, act->generation);
	memcpy(h->placement, act->placement, w->plan.vms * sizeof h->placement[0]);
	for (uint32_t i = 0; i < w->plan.vms; i++) {
		h->others |= host_bit(act->placement[i].host) & ~host_bit(h->id);
		h->to_cut += h->vm[i].here;
	}
	for (uint32_t i = 0; i < w->plan.vms; i++) {
		struct sim_vm *v = &h->vm[i];
		if (!v->here)
			continue;
		struct note *n = note_new(h);
		n->vm = i;
		n->n = act->epoch.n;
		n->m = act->generation.n;
		nsec_t at = w->now + sim_between(w, 20 * USEC, sim_chance(w, w->plan.slow) ? 15 * MSEC : 600 * USEC);
		v->last_cut = at > v->last_cut ? at : v->last_cut + 1;
		sim_at(h, v->last_cut - w->now, cut, n);
	}
}

/* ---- a recovery ---- */

static void freeze(struct host *h)
{
	h->frozen = true;
	h->running = false;
	h->failed = true;
	gate_freeze(h->gate);
	for (uint32_t i = 0; i < VMS; i++)
		h->vm[i].running = false;
}

static void tell_holdings(struct world *w, void *argument)
{
	struct note *n = argument;
	struct host *h = n->host;
	struct message_holding held[VMS];
	if (note_is_void(n) || h->report != n->n)
		return;
	uint32_t count = copies_holdings(h, held);
	if (generation_cmp(h->generation, h->preparing_for) < 0)   /* a newcomer, as in agent/recovery.c */
		copies_generation(h, h->preparing_for);
	for (uint32_t i = 0; i < count; i++)
		TRACE(w, h, "  holds vm %u: image %llu staged %llu complete %llu%s", held[i].vm.n, (unsigned long long)held[i].image.n,
		      (unsigned long long)held[i].staged.n, (unsigned long long)held[i].complete.n, held[i].live ? ", live" : "");
	host_step(h, &(struct epoch_event){ .type = EPOCH_EV_HOLDINGS, .holdings = held, .count = count });
}

static void report(struct host *h)
{
	struct note *n = note_new(h);
	n->n = ++h->report;
	sim_at(h, sim_between(h->world, 10 * USEC, 500 * USEC), tell_holdings, n);
}

static void placed(struct world *w, void *argument)
{
	struct note *n = argument;
	struct host *h = n->host;
	if (note_is_void(n) || h->generation.n != n->n || h->running)
		return;
	if (sim_chance(w, w->plan.fail_place) && !w->quiet)
		host_trouble(h, (uint32_t)n->m, 2);
	else
		host_step(h, &(struct epoch_event){ .type = EPOCH_EV_PLACED, .generation = { n->n } });
}

static void place(struct host *h, const struct epoch_action *act)
{
	struct world *w = h->world;
	struct note *n = note_new(h);
	check_rollback(h, act);
	h->generation = act->generation;
	h->frozen = false;
	h->running = false;
	h->failed = true;
	h->capture = epoch_of(0);
	h->early.count = 0;
	memset(h->marker, 0, sizeof h->marker);
	uplink_rollback(h, act->epoch);
	copies_generation(h, act->generation);
	memcpy(h->placement, act->placement, w->plan.vms * sizeof h->placement[0]);
	copies_recover(h, act->epoch, act->placement);
	for (uint32_t i = 0; i < w->plan.vms; i++)
		if (h->vm[i].here) {
			check_placed(h, act, i, h->vm[i].shadow.copy);
			n->m = i;
		}
	n->n = act->generation.n;
	sim_at(h, sim_between(w, 50 * USEC, sim_chance(w, w->plan.slow) ? 12 * MSEC : 2 * MSEC), placed, n);
}

/* The frames in flight of checkpoint c come first, then what has arrived of this generation. */
static void run(struct host *h, const struct epoch_action *act)
{
	check_resume(h, act);
	h->running = true;
	for (uint32_t i = 0; i < h->world->plan.vms; i++) {
		struct sim_vm *v = &h->vm[i];
		for (uint32_t k = 0; v->here && v->shadow.copy && k < v->shadow.copy->record_count; k++) {
			check_receive(h, i, v->shadow.copy->record[k]);
			v->state.received[v->shadow.copy->record[k]->from] = v->shadow.copy->record[k];
		}
	}
	struct list early = h->early;
	h->early = (struct list){ 0 };
	for (uint32_t i = 0; i < early.count; i++)
		guest_receive(h, early.at[i]);
	uplink_run(h);
	for (uint32_t i = 0; i < h->world->plan.vms; i++)
		if (h->vm[i].here)
			guest_run(h, i);
}

static void forget(struct host *h)
{
	h->world->count.forgets++;
	check_forgot(h, "forgets");
	copies_forget(h);
	drop_vms(h);
	uplink_close(h);
	uplink_open(h);
}

/* ---- the core ---- */

static void carry_out(struct host *h, const struct epoch_action *act)
{
	switch (act->type) {
	case EPOCH_ACT_SEND:
		if (act->message->type == MESSAGE_KNOWN && act->message->epoch.n)
			check_known(h, act->message->epoch, act->hosts);
		ring_mcast(h, act->message);
		break;
	case EPOCH_ACT_HELLO: say_hello(h, act); break;
	case EPOCH_ACT_INVITE: say_config(h, act->generation); break;
	case EPOCH_ACT_CAPTURE: begin_capture(h, act); break;
	case EPOCH_ACT_COMMIT: check_commit(h, act->epoch); copies_commit(h, act->epoch); break;
	case EPOCH_ACT_RELEASE: guest_release(h, act->epoch); break;
	case EPOCH_ACT_DISCARD:
		h->failed = true;
		copies_discard(h, act->epoch);
		break;
	case EPOCH_ACT_FREEZE: freeze(h); break;
	case EPOCH_ACT_REPORT: report(h); break;
	case EPOCH_ACT_PLACE: place(h, act); break;
	case EPOCH_ACT_RUN: run(h, act); break;
	case EPOCH_ACT_FORGET: forget(h); break;
	case EPOCH_ACT_LOST: h->world->count.lost++; break;
	case EPOCH_ACT_REMEMBER: h->remembered = act->generation; h->seen = act->seen; break;
	}
}

static void tick(struct world *w, void *argument)
{
	struct note *n = argument;
	if (note_is_void(n) || n->host->tick_at != (nsec_t)n->n)
		return;
	if (w->now < n->host->slow_until) {
		sim_at(n->host, n->host->slow_until - w->now, tick, n);
		return;
	}
	n->host->tick_at = 0;
	host_step(n->host, &(struct epoch_event){ .type = EPOCH_EV_TICK });
}

static void schedule_tick(struct host *h)
{
	struct world *w = h->world;
	nsec_t at = epoch_deadline(h->core);
	if (at == INT64_MAX || at == h->tick_at)
		return;
	struct note *n = note_new(h);
	h->tick_at = at;
	n->n = (uint64_t)at;
	sim_at(h, at > w->now ? at - w->now : 10 * USEC, tick, n);
}

static const char *action_name(enum epoch_action_type t)
{
	static const char *const names[] = { "SEND", "HELLO", "INVITE", "CAPTURE", "COMMIT", "RELEASE", "DISCARD", "FREEZE", "REPORT", "PLACE",
		                             "RUN", "FORGET", "LOST", "REMEMBER" };
	return names[t];
}

static void trace_action(const struct host *h, const struct epoch_action *a)
{
	if (a->type == EPOCH_ACT_SEND)
		sim_trace(h->world, h, "  sends %s generation %llu epoch %lld hosts %#llx", message_name(a->message->type),
		          (unsigned long long)a->message->generation.n, (long long)a->message->epoch.n, (unsigned long long)a->message->hosts >> 1);
	else
		sim_trace(h->world, h, "  %s generation %llu epoch %llu", action_name(a->type), (unsigned long long)a->generation.n,
		          (unsigned long long)a->epoch.n);
}

static void go_on(struct world *w, void *argument);

/* The actions of the last step that are left; stopped in their midst, it goes on when it goes on. */
static void carry_on(struct host *h)
{
	uint32_t life = h->life;
	while (h->done < h->todo_count) {
		if (is_stopped(h)) {
			h->world->met.split++;
			sim_at(h, 0, go_on, note_new(h));
			return;
		}
		const struct epoch_action *act = &h->todo[h->done++];
		faults_on_action(h, act, true);
		if (h->life != life)
			return;
		if (sim_tracing)
			trace_action(h, act);
		carry_out(h, act);
		faults_on_action(h, act, false);
		if (h->life != life)
			return;
	}
	schedule_tick(h);
}

static void go_on(struct world *w, void *argument)
{
	struct note *n = argument;
	(void)w;
	if (!note_is_void(n))
		carry_on(n->host);
}

void host_step(struct host *h, const struct epoch_event *event)
{
	uint32_t life = h->life;
	if (h->done < h->todo_count)
		carry_on(h);
	if (h->life != life)
		return;
	if (h->done < h->todo_count)
		sim_violation(h->world, "the simulator: host %u takes a step while it is stopped", h->id.n);
	h->done = 0;
	h->todo_count = epoch_step(h->core, h->world->now, event, h->todo);
	check_step(h, event, h->todo, h->todo_count);
	carry_on(h);
}

void host_deliver(struct host *h, struct host_id from, const struct message *m)
{
	TRACE(h->world, h, "delivers %s of host %u, generation %llu epoch %lld hosts %#llx", message_name(m->type), from.n,
	      (unsigned long long)m->generation.n, (long long)m->epoch.n, (unsigned long long)m->hosts >> 1);
	uint32_t life = h->life;
	bool greeting = m->type == MESSAGE_HELLO || m->type == MESSAGE_STATE;
	if (greeting && h->world->now - h->told_at < 300 * USEC && h->configured && from.n != h->id.n && sim_chance(h->world, h->world->plan.deaf)) {
		TRACE(h->world, h, "has not heard it");
		return;
	}
	host_step(h, &(struct epoch_event){ .type = EPOCH_EV_MESSAGE, .from = from, .message = m });
	if (m->type == MESSAGE_CONFIG && h->life == life)
		on_config(h, m);
}

void host_trouble(struct host *h, uint32_t vm, uint8_t reason)
{
	TRACE(h->world, h, "has trouble with vm %u", vm);
	h->world->count.troubles++;
	host_step(h, &(struct epoch_event){ .type = EPOCH_EV_TROUBLE, .vm = { vm }, .reason = reason });
}
