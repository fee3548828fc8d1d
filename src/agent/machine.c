/* machine.c - the loop's side of one VM: jobs go in, the worker does them one after the other; see machine.h for the jobs and rules A1-A3. */
#include "agent/machine-private.h"

#include "agent/post.h"

#include <glib/gstdio.h>

/* ---- jobs ---- */

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
	m->logs = g_ptr_array_new_with_free_func((GDestroyNotify)disk_log_free);
	for (unsigned i = 0; i < VCFT_DISK_MAX; i++)
		m->unmerged[i] = g_array_new(FALSE, FALSE, sizeof(struct epoch_id));
	m->thread = g_thread_new(m->o.config->name, worker, m);
	return m;
}

/* What a backup keeps there from now on is the agent's (A4). */
static void take_folders_back(struct machine *m)
{
	const struct identity ourselves = { 0 };
	for (unsigned i = 0; i < m->o.config->disk_count; i++) {
		g_autoptr(GError) error = NULL;
		g_autofree char *dir = disk_folder(m, i);
		if (!identity_folder_own(&ourselves, dir, &error))
			g_warning("%s: %s", m->o.config->name, error->message);
	}
}

void machine_free(struct machine *m)
{
	processes_unwatch(m);
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
	g_ptr_array_unref(m->logs);
	for (unsigned i = 0; i < VCFT_DISK_MAX; i++)
		g_array_unref(m->unmerged[i]);
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
	processes_unwatch(m);
	push(m, job_new(job_pause, (struct generation){ 0 }, epoch_of(0)));
}

void machine_hold(struct machine *m, uint64_t serial) { push(m, job_new(job_hold, (struct generation){ 0 }, epoch_of(serial))); }

void machine_place(struct machine *m, struct generation g, struct epoch_id c, struct image *image)
{
	struct job *job = job_new(job_place, g, c);
	job->image = image;
	processes_unwatch(m);
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
