/* fifo.c - the device state on its way from QEMU: the FIFO that holds QEMU up, or a plain file; and whether a state is whole.
 *
 *   QEMU: open, write ▒▒ (FIFO full: QEMU waits, VM stopped) ▒▒ write, close        agent: wait ... [held] ... drain to the end
 *
 * Our end is opened before the command is sent and closed when its reply has come: QEMU must never wait for a reader (K2). Opened anew for each
 * capture, so that POLLHUP means "was open and is closed". */
#include "vm/vm-private.h"

#include "base/fault.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FIFO_SMALL 4096                          /* bytes; K1 */
#define FIFO_SPARE (16u << 10)                   /* bytes that a device state may be smaller than the last one; K1 */
#define FIFO_LARGE (1 << 20)
#define STATE_SMALLEST (2 * FIFO_SMALL)
#define STATE_ROOM (512u << 10)                  /* bytes made ready for a first device state */
#define STATE_LARGEST ((size_t)256 << 20)

gboolean vm_reserve_devices(struct capture *c, size_t bytes)
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

/* ---- a whole state ---- */

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

gboolean vm_check_state(const struct capture *c, GError **error)
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

/* The kernel knows powers of two only. */
size_t vm_fifo_bytes(const struct vm *vm)
{
	size_t bytes = FIFO_SMALL;
	while (bytes < FIFO_LARGE && bytes * 2 + FIFO_SPARE <= vm->last_devices)
		bytes *= 2;
	return bytes;
}

gboolean vm_fifo_open(struct vm *vm, GError **error)
{
	struct stat st;
	vm->fifo = open(vm->fifo_path, O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC);
	if (vm->fifo >= 0 && fstat(vm->fifo, &st) == 0 && S_ISFIFO(st.st_mode) && fcntl(vm->fifo, F_SETPIPE_SZ, (int)vm_fifo_bytes(vm)) >= 0)
		return TRUE;
	g_set_error(error, VMM_ERROR, VMM_ERROR_STATE, "%s: %s", vm->fifo_path, g_strerror(errno));
	return FALSE;
}

bool vm_fifo_is_held(const struct vm *vm)
{
	struct pollfd p = { .fd = vm->fifo, .events = POLLIN };
	return poll(&p, 1, 0) == 1 && !(p.revents & POLLHUP);
}

static gboolean hung(GError **error, const char *what)
{
	g_set_error(error, VMM_ERROR, VMM_ERROR_HUNG, "QEMU hung while %s", what);
	return FALSE;
}

gboolean vm_fifo_wait(struct vm *vm, nsec_t deadline, GError **error)
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

gboolean vm_fifo_drain(struct vm *vm, struct capture *c, nsec_t deadline, GError **error)
{
	uint8_t waste[4096];
	if (c)
		c->devices_bytes = 0;
	for (;;) {
		if (c && (c->devices_bytes >= STATE_LARGEST || !vm_reserve_devices(c, c->devices_bytes + FIFO_LARGE / 8)))
			c = NULL; /* too large: an incomplete state is found by vm_check_state() */
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

void vm_fifo_enlarge(struct vm *vm)
{
	fcntl(vm->fifo, F_SETPIPE_SZ, FIFO_LARGE);
}

/* ---- the plain file ---- */

gboolean vm_read_state(struct vm *vm, struct capture *c, GError **error)
{
	int fd = open(vm->state_path, O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC);
	struct stat st;
	gboolean ok = fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size >= 0 && (size_t)st.st_size <= STATE_LARGEST &&
	              vm_reserve_devices(c, (size_t)st.st_size) && read(fd, c->devices, (size_t)st.st_size) == st.st_size;
	if (ok)
		c->devices_bytes = (size_t)st.st_size;
	else
		g_set_error(error, VMM_ERROR, VMM_ERROR_STATE, "%s: cannot be read", vm->state_path);
	if (fd >= 0)
		close(fd);
	unlink(vm->state_path);
	return ok;
}
