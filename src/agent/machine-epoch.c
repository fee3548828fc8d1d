/* machine-epoch.c - one checkpoint of one VM on its host: capture, record, commit or abort; see machine-private.h. Thread: the worker. */
#include "agent/machine-private.h"

#include "base/must.h"

#include <gio/gio.h>
#include <inttypes.h>
#include <string.h>

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

/* A disk whose nbdkit hangs fails every checkpoint to come: like one that has ended, it is brought back by a recovery. */
static void say_failed_disks(struct machine *m, const struct job *job)
{
	for (unsigned i = 0; i < m->o.config->disk_count; i++)
		if (m->disk[i] && disk_failed(m->disk[i]))
			note_post(m, note_new(m, NOTE_DISK, job, NULL));
}

/* Two ascending page sets as one; of a page in both, the newer. Arrays of pointers only: contents stay where they are. */
static void merge_pages(const struct page_set *newer, const struct page_set *older, struct source_pages *out)
{
	size_t room = newer->count + older->count, n = 0, i = 0, j = 0;
	uint64_t *index = g_new(uint64_t, room);
	const uint8_t **data = g_new(const uint8_t *, room);
	while (i < newer->count || j < older->count) {
		bool take_newer = j == older->count || (i < newer->count && newer->index[i] <= older->index[j]);
		if (take_newer && j < older->count && newer->index[i] == older->index[j])
			j++;
		index[n] = take_newer ? newer->index[i] : older->index[j];
		data[n++] = take_newer ? newer->data + i++ * VCFT_PAGE_SIZE : older->data + j++ * VCFT_PAGE_SIZE;
	}
	*out = (struct source_pages){ .count = n, .index = index, .data = data };
}

static bool logs_open(struct machine *m, struct source_epoch *epoch, GError **error)
{
	m->stats.disk_blocks = 0;
	for (unsigned i = 0; i < m->o.config->disk_count; i++) {
		m->log[i] = disk_log_open(m->disk[i], m->pending_epoch, error);
		if (!m->log[i])
			return false;
		m->stats.disk_blocks += m->log[i]->count;
		epoch->region[1 + i] =
			(struct source_pages){ .count = m->log[i]->count, .index = m->log[i]->block, .data = m->log[i]->data };
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
	source_set_backups(m->source, job->backups, job->count, job->complete);
	source_send(m->source, epoch);
}

void job_capture(struct machine *m, struct job *job)
{
	GError *error = NULL;
	struct capture_hooks hooks = { stopped, m };
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
	} else if (g_error_matches(error, VMM_ERROR, VMM_ERROR_STOPPED)) {
		vmm_qemu.run(m->vm, NULL); /* its disk was full: it tries again what could not be written */
	}
	if (g_error_matches(error, VMM_ERROR, VMM_ERROR_HUNG))
		vm_close(m); /* lost: whoever watches its process is told, also when the cluster has given this epoch up before */
	if (error)
		say_failed_disks(m, job);
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
	if (stats->why)
		g_message("%s: epoch %" PRIu64 ": %s", m->o.config->name, r.n, stats->why);
	if (ok)
		__atomic_store_n(&m->stored, true, __ATOMIC_RELEASE);
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
	return true;
}

void job_commit(struct machine *m, struct job *job)
{
	GError *error = NULL;
	if (!m->pending || epoch_cmp(m->pending_epoch, job->epoch) != 0)
		return;
	source_commit(m->source, job->epoch);
	m->pending = false;
	m->carry.count = 0;
	if (disks_commit(m, job->epoch, &error))
		return;
	/* The overlay lags behind the backups: no delta may be made against it. */
	g_warning("%s: epoch %" PRIu64 " of the disk: %s", m->o.config->name, job->epoch.n, error->message);
	note_post(m, note_new(m, NOTE_DISK, job, error));
}

/* The pages of the aborted epoch and those it carried itself, for the next one (A2). */
static void carry_over(struct machine *m)
{
	struct source_pages all;
	struct page_set both = { 0 };
	if (m->capture.ram.count == 0)
		return;
	merge_pages(&m->capture.ram, &m->carry, &all);
	MUST("A2", page_set_reserve(&both, all.count));
	for (size_t i = 0; i < all.count; i++) {
		both.index[i] = all.index[i];
		memcpy(both.data + i * VCFT_PAGE_SIZE, all.data[i], VCFT_PAGE_SIZE);
	}
	both.count = all.count;
	pages_clear(&all);
	page_set_free(&m->carry);
	m->carry = both;
	m->capture.ram.count = 0;
}

void job_abort(struct machine *m, struct job *job)
{
	g_autoptr(GError) error = NULL;
	if (epoch_cmp(m->pending_epoch, job->epoch) != 0)
		return;
	if (m->pending) {
		source_abort(m->source, job->epoch);
		carry_over(m);
	}
	m->pending = false;
	loans_end(m);
	for (unsigned i = 0; m->disks_sealed && i < m->o.config->disk_count; i++)
		if (!disk_merge(m->disk[i], job->epoch, &error)) {
			g_warning("%s: epoch %" PRIu64 " of the disk: %s", m->o.config->name, job->epoch.n, error->message);
			g_clear_error(&error);
			say_failed_disks(m, job);
		}
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
