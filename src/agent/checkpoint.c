/* checkpoint.c - one checkpoint on this host: capture all VMs, markers, record, stored, then commit and release, or discard.
 *
 *   BEGIN ──► machines capture ──all──► MARKER ──► record complete ──► machines store ──all──► STORED ──► commit ──► release
 *
 * A checkpoint that failed here is `failed` until the next one begins: late notes of it are dropped. COMMIT is carried out before KNOWN
 * leaves this host (the core puts it first). net_release() has one call site. */
#include "agent/agent-private.h"

#include "agent/post.h"

#include <inttypes.h>
#include <string.h>

static void not_stored(struct agent *a, struct vm_id vm, host_mask failed, const char *why)
{
	if (a->checkpoint.failed)
		return;
	a->checkpoint.failed = true;
	g_message("checkpoint %" PRIu64 " of %s is given up: %s", a->checkpoint.epoch.n, agent_vm_name(a, vm), why);
	agent_step(a, &(struct epoch_event){ .type = EPOCH_EV_NOT_STORED, .epoch = a->checkpoint.epoch, .vm = vm, .hosts = failed });
}

static bool is_current(const struct agent *a, struct epoch_id r)
{
	return epoch_cmp(a->checkpoint.epoch, r) == 0 && !a->checkpoint.failed;
}

void checkpoint_captured(struct vm_id vm, struct epoch_id r, const GError *error, void *user)
{
	struct agent *a = user;
	if (!is_current(a, r))
		return;
	if (g_error_matches(error, VMM_ERROR, VMM_ERROR_HUNG) || g_error_matches(error, VMM_ERROR, VMM_ERROR_GONE)) {
		g_message("%s", error->message);
		agent_machine_notes.died(vm, "QEMU", a);   /* noticed before its pidfd says so */
	} else if (error) {
		not_stored(a, vm, 0, error->message);
	} else if (--a->checkpoint.waiting_captured == 0) {
		a->checkpoint.captured = clock_now();
		net_marker(a->net, r, a->checkpoint.others);
	}
}

struct record_note { struct agent *agent; struct epoch_id r; };

static void on_record(void *data)
{
	struct record_note *note = data;
	struct agent *a = note->agent;
	if (!is_current(a, note->r))
		return;
	a->checkpoint.recorded = clock_now();
	for (uint32_t i = 0; i < VCFT_VM_MAX; i++) {
		g_autoptr(GBytes) record = agent_has(a, i) ? net_take_record(a->net, (struct vm_id){ i }, note->r) : NULL;
		if (record) {
			machine_record(a->machines[i], note->r, record);
		} else if (agent_has(a, i)) {
			not_stored(a, (struct vm_id){ i }, 0, "too much was in flight across the cut");
			return;
		}
	}
}

/* The switch's thread. */
void checkpoint_record_complete(struct epoch_id r, void *user)
{
	struct record_note *note = g_new(struct record_note, 1);
	*note = (struct record_note){ user, r };
	post_box_send(((struct agent *)user)->box, on_record, note, g_free);
}

static void say_stand(struct agent *a, struct vm_id vm, enum vm_stand stand)
{
	static const char *const events[VM_STAND_END] = { "vm-goes-on", "vm-waits", "vm-off" };
	if (a->stats[vm.n].stand != stand)
		events_say(a->events, events[stand], json_pack("{s:s}", "vm", agent_vm_name(a, vm)));
}

void checkpoint_stored(struct vm_id vm, struct epoch_id r, bool ok, host_mask complete, host_mask failed,
                      const struct machine_stats *stats, void *user)
{
	struct agent *a = user;
	struct checkpoint *c = &a->checkpoint;
	if (!is_current(a, r))
		return;
	if (!ok) {
		shortage_note(a, failed ? SHORT_BACKUP : SHORT_ROOM, stats->why);
		not_stored(a, vm, failed, "a backup failed or refused");
		return;
	}
	say_stand(a, vm, stats->stand);
	a->stats_epoch[vm.n] = r;
	a->stats[vm.n] = (struct message_stats){ .vm = vm, .pause = (uint64_t)stats->pause, .dirty_pages = stats->dirty_pages,
	                                         .disk_blocks = stats->disk_blocks, .raw_bytes = stats->raw_bytes,
	                                         .sent_bytes = stats->sent_bytes, .stand = stats->stand };
	c->stored[c->stored_count++] = (struct epoch_stored){ vm, complete };
	if (--c->waiting_stored > 0)
		return;
	c->stored_at = clock_now();
	agent_step(a, &(struct epoch_event){ .type = EPOCH_EV_STORED, .epoch = r, .stored = c->stored, .count = c->stored_count });
}

static unsigned backups_of(struct agent *a, host_mask set, struct source_backup *out)
{
	unsigned n = 0;
	for (uint32_t h = 1; h <= VCFT_HOST_MAX; h++)
		if (host_in(set, (struct host_id){ h }) && a->peers[h].known) {
			out[n].host.n = h;
			out[n].port = a->peers[h].replication_port;
			g_strlcpy(out[n].name, a->peers[h].name, sizeof out->name);
			g_strlcpy(out[n++].address, a->peers[h].address, sizeof out->address);
		}
	return n;
}

static void capture_all(struct agent *a)
{
	const struct checkpoint *c = &a->checkpoint;
	for (uint32_t i = 0; i < a->cluster->vm_count; i++) {
		struct source_backup backups[VCFT_HOST_MAX];
		if (!agent_has(a, i))
			continue;
		unsigned n = backups_of(a, c->backups[i], backups);
		machine_capture(a->machines[i], c->generation, c->epoch, backups, n, a->complete_at[i]);
	}
}

/* A BEGIN may come when some VM of this host does not go on yet. The others are not cut before: a switch that does not run cuts nothing. */
void checkpoint_begin(struct agent *a, const struct epoch_action *act)
{
	struct checkpoint *c = &a->checkpoint;
	memset(c, 0, sizeof *c);
	c->epoch = act->epoch;
	c->generation = act->generation;
	c->begun = clock_now();
	c->waits = !a->switch_runs;
	a->ran = true;                               /* a newcomer as well: what begins next is a recovery, not a start */
	sink_generation(a->sink, act->generation);   /* what a newcomer has told while others came and went binds it no longer */
	for (uint32_t i = 0; i < a->cluster->vm_count; i++) {
		c->others |= host_bit(act->placement[i].host);
		c->backups[i] = act->placement[i].backups;
		if (agent_has(a, i))
			c->waiting_captured = ++c->waiting_stored;
	}
	c->others &= ~host_bit(a->self);
	if (!c->waits)
		capture_all(a);
}

void checkpoint_switch_runs(struct agent *a)
{
	bool begin = a->checkpoint.waits && !a->checkpoint.failed;
	a->checkpoint.waits = false;
	if (begin)
		capture_all(a);
}

static json_t *stats_json(struct agent *a)
{
	json_t *vms = json_object();
	for (uint32_t i = 0; i < a->cluster->vm_count; i++) {
		const struct message_stats *s = &a->stats[i];
		if (agent_has(a, i))
			json_object_set_new(vms, a->cluster->vms[i].name,
			                    json_pack("{s:f, s:I, s:I, s:I, s:I}", "pause_us", (double)s->pause / NSEC_PER_USEC, "dirty_pages",
			                              (json_int_t)s->dirty_pages, "disk_blocks", (json_int_t)s->disk_blocks, "raw_bytes",
			                              (json_int_t)s->raw_bytes, "sent_bytes", (json_int_t)s->sent_bytes));
	}
	return vms;
}

/* From BEGIN to each step on this host, ms; 0: the host has no VMs. */
static json_t *steps_json(const struct checkpoint *c)
{
	const struct { const char *name; nsec_t at; } steps[] = {
		{ "captured", c->captured }, { "recorded", c->recorded }, { "stored", c->stored_at } };
	json_t *object = json_object();
	for (size_t i = 0; i < G_N_ELEMENTS(steps); i++)
		json_object_set_new(object, steps[i].name, json_real(steps[i].at ? (double)(steps[i].at - c->begun) / NSEC_PER_MSEC : 0.0));
	return object;
}

/* Once a second at most: status on another host needs no more. A host without VMs has nothing to say but what it is short of. */
static void say_stats(struct agent *a, struct epoch_id r)
{
	g_autofree struct message *m = g_new0(struct message, 1);
	nsec_t now = clock_now();
	if (now - a->stats_said < NSEC_PER_SEC)
		return;
	a->stats_said = now;
	m->type = MESSAGE_STATS;
	m->generation = a->generation;
	m->epoch = r;
	for (uint32_t i = 0; i < VCFT_VM_MAX; i++)
		if (agent_has(a, i))
			m->stats[m->vm_count++] = a->stats[i];
	m->shortages = shortages_mask(a);
	if (m->vm_count || m->shortages != a->peers[a->self.n].shortages)
		agent_mcast(a, m);
}

static void say_protected(struct agent *a)
{
	struct epoch_view view;
	epoch_view(a->core, &view);
	if (view.protected_ == a->was_protected)
		return;
	a->was_protected = view.protected_;
	events_say(a->events, view.protected_ ? "backup-ready" : "degraded",
	           json_pack("{s:I, s:b}", "epoch", (json_int_t)view.committed.n, "protected", view.protected_));
}

/* Who misses a committed epoch is behind and is filled anew; who only missed one that was given up is not. */
static void note_complete(struct agent *a, const struct checkpoint *c)
{
	for (uint32_t i = 0; i < c->stored_count; i++)
		a->complete_at[c->stored[i].vm.n] = c->stored[i].complete;
}

void checkpoint_commit(struct agent *a, const struct epoch_action *act)
{
	sink_commit(a->sink, act->epoch);   /* images that lack it are dropped by this (K6), and not before */
	if (epoch_cmp(a->checkpoint.epoch, act->epoch) == 0)
		note_complete(a, &a->checkpoint);
	for (uint32_t i = 0; i < VCFT_VM_MAX; i++)
		if (agent_has(a, i))
			machine_commit(a->machines[i], act->epoch);
	nsec_t took = a->commit_time = clock_now() - a->checkpoint.begun;
	for (uint32_t i = 0; i < VCFT_VM_MAX; i++)
		a->stats[i].commit = (uint64_t)took;
	events_say(a->events, "checkpoint-committed",
	           json_pack("{s:I, s:f, s:o, s:o}", "epoch", (json_int_t)act->epoch.n, "commit_ms", (double)took / NSEC_PER_MSEC, "steps_ms",
	                     steps_json(&a->checkpoint), "vms", stats_json(a)));
	say_protected(a);
	say_stats(a, act->epoch);
}

void checkpoint_release(struct agent *a, const struct epoch_action *act) { net_release(a->net, act->epoch); }

void checkpoint_discard(struct agent *a, const struct epoch_action *act)
{
	a->checkpoint.failed = true;
	sink_discard(a->sink, act->epoch);
	net_discard(a->net, act->epoch);
	for (uint32_t i = 0; i < VCFT_VM_MAX; i++)
		if (agent_has(a, i))
			machine_abort(a->machines[i], act->epoch);
	events_say(a->events, "checkpoint-aborted", json_pack("{s:I}", "epoch", (json_int_t)act->epoch.n));
	say_protected(a);
}

