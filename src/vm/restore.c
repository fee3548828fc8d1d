/* restore.c - put a fresh QEMU process into a saved device state, on a RAM file that belongs to it.
 *
 *   state ─► memfd ─SCM_RIGHTS─► getfd ─► migrate-incoming fd: ─► MIGRATION completed ─► paused
 *
 * The saved state is a migration stream without RAM sections: RAM is in its file already, and QEMU does not touch it (V4).
 * announce-rounds 0: QEMU must neither send frames of its own nor make the guest announce itself: the guest's state is the saved one
 * to the bit. (xen-load-devices-state would be the direct way; it aborts QEMU 7.2.) */
#include "vm/vm-private.h"

#include "base/fault.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static int state_file(const uint8_t *state, size_t bytes, GError **error)
{
	int fd = memfd_create("virtcft-state", MFD_CLOEXEC);
	size_t done = 0;
	while (fd >= 0 && done < bytes) {
		ssize_t n = write(fd, state + done, bytes - done);
		if (n < 0 && errno != EINTR)
			break;
		done += n > 0 ? (size_t)n : 0;
	}
	if (fd >= 0 && done == bytes && lseek(fd, 0, SEEK_SET) == 0)
		return fd;
	g_set_error(error, VMM_ERROR, VMM_ERROR_STATE, "no memory for the device state: %s", g_strerror(errno));
	if (fd >= 0)
		close(fd);
	return -1;
}

static gboolean hand_over(struct vm *vm, int fd, nsec_t deadline, GError **error)
{
	return qmp_send(vm->qmp, "getfd", json_pack("{s:s}", "fdname", "state"), fd, error) && qmp_wait(vm->qmp, deadline, NULL, error);
}

static gboolean set_up(struct vm *vm, nsec_t deadline, GError **error)
{
	json_t *events = json_pack("{s:[{s:s, s:b}]}", "capabilities", "capability", "events", "state", 1);
	json_t *quiet = json_pack("{s:i}", "announce-rounds", 0);
	if (!qmp_command(vm->qmp, "migrate-set-capabilities", events, deadline, NULL, error)) {
		json_decref(quiet);
		return FALSE;
	}
	return qmp_command(vm->qmp, "migrate-set-parameters", quiet, deadline, NULL, error);
}

/* A state that does not fit ends QEMU, at once or a little later; what it says of it is in its log then. */
static gboolean refused(struct vm *vm, GError **error)
{
	g_clear_error(error);
	nsec_t end = clock_now() + NSEC_PER_SEC;
	while (qmp_receive(vm->qmp, NULL) && qmp_poll(vm->qmp, end))
		;
	g_autofree char *log = process_log(&vm->process);
	g_set_error(error, VMM_ERROR, VMM_ERROR_STATE, "QEMU does not take the device state: %s", log);
	return FALSE;
}

static bool has_failed(const struct vm *vm)
{
	return !strcmp(qmp_events(vm->qmp)->migration, "failed");
}

/* False without an error: it has failed. */
static gboolean wait_until_loaded(struct vm *vm, nsec_t deadline, GError **error)
{
	while (strcmp(qmp_events(vm->qmp)->migration, "completed")) {
		if (has_failed(vm))
			return FALSE;
		if (!qmp_poll(vm->qmp, deadline)) {
			g_set_error(error, VMM_ERROR, VMM_ERROR_HUNG, "QEMU hung while it loaded the device state");
			return FALSE;
		}
		if (!qmp_receive(vm->qmp, error))
			return FALSE;
	}
	return TRUE;
}

gboolean vm_load_state(struct vm *vm, const uint8_t *state, size_t bytes, GError **error)
{
	bool known = bytes > 0 && state[bytes - 1] <= 1;
	vm->off = known && state[bytes - 1];
	bytes -= known;
	if (!known || !vm_state_is_whole(state, bytes) || fault(FAULT_RESTORE_START)) {
		g_set_error(error, VMM_ERROR, VMM_ERROR_STATE, "the device state is not whole (%zu bytes)", bytes);
		return FALSE;
	}
	nsec_t deadline = clock_now() + VM_START_TIMEOUT;
	int fd = state_file(state, bytes, error);
	if (fd < 0)
		return FALSE;
	gboolean ok = set_up(vm, deadline, error) && hand_over(vm, fd, deadline, error);
	close(fd);
	ok = ok && qmp_command(vm->qmp, "migrate-incoming", json_pack("{s:s}", "uri", "fd:state"), deadline, NULL, error) &&
	     wait_until_loaded(vm, deadline, error);
	return ok || (has_failed(vm) && refused(vm, error));
}
