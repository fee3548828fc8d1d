/* machine.c - the worker of one VM; see machine.h for the jobs and rules A1-A4.
 *
 * Fields below `worker's` in struct machine are touched by the worker only, so nothing here needs a lock; what the loop wants to
 * know comes as a note. The source's thread calls on_stored(), which posts to the loop as well. */
#include "agent/machine.h"

#include "agent/post.h"
#include "base/must.h"
#include "disk/disk.h"

#include <gio/gio.h>
#include <glib-unix.h>
#include <glib/gstdio.h>
#include <inttypes.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define FILL_BYTES (2u << 20)       /* per epoch while a backup is being filled: what a commit may be longer for it */

struct machine {
	struct machine_options o;
	struct machine_notes notes;
	void *user;
	struct identity who;                /* as whom its processes run */
	GThread *thread;
	GAsyncQueue *jobs;
	struct post_box *box;               /* notes to the loop */
	struct { guint source; int fd; } watch[1 + VCFT_DISK_MAX]; /* loop's: QEMU, then an nbdkit for each disk */

	/* worker's */
	struct vm *vm;
	struct disk *disk[VCFT_DISK_MAX];
	struct epoch_id disk_at[VCFT_DISK_MAX]; /* its overlay is exactly this epoch */
	struct disk_log *log[VCFT_DISK_MAX];
	struct image *shadow;
	struct source *source;
	struct image_spec spec;
	char *ram_path;
	struct generation generation;
	struct capture capture;             /* of the pending epoch */
	struct page_set carry;              /* pages of aborted epochs that the next one must have (A2) */
	struct source_pages sent;           /* RAM of the pending epoch as given to the source: arrays are ours */
	bool pending, stored;
	bool disks_sealed;                  /* at pending_epoch */
	struct epoch_id pending_epoch;
	struct machine_stats stats;
};

/* ---- jobs ---- */

/* given: the queue's own lock orders what the loop wrote with what the worker reads; this says the same where the thread sanitizer can see it,
 * which cannot look into GLib. */
struct job {
	bool given;
	void (*run)(struct machine *, struct job *);
	struct generation generation;
	struct epoch_id epoch;
	struct image *image;
	GBytes *record;
	host_mask complete;
	struct source_backup *backups;
	unsigned count;
	machine_bare_done bare_done;
	void *bare_user;
};

static void job_free(struct job *job)
{
	g_clear_pointer(&job->record, g_bytes_unref);
	g_free(job->backups);
	g_free(job);
}

static struct job *job_new(void (*run)(struct machine *, struct job *), struct generation g, struct epoch_id e)
{
	struct job *job = g_new0(struct job, 1);
	job->run = run;
	job->generation = g;
	job->epoch = e;
	return job;
}

static void job_end(struct machine *m, struct job *job)
{
	(void)m;
	(void)job;
}

static gpointer worker(gpointer data)
{
	struct machine *m = data;
	for (bool going = true; going;) {
		struct job *job = g_async_queue_pop(m->jobs);
		going = __atomic_load_n(&job->given, __ATOMIC_ACQUIRE) && job->run != job_end;
		job->run(m, job);
		job_free(job);
	}
	return NULL;
}

static void push(struct machine *m, struct job *job)
{
	__atomic_store_n(&job->given, true, __ATOMIC_RELEASE);
	g_async_queue_push(m->jobs, job);
}

/* ---- notes: worker or source thread -> loop ---- */

enum note_kind { NOTE_CAPTURED, NOTE_STORED, NOTE_HELD, NOTE_PLACED, NOTE_RAN, NOTE_BARE, NOTE_DISK };

struct note {
	struct machine *machine;
	enum note_kind kind;
	struct generation generation;
	struct epoch_id epoch;
	bool ok;
	host_mask complete, failed;
	struct machine_stats stats;
	struct message_holding holding;
	GError *error;
	nsec_t *pause;
	unsigned count;
	machine_bare_done bare_done;
	void *bare_user;
	pid_t pid[1 + VCFT_DISK_MAX];       /* NOTE_PLACED: processes to watch */
};

static void watch_processes(struct machine *m, const pid_t *pid);

static void note_free(void *data)
{
	struct note *n = data;
	g_clear_error(&n->error);
	g_free(n->pause);
	g_free(n);
}

static void note_tell(void *data)
{
	struct note *n = data;
	struct machine *m = n->machine;
	struct vm_id vm = m->o.id;
	switch (n->kind) {
	case NOTE_CAPTURED: m->notes.captured(vm, n->epoch, n->error, m->user); break;
	case NOTE_STORED: m->notes.stored(vm, n->epoch, n->ok, n->complete, n->failed, &n->stats, m->user); break;
	case NOTE_HELD: m->notes.held(vm, n->epoch.n, &n->holding, m->user); break;
	case NOTE_PLACED:
		if (!n->error)
			watch_processes(m, n->pid);
		m->notes.placed(vm, n->generation, n->error, m->user);
		break;
	case NOTE_RAN: m->notes.ran(vm, n->generation, n->error, m->user); break;
	case NOTE_BARE: n->bare_done(n->pause, n->count, n->error, n->bare_user); break;
	case NOTE_DISK: m->notes.died(vm, "disk", m->user); break;
	}
}

static struct note *note_new(struct machine *m, enum note_kind kind, const struct job *job, GError *error)
{
	struct note *n = g_new0(struct note, 1);
	n->machine = m;
	n->kind = kind;
	n->generation = job->generation;
	n->epoch = job->epoch;
	n->error = error;
	return n;
}

static void post(struct machine *m, struct note *n) { post_box_send(m->box, note_tell, n, note_free); }

/* ---- processes ---- */

static gboolean process_ended(gint fd, GIOCondition condition, gpointer data)
{
	(void)condition;
	struct machine *m = data;
	const char *what = "QEMU";
	for (unsigned i = 0; i < G_N_ELEMENTS(m->watch); i++)
		if (m->watch[i].fd == fd) {
			what = i ? "nbdkit" : "QEMU";
			m->watch[i].source = 0;
			m->watch[i].fd = -1;
		}
	close(fd);
	m->notes.died(m->o.id, what, m->user);
	return G_SOURCE_REMOVE;
}

static void unwatch_processes(struct machine *m)
{
	for (unsigned i = 0; i < G_N_ELEMENTS(m->watch); i++)
		if (m->watch[i].source) {
			g_source_remove(m->watch[i].source);
			close(m->watch[i].fd);
			m->watch[i].source = 0;
			m->watch[i].fd = -1;
		}
}

static void watch_processes(struct machine *m, const pid_t *pid)
{
	unwatch_processes(m);
	for (unsigned i = 0; i < G_N_ELEMENTS(m->watch); i++) {
		int fd = pid[i] > 0 ? (int)syscall(SYS_pidfd_open, pid[i], 0) : -1;
		if (fd >= 0) {
			m->watch[i].fd = fd;
			m->watch[i].source = g_unix_fd_add(fd, G_IO_IN, process_ended, m);
		}
	}
}

/* ---- paths ---- */

char *machine_nic_path(const struct config_agent *agent, const struct config_vm *config, unsigned nic)
{
	return g_strdup_printf("%s/%s/nic%u.sock", agent->run_dir, config->name, nic);
}

char *machine_console_path(const struct config_agent *agent, const struct config_vm *config)
{
	return g_strdup_printf("%s/%s/console.sock", agent->run_dir, config->name);
}

static char *disk_dir(const struct config_agent *agent, const struct config_vm *config, unsigned disk)
{
	return g_strdup_printf("%s/vms/%s/disk%u", agent->state_dir, config->name, disk);
}

void machine_image_spec(const struct config_agent *agent, const struct config_vm *config, const uint64_t *disk_blocks,
                        struct image_spec *ret_spec)
{
	*ret_spec = (struct image_spec){
		.ram_path = g_strdup_printf("%s/%s/image", agent->ram_dir, config->name),
		.ram_pages = config->memory_bytes / VCFT_PAGE_SIZE,
		.disk_count = config->disk_count,
		.disks_writable = true,
	};
	for (unsigned i = 0; i < config->disk_count; i++) {
		ret_spec->disk_dir[i] = disk_dir(agent, config, i);
		ret_spec->disk_blocks[i] = disk_blocks[i];
	}
	g_autofree char *dir = g_path_get_dirname(ret_spec->ram_path);
	g_mkdir_with_parents(dir, 0711);
}

void machine_image_spec_clear(struct image_spec *spec)
{
	g_free((char *)spec->ram_path);
	for (unsigned i = 0; i < spec->disk_count; i++)
		g_free((char *)spec->disk_dir[i]);
	*spec = (struct image_spec){ 0 };
}

/* ---- start and stop of the parts (worker) ---- */

static void pages_clear(struct source_pages *pages)
{
	g_free((uint64_t *)pages->index);
	g_free((const uint8_t **)pages->data);
	*pages = (struct source_pages){ 0 };
}

/* The source has let go of the pending epoch: so do we. */
static void loans_end(struct machine *m)
{
	pages_clear(&m->sent);
	for (unsigned i = 0; i < m->o.config->disk_count; i++)
		g_clear_pointer(&m->log[i], disk_log_free);
}

static void vm_close(struct machine *m)
{
	if (m->vm)
		vmm_qemu.free(g_steal_pointer(&m->vm));
}

static void parts_close(struct machine *m)
{
	vm_close(m);
	g_clear_pointer(&m->source, source_free);
	loans_end(m);
	for (unsigned i = 0; i < m->o.config->disk_count; i++)
		g_clear_pointer(&m->disk[i], disk_stop);
}

static bool disks_start(struct machine *m, struct epoch_id c, GError **error)
{
	for (unsigned i = 0; i < m->o.config->disk_count; i++) {
		if (m->disk[i])
			continue;
		g_autofree char *dir = disk_dir(m->o.agent, m->o.config, i);
		g_autofree char *plugin = g_build_filename(m->o.agent->plugin_dir, "virtcft-disk.so", NULL);
		g_autofree char *socket = g_strdup_printf("%s/%s/disk%u.sock", m->o.agent->run_dir, m->o.config->name, i);
		struct disk_spec spec = { .plugin = plugin, .base = m->o.bases[i], .dir = dir, .socket = socket, .run_as = m->who };
		m->disk[i] = disk_start(&spec, epoch_next(c), error);
		if (!m->disk[i])
			return false;
		m->disk_at[i] = c;
	}
	return true;
}

static char *console_log_path(const struct machine *m)
{
	return g_strdup_printf("%s/console/%s.log", m->o.agent->state_dir, m->o.config->name);
}

static struct vm *vm_start(struct machine *m, struct epoch_id c, GError **error)
{
	const struct config_vm *config = m->o.config;
	g_autofree char *run_dir = g_build_filename(m->o.agent->run_dir, config->name, NULL);
	g_autofree char *console = machine_console_path(m->o.agent, config);
	g_autofree char *log = console_log_path(m);
	g_autofree char *preload = g_build_filename(m->o.agent->plugin_dir, "virtcft-preload.so", NULL);
	g_autoptr(GPtrArray) paths = g_ptr_array_new_with_free_func(g_free);
	struct vm_nic nics[VCFT_NIC_MAX];
	struct vm_disk disks[VCFT_DISK_MAX];
	for (unsigned i = 0; i < config->nic_count; i++) {
		nics[i].socket = machine_nic_path(m->o.agent, config, i);
		memcpy(nics[i].mac, config->nics[i].mac, 6);
		g_ptr_array_add(paths, (char *)nics[i].socket);
	}
	for (unsigned i = 0; i < config->disk_count; i++) {
		disks[i].socket = g_strdup_printf("%s/disk%u.sock", run_dir, i);
		g_ptr_array_add(paths, (char *)disks[i].socket);
	}
	struct vm_spec spec = {
		.name = config->name, .memory_bytes = config->memory_bytes, .cpus = config->cpus,
		.machine = config->machine, .cpu = config->cpu,
		.kernel = config->kernel, .initrd = config->initrd, .append = config->append,
		.nics = nics, .nic_count = config->nic_count, .disks = disks, .disk_count = config->disk_count,
		.extra = (const char *const *)config->qemu, .ram_path = m->ram_path, .run_dir = run_dir,
		.console_socket = console, .console_log = log, .preload = preload, .verify = m->o.verify, .run_as = m->who,
	};
	gsize n = 0;
	GBytes *state = c.n ? image_devices(m->shadow) : NULL;
	const uint8_t *bytes = state ? g_bytes_get_data(state, &n) : NULL;
	return vmm_qemu.start(&spec, bytes, n, error);
}

/* ---- capture (worker) ---- */

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
			post(m, note_new(m, NOTE_DISK, job, NULL));
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

static void job_capture(struct machine *m, struct job *job)
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
	post(m, note_new(m, NOTE_CAPTURED, job, error));
}

/* The source's thread. */
static void on_stored(struct vm_id vm, struct epoch_id r, bool ok, host_mask complete, host_mask failed,
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
	post(m, n);
}

static void job_record(struct machine *m, struct job *job)
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

static void job_commit(struct machine *m, struct job *job)
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
	post(m, note_new(m, NOTE_DISK, job, error));
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

static void job_abort(struct machine *m, struct job *job)
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

static void job_pause(struct machine *m, struct job *job)
{
	(void)job;
	g_autoptr(GError) error = NULL;
	if (m->vm && !vmm_qemu.pause(m->vm, &error)) {
		g_message("%s: cannot be paused (%s), killed", m->o.config->name, error->message);
		vm_close(m);
	}
}

static void job_hold(struct machine *m, struct job *job)
{
	struct note *n = note_new(m, NOTE_HELD, job, NULL);
	n->holding.vm = m->o.id;
	if (m->shadow) {
		n->holding.image = image_epoch(m->shadow);
		n->holding.complete = epoch_of(1); /* a shadow always has all pages */
		n->holding.live = true;
		if (m->pending && __atomic_load_n(&m->stored, __ATOMIC_ACQUIRE))
			n->holding.staged = m->pending_epoch;
	}
	post(m, n);
}

/* ---- placing (worker) ---- */

/* Bring live RAM back to the shadow (A3). The VM is paused, or dead: then dirty() names all pages, or fails, and all are compared. */
static void restore_ram(struct machine *m)
{
	g_autoptr(GError) error = NULL;
	struct page_set dirty = { 0 };
	uint8_t *live = vmm_qemu.ram(m->vm);
	if (vmm_qemu.dirty(m->vm, &dirty, &error)) {
		image_restore_ram(m->shadow, live, &dirty);
		image_restore_ram(m->shadow, live, &m->capture.ram);
		image_restore_ram(m->shadow, live, &m->carry);
	} else {
		g_message("%s: %s; all pages are compared", m->o.config->name, error->message);
		image_restore_ram(m->shadow, live, NULL);
	}
	page_set_free(&dirty);
}

static char *new_ram_path(struct machine *m, struct generation g)
{
	return g_strdup_printf("%s/%s/ram.%" PRIu64, m->o.agent->ram_dir, m->o.config->name, g.n);
}

static void forget_pending(struct machine *m, struct epoch_id c)
{
	if (m->pending && epoch_cmp(m->pending_epoch, c) == 0) {
		source_commit(m->source, c);
		m->capture.ram.count = m->carry.count = 0;
	} else if (m->pending) {
		source_abort(m->source, m->pending_epoch);
	}
	m->pending = false;
	loans_end(m);
}

/* An nbdkit that has ended took the logs along: where the overlay is at c nothing else is needed, and disks_start() makes a new one. */
static bool disk_back(struct machine *m, unsigned i, struct epoch_id c, GError **error)
{
	g_autoptr(GError) why = NULL;
	if (!m->disk[i])
		return true;
	if (disk_rollback(m->disk[i], c, &why)) {
		m->disk_at[i] = c;
		return true;
	}
	if (epoch_cmp(m->disk_at[i], c)) {
		g_propagate_error(error, g_steal_pointer(&why));
		return false;
	}
	g_message("%s: %s; started anew", m->o.config->name, why->message);
	disk_stop(g_steal_pointer(&m->disk[i]));
	return true;
}

static bool disks_rollback(struct machine *m, struct epoch_id c, GError **error)
{
	for (unsigned i = 0; i < m->o.config->disk_count; i++)
		if (!disk_back(m, i, c, error))
			return false;
	return true;
}

/* From what this machine has: roll back to c. */
static bool place_back(struct machine *m, struct epoch_id c, GError **error)
{
	forget_pending(m, c);
	MUST("E7", epoch_cmp(image_epoch(m->shadow), c) == 0);
	if (m->vm)
		restore_ram(m);
	else if (g_unlink(m->ram_path), !image_copy_ram(m->shadow, m->ram_path, error))
		return false;
	vm_close(m);
	return disks_rollback(m, c, error);
}

/* From the image that a backup held. */
static bool place_image(struct machine *m, struct generation g, struct image *image, GError **error)
{
	m->shadow = image;
	m->ram_path = new_ram_path(m, g);
	g_unlink(m->ram_path);
	return image_copy_ram(image, m->ram_path, error);
}

/* Power-off state: disks as their bases are, RAM empty. */
static bool place_fresh(struct machine *m, struct generation g, GError **error)
{
	uint64_t blocks[VCFT_DISK_MAX] = { 0 };
	g_autofree char *log = console_log_path(m);
	parts_close(m);
	g_unlink(log); /* a new life has a new log */
	if (m->shadow)
		image_remove(g_steal_pointer(&m->shadow));
	for (unsigned i = 0; i < m->o.config->disk_count; i++) {
		g_autofree char *dir = disk_dir(m->o.agent, m->o.config, i);
		for (unsigned f = 0; f < 2; f++) {
			g_autofree char *file = g_build_filename(dir, f ? "map" : "overlay", NULL);
			g_unlink(file);
		}
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

static bool place(struct machine *m, struct job *job, GError **error)
{
	bool ok = false;
	if (!make_dirs(m, error))
		return false;
	if (job->epoch.n == 0)
		ok = place_fresh(m, job->generation, error);
	else if (job->image)
		ok = place_image(m, job->generation, g_steal_pointer(&job->image), error);
	else if (m->shadow)
		ok = place_back(m, job->epoch, error);
	else
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED, "no image on this host");
	if (!ok || !disks_start(m, job->epoch, error))
		return false;
	m->carry.count = m->capture.ram.count = 0;
	m->vm = vm_start(m, job->epoch, error);
	if (!m->vm)
		return false;
	if (!m->source) {
		struct source_options o = { .vm = m->o.id, .name = m->o.config->name, .self = m->o.self,
		                            .credentials = m->o.credentials, .fill_bytes = FILL_BYTES };
		struct source_callbacks callbacks = { on_stored };
		m->source = source_new(&o, m->shadow, &callbacks, m);
	}
	return true;
}

static void job_place(struct machine *m, struct job *job)
{
	GError *error = NULL;
	m->generation = job->generation;
	bool ok = place(m, job, &error);
	struct note *n = note_new(m, NOTE_PLACED, job, error);
	if (ok) {
		n->pid[0] = vmm_qemu.pid(m->vm);
		for (unsigned i = 0; i < m->o.config->disk_count; i++)
			n->pid[1 + i] = disk_pid(m->disk[i]);
	}
	post(m, n);
}

static void job_run(struct machine *m, struct job *job)
{
	GError *error = NULL;
	if (!m->vm)
		g_set_error(&error, G_IO_ERROR, G_IO_ERROR_FAILED, "the VM is gone");
	else if (vmm_qemu.run(m->vm, &error))
		net_reinject(m->o.net, m->o.id, image_record(m->shadow), &error);
	post(m, note_new(m, NOTE_RAN, job, error));
}

static void job_bare(struct machine *m, struct job *job)
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
	post(m, note);
}

/* ---- the loop's side ---- */

struct machine *machine_new(const struct machine_options *options, const struct machine_notes *notes, void *user)
{
	struct machine *m = g_new0(struct machine, 1);
	m->o = *options;
	m->notes = *notes;
	m->user = user;
	m->who = config_agent_identity(options->agent, options->id);
	for (unsigned i = 0; i < G_N_ELEMENTS(m->watch); i++)
		m->watch[i].fd = -1;
	m->box = post_box_new();
	m->jobs = g_async_queue_new();
	m->thread = g_thread_new(m->o.config->name, worker, m);
	return m;
}

/* What a backup keeps there from now on is the agent's (A4). */
static void take_folders_back(struct machine *m)
{
	const struct identity ourselves = { 0 };
	for (unsigned i = 0; i < m->o.config->disk_count; i++) {
		g_autoptr(GError) error = NULL;
		g_autofree char *dir = disk_dir(m->o.agent, m->o.config, i);
		if (!identity_folder_own(&ourselves, dir, &error))
			g_warning("%s: %s", m->o.config->name, error->message);
	}
}

void machine_free(struct machine *m)
{
	unwatch_processes(m);
	push(m, job_new(job_end, (struct generation){ 0 }, epoch_of(0)));
	g_thread_join(m->thread);
	post_box_close(m->box);
	parts_close(m);
	if (m->shadow)
		image_remove(m->shadow);
	if (m->ram_path)
		g_unlink(m->ram_path);
	g_free(m->ram_path);
	take_folders_back(m);
	machine_image_spec_clear(&m->spec);
	capture_free(&m->capture);
	page_set_free(&m->carry);
	g_async_queue_unref(m->jobs);
	g_free(m);
}

void machine_capture(struct machine *m, struct generation g, struct epoch_id r, const struct source_backup *backups, unsigned count,
                     host_mask complete)
{
	struct job *job = job_new(job_capture, g, r);
	job->backups = g_memdup2(backups, count * sizeof *backups);
	job->count = count;
	job->complete = complete;
	push(m, job);
}

void machine_record(struct machine *m, struct epoch_id r, GBytes *record)
{
	struct job *job = job_new(job_record, (struct generation){ 0 }, r);
	job->record = g_bytes_ref(record);
	push(m, job);
}

void machine_commit(struct machine *m, struct epoch_id r) { push(m, job_new(job_commit, (struct generation){ 0 }, r)); }
void machine_abort(struct machine *m, struct epoch_id r) { push(m, job_new(job_abort, (struct generation){ 0 }, r)); }

void machine_pause(struct machine *m)
{
	unwatch_processes(m);
	push(m, job_new(job_pause, (struct generation){ 0 }, epoch_of(0)));
}

void machine_hold(struct machine *m, uint64_t serial) { push(m, job_new(job_hold, (struct generation){ 0 }, epoch_of(serial))); }

void machine_place(struct machine *m, struct generation g, struct epoch_id c, struct image *image)
{
	struct job *job = job_new(job_place, g, c);
	job->image = image;
	unwatch_processes(m);
	push(m, job);
}

void machine_run(struct machine *m, struct generation g) { push(m, job_new(job_run, g, epoch_of(0))); }

void machine_bare(struct machine *m, unsigned count, machine_bare_done done, void *user)
{
	struct job *job = job_new(job_bare, (struct generation){ 0 }, epoch_of(0));
	job->count = count;
	job->bare_done = done;
	job->bare_user = user;
	push(m, job);
}
