/* copies.c - checkpoints of VMs: captured, streamed to backups, staged, applied. The same rules as store/, without the bytes.
 *
 * CP1 A stage is taken only in its generation, relative to the epoch that the image is at; a stream that is ahead of this host waits in its socket.
 * CP2 A new backup is filled over some epochs; complete is the first epoch at which it has everything.
 * CP3 An image is dropped when an epoch is applied that this host was no backup in, not before. */
#include "sim.h"

#include <string.h>

static bool is_backup(const struct host *h, uint32_t vm) { return host_in(h->placement[vm].backups, h->id); }

void copies_capture(struct host *h, uint32_t vm)
{
	struct sim_vm *v = &h->vm[vm];
	struct copy *c = sim_alloc(sizeof *c);
	c->state = v->state;
	c->generation = h->generation;
	c->epoch = h->capture;
	v->cut = c;
	v->recorded = false;
}

/* ---- acknowledgements ---- */

static void check_stored(struct host *h)
{
	struct epoch_stored stored[VMS];
	uint32_t n = 0;
	for (uint32_t i = 0; i < h->world->plan.vms; i++) {
		struct sim_vm *v = &h->vm[i];
		if (!v->here)
			continue;
		if (!v->recorded || v->acked != v->backups)
			return;
		host_mask complete = 0;
		for (uint32_t b = 1; b <= HOSTS; b++)
			if (host_in(v->backups, (struct host_id){ b }) && v->left_to_fill[b] <= 1)
				complete |= host_bit((struct host_id){ b });
		stored[n++] = (struct epoch_stored){ { i }, complete };
	}
	h->failed = true;   /* answered */
	host_step(h, &(struct epoch_event){ .type = EPOCH_EV_STORED, .epoch = h->capture, .stored = stored, .count = n });
}

static bool is_current(const struct note *n)
{
	return !note_is_void(n) && n->host->capture.n == n->n && !n->host->failed && n->host->running;
}

static void acknowledged(struct world *w, void *argument)
{
	struct note *n = argument;
	(void)w;
	if (!is_current(n))
		return;
	n->host->vm[n->vm].acked |= (host_mask)n->m;
	check_stored(n->host);
}

static void not_stored(struct host *h, uint32_t vm, host_mask failed)
{
	h->failed = true;
	h->world->count.aborts++;
	h->world->suspected |= failed != 0;
	host_step(h, &(struct epoch_event){ .type = EPOCH_EV_NOT_STORED, .epoch = h->capture, .vm = { vm }, .hosts = failed });
}

static void refused(struct world *w, void *argument)
{
	struct note *n = argument;
	(void)w;
	if (is_current(n))
		not_stored(n->host, n->vm, (host_mask)n->m);
}

static void timed_out(struct world *w, void *argument)
{
	struct note *n = argument;
	(void)w;
	if (!is_current(n))
		return;
	for (uint32_t i = 0; i < w->plan.vms; i++) {
		struct sim_vm *v = &n->host->vm[i];
		if (v->here && v->recorded && v->acked != v->backups) {
			not_stored(n->host, i, v->backups & ~v->acked);
			return;
		}
	}
}

static void answer(struct host *backup, const struct stream *s, void (*what)(struct world *, void *))
{
	struct world *w = backup->world;
	if (!s->from->up || s->from->life != s->from_life || !link_reaches(w, backup->id, s->from->id))
		return;
	struct note *n = note_new(s->from);
	n->vm = s->vm;
	n->n = s->stage.epoch.n;
	n->m = host_bit(backup->id);
	sim_after(w, sim_between(w, 20 * USEC, 200 * USEC), what, n);
}

/* ---- a backup ---- */

static void drop_image(struct sim_vm *v) { v->image = (struct image){ 0 }; }

/* CP1 */
static void look_at(struct host *h, uint32_t vm)
{
	struct sim_vm *v = &h->vm[vm];
	struct stream *s = v->waiting;
	if (!s || generation_cmp(s->generation, h->sink_generation) > 0)
		return;
	if (generation_cmp(s->generation, h->sink_generation) == 0 && v->stage.there && v->stage.epoch.n != s->stage.epoch.n)
		return;
	v->waiting = NULL;
	if (epoch_cmp(s->stage.epoch, h->capture) < 0)
		return;   /* of an epoch that is over: its sender does not wait for it any more */
	bool fits = s->stage.fresh || (v->image.there && v->image.epoch.n == s->stage.base.n);
	if (generation_cmp(s->generation, h->sink_generation) < 0 || !h->configured || v->here || !fits || h->frozen ||
	    sim_chance(h->world, h->world->plan.refuse)) {
		TRACE(h->world, h, "refuses epoch %llu of vm %u", (unsigned long long)s->stage.epoch.n, vm);
		answer(h, s, refused);
		return;
	}
	if (s->stage.fresh)
		drop_image(v);
	TRACE(h->world, h, "takes epoch %llu of vm %u%s", (unsigned long long)s->stage.epoch.n, vm, s->stage.fresh ? ", from the start" : "");
	v->stage = s->stage;
	v->stage.there = true;
	if (!sim_chance(h->world, h->world->plan.lose_ack))
		answer(h, s, acknowledged);
}

void copies_look_again(struct host *h)
{
	for (uint32_t i = 0; i < h->world->plan.vms; i++)
		look_at(h, i);
}

static void arrive(struct world *w, void *argument)
{
	struct note *n = argument;
	struct stream *s = n->p;
	if (note_is_void(n) || !link_reaches(w, s->from->id, n->host->id))
		return;
	n->host->vm[s->vm].waiting = s;
	look_at(n->host, s->vm);
}

/* ---- a VM's own host ---- */

static void send_one(struct host *h, uint32_t vm, uint32_t backup)
{
	struct world *w = h->world;
	struct sim_vm *v = &h->vm[vm];
	struct stream *s = sim_alloc(sizeof *s);
	struct note *n = note_new(&w->host[backup]);
	bool synced = host_in(v->synced, (struct host_id){ backup });
	if (!synced)
		v->left_to_fill[backup] = (uint8_t)(1 + sim_random(w, 3));
	s->from = h;
	s->from_life = h->life;
	s->vm = vm;
	s->generation = h->generation;
	s->stage = (struct stage){ .copy = v->cut, .epoch = h->capture, .base = v->shadow.epoch, .fresh = !synced, .fills = v->left_to_fill[backup] <= 1 };
	n->p = s;
	sim_after(w, sim_between(w, 100 * USEC, sim_chance(w, w->plan.slow) ? 9 * MSEC : 1500 * USEC), arrive, n);
}

void copies_send(struct host *h)
{
	struct world *w = h->world;
	for (uint32_t i = 0; i < w->plan.vms; i++) {
		struct sim_vm *v = &h->vm[i];
		if (!v->here)
			continue;
		v->backups = h->placement[i].backups;
		v->acked = 0;
		for (uint32_t b = 1; b <= w->plan.hosts; b++)
			if (host_in(v->backups, (struct host_id){ b }) && w->host[b].up)
				send_one(h, i, b);
	}
	struct note *n = note_new(h);
	n->n = h->capture.n;
	sim_after(w, sim_between(w, 4 * MSEC, 7 * MSEC), timed_out, n);
	n = note_new(h);
	n->n = h->capture.n;
	sim_after(w, 1, acknowledged, n);   /* VMs without a backup */
}

/* ---- commit, discard ---- */

static void commit_here(struct host *h, uint32_t vm, struct epoch_id r)
{
	struct sim_vm *v = &h->vm[vm];
	if (!v->cut || v->cut->epoch.n != r.n || !v->recorded)
		sim_violation(h->world, "S1: host %u applies epoch %llu of vm %u, which it has not captured", h->id.n, (unsigned long long)r.n, vm);
	v->shadow = (struct image){ v->cut, r, v->shadow.complete, true };
	v->cut = NULL;
	v->synced = v->backups;
	for (uint32_t b = 1; b <= HOSTS; b++)
		if (v->left_to_fill[b])
			v->left_to_fill[b]--;
}

static void apply_stage(struct host *h, uint32_t vm)
{
	struct sim_vm *v = &h->vm[vm];
	const struct stage *s = &v->stage;
	if (!s->fresh && (!v->image.there || v->image.epoch.n != s->base.n))
		sim_violation(h->world, "S1: host %u applies epoch %llu of vm %u, relative to %llu, to an image at %llu", h->id.n,
		              (unsigned long long)s->epoch.n, vm, (unsigned long long)s->base.n, (unsigned long long)v->image.epoch.n);
	struct epoch_id complete = !s->fresh && v->image.complete.n ? v->image.complete : s->fills ? s->epoch : epoch_of(0);
	v->image = (struct image){ s->copy, s->epoch, complete, true };
	v->stage.there = false;
}

void copies_commit(struct host *h, struct epoch_id r)
{
	for (uint32_t i = 0; i < h->world->plan.vms; i++) {
		struct sim_vm *v = &h->vm[i];
		if (v->here)
			commit_here(h, i, r);
		else if (v->stage.there && v->stage.epoch.n == r.n)
			apply_stage(h, i);
		else if (v->stage.there && epoch_cmp(v->stage.epoch, r) > 0)
			continue;   /* a new backup from the next epoch on, whose stream was faster */
		else if (is_backup(h, i))
			sim_violation(h->world, "P5: host %u is a backup of vm %u in committed epoch %llu and has no stage of it", h->id.n, i,
			              (unsigned long long)r.n);
		else
			drop_image(v);   /* CP3 */
		v->stage.there = false;
	}
	copies_look_again(h);
}

void copies_discard(struct host *h, struct epoch_id r)
{
	for (uint32_t i = 0; i < h->world->plan.vms; i++) {
		struct sim_vm *v = &h->vm[i];
		if (v->stage.epoch.n == r.n)
			v->stage.there = false;
		if (v->cut && v->cut->epoch.n == r.n)
			v->cut = NULL;
	}
	copies_look_again(h);
}

/* ---- recovery ---- */

uint32_t copies_holdings(const struct host *h, struct message_holding *out)
{
	uint32_t n = 0;
	for (uint32_t i = 0; i < h->world->plan.vms; i++) {
		const struct sim_vm *v = &h->vm[i];
		struct message_holding held = { .vm = { i }, .live = v->here };
		if (v->here) {
			held.image = v->shadow.epoch;
			held.staged = v->cut && v->recorded ? v->cut->epoch : epoch_of(0);
			held.complete = v->shadow.complete;
		} else {
			held.image = v->image.there ? v->image.epoch : epoch_of(0);
			held.staged = v->stage.there ? v->stage.epoch : epoch_of(0);
			held.complete = v->image.there && v->image.complete.n ? v->image.complete :
			                v->stage.there && v->stage.fills      ? v->stage.epoch : epoch_of(0);
		}
		if (held.live || held.image.n || held.staged.n)
			out[n++] = held;
	}
	return n;
}

/* Bring what is here to exactly c, in v->image; what cannot be brought there is dropped. */
static void bring_to(struct host *h, uint32_t vm, struct epoch_id c)
{
	struct sim_vm *v = &h->vm[vm];
	if (v->here) {
		if (v->cut && v->recorded && v->cut->epoch.n == c.n)
			v->shadow = (struct image){ v->cut, c, v->shadow.complete, true };
		v->image = v->shadow;
		v->here = false;
	} else if (v->stage.there && v->stage.epoch.n == c.n) {
		apply_stage(h, vm);
	}
	v->stage.there = false;
	v->waiting = NULL;
	v->cut = NULL;
	v->shadow = (struct image){ 0 };
	if (v->image.epoch.n != c.n || v->image.complete.n == 0 || epoch_cmp(v->image.complete, c) > 0 || c.n == 0)
		drop_image(v);
}

void copies_recover(struct host *h, struct epoch_id c, const struct message_placement *placement)
{
	struct world *w = h->world;
	for (uint32_t i = 0; i < w->plan.vms; i++) {
		struct sim_vm *v = &h->vm[i];
		bring_to(h, i, c);
		v->held.count = v->record.count = 0;
		v->running = false;
		if (placement[i].host.n != h->id.n)
			continue;
		if (c.n && !v->image.there)
			sim_violation(w, "E7: vm %u is placed on host %u, which does not hold it at %llu", i, h->id.n, (unsigned long long)c.n);
		v->here = true;
		v->shadow = c.n ? v->image : (struct image){ NULL, c, epoch_of(1), true };
		drop_image(v);
		v->state = c.n ? v->shadow.copy->state : (struct guest_state){ 0 };
		v->port = epoch_next(c);
		v->synced = placement[i].backups;
		memset(v->left_to_fill, 0, sizeof v->left_to_fill);
	}
}
