/* capture.c - one checkpoint of one VM: stop, hook, dirty pages, device state, go on.
 *
 *  FIFO (one command, one round trip):
 *    QEMU   xen-save-devices-state: stop, drain disks, open FIFO, write ▒▒▒▒ blocked, FIFO full ▒▒▒▒ write the rest, close, go on, reply
 *    agent                                         first byte ─► hook ─► scan ─► copy ─► [hash] ─► read to the end
 *  Three commands (stop, xen-save-devices-state to a file, cont): where the FIFO does not work, and as the yardstick.
 *
 *  K1 The FIFO holds one page (F_SETPIPE_SZ) and every device state is larger: QEMU cannot end the command, and so not start the VM, until we
 *     read on. That it still writes when the copy is done is checked: else the capture fails (V1).
 *  K2 Once the command is sent the FIFO is read to its end, whatever fails: the guest must go on (V3). If we give up waiting, the FIFO gets
 *     room for the whole state and stays open until QEMU has answered.
 *  K3 Pages found by a scan stay pending until a capture has succeeded; only then the set is emptied (V3).
 *  K4 Room for pages and state is made before the VM is stopped, as far as the last capture tells how much.
 *  K5 A VM that stands still though it should run is not captured: VMM_ERROR_STOPPED.
 * live:false always: with live:true on a VM that has just stopped by itself, the second capture would end QEMU. */
#include "vm/vm-private.h"

#include "base/fault.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FIFO_SMALL 4096
#define FIFO_LARGE (1 << 20)
#define STATE_SMALLEST (2 * FIFO_SMALL)          /* bytes; K1 */
#define STATE_ROOM (512u << 10)                  /* bytes made ready for a first device state */
#define STATE_LARGEST ((size_t)256 << 20)

/* ---- the capture's buffers ---- */

void capture_free(struct capture *capture)
{
	page_set_free(&capture->ram);
	free(capture->devices);
	*capture = (struct capture){ 0 };
}

static gboolean no_memory(GError **error, const char *what)
{
	g_set_error(error, VMM_ERROR, VMM_ERROR_RAM, "no memory for %s", what);
	return FALSE;
}

static gboolean reserve_devices(struct capture *c, size_t bytes)
{
	if (bytes <= c->devices_room)
		return TRUE;
	size_t room = MAX(bytes, MAX(c->devices_room * 2, STATE_ROOM));
	uint8_t *devices = realloc(c->devices, room);
	if (!devices)
		return FALSE;
	memset(devices + c->devices_room, 0, room - c->devices_room); /* take the page faults now */
	c->devices = devices;
	c->devices_room = room;
	return TRUE;
}

/* K4 */
static gboolean make_room(struct vm *vm, struct capture *c, GError **error)
{
	uint64_t pages = vm->mapped ? vm->last_pages + vm->last_pages / 2 + 64 : memory_populated_count(&vm->memory) + 64;
	if (!vm->mapped)
		memory_prefault(&vm->memory);
	vm->mapped = true;
	c->ram.count = 0;
	c->devices_bytes = 0;
	pages = MIN(MAX(pages, bits_count(&vm->pending)), memory_pages(&vm->memory));
	if (fault(FAULT_CAPTURE_PAGES) || !page_set_reserve(&c->ram, pages))
		return no_memory(error, "captured pages");
	return reserve_devices(c, vm->last_devices + (64u << 10)) ? TRUE : no_memory(error, "the device state");
}

/* ---- pages; the VM is paused ---- */

/* Adds what was written to the pending pages. Never fails: without an answer from the tracker, everything populated was written (T2). */
static void scan(struct vm *vm)
{
	g_autoptr(GError) why = NULL;
	if (fault(FAULT_TRACK_SCAN) || !vm->tracker->ops->scan(vm->tracker, &vm->pending, &why))
		memory_populated(&vm->memory, &vm->pending);
}

static void list_run(uint64_t *index, uint64_t first, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++)
		index[i] = first + i;
}

static gboolean copy_pending(struct vm *vm, struct page_set *set, GError **error)
{
	set->count = 0;
	if (!page_set_reserve(set, bits_count(&vm->pending)))
		return no_memory(error, "captured pages");
	uint64_t n;
	for (uint64_t first = 0; (n = bits_run(&vm->pending, &first)); first += n) {
		list_run(set->index + set->count, first, n);
		memcpy(set->data + set->count * VCFT_PAGE_SIZE, vm->memory.map + first * VCFT_PAGE_SIZE, n * VCFT_PAGE_SIZE);
		set->count += n;
	}
	return TRUE;
}

static gboolean call_hook(const struct capture_hooks *hooks, GError **error)
{
	if (fault(FAULT_CAPTURE_HOOK)) {
		g_set_error(error, VMM_ERROR, VMM_ERROR_REFUSED, "fault: %s", fault_name(FAULT_CAPTURE_HOOK));
		return FALSE;
	}
	return !hooks || !hooks->stopped || hooks->stopped(hooks->user, error);
}

/* All that happens while the VM is stopped, but for the device state. */
static gboolean take(struct vm *vm, struct capture *c, const struct capture_hooks *hooks, GError **error)
{
	if (!call_hook(hooks, error))
		return FALSE;
	nsec_t start = clock_now();
	scan(vm);
	nsec_t scanned = clock_now();
	gboolean ok = copy_pending(vm, &c->ram, error);
	c->scan = scanned - start;
	c->copy = clock_now() - scanned;
	c->ram_hash[0] = c->ram_hash[1] = 0;
	if (ok && vm->verify)
		memory_hash(&vm->memory, c->ram_hash);
	return ok;
}

/* ---- the device state ---- */

static uint32_t be32(const uint8_t *p)
{
	return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

bool vm_state_is_whole(const uint8_t *state, size_t bytes)
{
	const uint32_t magic = 0x5145564d, version = 3;       /* QEMU_VM_FILE_MAGIC "QEVM", QEMU_VM_FILE_VERSION */
	const uint8_t footer = 0x7e, end = 0;                 /* QEMU_VM_SECTION_FOOTER (and the section's number), QEMU_VM_EOF */
	return bytes > STATE_SMALLEST && be32(state) == magic && be32(state + 4) == version && state[bytes - 6] == footer && state[bytes - 1] == end;
}

static gboolean check_state(const struct capture *c, GError **error)
{
	if (!fault(FAULT_CAPTURE_DEVICES) && vm_state_is_whole(c->devices, c->devices_bytes))
		return TRUE;
	g_set_error(error, VMM_ERROR, VMM_ERROR_STATE, "the device state is not whole (%zu bytes)", c->devices_bytes);
	return FALSE;
}

/* ---- the FIFO ---- */

void vm_fifo_close(struct vm *vm)
{
	if (vm->fifo >= 0)
		close(vm->fifo);
	vm->fifo = -1;
}

void vm_fifo_discard(struct vm *vm)
{
	char waste[4096];
	while (vm->fifo >= 0 && read(vm->fifo, waste, sizeof waste) > 0)
		;
}

static gboolean fifo_open(struct vm *vm, GError **error)
{
	vm->fifo = open(vm->fifo_path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (vm->fifo >= 0 && fcntl(vm->fifo, F_SETPIPE_SZ, FIFO_SMALL) >= 0)
		return TRUE;
	g_set_error(error, VMM_ERROR, VMM_ERROR_STATE, "%s: %s", vm->fifo_path, g_strerror(errno));
	return FALSE;
}

/* QEMU has the FIFO open for writing, and so the VM is stopped. */
static bool fifo_is_held(const struct vm *vm)
{
	struct pollfd p = { .fd = vm->fifo, .events = POLLIN };
	return poll(&p, 1, 0) == 1 && !(p.revents & POLLHUP);
}

static gboolean hung(GError **error, const char *what)
{
	g_set_error(error, VMM_ERROR, VMM_ERROR_HUNG, "QEMU hung while %s", what);
	return FALSE;
}

/* The first byte says that the VM is stopped and its disks are drained. An early reply: the command has failed. */
static gboolean fifo_wait(struct vm *vm, nsec_t deadline, GError **error)
{
	for (;;) {
		struct pollfd p[2] = { { .fd = vm->fifo, .events = POLLIN }, { .fd = qmp_fd(vm->qmp), .events = POLLIN } };
		int n = poll(p, 2, deadline_ms(deadline));
		if (n == 0)
			return hung(error, "it stopped the VM");
		if (n > 0 && (p[0].revents & POLLIN))
			return TRUE;
		if (n > 0 && p[1].revents && !qmp_receive(vm->qmp, error))
			return FALSE;
		if (qmp_replied(vm->qmp)) {
			if (qmp_wait(vm->qmp, deadline, NULL, error))
				g_set_error(error, VMM_ERROR, VMM_ERROR_STATE, "QEMU wrote no device state");
			return FALSE;
		}
	}
}

/* Read to the end. c NULL: throw it away. False only if the end did not come (K2). */
static gboolean fifo_drain(struct vm *vm, struct capture *c, nsec_t deadline, GError **error)
{
	uint8_t waste[4096];
	if (c)
		c->devices_bytes = 0;
	for (;;) {
		if (c && (c->devices_bytes >= STATE_LARGEST || !reserve_devices(c, c->devices_bytes + FIFO_LARGE / 8)))
			c = NULL; /* too large: an incomplete state is found by check_state() */
		ssize_t n = c ? read(vm->fifo, c->devices + c->devices_bytes, c->devices_room - c->devices_bytes) : read(vm->fifo, waste, sizeof waste);
		if (n == 0)
			return TRUE;
		if (n > 0) {
			if (c)
				c->devices_bytes += (size_t)n;
			continue;
		}
		struct pollfd p = { .fd = vm->fifo, .events = POLLIN };
		if (errno != EINTR && (errno != EAGAIN || (poll(&p, 1, deadline_ms(deadline)) == 0)))
			return hung(error, "it wrote the device state");
	}
}

static gboolean fifo_send(struct vm *vm, GError **error)
{
	json_t *arguments = json_pack("{s:s, s:b}", "filename", vm->fifo_path, "live", 0);
	return qmp_send(vm->qmp, "xen-save-devices-state", arguments, -1, error);
}

static gboolean fifo_take(struct vm *vm, struct capture *c, const struct capture_hooks *hooks, GError **error)
{
	if (!take(vm, c, hooks, error))
		return FALSE;
	if (fifo_is_held(vm))
		return TRUE;
	g_set_error(error, VMM_ERROR, VMM_ERROR_STATE, "QEMU did not wait for the copy");
	return FALSE;
}

/* Everything between sending and the reply. ret_touched: the hook was called, so there is no second try by another way. */
static gboolean fifo_capture(struct vm *vm, struct capture *c, const struct capture_hooks *hooks, bool *ret_touched, GError **error)
{
	nsec_t deadline = clock_now() + VM_COMMAND_TIMEOUT;
	if (!fifo_open(vm, error) || !fifo_send(vm, error))
		return FALSE;
	gboolean ok = fifo_wait(vm, deadline, error);
	if (ok) {
		*ret_touched = true;
		ok = fifo_take(vm, c, hooks, error);
		deadline = clock_now() + VM_COMMAND_TIMEOUT;
	}
	fcntl(vm->fifo, F_SETPIPE_SZ, FIFO_LARGE);
	gboolean drained = fifo_drain(vm, ok ? c : NULL, deadline, ok ? error : NULL);
	gboolean answered = drained && (!qmp_open(vm->qmp) || qmp_wait(vm->qmp, deadline, NULL, ok ? error : NULL));
	if (answered)
		vm_fifo_close(vm);
	return ok && answered && check_state(c, error);
}

/* ---- three commands ---- */

static gboolean command(struct vm *vm, const char *name, json_t *arguments, GError **error)
{
	return qmp_command(vm->qmp, name, arguments, clock_now() + VM_COMMAND_TIMEOUT, NULL, error);
}

static gboolean save_to_file(struct vm *vm, GError **error)
{
	return command(vm, "xen-save-devices-state", json_pack("{s:s, s:b}", "filename", vm->state_path, "live", 0), error);
}

static gboolean read_state(struct vm *vm, struct capture *c, GError **error)
{
	int fd = open(vm->state_path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	gboolean ok = fd >= 0 && fstat(fd, &st) == 0 && st.st_size >= 0 && (size_t)st.st_size <= STATE_LARGEST &&
	              reserve_devices(c, (size_t)st.st_size) && read(fd, c->devices, (size_t)st.st_size) == st.st_size;
	if (ok)
		c->devices_bytes = (size_t)st.st_size;
	else
		g_set_error(error, VMM_ERROR, VMM_ERROR_STATE, "%s: cannot be read", vm->state_path);
	if (fd >= 0)
		close(fd);
	unlink(vm->state_path);
	return ok;
}

static gboolean commands_capture(struct vm *vm, struct capture *c, const struct capture_hooks *hooks, GError **error)
{
	bool was_running = qmp_events(vm->qmp)->running;
	if (was_running && !command(vm, "stop", NULL, error))
		return FALSE;
	gboolean ok = take(vm, c, hooks, error) && save_to_file(vm, error);
	if (was_running && !command(vm, "cont", NULL, ok ? error : NULL))
		return FALSE;
	return ok && read_state(vm, c, error) && check_state(c, error);
}

/* ---- the whole ---- */

/* QEMU's own times of the one STOP and RESUME since `before`; 0 if the VM was paused all along. */
static nsec_t pause_since(const struct vm *vm, const struct qmp_events *before)
{
	const struct qmp_events *now = qmp_events(vm->qmp);
	if (now->stops == before->stops || now->resumes == before->resumes)
		return 0;
	return MAX(now->resume_us - now->stop_us, 0) * NSEC_PER_USEC;
}

/* K5 */
static gboolean check_running(struct vm *vm, GError **error)
{
	if (!vm->ours_to_run || qmp_events(vm->qmp)->running)
		return TRUE;
	json_t *reply = NULL;
	if (!qmp_command(vm->qmp, "query-status", NULL, clock_now() + VM_COMMAND_TIMEOUT, &reply, error))
		return FALSE;
	const char *status = json_string_value(json_object_get(reply, "status"));
	g_set_error(error, VMM_ERROR, VMM_ERROR_STOPPED, "the VM has stopped by itself: %s", status ? status : "unknown");
	json_decref(reply);
	return FALSE;
}

static bool worth_another_way(const struct vm *vm, const GError *why, bool touched)
{
	return vm->method == VM_UNTRIED && !touched && why->code != VMM_ERROR_GONE && why->code != VMM_ERROR_HUNG;
}

static gboolean capture_by_some_way(struct vm *vm, struct capture *c, const struct capture_hooks *hooks, GError **error)
{
	if (vm->method == VM_THREE_COMMANDS)
		return commands_capture(vm, c, hooks, error);
	GError *why = NULL;
	bool touched = false;
	gboolean ok = fifo_capture(vm, c, hooks, &touched, &why);
	if (ok)
		vm->method = VM_FIFO;
	if (ok || !worth_another_way(vm, why, touched)) {
		if (why)
			g_propagate_error(error, why);
		return ok;
	}
	g_clear_error(&why);
	vm->method = VM_THREE_COMMANDS;
	return vm_settle(vm, clock_now() + VM_COMMAND_TIMEOUT, error) && commands_capture(vm, c, hooks, error);
}

gboolean vm_capture(struct vm *vm, struct capture *c, const struct capture_hooks *hooks, GError **error)
{
	if (!vm_settle(vm, clock_now() + VM_COMMAND_TIMEOUT, error) || !check_running(vm, error) || !make_room(vm, c, error))
		return FALSE;
	struct qmp_events before = *qmp_events(vm->qmp);
	if (!capture_by_some_way(vm, c, hooks, error))
		return FALSE;
	c->pause = pause_since(vm, &before);
	vm->last_pages = c->ram.count;
	vm->last_devices = c->devices_bytes;
	bits_clear(&vm->pending); /* K3 */
	return TRUE;
}

gboolean vm_dirty(struct vm *vm, struct page_set *set, GError **error)
{
	scan(vm);
	set->count = 0;
	if (!page_set_reserve(set, bits_count(&vm->pending)))
		return no_memory(error, "page numbers");
	uint64_t n;
	for (uint64_t first = 0; (n = bits_run(&vm->pending, &first)); first += n) {
		list_run(set->index + set->count, first, n);
		set->count += n;
	}
	return TRUE;
}

gboolean vm_bare_pause(struct vm *vm, nsec_t *ret_pause, GError **error)
{
	if (!vm_settle(vm, clock_now() + VM_COMMAND_TIMEOUT, error) || !check_running(vm, error))
		return FALSE;
	struct qmp_events before = *qmp_events(vm->qmp);
	if (!command(vm, "stop", NULL, error))
		return FALSE;
	gboolean saved = save_to_file(vm, error);
	gboolean ok = command(vm, "cont", NULL, saved ? error : NULL) && saved;
	unlink(vm->state_path);
	if (ok)
		*ret_pause = pause_since(vm, &before);
	return ok;
}
