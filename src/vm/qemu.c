/* qemu.c - the struct vmm of stock QEMU: start, run, pause, kill.
 *
 *   start: RAM file ─► trackers' base ─► process (paused) ─► QMP ─► preload's answer ─► [device state loaded] ─► paused, ready
 *
 * Q4 The RAM file is not written by us, and QEMU does not change it while it starts with a state to load (V4).
 * Q5 The tracker counts from before QEMU's first write: the kernel's is set up inside QEMU as RAM is mapped; the comparison takes its copy before
 *    the process starts. Where the kernel's turns out not to work after the start, everything populated is pending as well.
 * Q6 QEMU dies with the thread that called start(): call it from one that lives as long as the agent.
 * Q7 QEMU runs as spec->run_as (ID1) and in QEMU's own sandbox (command.c). Files of ours that it must read are lent to it where it may not (ID3):
 *    kernel, initrd, the preloaded library. In its folder nothing is opened by us that is not what we expect there, and no link is followed.
 * Q8 A guest's frames are not lost on their way to the switch: QEMU throws away at a stop the one that its socket had no room for. So the socket is
 *    connected here, with room for more than QEMU sends between two looks of the switch (a burst is 256 frames), and inherited.
 * Q10 The RAM that belongs to a state is filled while the process starts, which looks at none of it before it loads the state; what is left then while
 *    the guest runs (fill.h), if QEMU can wait for pages that are missing. With the comparing tracker all is filled before, for that takes it as the base;
 *    with `verify`, which looks at all RAM, before the state is loaded.
 * Q11 Those sockets stay open here: what a QEMU that stands still has not read can be taken out of them (net/port.c, N9). So a connection ends when the VM is
 *    freed, not with its process.
 * NICs and disks connect to their sockets while the process starts: their servers must be there. */
#include "vm/preload/preload.h"
#include "vm/vm-private.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define NIC_SEND_BYTES (2 << 20)   /* Q8: some 900 frames of 1500 bytes, and the kernel doubles it */

G_DEFINE_QUARK(vmm-error-quark, vmm_error)

void vm_explain(const struct vm *vm, GError **error)
{
	if (!error || !*error)
		return;
	if ((*error)->code == VMM_ERROR_GONE || (*error)->code == VMM_ERROR_START) {
		g_autofree char *log = process_log(&vm->process);
		g_autofree char *text = *log ? g_strdup_printf("%s: %s", (*error)->message, log) : g_strdup((*error)->message);
		g_clear_pointer(&(*error)->message, g_free);
		(*error)->message = g_steal_pointer(&text);
	}
	g_prefix_error(error, "vm %s: ", vm->name);
}

/* ---- commands ---- */

gboolean vm_settle(struct vm *vm, nsec_t deadline, GError **error)
{
	while (qmp_open(vm->qmp)) {
		if (!qmp_receive(vm->qmp, error))
			return FALSE;
		if (qmp_replied(vm->qmp)) {
			qmp_wait(vm->qmp, deadline, NULL, NULL); /* what it said was for a caller who has given up */
			break;
		}
		vm_fifo_discard(vm);
		nsec_t soon = clock_now() + 10 * NSEC_PER_MSEC;
		if (clock_now() >= deadline) {
			g_set_error(error, VMM_ERROR, VMM_ERROR_HUNG, "QEMU hung: an older command has no answer yet");
			return FALSE;
		}
		qmp_poll(vm->qmp, MIN(soon, deadline));
	}
	vm_fifo_close(vm);
	if (vm->owes_cont && !qmp_command(vm->qmp, "cont", NULL, deadline, NULL, error))
		return FALSE;
	vm->owes_cont = false;
	return qmp_receive(vm->qmp, error);
}

gboolean vm_command(struct vm *vm, const char *command, json_t *arguments, GError **error)
{
	nsec_t deadline = clock_now() + VM_COMMAND_TIMEOUT;
	if (!vm_settle(vm, deadline, error)) {
		json_decref(arguments);
		return FALSE;
	}
	return qmp_command(vm->qmp, command, arguments, deadline, NULL, error);
}

/* ---- start ---- */

struct sockets { int qmp[2], tell[2], nic[VCFT_NIC_MAX], faults; };   /* [0] ours, [1] QEMU's; faults: QEMU's, -1: it is not to wait for pages (Q10) */

static void close_pair(int pair[2])
{
	for (int i = 0; i < 2; i++) {
		if (pair[i] >= 0)
			close(pair[i]);
		pair[i] = -1;
	}
}

static void close_nics(const int nic[VCFT_NIC_MAX])
{
	for (unsigned i = 0; i < VCFT_NIC_MAX; i++)
		if (nic[i] >= 0)
			close(nic[i]);
}

static void close_sockets(struct sockets *s)
{
	close_pair(s->qmp);
	close_pair(s->tell);
	close_nics(s->nic);
	if (s->faults >= 0)
		close(s->faults);
}

/* Q8. -1: errno. */
static int connect_nic(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = g_strlcpy(a.sun_path, path, sizeof a.sun_path) < sizeof a.sun_path ? socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0) : -1;
	const int room = NIC_SEND_BYTES;
	if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof a) < 0) {
		if (fd >= 0)
			close(fd);
		return -1;
	}
	if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room) < 0)
		(void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
	return fd;
}

static gboolean connect_nics(const struct vm_spec *spec, struct sockets *s, GError **error)
{
	for (unsigned i = 0; i < spec->nic_count; i++)
		if ((s->nic[i] = connect_nic(spec->nics[i].socket)) < 0) {
			g_set_error(error, VMM_ERROR, VMM_ERROR_START, "network socket %s: %s", spec->nics[i].socket, g_strerror(errno));
			return FALSE;
		}
	return TRUE;
}

static gboolean open_sockets(const struct vm_spec *spec, struct sockets *s, bool preload, GError **error)
{
	*s = (struct sockets){ { -1, -1 }, { -1, -1 }, .faults = -1 };
	memset(s->nic, -1, sizeof s->nic);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, s->qmp) != 0 || (preload && pipe2(s->tell, O_CLOEXEC | O_NONBLOCK) != 0))
		g_set_error(error, VMM_ERROR, VMM_ERROR_START, "no descriptors for QEMU: %s", g_strerror(errno));
	else if (connect_nics(spec, s, error)) {
		if (preload && spec->fill && !spec->verify)
			s->faults = open(PRELOAD_FAULTS_DEVICE, O_RDWR | O_CLOEXEC);   /* without it all is filled before */
		return TRUE;
	}
	close_sockets(s);
	return FALSE;
}

enum { LENT_KERNEL, LENT_INITRD, LENT_PRELOAD, LENT };

/* Files as QEMU can read them (ID3); fd -1: by their own names. */
struct lent { char *path[LENT]; int fd[LENT]; };

static void lent_clear(struct lent *lent)
{
	for (unsigned i = 0; i < LENT; i++) {
		g_clear_pointer(&lent->path[i], g_free);
		if (lent->fd[i] >= 0)
			close(lent->fd[i]);
		lent->fd[i] = -1;
	}
}

static gboolean lend(const struct vm_spec *spec, struct lent *lent, GError **error)
{
	const char *const path[LENT] = { spec->kernel, spec->initrd, spec->preload };
	for (unsigned i = 0; i < LENT; i++)
		if (path[i] && !identity_lend(&spec->run_as, path[i], &lent->path[i], &lent->fd[i], error)) {
			if (error && *error) /* the domain of this folder, the text of that one */
				(*error)->domain = VMM_ERROR, (*error)->code = VMM_ERROR_START;
			return FALSE;
		}
	return TRUE;
}

static gboolean spawn(struct vm *vm, const struct vm_spec *given, struct sockets *s, const struct lent *lent, bool incoming, GError **error)
{
	g_autofree char *qemu = vm_qemu_path();
	if (!qemu) {
		g_set_error(error, VMM_ERROR, VMM_ERROR_START, "no QEMU found (qemu-system-x86_64)");
		return FALSE;
	}
	struct vm_spec spec = *given;
	spec.kernel = lent->path[LENT_KERNEL];
	spec.initrd = lent->path[LENT_INITRD];
	spec.preload = lent->path[LENT_PRELOAD];
	g_autofree char *log = g_build_filename(spec.run_dir, "qemu.log", NULL);
	struct vm_inherit fds = { .qmp = s->qmp[1], .tell = s->tell[1], .faults = s->faults };
	memcpy(fds.nic, s->nic, sizeof fds.nic);
	g_auto(GStrv) argv = vm_command_line(&spec, qemu, vm_kvm_failed() ? "tcg" : "kvm:tcg", &fds, incoming);
	g_auto(GStrv) env = vm_environment(&spec, &fds);
	int keep[6 + VCFT_NIC_MAX] = { s->qmp[1], s->tell[1], s->faults, lent->fd[LENT_KERNEL], lent->fd[LENT_INITRD], lent->fd[LENT_PRELOAD] };
	memcpy(keep + 6, s->nic, sizeof s->nic);
	return process_start(&vm->process, argv, env, keep, G_N_ELEMENTS(keep), log, &spec.run_as, error);
}

static gboolean launch(struct vm *vm, const struct vm_spec *spec, struct sockets *s, bool incoming, GError **error)
{
	struct lent lent = { .fd = { -1, -1, -1 } };
	gboolean ok = lend(spec, &lent, error) && spawn(vm, spec, s, &lent, incoming, error);
	lent_clear(&lent);
	if (!ok)
		return FALSE;
	close(s->qmp[1]);
	vm->qmp = qmp_new(s->qmp[0]);
	s->qmp[0] = s->qmp[1] = -1;
	if (s->tell[1] >= 0)
		close(s->tell[1]);
	s->tell[1] = -1;
	if (qmp_greet(vm->qmp, clock_now() + VM_START_TIMEOUT, error))
		return TRUE;
	if (error && *error && (*error)->code == VMM_ERROR_GONE)
		(*error)->code = VMM_ERROR_START;
	return FALSE;
}

/* Q10, where nobody will serve QEMU's missing pages. It may wait for them all the same, if it was told to: so there must be none, holes neither. */
static gboolean fill_before(struct vm *vm, GError **error)
{
	return !vm->fill || (fill_finish(vm->fill, error) && (!vm->may_wait || memory_reserve(&vm->memory, NULL, error)));
}

/* Q5. tell -1: no preload. */
static gboolean choose_tracker(struct vm *vm, int tell, GError **error)
{
	g_autoptr(GError) why = NULL;
	if (tell >= 0)
		vm->tracker = track_uffd_new(&vm->memory, vm->process.pid, tell, vm->hot_pages ? hot_new(memory_pages(&vm->memory)) : NULL, &why);
	if (vm->tracker)
		return TRUE;
	vm->fell_back = why ? g_strdup(why->message) : NULL;
	if (!fill_before(vm, error))
		return FALSE;
	vm->tracker = track_compare_new(&vm->memory, error);
	if (tell >= 0)
		memory_populated(&vm->memory, &vm->pending);
	return vm->tracker != NULL;
}

static gboolean ask_accelerator(struct vm *vm, GError **error)
{
	json_t *reply = NULL;
	if (!qmp_command(vm->qmp, "query-kvm", NULL, clock_now() + VM_COMMAND_TIMEOUT, &reply, error))
		return FALSE;
	vm->kvm = json_is_true(json_object_get(reply, "enabled"));
	json_decref(reply);
	return TRUE;
}

/* Q10: QEMU has started, and will look at its RAM. */
static gboolean fill_behind(struct vm *vm, GError **error)
{
	uint64_t address;
	int uffd = vm->fill && vm->may_wait ? track_uffd_missing(vm->tracker, vm->process.pidfd, &address) : -1;
	return uffd >= 0 ? fill_go_on_behind(vm->fill, uffd, address, error) : fill_before(vm, error);
}

static gboolean start_process(struct vm *vm, const struct vm_spec *spec, bool incoming, GError **error)
{
	char detail[160];
	bool preload = spec->preload && !vm_gives_memory_back(spec) && track_uffd_probe(detail, sizeof detail) &&
	               track_pagemap_probe(detail, sizeof detail);
	struct sockets s;
	if (spec->fill)
		vm->fill = fill_new(&vm->memory, spec->fill, preload && !spec->verify);
	if (!preload && !choose_tracker(vm, -1, error))
		return FALSE;
	if (!open_sockets(spec, &s, preload, error))
		return FALSE;
	vm->may_wait = s.faults >= 0;
	gboolean ok = launch(vm, spec, &s, incoming, error) && (vm->tracker || choose_tracker(vm, s.tell[0], error)) && ask_accelerator(vm, error) &&
	              fill_behind(vm, error);
	if (ok && incoming)
		track_uffd_begin(vm->tracker);
	memcpy(vm->nic, s.nic, sizeof vm->nic);
	memset(s.nic, -1, sizeof s.nic);
	close_sockets(&s);
	return ok;
}

/* What is ours in QEMU's folders and must be QEMU's. */
static gboolean give_files(struct vm *vm, const struct vm_spec *spec, GError **error)
{
	int log = spec->run_as.other && spec->console_log ? open(spec->console_log, O_WRONLY | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600) : -1;
	if (log >= 0)
		close(log);
	return identity_give(&spec->run_as, spec->ram_path, error) && identity_give(&spec->run_as, vm->fifo_path, error) &&
	       (!spec->console_log || identity_give(&spec->run_as, spec->console_log, error));
}

static gboolean prepare(struct vm *vm, const struct vm_spec *spec, GError **error)
{
	if (!memory_open(&vm->memory, spec->ram_path, spec->memory_bytes, error) || !(spec->room_later || memory_reserve(&vm->memory, NULL, error)))
		return FALSE;
	if (!bits_init(&vm->pending, memory_pages(&vm->memory)) || !bits_init(&vm->late, memory_pages(&vm->memory))) {
		g_set_error(error, VMM_ERROR, VMM_ERROR_RAM, "no memory");
		return FALSE;
	}
	vm->fifo_path = g_build_filename(spec->run_dir, "state.fifo", NULL);
	vm->state_path = g_build_filename(spec->run_dir, "state", NULL);
	unlink(vm->fifo_path);
	if (mkfifo(vm->fifo_path, 0600) != 0)
		vm->method = VM_THREE_COMMANDS;
	return give_files(vm, spec, error);
}

static void qemu_free(struct vm *vm);

static struct vm *qemu_start(const struct vm_spec *spec, const uint8_t *state, size_t state_bytes, GError **error)
{
	struct vm *vm = g_new0(struct vm, 1);
	GError *why = NULL;
	vm->name = g_strdup(spec->name);
	vm->memory.fd = vm->fifo = vm->process.pidfd = vm->process.log = -1;
	memset(vm->nic, -1, sizeof vm->nic);
	vm->verify = spec->verify;
	vm->hot_pages = spec->hot_pages;
	gboolean ok = prepare(vm, spec, &why);
	if (ok && !state)
		memory_populated(&vm->memory, &vm->pending); /* what is in the file from before is new to whoever captures (V2) */
	vm->captured = state != NULL;                    /* what it was restored from counts as its last capture */
	ok = ok && start_process(vm, spec, state != NULL, &why) && (!state || vm_load_state(vm, state, state_bytes, &why));
	if (ok)
		return vm;
	vm_explain(vm, &why);
	g_propagate_error(error, why);
	qemu_free(vm);
	return NULL;
}

/* ---- the rest of the table ---- */

static gboolean explained(const struct vm *vm, gboolean ok, GError *why, GError **error)
{
	if (ok)
		return TRUE;
	vm_explain(vm, &why);
	g_propagate_error(error, why);
	return FALSE;
}

static gboolean qemu_reserve(struct vm *vm, const bool *stop, GError **error)
{
	GError *why = NULL;
	gboolean ok = (!vm->fill || fill_rest(vm->fill, stop, &why)) && memory_reserve(&vm->memory, stop, &why);
	if (!ok)
		g_propagate_prefixed_error(error, why, "vm %s: ", vm->name);
	return ok;
}

static bool qemu_filled(const struct vm *vm) { return !vm->fill || fill_is_done(vm->fill); }

static gboolean qemu_run(struct vm *vm, GError **error)
{
	GError *why = NULL;
	if (vm->off)
		return TRUE;
	gboolean ok = vm_command(vm, "cont", NULL, &why);
	vm->ours_to_run = vm->ours_to_run || ok;
	return explained(vm, ok, why, error);
}

static gboolean qemu_pause(struct vm *vm, GError **error)
{
	GError *why = NULL;
	gboolean ok = vm_command(vm, "stop", NULL, &why);
	if (ok)
		vm->ours_to_run = false;
	return explained(vm, ok, why, error);
}

static gboolean qemu_capture(struct vm *vm, struct capture *capture, const struct capture_hooks *hooks, GError **error)
{
	GError *why = NULL;
	gboolean ok = vm_capture(vm, capture, hooks, &why);
	return explained(vm, ok, why, error);
}

static gboolean qemu_dirty(struct vm *vm, struct page_set *set, GError **error)
{
	GError *why = NULL;
	gboolean ok = vm_dirty(vm, set, &why);
	return explained(vm, ok, why, error);
}

static gboolean qemu_bare_pause(struct vm *vm, nsec_t *ret_pause, GError **error)
{
	GError *why = NULL;
	gboolean ok = vm_bare_pause(vm, ret_pause, &why);
	return explained(vm, ok, why, error);
}

static bool qemu_off(const struct vm *vm) { return vm->off; }
static uint8_t *qemu_ram(struct vm *vm) { return vm->memory.map; }
static pid_t qemu_pid(const struct vm *vm) { return vm->process.pid; }
static const char *qemu_tracker(const struct vm *vm) { return vm->tracker->ops->name; }
static const char *qemu_method(const struct vm *vm) { return vm->method == VM_THREE_COMMANDS ? "three commands" : "fifo"; }
static const char *qemu_accelerator(const struct vm *vm) { return vm->kvm ? "kvm" : "tcg"; }
static void qemu_kill(struct vm *vm) { process_kill(&vm->process); }

static void remove_file(char **path)
{
	if (*path)
		unlink(*path);
	g_clear_pointer(path, g_free);
}

static void qemu_abandon(struct vm *vm)
{
	process_kill(&vm->process);
	if (vm->fill)
		fill_stop(vm->fill);
	remove_file(&vm->fifo_path);
	remove_file(&vm->state_path);
}

static void qemu_free(struct vm *vm)
{
	if (!vm)
		return;
	process_end(&vm->process);
	close_nics(vm->nic);
	fill_free(vm->fill);
	qmp_free(vm->qmp);
	vm_fifo_close(vm);
	if (vm->tracker)
		vm->tracker->ops->free(vm->tracker);
	bits_free(&vm->pending);
	bits_free(&vm->late);
	page_set_free(&vm->late_pages);
	memory_close(&vm->memory);
	remove_file(&vm->fifo_path);
	remove_file(&vm->state_path);
	g_free(vm->fell_back);
	g_free(vm->name);
	g_free(vm);
}

const struct vmm vmm_qemu = {
	.name = "qemu", .start = qemu_start, .reserve = qemu_reserve, .filled = qemu_filled, .run = qemu_run, .pause = qemu_pause, .capture = qemu_capture, .dirty = qemu_dirty,
	.bare_pause = qemu_bare_pause, .off = qemu_off, .ram = qemu_ram, .pid = qemu_pid, .tracker = qemu_tracker, .method = qemu_method,
	.accelerator = qemu_accelerator, .second_choices = vm_second_choices, .kill = qemu_kill, .abandon = qemu_abandon, .free = qemu_free,
};
