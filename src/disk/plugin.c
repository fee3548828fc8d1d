/* plugin.c - the nbdkit plugin virtcft-disk.so: a thin shell that connects NBD requests and control requests to a disk_stack.
 *
 *   QEMU ──NBD──► nbdkit's threads ──► pread, pwrite, zero ─┐
 *                                                           ├──► disk_stack (its own lock)
 *   agent ──control socket──► control thread ──► seal … ────┘
 *
 *   nbdkit --foreground -U SOCKET virtcft-disk.so base=FD dir=DIR control=FD epoch=N [fold=N]
 *
 *  D5 The base is a descriptor that the agent has opened, for reading only.   D6 Flush and FUA do nothing.
 *  D16 A rollback waits until no client is connected, 2 s at most, and keeps new ones out while it runs: requests that a dead QEMU left in its
 *      socket never reach the epoch after it.
 *  D17 When the control socket ends, so does the plugin: an agent that is gone leaves no disk behind that could still be written.
 * Left out: trim (a guest's fstrim would only fill the log), extents, TLS (Unix socket only). */
#define NBDKIT_API_VERSION 2
#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL
#include <nbdkit-plugin.h>

#include "base/fault.h"
#include "disk/control.h"
#include "disk/disk-private.h"
#include "disk/stack.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>

#define CLIENT_WAIT_SECONDS 2

static struct {
	/* Set while nbdkit configures, one thread. */
	char *dir;
	int base, control;              /* -1: not given */
	uint64_t epoch, fold;
	struct disk_stack *stack;
	/* Lock order: clients_lock, then the stack's lock. */
	pthread_mutex_t clients_lock;
	pthread_cond_t clients_gone;
	unsigned clients;               /* clients_lock: connections past the handshake */
	int told;                       /* last errno that was logged, atomic: a full disk is said once */
} plugin = { .base = -1, .control = -1, .clients_lock = PTHREAD_MUTEX_INITIALIZER, .clients_gone = PTHREAD_COND_INITIALIZER };

/* ---- configuration ---- */

static int set_path(char **path, const char *key, const char *value)
{
	if (*path) {
		nbdkit_error("%s= is given twice", key);
		return -1;
	}
	*path = nbdkit_realpath(value);   /* logs what is wrong */
	return *path ? 0 : -1;
}

static int set_base(const char *value)
{
	int fd, flags;
	if (plugin.base >= 0) {
		nbdkit_error("base= is given twice");
		return -1;
	}
	if (nbdkit_parse_int("base", value, &fd) < 0)
		return -1;
	flags = fd < 0 ? -1 : fcntl(fd, F_GETFL);
	if (flags < 0 || (flags & O_ACCMODE) != O_RDONLY) {
		nbdkit_error("base=%s is not an inherited descriptor, open for reading only", value);
		return -1;
	}
	plugin.base = fd;
	return 0;
}

static int set_control(const char *value)
{
	int fd, type = 0;
	socklen_t n = sizeof type;
	if (nbdkit_parse_int("control", value, &fd) < 0)
		return -1;
	if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &n) < 0 || type != SOCK_SEQPACKET) {
		nbdkit_error("control=%s is not an inherited SOCK_SEQPACKET socket", value);
		return -1;
	}
	plugin.control = fd;
	return 0;
}

static int disk_config(const char *key, const char *value)
{
	if (strcmp(key, "base") == 0)
		return set_base(value);
	if (strcmp(key, "dir") == 0)
		return set_path(&plugin.dir, key, value);
	if (strcmp(key, "control") == 0)
		return set_control(value);
	if (strcmp(key, "epoch") == 0)
		return nbdkit_parse_uint64_t(key, value, &plugin.epoch);
	if (strcmp(key, "fold") == 0)
		return nbdkit_parse_uint64_t(key, value, &plugin.fold);
	nbdkit_error("unknown parameter %s=; expected base=, dir=, control=, epoch= or fold=", key);
	return -1;
}

static int disk_config_complete(void)
{
	const char *missing = plugin.base < 0 ? "base=" : !plugin.dir ? "dir=" : plugin.control < 0 ? "control=" : !plugin.epoch ? "epoch=" : NULL;
	if (!missing)
		return 0;
	nbdkit_error("%s is missing%s", missing, strcmp(missing, "epoch=") == 0 ? " or 0" : "");
	return -1;
}

static int disk_get_ready(void)
{
	g_autoptr(GError) error = NULL;
	prctl(PR_SET_PDEATHSIG, SIGKILL);   /* D18 again: nbdkit in the foreground has made it a SIGTERM, which waits for clients */
	if (fault_read_environment(&error))
		plugin.stack = disk_stack_open(plugin.base, plugin.dir, epoch_of(plugin.epoch), epoch_of(plugin.fold), &error);
	if (plugin.stack)
		return 0;
	nbdkit_error("%s", error->message);
	return -1;
}

static void disk_unload(void)
{
	disk_stack_close(plugin.stack);
	free(plugin.dir);
}

/* ---- control thread ---- */

/* D16. Called and returns with clients_lock held. */
static gboolean wait_for_clients(GError **error)
{
	struct timespec until;
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += CLIENT_WAIT_SECONDS;
	while (plugin.clients > 0)
		if (pthread_cond_timedwait(&plugin.clients_gone, &plugin.clients_lock, &until) == ETIMEDOUT)
			return disk_fail(error, "cannot roll back: %u clients are still connected", plugin.clients);
	return TRUE;
}

static gboolean rollback(struct epoch_id c, GError **error)
{
	pthread_mutex_lock(&plugin.clients_lock);
	gboolean ok = wait_for_clients(error) && disk_stack_rollback(plugin.stack, c, error);
	pthread_mutex_unlock(&plugin.clients_lock);
	return ok;
}

static gboolean carry_out(const struct control_request *request, uint64_t *ret_count, GError **error)
{
	switch (request->verb) {
	case CONTROL_PING:
		return TRUE;
	case CONTROL_SEAL:
		return disk_stack_seal(plugin.stack, request->epoch, ret_count, error);
	case CONTROL_COMMIT:
		return disk_stack_commit(plugin.stack, request->epoch, error);
	case CONTROL_MERGE:
		return disk_stack_merge(plugin.stack, request->epoch, error);
	case CONTROL_ROLLBACK:
		return rollback(request->epoch, error);
	}
	return disk_fail(error, "unknown request");
}

static void answer(const struct control_request *request)
{
	g_autoptr(GError) error = NULL;
	struct control_answer a = { .sequence = request->sequence };
	uint8_t out[CONTROL_ANSWER_BYTES];
	a.failed = !carry_out(request, &a.count, &error);
	a.damaged = g_error_matches(error, DISK_ERROR, DISK_ERROR_DAMAGED);
	a.open = disk_stack_epoch(plugin.stack);
	a.blocks = disk_stack_blocks(plugin.stack);
	g_strlcpy(a.text, error ? error->message : "", sizeof a.text);
	control_answer_encode(out, &a);
	send(plugin.control, out, sizeof out, MSG_NOSIGNAL);   /* if it fails, the next recv tells */
}

static void *control_thread(void *unused)
{
	(void)unused;
	for (;;) {
		uint8_t in[CONTROL_REQUEST_BYTES + 1];
		struct control_request request;
		ssize_t n = recv(plugin.control, in, sizeof in, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			_exit(0);   /* D17 */
		if (!control_request_decode(in, (size_t)n, &request)) {
			nbdkit_error("control: a request that is none, %zd bytes", n);
			_exit(1);
		}
		answer(&request);
		disk_stack_tidy(plugin.stack);
	}
}

static int disk_after_fork(void)
{
	sigset_t all, before;
	pthread_t thread;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);   /* nbdkit's main thread handles the signals */
	int err = pthread_create(&thread, NULL, control_thread, NULL);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (err) {
		nbdkit_error("control thread: %s", g_strerror(err));
		return -1;
	}
	pthread_detach(thread);
	return 0;
}

/* ---- connections ---- */

static void *disk_open(int readonly)
{
	(void)readonly;
	pthread_mutex_lock(&plugin.clients_lock);
	plugin.clients++;
	pthread_mutex_unlock(&plugin.clients_lock);
	return NBDKIT_HANDLE_NOT_NEEDED;
}

static void disk_close_client(void *handle)
{
	(void)handle;
	pthread_mutex_lock(&plugin.clients_lock);
	if (--plugin.clients == 0)
		pthread_cond_broadcast(&plugin.clients_gone);
	pthread_mutex_unlock(&plugin.clients_lock);
}

static int64_t disk_get_size(void *handle)
{
	(void)handle;
	return (int64_t)(disk_stack_blocks(plugin.stack) * DISK_BLOCK_BYTES);
}

static int disk_block_size(void *handle, uint32_t *minimum, uint32_t *preferred, uint32_t *maximum)
{
	(void)handle;
	*minimum = 512;
	*preferred = DISK_BLOCK_BYTES;
	*maximum = UINT32_MAX;
	return 0;
}

static int yes(void *handle)
{
	(void)handle;
	return 1;
}

static int no(void *handle)
{
	(void)handle;
	return 0;
}

static int fua_native(void *handle)
{
	(void)handle;
	return NBDKIT_FUA_NATIVE;
}

/* ---- requests ---- */

static int result(int err, bool writes, const char *what, uint64_t at)
{
	if (!err) {
		if (writes && __atomic_load_n(&plugin.told, __ATOMIC_RELAXED))
			__atomic_store_n(&plugin.told, 0, __ATOMIC_RELAXED);
		return 0;
	}
	if (__atomic_exchange_n(&plugin.told, err, __ATOMIC_RELAXED) != err)
		nbdkit_error("%s at byte %" PRIu64 ": %s", what, at, g_strerror(err));
	nbdkit_set_error(err);
	return -1;
}

static int disk_pread(void *handle, void *buf, uint32_t n, uint64_t at, uint32_t flags)
{
	(void)handle, (void)flags;
	return result(disk_stack_read(plugin.stack, buf, n, at), false, "read", at);
}

static int disk_pwrite(void *handle, const void *buf, uint32_t n, uint64_t at, uint32_t flags)
{
	(void)handle, (void)flags;
	return result(disk_stack_write(plugin.stack, buf, n, at), true, "write", at);
}

static int disk_zero(void *handle, uint32_t n, uint64_t at, uint32_t flags)
{
	(void)handle, (void)flags;
	return result(disk_stack_zero(plugin.stack, n, at), true, "zero", at);
}

static int disk_flush(void *handle, uint32_t flags)
{
	(void)handle, (void)flags;
	return 0;
}

static struct nbdkit_plugin registered = {
	.name = "virtcft-disk",
	.version = "1",
	.longname = "VirtCFT disk",
	.description = "a base image, its committed changes and the writes of open epochs",
	.config_help = "base=FD       (required) inherited descriptor of the raw image, never written\n"
	               "dir=DIR       (required) overlay, map and logs\n"
	               "control=FD    (required) inherited SOCK_SEQPACKET socket to the agent\n"
	               "epoch=N       (required) the epoch that is open at first\n"
	               "fold=N        an epoch whose log is in dir and committed",
	.unload = disk_unload,
	.config = disk_config,
	.config_complete = disk_config_complete,
	.get_ready = disk_get_ready,
	.after_fork = disk_after_fork,
	.open = disk_open,
	.close = disk_close_client,
	.get_size = disk_get_size,
	.block_size = disk_block_size,
	.can_write = yes,
	.can_flush = yes,
	.can_fua = fua_native,
	.can_zero = yes,
	.can_fast_zero = yes,
	.can_trim = no,
	.can_multi_conn = yes,
	.is_rotational = no,
	.pread = disk_pread,
	.pwrite = disk_pwrite,
	.zero = disk_zero,
	.flush = disk_flush,
};

NBDKIT_REGISTER_PLUGIN(registered)
