/* check.c - the promises, checked as things happen.
 *
 *  P1, P2  when an epoch is applied, and again when a generation runs: for each pair of VMs, what the receiver has received and what is recorded for it in
 *          flight is, frame by frame, what the sender has sent. And each frame that a VM receives follows the one that it received before.
 *  P3      what the outside has seen of a VM is part of what the VM remembers to have sent, whenever a generation runs.
 *  P4      what the outside sees of a VM is one chain of frames, each once. No generation is resumed twice. A recovery to an epoch
 *          that one of its participants knew as committed is to that checkpoint and no other of the same number.
 *  P5      when an epoch is committed its images are counted; unless as many hosts were lost since as hold some VM, the cluster runs again when all faults
 *          have ended, and commits, and every VM has its B backups.
 *          A recovery never goes behind the newest epoch that any of its participants knew as committed, if every VM of that is among them, bit for bit,
 *          or if fewer hosts are lost than held the VM that had the fewest images.
 *  U4      what came from outside while a VM was here is part of its history, once, whenever it runs again here.
 *  P7      VMs stop for a loss or for trouble, never for a checkpoint that failed. */
#include "sim.h"

#include <string.h>

/* ---- P1, P2 ---- */

static void check_pair(struct world *w, const char *when, uint32_t from, uint32_t to, const struct snapshot *sender, const struct snapshot *receiver)
{
	const struct frame *sent = sender ? sender->state.sent[to] : NULL, *have = receiver ? receiver->state.received[from] : NULL;
	if ((have ? have->number : 0) > (sent ? sent->number : 0))
		sim_violation(w, "P1: %s: vm %u has received frame %u of vm %u, which has sent %u", when, to, have->number, from, sent ? sent->number : 0);
	for (uint32_t i = 0; receiver && i < receiver->record_count; i++) {
		const struct frame *f = receiver->record[i];
		if (f->from != from)
			continue;
		if (f->previous != have)
			sim_violation(w, "P2: %s: frame %u of vm %u to vm %u is recorded behind frame %u", when, f->number, from, to, have ? have->number : 0);
		have = f;
	}
	if (have != sent)
		sim_violation(w, "P2: %s: vm %u has frames of vm %u up to %u, with those in flight; sent are %u%s", when, to, from, have ? have->number : 0,
		              sent ? sent->number : 0, have && sent && have->number == sent->number ? ", of another history" : "");
}

static void check_consistent(struct world *w, const char *when, const struct snapshot *const copy[])
{
	for (uint32_t a = 0; a < w->plan.vms; a++)
		for (uint32_t b = 0; b < w->plan.vms; b++)
			if (a != b)
				check_pair(w, when, a, b, copy[a], copy[b]);
}

static uint32_t capture_slot(struct generation g, struct epoch_id r) { return (uint32_t)(g.n * 31 + r.n) % CAPTURES; }

void check_captured(struct host *h, uint32_t vm, const struct snapshot *copy)
{
	struct world *w = h->world;
	uint32_t slot = capture_slot(copy->generation, copy->epoch);
	if (w->captures[slot].epoch.n != copy->epoch.n || w->captures[slot].generation.n != copy->generation.n) {
		memset(&w->captures[slot], 0, sizeof w->captures[slot]);
		w->captures[slot].epoch = copy->epoch;
		w->captures[slot].generation = copy->generation;
	}
	w->captures[slot].copy[vm] = copy;
}

void check_receive(struct host *h, uint32_t vm, const struct frame *f)
{
	const struct frame *last = h->vm[vm].state.received[f->from];
	if (f->previous != last)
		sim_violation(h->world, "P2: vm %u receives frame %u of vm %u behind frame %u%s", vm, f->number, f->from, last ? last->number : 0,
		              last && f->number == last->number + 1 ? " of another history" : "");
}

/* ---- P5: who may still be lost ---- */

static bool holds(const struct host *h, uint32_t vm, struct epoch_id r)
{
	const struct sim_vm *v = &h->vm[vm];
	if (!h->up)
		return false;
	if (v->here)
		return v->shadow.epoch.n == r.n || (v->cut && v->recorded && v->cut->epoch.n == r.n);
	const struct copy *c = &v->copy;
	return c->there && ((c->image.n == r.n && c->complete.n) || (c->staged && c->stage.n == r.n && (c->fills || c->complete.n)));
}

/* The images of the VM that has the fewest, at hosts of the generation. With B backups that is B + 1. */
static unsigned images_at(const struct world *w, struct epoch_id r, host_mask participants)
{
	unsigned least = HOSTS;
	for (uint32_t i = 0; i < w->plan.vms; i++) {
		unsigned n = 0;
		for (uint32_t x = 1; x <= w->plan.hosts; x++)
			n += host_in(participants, w->host[x].id) && holds(&w->host[x], i, r);
		least = n < least ? n : least;
	}
	return least;
}

/* What was committed as the newest epoch that is known, bit for bit: as an image, or as a stage that fits the image. */
static bool holds_known(const struct host *h, uint32_t vm)
{
	const struct snapshot *wanted = h->world->known.copy[vm];
	const struct sim_vm *v = &h->vm[vm];
	const struct copy *c = &v->copy;
	if (!h->up || !wanted)
		return false;
	if (v->here)
		return v->shadow.copy == wanted || (v->cut == wanted && v->recorded);
	if (!c->there || v->image.garbage)
		return false;
	bool staged = c->staged && v->stage.at == wanted && !v->stage.garbage && v->stage_base == v->image.at;
	return (v->image.at == wanted && v->image.whole && c->complete.n) || (staged && (c->fills || c->complete.n));
}

static unsigned images_of_known(const struct world *w, host_mask hosts)
{
	unsigned least = HOSTS;
	for (uint32_t i = 0; i < w->plan.vms; i++) {
		unsigned n = 0;
		for (uint32_t x = 1; x <= w->plan.hosts; x++)
			n += host_in(hosts, w->host[x].id) && holds_known(&w->host[x], i);
		least = n < least ? n : least;
	}
	return least;
}

void check_loss(struct host *h, const char *why)
{
	struct world *w = h->world;
	w->losses |= host_bit(h->id);
	w->known.gone |= host_bit(h->id);
	if (host_count(w->losses) >= w->images && !w->excused) {
		TRACE(w, h, "is one loss too many (%s): P5 says nothing any more", why);
		w->excused = true;
	}
}

void check_forgot(struct host *h, const char *why)
{
	h->world->known.by &= ~host_bit(h->id);
	check_loss(h, why);
}

/* What c of a generation is, or what was captured in it. */
static const struct snapshot *const *checkpoint_of(const struct world *w, struct generation g, struct epoch_id r)
{
	static const struct snapshot *const nothing[VMS];
	for (const struct generation_check *n = w->generations; n; n = n->next)
		if (n->resumed && n->generation.n == g.n && n->epoch.n == r.n)
			return n->placed;
	uint32_t slot = capture_slot(g, r);
	return w->captures[slot].generation.n == g.n && w->captures[slot].epoch.n == r.n ? w->captures[slot].copy : nothing;
}

/* The first host knows that r is committed: from here on that is what a recovery has to find. */
void check_known(struct host *h, struct epoch_id r, host_mask participants)
{
	struct world *w = h->world;
	int order = generation_cmp(h->generation, w->known.generation);
	order = order ? order : epoch_cmp(r, w->known.epoch);
	if (order == 0)
		w->known.by |= host_bit(h->id);
	if (order <= 0)
		return;
	w->known = (struct known){ .generation = h->generation, .epoch = r, .by = host_bit(h->id) };
	memcpy(w->known.copy, checkpoint_of(w, h->generation, r), sizeof w->known.copy);
	w->known.images = images_of_known(w, participants);
	w->losses = 0;
	w->images = images_at(w, r, participants);
	w->excused = w->images == 0;   /* their hosts have died a moment ago */
	TRACE(w, h, "is the first to know; images of the VM that has the fewest: %u", w->images);
}

void check_commit(struct host *h, struct epoch_id r)
{
	struct world *w = h->world;
	uint32_t slot = capture_slot(h->generation, r);
	w->count.commits++;
	if (w->captures[slot].epoch.n != r.n || w->captures[slot].generation.n != h->generation.n)
		sim_violation(w, "E2: epoch %llu is applied and was not captured", (unsigned long long)r.n);
	if (w->captures[slot].checked)
		return;
	w->captures[slot].checked = true;
	for (uint32_t i = 0; i < w->plan.vms; i++)
		if (!w->captures[slot].copy[i])
			sim_violation(w, "E2: epoch %llu is applied without vm %u", (unsigned long long)r.n, i);
	check_consistent(w, "checkpoint", w->captures[slot].copy);
}

/* ---- recoveries ---- */

static struct generation_check *generation_of(struct world *w, const struct epoch_action *act)
{
	struct generation_check *g = w->generations;
	while (g && (g->generation.n != act->generation.n || g->participants != act->hosts))
		g = g->next;
	if (g)
		return g;
	g = sim_alloc(sizeof *g);
	*g = (struct generation_check){ .generation = act->generation, .participants = act->hosts, .epoch = act->epoch, .next = w->generations };
	return w->generations = g;
}

/* P5: hosts that knew an epoch as committed never go behind it while all of it is among them; nor for fewer losses than it had images. */
static void check_lost_epoch(struct world *w, const struct epoch_action *act)
{
	host_mask knows = w->known.by & act->hosts, gone = w->known.gone;
	for (uint32_t x = 1; x <= w->plan.hosts; x++)
		gone |= host_bit(w->host[x].id) & ~act->hosts;
	if (knows && images_of_known(w, act->hosts))
		sim_violation(w, "P5: a recovery to %llu; host %u takes part and knows that %llu is committed, and every VM of that is there",
		              (unsigned long long)act->epoch.n, host_lowest(knows).n, (unsigned long long)w->known.epoch.n);
	if (knows && host_count(gone) < w->known.images)
		sim_violation(w, "P5: a recovery to %llu; host %u takes part and knows that %llu is committed; of a VM of that nothing is left, though of %u hosts "
		              "that held it %u are lost", (unsigned long long)act->epoch.n, host_lowest(knows).n, (unsigned long long)w->known.epoch.n, w->known.images,
		              host_count(gone));
}

/* A recovery behind an epoch that only hosts knew which are away: now that is what there is, with the images that are left of it anywhere. */
void check_rollback(struct host *h, const struct epoch_action *act)
{
	struct world *w = h->world;
	if (generation_cmp(act->generation, w->known.generation) <= 0)
		return;
	if (epoch_cmp(act->epoch, w->known.epoch) >= 0) {
		if (w->known.by & act->hosts)
			w->known.by |= host_bit(h->id);
		return;
	}
	check_lost_epoch(w, act);
	w->met.behind++;
	w->known.by &= ~host_bit(h->id);
	w->known.gone |= host_bit(h->id);
	if (w->excused)
		return;
	w->images = images_at(w, act->epoch, ~UINT64_C(0));
	w->losses = 0;
	w->excused = w->images == 0;
	TRACE(w, h, "goes behind what others knew; images of the VM that has the fewest: %u", w->images);
}

/* Those who knew an epoch agree what it is. */
static void check_history(struct world *w, const struct epoch_action *act, uint32_t vm, const struct snapshot *copy)
{
	const struct known *k = &w->known;
	if (generation_cmp(act->generation, k->generation) <= 0 || act->epoch.n != k->epoch.n || !(k->by & act->hosts) || !k->copy[vm] || copy == k->copy[vm])
		return;
	sim_violation(w, "P4: vm %u is placed with a checkpoint %llu that is not the one that host %u knows as committed", vm, (unsigned long long)act->epoch.n,
	              host_lowest(k->by & act->hosts).n);
}

void check_placed(struct host *h, const struct epoch_action *act, uint32_t vm, const struct snapshot *copy)
{
	struct generation_check *g = generation_of(h->world, act);
	g->placed[vm] = copy;
	g->there[vm] = true;
	check_history(h->world, act, vm, copy);
	if (copy && copy->epoch.n != act->epoch.n)
		sim_violation(h->world, "P6: vm %u is placed with its checkpoint %llu; the recovery is to %llu", vm, (unsigned long long)copy->epoch.n,
		              (unsigned long long)act->epoch.n);
}

static bool contains(const struct frame *chain, const struct frame *f)
{
	while (chain && f && chain->number > f->number)
		chain = chain->previous;
	return !f || chain == f;
}

static void check_not_resumed_twice(struct world *w, const struct generation_check *g)
{
	for (const struct generation_check *o = w->generations; o; o = o->next)
		if (o != g && o->resumed && o->generation.n == g->generation.n)
			sim_violation(w, "P4: generation %llu is resumed twice, with different participants", (unsigned long long)g->generation.n);
}

/* A host that hung hears RESUME when a later generation runs without it: it runs alone for a moment, and releases nothing (P4). */
static bool is_overtaken(const struct world *w, const struct generation_check *g)
{
	for (const struct generation_check *o = w->generations; o; o = o->next)
		if (o->resumed && generation_cmp(o->generation, g->generation) > 0)
			return true;
	return false;
}

void check_resume(struct host *h, const struct epoch_action *act)
{
	struct world *w = h->world;
	struct generation_check *g = generation_of(w, act);
	if (g->resumed)
		return;
	g->resumed = true;
	w->count.recoveries++;
	check_not_resumed_twice(w, g);
	for (uint32_t i = 0; i < w->plan.vms; i++) {
		const struct frame *out = g->placed[i] ? g->placed[i]->state.sent[VMS] : NULL;
		if (!g->there[i])
			sim_violation(w, "E9: generation %llu runs and vm %u is nowhere", (unsigned long long)g->generation.n, i);
		if (!contains(out, w->released[i]) && !is_overtaken(w, g))
			sim_violation(w, "P3: the outside has seen frame %u of vm %u; the recovery to %llu undoes it (it has sent %u)", w->released[i]->number, i,
			              (unsigned long long)g->epoch.n, out ? out->number : 0);
	}
	check_consistent(w, "recovery", g->placed);
}

/* A host lives in a generation from the moment that it delivers RESUME, even if it dies before it can do anything. */
static void check_left_out(struct world *w, const struct epoch_action *act)
{
	for (uint32_t x = 1; x <= w->plan.hosts; x++)
		if (!host_in(act->hosts, (struct host_id){ x }))
			check_loss(&w->host[x], "left out of a recovery");
}

void check_release(struct host *h, struct frame *f)
{
	struct world *w = h->world;
	struct frame *last = w->released[f->from];
	w->count.releases++;
	if (f->released)
		sim_violation(w, "P4: frame %u of vm %u is released twice", f->number, f->from);
	if (!contains(f, last) && !contains(last, f))
		sim_violation(w, "P4: host %u releases frame %u of vm %u; the outside has seen frame %u of another history", h->id.n, f->number, f->from,
		              last->number);
	f->released = true;
	if (!last || f->number > last->number)
		w->released[f->from] = f;
}

/* ---- U4: what comes from outside ---- */

static bool has_heard(const struct guest_state *s, const struct incoming *f)
{
	const struct heard *n = s->heard;
	while (n && n->what != f && n->what->number > f->number)
		n = n->previous;
	return n && n->what == f;
}

void check_hear(struct host *h, uint32_t vm, const struct incoming *f)
{
	if (has_heard(&h->vm[vm].state, f) && !f->split)
		sim_violation(h->world, "U4: vm %u hears frame %u from outside twice in one history", vm, f->number);
}

/* All that came since the shadow has been heard, or is heard again now. */
void check_heard(struct host *h, uint32_t vm)
{
	const struct sim_vm *v = &h->vm[vm];
	for (uint32_t i = 0; i < v->owed.count; i++)
		if (!has_heard(&v->state, v->owed.at[i]))
			sim_violation(h->world, "U4: frame %u from outside came to vm %u after its checkpoint, and is not delivered again",
			              ((struct incoming *)v->owed.at[i])->number, vm);
}

/* ---- degraded: hold ---- */

void check_stored(struct host *h, struct epoch_id r, uint32_t vm, host_mask complete)
{
	struct world *w = h->world;
	uint32_t slot = capture_slot(h->generation, r);
	w->captures[slot].complete[vm] = complete;
	w->captures[slot].protected = true;
	for (uint32_t i = 0; i < w->plan.vms; i++)
		if (host_count(w->captures[slot].complete[i]) < w->plan.backups)
			w->captures[slot].protected = false;
}

static bool has_vms(const struct host *h)
{
	bool any = false;
	for (uint32_t i = 0; i < VMS; i++)
		any = any || h->vm[i].here;
	return any;
}

/* Once this generation had all its backups nothing leaves without them. */
void check_release_epoch(struct host *h, struct epoch_id r)
{
	const struct world *w = h->world;
	bool was_protected = false, is_protected = w->generations && w->generations->epoch.n == r.n;
	for (uint32_t i = 0; w->plan.hold && i < CAPTURES; i++) {
		if (w->captures[i].generation.n != h->generation.n || !w->captures[i].protected)
			continue;
		if (epoch_cmp(w->captures[i].epoch, r) < 0)
			was_protected = was_protected || w->captures[i].checked;
		else
			is_protected = true;   /* a newer one is as good */
	}
	if (was_protected && !is_protected && has_vms(h))
		sim_violation(h->world, "hold: epoch %llu is released without all backups", (unsigned long long)r.n);
}

/* ---- P7 ---- */

static bool may_stop_vms(const struct host *h, const struct epoch_event *e)
{
	if (e->type == EPOCH_EV_MESSAGE && e->message->type == MESSAGE_HELLO)
		return e->message->hello.state == HELLO_EMPTY;
	if (e->type == EPOCH_EV_MESSAGE && h->world->plan.deaf_run && e->message->type == MESSAGE_KNOWN)
		return true;
	if (e->type == EPOCH_EV_MESSAGE)
		return e->message->type == MESSAGE_TROUBLE || e->message->type == MESSAGE_STATE || e->message->type == MESSAGE_DOWN ||
		       e->message->type == MESSAGE_BEGIN || e->message->type == MESSAGE_RESUME || e->message->type == MESSAGE_RECOVER;
	return e->type == EPOCH_EV_MEMBERSHIP || e->type == EPOCH_EV_CONFIGURED;
}

void check_step(struct host *h, const struct epoch_event *event, const struct epoch_action *out, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (out[i].type == EPOCH_ACT_RUN)
			check_left_out(h->world, &out[i]);
	for (size_t i = 0; i < n; i++)
		if ((out[i].type == EPOCH_ACT_FREEZE || out[i].type == EPOCH_ACT_FORGET) && !may_stop_vms(h, event))
			sim_violation(h->world, "P7: host %u stops its VMs for no loss or trouble (event %d)", h->id.n, event->type);
}

/* ---- the end ---- */

/* Nothing may be left: then somebody must say so, unless nobody is left who could. */
static bool is_excused(struct world *w)
{
	bool lost = false, joined = false;
	for (uint32_t x = 1; x <= w->plan.hosts; x++) {
		lost = lost || host_view(&w->host[x]).lost;
		joined = joined || host_view(&w->host[x]).state != EPOCH_EMPTY;
	}
	return w->excused && (lost || !joined);
}

void check_end(struct world *w)
{
	if (is_excused(w))
		return;
	for (uint32_t x = 1; x <= w->plan.hosts; x++) {
		struct epoch_view v = host_view(&w->host[x]);
		if (v.state != EPOCH_RUNNING)
			sim_violation(w, "P5: all faults are over; host %u is in state %d, generation %llu%s", x, v.state, (unsigned long long)v.generation.n,
			              v.lost ? ": lost" : "");
	}
	sim_violation(w, "P5: all faults are over, all hosts run, and no epoch is committed and released");
}
