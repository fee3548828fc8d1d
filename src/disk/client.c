/* client.c - a disk as the agent holds it: starts nbdkit with the plugin, talks to its control thread, ends it.
 *
 *   disk_start: socketpair ─► fork+exec nbdkit (PDEATHSIG SIGKILL) ─► PING ─► connect() to the NBD socket ─► ready
 *
 *  D18 nbdkit is killed with the agent (spawn.h); the end of the control socket is the second net (D17).
 *  D19 A control socket that was once out of step (no answer in time, a wrong one) is closed and not used again: the disk has failed.
 *  D22 nbdkit has no rights of its own: base, control socket and log are descriptors of ours, the plugin is lent where it may not read it (ID3).
 *      What it may have put into dir is opened without following links.
 * A seal or a rollback has little to do and must not take longer than a command to QEMU may; a commit or merge moves an epoch's blocks, and may take
 * as much longer as that takes on a slow disk.
 * nbdkit's messages are in dir/nbdkit.log, rewritten by each start. */
#include "base/fault.h"
#include "disk/control.h"
#include "disk/disk-private.h"
#include "disk/log.h"
#include "disk/spawn.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>

#define CONTROL_CHILD_FD 3      /* the order of spawn() */
#define BASE_CHILD_FD 4
#define PLUGIN_CHILD_FD 5
#define PROMPT_TIMEOUT_SECONDS 10
#define MOVE_BYTES_PER_SECOND (8u << 20)   /* at least, of a commit or merge */
#define LOG_TAIL_BYTES 2000

static const char *const committed_files[] = { "overlay", "map", "sums" };

struct disk {
	char *dir, *socket;
	pid_t pid;
	int pidfd, control;
	uint64_t sequence, blocks;
	bool damaged;
};

/* ---- nbdkit's own words ---- */

/* The end of nbdkit.log in one line, or "it said nothing". Free with g_free. */
static char *log_tail(const struct disk *disk)
{
	g_autofree char *path = g_build_filename(disk->dir, "nbdkit.log", NULL);
	g_autofree char *text = NULL;
	gsize n = 0;
	if (g_file_test(path, G_FILE_TEST_IS_SYMLINK) || !g_file_get_contents(path, &text, &n, NULL) || !*g_strstrip(text))
		return g_strdup("it said nothing");
	n = strlen(text);
	const char *tail = n > LOG_TAIL_BYTES ? text + n - LOG_TAIL_BYTES : text;
	g_auto(GStrv) lines = g_strsplit(tail, "\n", -1);
	return g_strjoinv("; ", lines);
}

static gboolean fail_ended(const struct disk *disk, GError **error)
{
	g_autofree char *said = log_tail(disk);
	return disk_fail(error, "nbdkit has ended: %s", said);
}

/* ---- control ---- */

static gboolean set_timeout(int fd, int seconds, GError **error)
{
	struct timeval t = { .tv_sec = seconds };
	if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t) < 0)
		return disk_fail_errno(error, errno, "control socket");
	return TRUE;
}

static gboolean exchange(struct disk *disk, const struct control_request *request, struct control_answer *ret_answer, GError **error)
{
	uint8_t out[CONTROL_REQUEST_BYTES], in[CONTROL_ANSWER_BYTES + 1];
	ssize_t n;
	control_request_encode(out, request);
	if (send(disk->control, out, sizeof out, MSG_NOSIGNAL) != (ssize_t)sizeof out)
		return fail_ended(disk, error);
	do
		n = recv(disk->control, in, sizeof in, 0);
	while (n < 0 && errno == EINTR);
	if (n == 0 || (n < 0 && errno == ECONNRESET))
		return fail_ended(disk, error);
	if (n < 0)
		return disk_fail(error, "nbdkit does not answer: %s", g_strerror(errno));
	if (!control_answer_decode(in, (size_t)n, ret_answer) || ret_answer->sequence != request->sequence)
		return disk_fail(error, "nbdkit gave an answer that is none, %zd bytes", n);
	return TRUE;
}

static int patience_seconds(const struct disk *disk, enum control_verb verb, struct epoch_id epoch)
{
	struct stat log;
	g_autofree char *path = epoch_log_path(disk->dir, epoch, "");
	bool moves = (verb == CONTROL_COMMIT || verb == CONTROL_MERGE) && stat(path, &log) == 0;
	return PROMPT_TIMEOUT_SECONDS + (moves ? (int)MIN((uint64_t)log.st_blocks * 512 / MOVE_BYTES_PER_SECOND, G_MAXINT16) : 0);
}

static gboolean ask(struct disk *disk, enum control_verb verb, struct epoch_id epoch, GError **error)
{
	struct control_request request = { verb, ++disk->sequence, epoch };
	struct control_answer a;
	if (disk->control < 0)
		return disk_fail(error, "disk %s: %s: failed before", disk->dir, control_verb_name(verb));
	if (!set_timeout(disk->control, patience_seconds(disk, verb, epoch), error) || !exchange(disk, &request, &a, error)) {
		disk_close(&disk->control);   /* D19 */
		g_prefix_error(error, "disk %s: %s: ", disk->dir, control_verb_name(verb));
		return FALSE;
	}
	disk->damaged |= a.damaged;
	if (a.damaged)
		return disk_fail_damaged(error, "disk %s: %s", disk->dir, a.text);
	if (a.failed)
		return disk_fail(error, "disk %s: %s", disk->dir, a.text);
	disk->blocks = a.blocks;
	return TRUE;
}

gboolean disk_seal(struct disk *disk, struct epoch_id r, GError **error)
{
	if (fault(FAULT_DISK_SEAL))
		return disk_fail(error, "disk %s: seal: a fault was ordered", disk->dir);
	return ask(disk, CONTROL_SEAL, r, error);
}

gboolean disk_commit(struct disk *disk, struct epoch_id r, GError **error)
{
	if (fault(FAULT_DISK_COMMIT))
		kill(disk->pid, SIGKILL);
	if (fault(FAULT_DISK_FOLD))
		return disk_fail(error, "disk %s: commit: a fault was ordered", disk->dir);
	return ask(disk, CONTROL_COMMIT, r, error);
}

gboolean disk_merge(struct disk *disk, struct epoch_id r, GError **error) { return ask(disk, CONTROL_MERGE, r, error); }
gboolean disk_rollback(struct disk *disk, struct epoch_id c, GError **error) { return ask(disk, CONTROL_ROLLBACK, c, error); }

bool disk_failed(const struct disk *disk) { return disk->control < 0; }
bool disk_damaged(const struct disk *disk) { return disk->damaged; }
pid_t disk_pid(const struct disk *disk) { return disk->pid; }
uint64_t disk_blocks(const struct disk *disk) { return disk->blocks; }

struct disk_log *disk_log_open(struct disk *disk, struct epoch_id r, GError **error)
{
	return epoch_log_view(disk->dir, r, disk->blocks, error);
}

/* ---- start ---- */

static char *parameter(const char *key, const char *value) { return g_strconcat(key, "=", value, NULL); }

/* fds: what nbdkit gets, in the order of the numbers above; plugin: its name there. */
static gboolean spawn(struct disk *disk, const struct disk_spec *spec, struct epoch_id next, const int *fds, const char *plugin, int log_fd,
                      GError **error)
{
	g_autofree char *base = g_strdup_printf("base=%d", BASE_CHILD_FD), *dir = parameter("dir", spec->dir);
	g_autofree char *epoch = g_strdup_printf("epoch=%" PRIu64, next.n), *control = g_strdup_printf("control=%d", CONTROL_CHILD_FD);
	g_autofree char *fold = g_strdup_printf("fold=%" PRIu64, spec->fold.n);
	const char *const argv[] = { "nbdkit", "--foreground", "--unix", spec->socket, "--threads", "8", plugin, base, dir, control, epoch, fold, NULL };
	if (!disk_spawn(argv, fds, fds[2] >= 0 ? 3 : 2, log_fd, &spec->run_as, &disk->pid, error))
		return FALSE;
	disk->pidfd = (int)syscall(SYS_pidfd_open, disk->pid, 0);
	return disk->pidfd >= 0 ? TRUE : disk_fail_errno(error, errno, "pidfd of nbdkit");
}

/* A new file under that name; what had it may be a link. */
static int log_open(const struct disk_spec *spec, GError **error)
{
	g_autofree char *path = g_build_filename(spec->dir, "nbdkit.log", NULL);
	unlink(path);
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0600);
	if (fd < 0)
		disk_fail_errno(error, errno, "%s", path);
	return fd;
}

static int base_open(const struct disk_spec *spec, GError **error)
{
	int fd = open(spec->base, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		disk_fail_errno(error, errno, "base %s: the agent (user %u) cannot read it", spec->base, (unsigned)geteuid());
	return fd;
}

static gboolean launch(struct disk *disk, const struct disk_spec *spec, struct epoch_id next, GError **error)
{
	g_autofree char *lent = NULL;
	int pair[2], plugin = -1;
	if (!identity_lend(&spec->run_as, spec->plugin, &lent, &plugin, error))
		return FALSE;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) {
		disk_close(&plugin);
		return disk_fail_errno(error, errno, "socketpair");
	}
	disk->control = pair[0];
	g_autofree char *there = plugin < 0 ? g_steal_pointer(&lent) : g_strdup_printf("/proc/self/fd/%d", PLUGIN_CHILD_FD);
	int log_fd = log_open(spec, error), base = log_fd < 0 ? -1 : base_open(spec, error);
	const int fds[] = { pair[1], base, plugin };
	gboolean ok = base >= 0 && spawn(disk, spec, next, fds, there, log_fd, error);
	disk_close(&log_fd);
	disk_close(&base);
	disk_close(&plugin);
	disk_close(&pair[1]);
	return ok;
}

static gboolean check_socket(const struct disk *disk, GError **error)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	if (g_strlcpy(address.sun_path, disk->socket, sizeof address.sun_path) >= sizeof address.sun_path)
		return disk_fail(error, "%s: longer than a Unix socket's path may be", disk->socket);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	gboolean ok = fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0;
	if (!ok)
		disk_fail_errno(error, errno, "%s", disk->socket);
	disk_close(&fd);
	return ok;
}

/* nbdkit listens before its plugin's control thread exists: a PING that is answered means that QEMU can connect. */
static gboolean wait_ready(struct disk *disk, GError **error)
{
	return ask(disk, CONTROL_PING, epoch_of(0), error) && check_socket(disk, error);
}

/* The files before the folder: as long as that is ours nobody can put anything else under their names. */
static gboolean give_files(const struct disk_spec *spec, GError **error)
{
	for (size_t i = 0; i < G_N_ELEMENTS(committed_files); i++) {
		g_autofree char *path = g_build_filename(spec->dir, committed_files[i], NULL);
		if (!identity_give(&spec->run_as, path, error))
			return FALSE;
	}
	return identity_folder_own(&spec->run_as, spec->dir, error);
}

void disk_remove_files(const char *dir)
{
	for (size_t i = 0; i < G_N_ELEMENTS(committed_files); i++) {
		g_autofree char *path = g_build_filename(dir, committed_files[i], NULL);
		unlink(path);
	}
}

struct disk *disk_start(const struct disk_spec *spec, struct epoch_id next, GError **error)
{
	if (!give_files(spec, error))
		return NULL;
	struct disk *disk = g_new0(struct disk, 1);
	disk->dir = g_strdup(spec->dir);
	disk->socket = g_strdup(spec->socket);
	disk->pidfd = disk->control = -1;
	unlink(spec->socket);   /* of an nbdkit that was killed: nbdkit would refuse it */
	if (launch(disk, spec, next, error) && wait_ready(disk, error))
		return disk;
	disk_stop(disk);
	return NULL;
}

void disk_stop(struct disk *disk)
{
	g_autofree char *dir = disk && disk->pid > 0 ? g_strdup(disk->dir) : NULL;
	disk_abandon(disk);
	if (dir)
		epoch_log_remove_all(dir, NULL);
}

void disk_abandon(struct disk *disk)
{
	siginfo_t info;
	if (!disk)
		return;
	if (disk->pid > 0) {
		if (disk->pidfd >= 0)
			syscall(SYS_pidfd_send_signal, disk->pidfd, SIGKILL, NULL, 0);
		else
			kill(disk->pid, SIGKILL);
		while (waitid(P_PID, (id_t)disk->pid, &info, WEXITED) < 0 && errno == EINTR)
			continue;
		unlink(disk->socket);
	}
	disk_close(&disk->pidfd);
	disk_close(&disk->control);
	g_free(disk->dir);
	g_free(disk->socket);
	g_free(disk);
}
