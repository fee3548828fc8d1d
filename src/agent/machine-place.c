/* machine-place.c - a recovery of one VM on its host: stand still, say what is held, be at c, run; see machine-private.h. Thread: the worker. */
#include "agent/machine-private.h"

#include "base/fault.h"
#include "base/must.h"

#include <gio/gio.h>
#include <glib/gstdio.h>
#include <inttypes.h>

#define FILL_BYTES (1u << 20)       /* per epoch while a backup is being filled, at least */
#define FILL_MOST (32u << 20)       /* and at most: what there is time for (rule T7) */
#define RUN_SLOW_US (1000u * 1000u) /* the fault point: longer than an interval, so that a BEGIN comes before all VMs go on */

void job_pause(struct machine *m, struct job *job)
{
	(void)job;
	g_autoptr(GError) error = NULL;
	if (m->vm && !vmm_qemu.pause(m->vm, &error)) {
		g_message("%s: cannot be paused (%s), killed", m->o.config->name, error->message);
		vm_close(m);
	}
}

bool state_intact(const struct machine *m, GError **error)
{
	for (unsigned i = 0; i < m->o.config->disk_count; i++)
		if (m->disk[i] && disk_damaged(m->disk[i])) {
			g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "disk %u is damaged", i);
			return false;
		}
	return !m->shadow || image_intact(m->shadow, error);
}

void job_hold(struct machine *m, struct job *job)
{
	g_autoptr(GError) error = NULL;
	struct note *n = note_new(m, NOTE_HELD, job, NULL);
	n->holding.vm = m->o.id;
	if (!state_intact(m, &error)) {
		g_warning("%s: %s; it can only come from another host", m->o.config->name, error->message);
	} else if (m->shadow) {
		n->holding.image = image_epoch(m->shadow);
		n->holding.complete = epoch_of(1); /* a shadow always has all pages */
		n->holding.live = true;
		if (m->pending && __atomic_load_n(&m->stored, __ATOMIC_ACQUIRE))
			n->holding.staged = m->pending_epoch;
	}
	note_post(m, n);
}

/* Bring live RAM back to the shadow (A3). The VM is paused, or dead: then dirty() names all pages, or fails, and all are compared. */
static bool restore_ram(struct machine *m, GError **error)
{
	g_autoptr(GError) why = NULL;
	struct page_set dirty = { 0 };
	uint8_t *live = vmm_qemu.ram(m->vm);
	bool ok, known = vmm_qemu.dirty(m->vm, &dirty, &why);
	if (known) {
		ok = image_restore_ram(m->shadow, live, &dirty, NULL, error) && image_restore_ram(m->shadow, live, &m->capture.ram, NULL, error) &&
		     image_restore_ram(m->shadow, live, &m->carry, NULL, error);
	} else {
		g_message("%s: %s; all pages are compared", m->o.config->name, why->message);
		ok = image_restore_ram(m->shadow, live, NULL, NULL, error);
	}
	page_set_free(&dirty);
	return ok;
}

static char *new_ram_path(struct machine *m, struct generation g)
{
	return g_strdup_printf("%s/%s/ram.%" PRIu64, m->o.agent->ram_dir, m->o.config->name, g.n);
}

static void forget_pending(struct machine *m, struct epoch_id c)
{
	if (m->pending && epoch_cmp(m->pending_epoch, c) == 0) {
		source_commit(m->source, c);
		m->capture.ram.count = 0;
		page_set_free(&m->carry);
	} else if (m->pending) {
		source_abort(m->source, m->pending_epoch);
	}
	m->pending = false;
	loans_end(m);
}

/* An nbdkit that has ended: where the overlay is at c nothing else is needed, and disks_start() makes a new one. Where c was committed and not yet
 * folded its log is there still, and has all that the overlay lacks, unless blocks of an epoch before were left beside it (A5). */
static bool disk_anew(struct machine *m, unsigned i, struct epoch_id c)
{
	bool folded = epoch_cmp(m->disk_at[i], c) == 0;
	if (disk_damaged(m->disk[i]) || (!folded && (!disk_failed(m->disk[i]) || m->unmerged[i]->len)))
		return false;
	m->disk_fold[i] = folded ? epoch_of(0) : c;
	(folded ? disk_stop : disk_abandon)(g_steal_pointer(&m->disk[i]));
	return true;
}

static bool disk_back(struct machine *m, unsigned i, struct epoch_id c, GError **error)
{
	g_autoptr(GError) why = NULL;
	if (!m->disk[i])
		return true;
	if (disk_rollback(m->disk[i], c, &why)) {
		m->disk_at[i] = c;
		return true;
	}
	if (!disk_anew(m, i, c)) {
		g_propagate_error(error, g_steal_pointer(&why));
		return false;
	}
	g_message("%s: %s; started anew", m->o.config->name, why->message);
	return true;
}

static bool disks_rollback(struct machine *m, struct epoch_id c, GError **error)
{
	for (unsigned i = 0; i < m->o.config->disk_count; i++)
		if (!disk_back(m, i, c, error))
			return false;
	unmerged_clear(m);
	return true;
}

/* RAM comes from the shadow, when QEMU starts (Q10). */
static void fill_anew(struct machine *m)
{
	g_unlink(m->ram_path);
	m->fill = true;
}

/* From what this machine has: roll back to c. A8: a VM that stands still writes nothing any more, so its QEMU may end while another one is started; but the
 * ports are the former one's until it has ended, so the new one is not said to be there before. */
static bool place_back(struct machine *m, struct epoch_id c, GError **error)
{
	forget_pending(m, c);
	MUST("E7", epoch_cmp(image_epoch(m->shadow), c) == 0);
	if (m->vm && !restore_ram(m, error))
		return false;
	if (!m->vm)
		fill_anew(m);
	else
		m->fill = !vmm_qemu.filled(m->vm);
	vm_leave(m);
	return disks_rollback(m, c, error);
}

/* From the image that a backup held. */
static bool place_image(struct machine *m, struct generation g, struct image *image)
{
	m->shadow = image;
	m->ram_path = new_ram_path(m, g);
	fill_anew(m);
	return true;
}

/* Power-off state: disks as their bases are, RAM empty. */
static bool place_fresh(struct machine *m, struct generation g, GError **error)
{
	uint64_t blocks[VCFT_DISK_MAX] = { 0 };
	g_autofree char *log = console_log_path(m);
	parts_close(m);
	m->fill = m->pending = false;   /* an epoch may have been begun: nothing was ever committed */
	g_unlink(log); /* a new life has a new log */
	if (m->shadow)
		image_remove(g_steal_pointer(&m->shadow));
	for (unsigned i = 0; i < m->o.config->disk_count; i++) {
		g_autofree char *dir = disk_folder(m, i);
		disk_remove_files(dir);
	}
	if (!disks_start(m, epoch_of(0), error))
		return false;
	for (unsigned i = 0; i < m->o.config->disk_count; i++)
		blocks[i] = disk_blocks(m->disk[i]);
	machine_image_spec_clear(&m->spec);
	machine_image_spec(m->o.agent, m->o.config, blocks, &m->spec);
	m->spec.disks_writable = false;
	g_unlink(m->spec.ram_path);
	m->shadow = image_open(&m->spec, error);
	if (m->ram_path)
		g_unlink(m->ram_path);
	g_free(m->ram_path);
	m->ram_path = new_ram_path(m, g);
	return m->shadow != NULL;
}

/* Who may do what in the folders (A4). */
static bool make_dirs(struct machine *m, GError **error)
{
	const struct config_agent *a = m->o.agent;
	g_autofree char *ram = g_build_filename(a->ram_dir, m->o.config->name, NULL);
	g_autofree char *vms = g_build_filename(a->state_dir, "vms", NULL), *vm = g_build_filename(vms, m->o.config->name, NULL);
	g_autofree char *console = g_build_filename(a->state_dir, "console", NULL);
	return identity_folder_closed(&m->who, ram, error) && identity_folder_open(vms, error) && identity_folder_closed(&m->who, vm, error) &&
	       identity_folder_open(console, error);
}

/* A7 */
static bool start(struct machine *m, struct epoch_id c, GError **error)
{
	if ((c.n && !room_check(m, error)) || !disks_start(m, c, error) || !(m->vm = vm_start(m, c, error)))
		return false;
	m->fill = false;
	if (c.n) {
		m->room.due = true;
		return true;
	}
	if (room_take_now(m, error))
		return true;
	vm_close(m);
	return false;
}

static bool place(struct machine *m, struct job *job, GError **error)
{
	bool ok = false;
	if (!make_dirs(m, error))
		return false;
	if (job->epoch.n == 0)
		ok = place_fresh(m, job->generation, error);
	else if (job->image)
		ok = place_image(m, job->generation, g_steal_pointer(&job->image));
	else if (m->shadow)
		ok = place_back(m, job->epoch, error);
	else
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED, "no image on this host");
	if (!ok)
		return false;
	m->capture.ram.count = 0;
	page_set_free(&m->carry);
	if (!start(m, job->epoch, error))
		return false;
	if (!m->source) {
		struct source_options o = { .vm = m->o.id, .name = m->o.config->name, .self = m->o.self,
		                            .credentials = m->o.credentials, .fill_bytes = FILL_BYTES, .fill_most = FILL_MOST,
		                            .timeout_ms = (unsigned)(m->o.agent->backup_timeout / NSEC_PER_MSEC),
		                            .rate_least = m->o.agent->backup_rate };
		struct source_callbacks callbacks = { on_stored };
		m->source = source_new(&o, m->shadow, &callbacks, m, error);
	}
	return m->source != NULL;
}

void job_place(struct machine *m, struct job *job)
{
	GError *error = NULL;
	m->generation = job->generation;
	bool ok = place(m, job, &error);
	former_end(m);
	struct note *n = note_new(m, NOTE_PLACED, job, error);
	if (ok) {
		n->pid[0] = vmm_qemu.pid(m->vm);
		for (unsigned i = 0; i < m->o.config->disk_count; i++)
			n->pid[1 + i] = disk_pid(m->disk[i]);
	}
	note_post(m, n);
}

void job_run(struct machine *m, struct job *job)
{
	GError *error = NULL;
	if (fault(FAULT_RUN_SLOW))
		g_usleep(RUN_SLOW_US);
	if (!m->vm)
		g_set_error(&error, G_IO_ERROR, G_IO_ERROR_FAILED, "the VM is gone");
	else if (vmm_qemu.off(m->vm))
		net_vm_off(m->o.net, m->o.id);
	else if (vmm_qemu.run(m->vm, &error))
		net_reinject(m->o.net, m->o.id, image_record(m->shadow), &error);
	note_post(m, note_new(m, NOTE_RAN, job, error));
	if (m->vm)
		room_begin(m);
}
