/* machine-epoch.c - one checkpoint of one VM on its host: capture, record, commit or abort; see machine-private.h. Thread: the worker. */
#include "agent/machine-private.h"

#include "base/must.h"
#include "vm/copy.h"

#include <gio/gio.h>
#include <inttypes.h>
#include <string.h>

static bool stopping(void *user)
{
	struct machine *m = user;
	return net_gate(m->o.net, m->o.id);
}

static bool stuck(void *user, bool runs, const int *nics)
{
	struct machine *m = user;
	return net_gate_stuck(m->o.net, m->o.id, runs, nics);
}

static gboolean stopped(void *user, GError **error)
{
	struct machine *m = user;
	net_cut(m->o.net, m->o.id, m->pending_epoch);
	m->disks_sealed = true;
	for (unsigned i = 0; i < m->o.config->disk_count; i++)
		if (!disk_seal(m->disk[i], m->pending_epoch, error))
			return FALSE;
	return TRUE;
}

/* A disk whose nbdkit hangs fails every checkpoint to come: like one that has ended, it is brought back by a recovery. So does damage (A6). */
static void say_failed_disks(struct machine *m, const struct job *job, const GError *error)
{
	if (g_error_matches(error, DISK_ERROR, DISK_ERROR_DAMAGED) || !state_intact(m, NULL))
		note_post(m, note_new(m, NOTE_DAMAGED, job, NULL));
	for (unsigned i = 0; i < m->o.config->disk_count; i++)
		if (m->disk[i] && disk_failed(m->disk[i]))
			note_post(m, note_new(m, NOTE_DISK, job, NULL));
}

/* Two ascending lists of pages as one; of a page in both, the newer. Arrays of pointers only: contents stay where they are. */
static void join(const struct source_pages *newer, const struct source_pages *older, struct source_pages *out)
{
	size_t room = newer->count + older->count, n = 0, i = 0, j = 0;
	uint64_t *index = g_new(uint64_t, room);
	const uint8_t **data = g_new(const uint8_t *, room);
	while (i < newer->count || j < older->count) {
		bool take_newer = j == older->count || (i < newer->count && newer->index[i] <= older->index[j]);
		if (take_newer && j < older->count && newer->index[i] == older->index[j])
			j++;
		index[n] = take_newer ? newer->index[i] : older->index[j];
		data[n++] = take_newer ? newer->data[i++] : older->data[j++];
	}
	*out = (struct source_pages){ .count = n, .index = index, .data = data };
}

static struct source_pages pages_of(const struct page_set *set)
{
	const uint8_t **data = g_new(const uint8_t *, set->count);
	for (size_t i = 0; i < set->count; i++)
		data[i] = set->data + i * VCFT_PAGE_SIZE;
	return (struct source_pages){ .count = set->count, .index = set->index, .data = data };
}

static void merge_pages(const struct page_set *newer, const struct page_set *older, struct source_pages *out)
{
	struct source_pages a = pages_of(newer), b = pages_of(older);
	join(&a, &b, out);
	g_free((const uint8_t **)a.data);
	g_free((const uint8_t **)b.data);
}

/* Add the log of an epoch, older than what is there. */
static bool log_open(struct machine *m, unsigned i, struct epoch_id r, GError **error)
{
	struct disk_log *log = disk_log_open(m->disk[i], r, error);
	if (!log)
		return false;
	g_ptr_array_add(m->logs, log);
	struct source_pages older = { .count = log->count, .index = log->block, .data = log->data }, all = older;
	if (m->blocks[i].index)
		join(&m->blocks[i], &older, &all);
	if (m->joined[i])
		pages_clear(&m->blocks[i]);
	m->joined[i] = all.index != older.index;
	m->blocks[i] = all;
	return true;
}

/* A5 */
static bool logs_open(struct machine *m, struct source_epoch *epoch, GError **error)
{
	m->stats.disk_blocks = 0;
	for (unsigned i = 0; i < m->o.config->disk_count; i++) {
		m->blocks[i] = (struct source_pages){ 0 };
		bool ok = log_open(m, i, m->pending_epoch, error);
		for (guint k = m->unmerged[i]->len; ok && k > 0; k--)
			ok = log_open(m, i, g_array_index(m->unmerged[i], struct epoch_id, k - 1), error);
		if (!ok)
			return false;
		m->stats.disk_blocks += m->blocks[i].count;
		epoch->region[1 + i] = m->blocks[i];
	}
	return true;
}

static void send_epoch(struct machine *m, struct job *job, struct source_epoch *epoch)
{
	merge_pages(&m->capture.ram, &m->carry, &m->sent);
	epoch->region[0] = m->sent;
	epoch->devices = m->capture.devices;
	epoch->devices_bytes = m->capture.devices_bytes;
	memcpy(epoch->ram_hash, m->capture.ram_hash, sizeof epoch->ram_hash);
	m->stats.epoch = job->epoch;
	m->stats.pause = m->capture.pause;
	m->stats.scan = m->capture.scan;
	m->stats.copy = m->capture.copy;
	m->stats.dirty_pages = m->sent.count;
	m->stats.stand = m->capture.run == CAPTURE_OFF ? VM_OFF : m->capture.run == CAPTURE_WAITS ? VM_WAITS : VM_RUNS;
	source_set_backups(m->source, job->backups, job->count, job->complete);
	source_send(m->source, epoch);
}

/* Who waits for space tries again what could not be written; who is off reads no frames any more. */
static void go_on(struct machine *m)
{
	if (m->capture.run == CAPTURE_WAITS)
		vmm_qemu.run(m->vm, NULL);
	else if (m->capture.run == CAPTURE_OFF)
		net_vm_off(m->o.net, m->o.id);
}

void job_capture(struct machine *m, struct job *job)
{
	GError *error = NULL;
	struct capture_hooks hooks = { .stopping = stopping, .stuck = stuck, .stopped = stopped, .user = m };
	struct source_epoch epoch = { .generation = job->generation, .epoch = job->epoch };
	MUST("S6", !m->pending);
	m->pending_epoch = job->epoch;
	m->stored = m->disks_sealed = false;
	if (!m->vm)
		g_set_error(&error, G_IO_ERROR, G_IO_ERROR_FAILED, "the VM does not run");
	else if (vmm_qemu.capture(m->vm, &m->capture, &hooks, &error)) {
		m->pending = true;
		if (logs_open(m, &epoch, &error))
			send_epoch(m, job, &epoch);
		go_on(m);
	}
	if (g_error_matches(error, VMM_ERROR, VMM_ERROR_HUNG))
		vm_close(m); /* lost: whoever watches its process is told, also when the cluster has given this epoch up before */
	if (error) {
		net_open_gate(m->o.net, m->o.id);
		say_failed_disks(m, job, error);
	}
	note_post(m, note_new(m, NOTE_CAPTURED, job, error));
}

/* The source's thread. */
void on_stored(struct vm_id vm, struct epoch_id r, bool ok, host_mask complete, host_mask failed,
                      const struct source_stats *stats, void *user)
{
	(void)vm;
	struct machine *m = user;
	struct job job = { .epoch = r };
	struct note *n = note_new(m, NOTE_STORED, &job, NULL);
	n->ok = ok;
	n->complete = complete;
	n->failed = failed;
	n->stats = m->stats; /* written before source_send(), not again before this epoch ends */
	n->stats.raw_bytes = stats->raw_bytes;
	n->stats.sent_bytes = stats->sent_bytes;
	g_strlcpy(n->stats.why, stats->why ? stats->why : "", sizeof n->stats.why);
	if (stats->why)
		g_message("%s: epoch %" PRIu64 ": %s", m->o.config->name, r.n, stats->why);
	if (ok)
		__atomic_store_n(&m->stored, true, __ATOMIC_RELEASE);
	else if (!image_intact(m->shadow, NULL))
		note_post(m, note_new(m, NOTE_DAMAGED, &job, NULL));
	note_post(m, n);
}

void job_record(struct machine *m, struct job *job)
{
	if (m->pending && epoch_cmp(m->pending_epoch, job->epoch) == 0)
		source_record(m->source, job->epoch, job->record);
}

static bool disks_commit(struct machine *m, struct epoch_id r, GError **error)
{
	loans_end(m);
	for (unsigned i = 0; i < m->o.config->disk_count; i++) {
		if (!disk_commit(m->disk[i], r, error))
			return false;
		m->disk_at[i] = r;
	}
	unmerged_clear(m);
	return true;
}

void job_commit(struct machine *m, struct job *job)
{
	GError *error = NULL;
	if (!m->pending || epoch_cmp(m->pending_epoch, job->epoch) != 0)
		return;
	source_commit(m->source, job->epoch);
	m->pending = false;
	page_set_free(&m->carry);   /* an epoch that was given up is seldom, and may be all of RAM */
	if (disks_commit(m, job->epoch, &error))
		return;
	/* The overlay lags behind the backups: no delta may be made against it. */
	g_warning("%s: epoch %" PRIu64 " of the disk: %s", m->o.config->name, job->epoch.n, error->message);
	note_post(m, note_new(m, NOTE_DISK, job, error));
}

/* The pages of the aborted epoch and those it carried itself, for the next one (A2). In place: never more than two epochs' pages in memory. */
static void carry_over(struct machine *m)
{
	if (m->capture.ram.count == 0)
		return;
	if (m->carry.count == 0) {
		struct page_set empty = m->carry;
		m->carry = m->capture.ram;
		m->capture.ram = empty;
	} else {
		MUST("A2", pages_merge(&m->carry, &m->capture.ram));
	}
	m->capture.ram.count = 0;
}

/* A5. What cannot be merged now is tried again after the next abort, and read beside the next epoch until then. */
static void blocks_over(struct machine *m, unsigned i, struct epoch_id r)
{
	GArray *left = m->unmerged[i];
	g_array_append_val(left, r);
	for (guint k = 0; k < left->len;) {
		g_autoptr(GError) error = NULL;
		struct epoch_id e = g_array_index(left, struct epoch_id, k);
		if (disk_merge(m->disk[i], e, &error)) {
			g_array_remove_index(left, k);
			continue;
		}
		g_message("%s: epoch %" PRIu64 " of the disk stays beside the next one: %s", m->o.config->name, e.n, error->message);
		k++;
	}
}

void job_abort(struct machine *m, struct job *job)
{
	if (epoch_cmp(m->pending_epoch, job->epoch) != 0)
		return;
	if (m->pending) {
		source_abort(m->source, job->epoch);
		carry_over(m);
	}
	m->pending = false;
	loans_end(m);
	for (unsigned i = 0; m->disks_sealed && i < m->o.config->disk_count; i++)
		blocks_over(m, i, job->epoch);
	if (m->disks_sealed)
		say_failed_disks(m, job, NULL);
	m->disks_sealed = false;
}

void job_bare(struct machine *m, struct job *job)
{
	GError *error = NULL;
	nsec_t *pause = g_new0(nsec_t, job->count);
	unsigned n = 0;
	if (!m->vm)
		g_set_error(&error, G_IO_ERROR, G_IO_ERROR_FAILED, "the VM does not run");
	while (!error && n < job->count)
		if (vmm_qemu.bare_pause(m->vm, &pause[n], &error))
			n++;
	struct note *note = note_new(m, NOTE_BARE, job, error);
	note->pause = pause;
	note->count = n;
	note->bare_done = job->bare_done;
	note->bare_user = job->bare_user;
	note_post(m, note);
}
