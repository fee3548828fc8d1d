/* guest.c - VMs, their ports and the uplink.
 *
 * A guest does something at random every now and then: it sends a frame to another VM or to the outside. Its state is what it has sent and received. A port gives
 * frames their colour and keeps the cut rule (core/cut.c), as net/ does; the uplink holds by epoch. */
#include "sim.h"

#include <string.h>

static struct frame *frame_new(struct frame *previous, uint32_t from, uint32_t to)
{
	struct frame *f = sim_alloc(sizeof *f);
	f->previous = previous;
	f->number = previous ? previous->number + 1 : 1;
	f->from = (uint8_t)from;
	f->to = (uint8_t)to;
	return f;
}

static void emit(struct host *h, uint32_t vm, uint32_t to)
{
	struct sim_vm *v = &h->vm[vm];
	struct frame *f = v->state.sent[to] = frame_new(v->state.sent[to], vm, to);
	h->world->count.frames++;
	if (to == VMS) {
		struct out_frame *o = sim_alloc(sizeof *o);
		*o = (struct out_frame){ f, v->port };
		list_add(&h->uplink, o);
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
	sim_after(w, sim_between(w, 100 * USEC, 1200 * USEC), live, n);
}

void guest_run(struct host *h, uint32_t vm)
{
	struct note *n = note_new(h);
	h->vm[vm].running = true;
	n->vm = vm;
	n->n = ++h->vm[vm].life;
	sim_after(h->world, sim_between(h->world, 20 * USEC, 400 * USEC), live, n);
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

void guest_release(struct host *h, struct epoch_id r)
{
	uint32_t kept = 0;
	h->released = r;
	for (uint32_t i = 0; i < h->uplink.count; i++) {
		struct out_frame *o = h->uplink.at[i];
		if (epoch_cmp(o->epoch, r) > 0)
			h->uplink.at[kept++] = o;
		else
			check_release(h, o->frame);
	}
	h->uplink.count = kept;
}
