/* guest.c - VMs, their ports and the uplink.
 *
 * A guest does something at random every now and then: it sends a frame to another VM or to the outside. Its state is what it has sent and received. A port gives
 * frames their colour and keeps the cut rule (core/cut.c), as net/ does. The uplink is net/uplink.c without the TAP device: core/gate.c decides, and beside it a
 * dumb list of all that the gate has taken says what it ought to do. */
#include "sim.h"

#include <string.h>

#define FRAME_BYTES 100u

static struct frame *frame_new(struct frame *previous, uint32_t from, uint32_t to)
{
	struct frame *f = sim_alloc(sizeof *f);
	f->previous = previous;
	f->number = previous ? previous->number + 1 : 1;
	f->from = (uint8_t)from;
	f->to = (uint8_t)to;
	return f;
}

/* ---- the uplink ---- */

static void drop(void *frame, void *user) { (void)frame, (void)user; }

void uplink_open(struct host *h)
{
	size_t room = h->world->plan.tight ? 6 * FRAME_BYTES : SIZE_MAX / 2;
	h->gate = gate_new(&(struct gate_options){ .held_bytes = room, .kept_bytes = room, .drop = drop });
	h->out.count = 0;
}

void uplink_close(struct host *h)
{
	gate_free(h->gate);
	h->gate = NULL;
	h->out.count = 0;
}

/* The frame that the gate lets go must be its VM's first. */
static void left(struct host *h, struct frame *f)
{
	for (uint32_t i = 0; i < h->out.count; i++) {
		struct out_frame *o = h->out.at[i];
		if (o->frame != f && o->frame->from != f->from)
			continue;
		if (o->frame != f)
			sim_violation(h->world, "U2: frame %u of vm %u leaves before frame %u", f->number, f->from, o->frame->number);
		memmove(h->out.at + i, h->out.at + i + 1, (--h->out.count - i) * sizeof *h->out.at);
		check_release(h, f);
		return;
	}
	sim_violation(h->world, "U3: frame %u of vm %u leaves, which the gate does not have", f->number, f->from);
}

static void check_bounds(const struct host *h)
{
	struct gate_view view;
	gate_view(h->gate, &view);
	if (h->world->plan.tight && (view.held_bytes > 6 * FRAME_BYTES || view.kept_bytes > 6 * FRAME_BYTES))
		sim_violation(h->world, "U5: %zu bytes are held and %zu kept", view.held_bytes, view.kept_bytes);
	if (view.held_frames > h->out.count)
		sim_violation(h->world, "U3: the gate holds %zu frames; %u are left", view.held_frames, h->out.count);
	for (uint32_t i = 0; i < h->out.count; i++) {
		const struct out_frame *o = h->out.at[i];
		if (epoch_cmp(o->epoch, view.released) <= 0 && !view.waiting)
			sim_violation(h->world, "U1: frame %u of vm %u is of epoch %llu; %llu is released, and it has not left", o->frame->number,
			              o->frame->from, (unsigned long long)o->epoch.n, (unsigned long long)view.released.n);
	}
}

void uplink_flush(struct host *h)
{
	struct frame *f;
	while (h->world->now >= h->uplink_full_until && (f = gate_next(h->gate))) {
		gate_sent(h->gate);
		left(h, f);
	}
	check_bounds(h);
}

static void uplink_send(struct host *h, struct frame *f, struct epoch_id epoch)
{
	if (!gate_send(h->gate, f, FRAME_BYTES, epoch))
		return;
	struct out_frame *o = sim_alloc(sizeof *o);
	*o = (struct out_frame){ f, epoch };
	list_add(&h->out, o);
	uplink_flush(h);
}

void guest_release(struct host *h, struct epoch_id r)
{
	check_release_epoch(h, r);
	gate_release(h->gate, r);
	if (h->running)
		uplink_flush(h);
}

void uplink_rollback(struct host *h, struct epoch_id c)
{
	uint32_t kept = 0;
	gate_rollback(h->gate, c);
	for (uint32_t i = 0; i < h->out.count; i++)
		if (epoch_cmp(((struct out_frame *)h->out.at[i])->epoch, c) <= 0)
			h->out.at[kept++] = h->out.at[i];
	h->out.count = kept;
}

/* A frame from outside, for the first time or again. */
static void come_in(struct host *h, struct incoming *f)
{
	struct sim_vm *v = &h->vm[f->to];
	struct epoch_id newest = { 0 }, oldest = { UINT64_MAX };
	for (uint32_t i = 0; i < h->world->plan.vms; i++) {
		if (!h->vm[i].here)
			continue;
		newest = epoch_cmp(h->vm[i].port, newest) > 0 ? h->vm[i].port : newest;
		oldest = epoch_cmp(h->vm[i].port, oldest) < 0 ? h->vm[i].port : oldest;
	}
	f->split = f->split || epoch_cmp(newest, oldest) != 0;
	gate_keep(h->gate, f, FRAME_BYTES, newest);
	if (!v->here || !h->running)
		return;
	check_hear(h, f->to, f);
	struct heard *n = sim_alloc(sizeof *n);
	*n = (struct heard){ f, v->state.heard };
	v->state.heard = n;
}

void uplink_run(struct host *h)
{
	void *f;
	gate_run(h->gate);
	while ((f = gate_again(h->gate)))
		come_in(h, f);
	for (uint32_t i = 0; i < h->world->plan.vms; i++)
		if (h->vm[i].here && !h->world->plan.tight)
			check_heard(h, i);
	uplink_flush(h);
}

/* It waits at the uplink while the agent is stopped. */
static void comes_from_outside(struct world *w, void *argument)
{
	struct note *n = argument;
	struct host *h = n->host;
	if (note_is_void(n) || !h->vm[n->vm].here)
		return;
	struct incoming *f = sim_alloc(sizeof *f);
	*f = (struct incoming){ .number = ++w->incoming[n->vm], .to = (uint8_t)n->vm };
	list_add(&h->vm[n->vm].owed, f);
	come_in(h, f);
}

static void outside(struct world *w, void *argument)
{
	uint32_t vm = (uint32_t)sim_random(w, w->plan.vms);
	(void)argument;
	for (uint32_t x = 1; x <= w->plan.hosts; x++) {
		struct host *h = &w->host[x];
		if (!h->up || !h->vm[vm].here)
			continue;
		struct note *n = note_new(h);
		n->vm = vm;
		sim_at(h, 0, comes_from_outside, n);
		break;
	}
	sim_after(w, sim_between(w, 100 * USEC, 2 * MSEC), outside, NULL);
}

void uplink_outside(struct world *w) { outside(w, NULL); }

/* ---- the guest ---- */

static void emit(struct host *h, uint32_t vm, uint32_t to)
{
	struct sim_vm *v = &h->vm[vm];
	struct frame *f = v->state.sent[to] = frame_new(v->state.sent[to], vm, to);
	h->world->count.frames++;
	if (to == VMS) {
		uplink_send(h, f, v->port);
		return;
	}
	struct host_id there = h->placement[to].host;
	if (there.n == h->id.n) {
		struct tagged *t = sim_alloc(sizeof *t);
		*t = (struct tagged){ f, h->generation, v->port };
		guest_receive(h, t);
	} else {
		link_send(h, there, f, h->generation, v->port);
	}
}

static void live(struct world *w, void *argument)
{
	struct note *n = argument;
	struct sim_vm *v = &n->host->vm[n->vm];
	if (note_is_void(n) || v->life != n->n || !v->running)
		return;
	uint64_t dice = sim_random(w, 8);
	uint32_t to = (uint32_t)sim_random(w, w->plan.vms);
	if (dice < 3)
		emit(n->host, n->vm, VMS);
	else if (to != n->vm)
		emit(n->host, n->vm, to);
	sim_at(n->host, sim_between(w, 100 * USEC, 1200 * USEC), live, n);
}

void guest_run(struct host *h, uint32_t vm)
{
	struct note *n = note_new(h);
	h->vm[vm].running = true;
	n->vm = vm;
	n->n = ++h->vm[vm].life;
	sim_at(h, sim_between(h->world, 20 * USEC, 400 * USEC), live, n);
}

static void give(struct host *h, uint32_t vm, struct frame *f)
{
	check_receive(h, vm, f);
	h->vm[vm].state.received[f->from] = f;
}

static void receive_at_port(struct host *h, uint32_t vm, struct tagged *t)
{
	struct sim_vm *v = &h->vm[vm];
	switch (cut_rule(t->generation, t->colour, h->generation, v->port)) {
	case CUT_DELIVER: give(h, vm, t->frame); break;
	case CUT_DELIVER_AND_RECORD:
		list_add(&v->record, t->frame);
		give(h, vm, t->frame);
		break;
	case CUT_HOLD: list_add(&v->held, t); break;
	case CUT_DROP: break;
	}
}

/* A frame of a generation that this host is in place for, but has not been told to run: it waits. */
void guest_receive(struct host *h, const struct tagged *t)
{
	uint32_t vm = t->frame->to;
	if (h->frozen || !h->vm[vm].here)
		return;
	if (!h->running)
		list_add(&h->early, (void *)t);
	else
		receive_at_port(h, vm, (struct tagged *)t);
}

void guest_cut(struct host *h, uint32_t vm, struct epoch_id r)
{
	struct sim_vm *v = &h->vm[vm];
	v->port = epoch_next(r);
	v->record.count = 0;
	struct list held = v->held;
	v->held = (struct list){ 0 };
	for (uint32_t i = 0; i < held.count; i++)
		receive_at_port(h, vm, held.at[i]);
}
