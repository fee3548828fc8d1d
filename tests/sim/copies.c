/* copies.c - checkpoints of VMs: captured, streamed to backups, staged, applied. The sink of store/ without bytes and threads: each decision about a copy is
 * made by core/copy.c, the agent's own object; the content of an image is a pointer to the checkpoint that it ought to be, and whether it really is.
 *
 * CP1 A connection is FIFO and lives until its backup closes it, or its source gives it up; what was sent before may still arrive then, as with TCP.
 * CP2 A new backup is filled over some epochs; it is whole with the last of them.
 * CP3 A stage is a difference: it makes garbage of any image but the one that it is relative to. One that did not come in whole is garbage itself.
 * CP4 Commits and discards are posts, carried out some time later, before anything else that is done with the copy (K1 of store/).
 * CP5 Acknowledgements of a connection come in order; one may come when nobody waits for it any more.
 * CP6 A backup may be without room for a time: what it begins it refuses, and what is coming in it refuses in its midst. */
#include "sim.h"

#include <string.h>

static bool is_backup(const struct host *h, uint32_t vm) { return host_in(h->placement[vm].backups, h->id); }

void copies_capture(struct host *h, uint32_t vm)
{
	struct sim_vm *v = &h->vm[vm];
	struct snapshot *c = sim_alloc(sizeof *c);
	c->state = v->state;
	c->generation = h->generation;
	c->epoch = h->capture;
	v->cut = c;
	v->recorded = false;
}

/* ---- acknowledgements, at the VM's own host ---- */

static void say_stored(struct host *h)
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
			if (host_in(v->backups, (struct host_id){ b }) && v->to[b] && v->to[b]->left <= 1)
				complete |= host_bit((struct host_id){ b });
		stored[n++] = (struct epoch_stored){ { i }, complete };
		v->cut->complete = complete;
		check_stored(h, h->capture, i, complete);
	}
	h->failed = true;   /* answered */
	host_step(h, &(struct epoch_event){ .type = EPOCH_EV_STORED, .epoch = h->capture, .stored = stored, .count = n });
}

static bool is_current(const struct note *n)
{
	return !note_is_void(n) && n->host->capture.n == n->n && !n->host->failed && n->host->running;
}

static void give_up(struct host *h, uint32_t vm, host_mask failed)
{
	for (uint32_t b = 1; b <= HOSTS; b++)
		if (host_in(failed, (struct host_id){ b }))
			h->vm[vm].to[b] = NULL;
}

static void not_stored(struct host *h, uint32_t vm, host_mask failed)
{
	h->failed = true;
	h->world->count.aborts++;
	give_up(h, vm, failed);
	host_step(h, &(struct epoch_event){ .type = EPOCH_EV_NOT_STORED, .epoch = h->capture, .vm = { vm }, .hosts = failed });
}

struct answer { struct connection *by; struct epoch_id epoch; bool ok; };

static void nothing_left_to_send(struct world *w, void *argument)
{
	struct note *n = argument;
	(void)w;
	if (is_current(n))
		say_stored(n->host);
}

static void answered(struct world *w, void *argument)
{
	struct note *n = argument;
	const struct answer *a = n->p;
	struct host *h = n->host;
	host_mask by = host_bit(a->by->to->id);
	if (!note_is_void(n) && !link_is_open(w, a->by->to->id, h->id) && h->vm[a->by->vm].to[a->by->to->id.n] == a->by) {
		sim_at(h, sim_between(w, 200 * USEC, 2 * MSEC), answered, n);
		return;
	}
	if (!is_current(n) || h->vm[a->by->vm].to[a->by->to->id.n] != a->by) {
		w->met.late += a->ok;
		if (!a->ok && !note_is_void(n) && h->vm[a->by->vm].to[a->by->to->id.n] == a->by)
			give_up(h, a->by->vm, by);
		return;
	}
	if (!a->ok) {
		not_stored(h, a->by->vm, by);
		return;
	}
	h->vm[a->by->vm].acked |= by;
	say_stored(h);
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

/* ---- a backup ---- */

static void crash_now(struct world *w, void *argument)
{
	struct note *n = argument;
	if (!note_is_void(n) && !w->quiet)
		host_crash(n->host);
}

static void answer(const struct stream *s, bool ok)
{
	struct connection *by = s->by;
	struct world *w = by->to->world;
	if (!by->from->up || by->from->life != by->from_life)
		return;
	struct note *n = note_new(by->from);
	struct answer *a = sim_alloc(sizeof *a);
	*a = (struct answer){ by, s->epoch, ok };
	n->p = a;
	n->n = s->epoch.n;
	by->ended = by->ended || !ok;
	if (ok && sim_chance(w, w->plan.lose_ack))
		return;
	nsec_t at = w->now + sim_between(w, 20 * USEC, sim_chance(w, w->plan.slow) ? 9 * MSEC : 200 * USEC);
	by->last_answer = at > by->last_answer ? at : by->last_answer + 1;
	sim_at(by->from, by->last_answer - w->now, answered, n);
	if (ok && sim_chance(w, w->plan.die_at_ack))
		sim_after(w, sim_between(w, 1, 300 * USEC), crash_now, note_new(by->to));
}

static void refuse(const struct stream *s, const char *why)
{
	TRACE(s->by->to->world, s->by->to, "refuses epoch %llu of vm %u: %s", (unsigned long long)s->epoch.n, s->by->vm, why);
	copy_leave(&s->by->to->vm[s->by->vm].copy, s->by);
	answer(s, false);
}

static void apply(struct sim_vm *v)
{
	bool fits = v->image.at == v->stage_base && !v->image.garbage && !v->stage.garbage;
	v->image = (struct content){ v->stage.at, v->image.whole || v->stage.whole, !fits };
}

static void settle_one(struct host *h, uint32_t vm, const struct post *p)
{
	struct sim_vm *v = &h->vm[vm];
	if (!p->commit) {
		copy_discard(&v->copy, p->epoch);
		return;
	}
	bool faster = v->copy.there && epoch_cmp(v->copy.image, p->epoch) == 0;   /* a new backup of the next epoch, whose stream was faster than this host */
	enum copy_change change = copy_commit(&v->copy, p->epoch);
	if (change == COPY_APPLIED)
		apply(v);
	else if (p->backup && !faster)
		sim_violation(h->world, "P5: host %u is a backup of vm %u in committed epoch %llu and has no stage of it", h->id.n, vm,
		              (unsigned long long)p->epoch.n);
	else if (v->copy.there && epoch_cmp(v->copy.image, p->epoch) < 0)
		sim_violation(h->world, "K6: host %u still has vm %u at %llu, which no recovery can use now that %llu is committed", h->id.n, vm,
		              (unsigned long long)v->copy.image.n, (unsigned long long)p->epoch.n);
}

static void read_parts(struct host *h, struct connection *by);

/* CP4 */
static void settle(struct host *h, uint32_t vm)
{
	struct sim_vm *v = &h->vm[vm];
	if (v->posts.count == 0)
		return;
	struct list posts = v->posts;
	struct connection *waiting = v->waiting;
	v->posts = (struct list){ 0 };
	v->waiting = NULL;
	for (uint32_t i = 0; i < posts.count; i++)
		settle_one(h, vm, posts.at[i]);
	if (waiting)
		read_parts(h, waiting);
}

static void settle_later(struct world *w, void *argument)
{
	struct note *n = argument;
	(void)w;
	if (!note_is_void(n))
		settle(n->host, n->vm);
}

static void post(struct host *h, uint32_t vm, struct post p)
{
	struct world *w = h->world;
	struct post *copy = sim_alloc(sizeof *copy);
	struct note *n = note_new(h);
	*copy = p;
	list_add(&h->vm[vm].posts, copy);
	n->vm = vm;
	sim_at(h, sim_between(w, 1, sim_chance(w, w->plan.slow) ? 8 * MSEC : 300 * USEC), settle_later, n);
}

/* OPEN */
static bool open_by(struct host *h, struct stream *s)
{
	struct connection *by = s->by;
	struct sim_vm *v = &h->vm[by->vm];
	enum copy_verdict verdict = copy_enter(&v->copy, &h->copies, by->generation, by, by->number);
	by->opened = verdict == COPY_OK;
	v->newest = by->opened ? by : v->newest;
	if (verdict == COPY_OK && by->fresh) {
		copy_start(&v->copy, s->base);
		v->image = (struct content){ .at = s->base_content };
	} else if (verdict == COPY_OK) {
		verdict = copy_find(&v->copy, s->base);
	}
	return verdict == COPY_OK;
}

static bool is_full(const struct host *h) { return h->world->now < h->full_until; }

static void keep(struct host *h, struct stream *s)
{
	struct sim_vm *v = &h->vm[s->by->vm];
	if (h->full_for)
		faults_fill(h, h->full_for);
	if (is_full(h)) {
		h->world->met.midway++;
		refuse(s, "no room any more");
		return;
	}
	enum copy_verdict verdict = copy_keep(&v->copy, &h->copies, s->by, s->epoch, s->base, s->fills, !s->torn);
	if (verdict != COPY_OK) {
		refuse(s, "at its end");
		return;
	}
	if (s->by != v->newest || s->by->generation.n != h->copies.generation.n)
		sim_violation(h->world, "K5: host %u keeps epoch %llu of vm %u from a stream whose time is over", h->id.n, (unsigned long long)s->epoch.n, s->by->vm);
	if (h->copies.told)
		sim_violation(h->world, "K4: host %u keeps epoch %llu of vm %u; it has told what it holds", h->id.n, (unsigned long long)s->epoch.n, s->by->vm);
	TRACE(h->world, h, "takes epoch %llu of vm %u", (unsigned long long)s->epoch.n, s->by->vm);
	v->stage = (struct content){ s->what, s->fills, s->torn };
	v->stage_base = s->base_content;
	answer(s, true);
}

/* False: it is to wait (K2). What sink and agent refuse for reasons of their own comes first. */
static bool begin(struct host *h, struct stream *s)
{
	struct sim_vm *v = &h->vm[s->by->vm];
	h->world->met.full += is_full(h);
	if (!h->configured || v->here || is_full(h) || sim_chance(h->world, h->world->plan.refuse)) {
		refuse(s, "no room");
		return true;
	}
	if (!s->by->opened && !open_by(h, s)) {
		refuse(s, "not to be opened");
		return true;
	}
	enum copy_verdict verdict = copy_begin(&v->copy, &h->copies, s->by, s->epoch, s->base);
	if (verdict == COPY_BAD_BASE && v->copy.staged && v->copy.stage.n == s->base.n)
		sim_violation(h->world, "K2: host %u refuses epoch %llu of vm %u, which had only to wait", h->id.n, (unsigned long long)s->epoch.n, s->by->vm);
	if (verdict == COPY_WAIT)
		v->waiting = s->by;
	else if (verdict != COPY_OK)
		refuse(s, "at its begin");
	return verdict != COPY_WAIT;
}

static void read_parts(struct host *h, struct connection *by)
{
	settle(h, by->vm);
	while (by->arrived && !by->ended && h->vm[by->vm].waiting != by) {
		struct part *p = by->parts.at[0];
		if (p->end)
			keep(h, p->of);
		else if (!begin(h, p->of))
			return;
		list_take(&by->parts);
		by->arrived--;
	}
}

/* The next part has arrived; while the network is cut it is tried again. */
static void arrive(struct world *w, void *argument)
{
	struct note *n = argument;
	struct connection *by = n->p;
	if (note_is_void(n) || by->ended)
		return;
	if (link_is_open(w, by->from->id, by->to->id)) {
		link_passed(w, by->from->id, by->to->id);
		by->arrived++;
		read_parts(n->host, by);
	} else if (by->from->up && by->from->life == by->from_life) {
		sim_at(n->host, sim_between(w, 200 * USEC, 2 * MSEC), arrive, n);
	}
}

/* ---- a VM's own host: the source ---- */

static struct connection *connect_to(struct host *h, uint32_t vm, struct host *backup)
{
	struct world *w = h->world;
	struct sim_vm *v = &h->vm[vm];
	struct connection *c = v->to[backup->id.n];
	if (c && c->generation.n == h->generation.n && c->to_life == backup->life)
		return c;
	c = v->to[backup->id.n] = sim_alloc(sizeof *c);
	*c = (struct connection){ .from = h, .to = backup, .from_life = h->life, .to_life = backup->life, .vm = vm, .generation = h->generation,
		                  .number = ++w->connections };
	c->left = host_in(v->complete_at, backup->id) ? 0 : (uint32_t)(1 + sim_random(w, 3));
	c->fresh = c->left > 0;
	return c;
}

static void send_part(struct stream *s, bool end)
{
	struct connection *by = s->by;
	struct world *w = by->to->world;
	struct part *p = sim_alloc(sizeof *p);
	struct note *n = note_new(by->to);
	*p = (struct part){ s, end };
	list_add(&by->parts, p);
	n->p = by;
	nsec_t at = w->now + sim_between(w, 50 * USEC, sim_chance(w, w->plan.slow) ? 9 * MSEC : 750 * USEC);
	by->last = at > by->last ? at : by->last + 1;
	sim_at(by->to, by->last - w->now, arrive, n);
}

static void send_one(struct host *h, uint32_t vm, struct host *backup)
{
	struct world *w = h->world;
	struct sim_vm *v = &h->vm[vm];
	struct stream *s = sim_alloc(sizeof *s);
	struct connection *by = connect_to(h, vm, backup);
	*s = (struct stream){ .by = by, .what = v->cut, .base_content = v->shadow.copy, .epoch = h->capture, .base = v->shadow.epoch,
		              .fills = by->left <= 1, .torn = sim_chance(w, w->plan.torn) };
	send_part(s, false);
	send_part(s, true);
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
		for (uint32_t b = 1; b <= w->plan.hosts; b++) {
			if (!host_in(v->backups, (struct host_id){ b }))
				v->to[b] = NULL;
			else if (w->host[b].up)
				send_one(h, i, &w->host[b]);
		}
	}
	struct note *n = note_new(h);
	n->n = h->capture.n;
	sim_at(h, sim_between(w, 4 * MSEC, 7 * MSEC), timed_out, n);
	n = note_new(h);
	n->n = h->capture.n;
	sim_at(h, 1, nothing_left_to_send, n);   /* VMs without a backup */
}

/* ---- commit, discard ---- */

static void forget_owed(struct sim_vm *v)
{
	uint32_t kept = 0;
	const struct heard *n = v->shadow.copy ? v->shadow.copy->state.heard : NULL;
	for (uint32_t i = 0; i < v->owed.count; i++)
		if (!n || ((struct incoming *)v->owed.at[i])->number > n->what->number)
			v->owed.at[kept++] = v->owed.at[i];
	v->owed.count = kept;
}

static void commit_here(struct host *h, uint32_t vm, struct epoch_id r)
{
	struct sim_vm *v = &h->vm[vm];
	if (!v->cut || v->cut->epoch.n != r.n || !v->recorded)
		sim_violation(h->world, "S1: host %u applies epoch %llu of vm %u, which it has not captured", h->id.n, (unsigned long long)r.n, vm);
	v->shadow = (struct image){ v->cut, r, v->shadow.complete, true };
	v->complete_at = v->cut->complete;
	v->cut = NULL;
	for (uint32_t b = 1; b <= HOSTS; b++)
		if (v->to[b] && v->to[b]->left)
			v->to[b]->left--, v->to[b]->fresh = false;
	forget_owed(v);
}

void copies_commit(struct host *h, struct epoch_id r)
{
	for (uint32_t i = 0; i < h->world->plan.vms; i++)
		if (h->vm[i].here)
			commit_here(h, i, r);
		else
			post(h, i, (struct post){ true, is_backup(h, i), r });
}

void copies_discard(struct host *h, struct epoch_id r)
{
	for (uint32_t i = 0; i < h->world->plan.vms; i++) {
		struct sim_vm *v = &h->vm[i];
		post(h, i, (struct post){ false, false, r });
		if (v->cut && v->cut->epoch.n == r.n)
			v->cut = NULL;
	}
}

/* ---- recovery ---- */

/* As sink_generation() and sink_recover(): connections of older ones are closed, and those that wait look again. */
void copies_generation(struct host *h, struct generation g)
{
	copy_host_generation(&h->copies, g);
	for (uint32_t i = 0; i < VMS; i++) {
		const struct connection *by = h->vm[i].copy.stream;
		if (by && generation_cmp(by->generation, g) < 0) {
			((struct connection *)by)->ended = true;
			copy_leave(&h->vm[i].copy, by);
			h->vm[i].waiting = NULL;
		}
	}
}

void copies_forget(struct host *h)
{
	for (uint32_t i = 0; i < VMS; i++)
		if (h->vm[i].copy.stream)
			((struct connection *)h->vm[i].copy.stream)->ended = true;
}

uint32_t copies_holdings(struct host *h, struct message_holding *out)
{
	uint32_t n = 0;
	copy_host_tell(&h->copies);
	for (uint32_t i = 0; i < h->world->plan.vms; i++) {
		struct sim_vm *v = &h->vm[i];
		settle(h, i);
		struct message_holding held;
		bool any = copy_holding(&v->copy, (struct vm_id){ i }, &held);
		if (v->here)
			held = (struct message_holding){ .vm = { i }, .live = true, .image = v->shadow.epoch, .complete = v->shadow.complete,
				                         .staged = v->cut && v->recorded ? v->cut->epoch : epoch_of(0) };
		if (any || v->here)
			out[n++] = held;
	}
	return n;
}

/* What a VM's own host has goes to exactly c. */
static void bring_here_to(struct sim_vm *v, struct epoch_id c)
{
	if (v->cut && v->recorded && v->cut->epoch.n == c.n)
		v->shadow = (struct image){ v->cut, c, v->shadow.complete, true };
	v->cut = NULL;
}

/* An image from the backup's side becomes the shadow: what it is made of shows now. */
static void take(struct host *h, uint32_t vm, struct epoch_id c)
{
	struct sim_vm *v = &h->vm[vm];
	if (!v->copy.there)
		sim_violation(h->world, "E7: vm %u is placed on host %u, which does not hold it at %llu", vm, h->id.n, (unsigned long long)c.n);
	if (v->image.garbage || !v->image.whole)
		sim_violation(h->world, "P6: the image of vm %u on host %u at %llu is %s", vm, h->id.n, (unsigned long long)c.n,
		              v->image.garbage ? "garbage" : "not whole");
	v->shadow = (struct image){ v->image.at, c, v->copy.complete, true };
}

static void place_here(struct host *h, uint32_t vm, struct epoch_id c, host_mask backups)
{
	struct sim_vm *v = &h->vm[vm];
	if (c.n == 0)
		v->shadow = (struct image){ NULL, c, epoch_of(1), true };
	else if (!v->here)
		take(h, vm, c);
	if (!v->here || c.n == 0)
		v->owed.count = 0;
	copy_drop(&v->copy);
	v->here = true;
	v->state = v->shadow.copy ? v->shadow.copy->state : (struct guest_state){ 0 };
	v->port = epoch_next(c);
	v->complete_at = c.n ? backups : 0;
	memset(v->to, 0, sizeof v->to);
}

/* The agent gives up the shadow of a VM that runs elsewhere from now on: as good as a loss (P5). */
static void placed_elsewhere(struct host *h, uint32_t vm)
{
	struct sim_vm *v = &h->vm[vm];
	if (!v->here)
		return;
	check_loss(h, "a VM of it is placed elsewhere");
	v->here = false;
	v->shadow = (struct image){ 0 };
	v->owed.count = 0;
}

void copies_recover(struct host *h, struct epoch_id c, const struct message_placement *placement)
{
	struct world *w = h->world;
	for (uint32_t i = 0; i < w->plan.vms; i++) {
		struct sim_vm *v = &h->vm[i];
		bool applied;
		settle(h, i);
		v->waiting = NULL;
		copy_recover(&v->copy, c, &applied);
		if (applied)
			apply(v);
		bring_here_to(v, c);
		v->held.count = v->record.count = 0;
		v->running = false;
		if (placement[i].host.n == h->id.n)
			place_here(h, i, c, placement[i].backups);
		else
			placed_elsewhere(h, i);
	}
}
