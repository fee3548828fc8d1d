/* machine-note.c - what the worker has to tell the loop, and the end of the VM's processes; see machine-private.h. */
#include "agent/machine-private.h"

#include "agent/post.h"

#include <glib-unix.h>
#include <sys/syscall.h>
#include <unistd.h>

/* ---- notes ---- */

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
			processes_watch(m, n->pid);
		m->notes.placed(vm, n->generation, n->error, m->user);
		break;
	case NOTE_RAN: m->notes.ran(vm, n->generation, n->error, m->user); break;
	case NOTE_BARE: n->bare_done(n->pause, n->count, n->error, n->bare_user); break;
	case NOTE_DISK: m->notes.died(vm, "nbdkit", m->user); break;
	case NOTE_DAMAGED: m->notes.died(vm, "stored state", m->user); break;
	}
}

struct note *note_new(struct machine *m, enum note_kind kind, const struct job *job, GError *error)
{
	struct note *n = g_new0(struct note, 1);
	n->machine = m;
	n->kind = kind;
	n->generation = job->generation;
	n->epoch = job->epoch;
	n->error = error;
	return n;
}

void note_post(struct machine *m, struct note *n) { post_box_send(m->box, note_tell, n, note_free); }

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

void processes_unwatch(struct machine *m)
{
	for (unsigned i = 0; i < G_N_ELEMENTS(m->watch); i++)
		if (m->watch[i].source) {
			g_source_remove(m->watch[i].source);
			close(m->watch[i].fd);
			m->watch[i].source = 0;
			m->watch[i].fd = -1;
		}
}

void processes_watch(struct machine *m, const pid_t *pid)
{
	processes_unwatch(m);
	for (unsigned i = 0; i < G_N_ELEMENTS(m->watch); i++) {
		int fd = pid[i] > 0 ? (int)syscall(SYS_pidfd_open, pid[i], 0) : -1;
		if (fd >= 0) {
			m->watch[i].fd = fd;
			m->watch[i].source = g_unix_fd_add(fd, G_IO_IN, process_ended, m);
		}
	}
}
