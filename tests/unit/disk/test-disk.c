/* test-disk.c - the whole disk: real nbdkit with the plugin, qemu-io as its client, disk.h as the agent uses it.
 * Needs nbdkit, qemu-io and qemu-img; VIRTCFT_DISK_PLUGIN is the plugin's path. */
#include "base/fault.h"
#include "disk/disk.h"
#include "scratch.h"

#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define BASE_BYTES (16u * 1024 * 1024 - 100)

struct setup { char *dir, *base, *disk_dir, *socket; struct disk_spec spec; struct disk *disk; };

static void setup_start(struct setup *s, uint64_t next)
{
	g_autoptr(GError) error = NULL;
	s->disk = disk_start(&s->spec, epoch_of(next), &error);
	g_assert_no_error(error);
}

static void setup_open(struct setup *s)
{
	*s = (struct setup){ .dir = scratch_new() };
	s->base = scratch_file(s->dir, "base", BASE_BYTES, 3);
	s->disk_dir = g_build_filename(s->dir, "state", "disk0", NULL);
	s->socket = g_build_filename(s->dir, "disk0.sock", NULL);
	s->spec = (struct disk_spec){ g_getenv("VIRTCFT_DISK_PLUGIN"), s->base, s->disk_dir, s->socket };
	setup_start(s, 1);
}

static void setup_close(struct setup *s)
{
	disk_stop(s->disk);
	g_free(s->base);
	g_free(s->disk_dir);
	g_free(s->socket);
	scratch_free(s->dir);
}

static char *uri(const struct setup *s) { return g_strdup_printf("nbd+unix:///?socket=%s", s->socket); }

/* Each argument is a command of qemu-io; all must succeed. */
static void qemu_io(const struct setup *s, ...)
{
	g_autoptr(GPtrArray) argv = g_ptr_array_new();
	g_autofree char *where = uri(s), *out = NULL, *said = NULL;
	g_autoptr(GError) error = NULL;
	int status;
	va_list list;
	g_ptr_array_add(argv, (char *)"qemu-io");
	g_ptr_array_add(argv, (char *)"-f");
	g_ptr_array_add(argv, (char *)"raw");
	va_start(list, s);
	for (const char *command; (command = va_arg(list, const char *));) {
		g_ptr_array_add(argv, (char *)"-c");
		g_ptr_array_add(argv, (char *)command);
	}
	va_end(list);
	g_ptr_array_add(argv, where);
	g_ptr_array_add(argv, NULL);
	g_assert_true(g_spawn_sync(NULL, (char **)argv->pdata, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, &out, &said, &status, &error));
	if (!g_spawn_check_wait_status(status, NULL) || strstr(out, "failed") || strstr(said, "failed"))
		g_error("qemu-io: %s%s", out, said);
}

#define must_do(call)                                   \
	do {                                            \
		g_autoptr(GError) error_ = NULL;        \
		GError **error = &error_;               \
		call;                                   \
		g_assert_no_error(error_);              \
	} while (0)

static void check_log(struct setup *s, uint64_t r, size_t count, uint64_t first, int byte)
{
	g_autoptr(GError) error = NULL;
	struct disk_log *log = disk_log_open(s->disk, epoch_of(r), &error);
	g_assert_no_error(error);
	g_assert_cmpuint(log->count, ==, count);
	for (size_t i = 0; i < count; i++) {
		g_assert_cmpuint(log->block[i], ==, first + i);
		g_assert_cmpint(log->data[i][0], ==, byte);
		g_assert_cmpint(log->data[i][4095], ==, byte);
	}
	disk_log_free(log);
}

static void one_disk_through_its_life(void)
{
	struct setup s;
	setup_open(&s);
	g_autofree char *before = scratch_sum(s.base);
	g_assert_cmpuint(disk_blocks(s.disk), ==, 4096);
	qemu_io(&s, "write -P 0x11 64k 64k", "flush", NULL);
	must_do(disk_seal(s.disk, epoch_of(1), error));
	check_log(&s, 1, 16, 16, 0x11);
	qemu_io(&s, "write -P 0x22 64k 32k", "write -z 128k 8k", NULL);
	must_do(disk_seal(s.disk, epoch_of(2), error));                          /* two sealed logs */
	check_log(&s, 1, 16, 16, 0x11);
	qemu_io(&s, "read -P 0x22 64k 32k", "read -P 0x11 96k 32k", "read -P 0 128k 8k", "write -P 0x33 64k 4k", NULL);
	must_do(disk_commit(s.disk, epoch_of(1), error));
	qemu_io(&s, "read -P 0x33 64k 4k", "read -P 0x22 68k 28k", "read -P 0x11 96k 32k", NULL);
	must_do(disk_rollback(s.disk, epoch_of(1), error));
	qemu_io(&s, "read -P 0x11 64k 64k", "write -P 0x44 0 4k", NULL);
	disk_stop(s.disk);
	setup_start(&s, 2);                                                      /* epoch 2, not committed, is gone */
	qemu_io(&s, "read -P 0x11 64k 64k", NULL);
	qemu_io(&s, "write -P 0x55 4k 4k", NULL);
	must_do(disk_seal(s.disk, epoch_of(2), error));
	must_do(disk_merge(s.disk, epoch_of(2), error));
	qemu_io(&s, "write -P 0x56 8k 4k", "read -P 0x55 4k 4k", NULL);
	must_do(disk_seal(s.disk, epoch_of(3), error));
	must_do(disk_commit(s.disk, epoch_of(3), error));
	qemu_io(&s, "read -P 0x55 4k 4k", "read -P 0x56 8k 4k", NULL);
	g_autofree char *after = scratch_sum(s.base);
	g_assert_cmpstr(before, ==, after);                                      /* D5 */
	setup_close(&s);
}

static void parts_of_blocks(void)
{
	struct setup s;
	setup_open(&s);
	qemu_io(&s, "write -P 1 0 12k", "write -P 2 512 512", "write -P 3 3584 1k", "write -z 5120 512", "write -P 4 6656 2k", NULL);
	qemu_io(&s, "read -P 1 0 512", "read -P 2 512 512", "read -P 1 1k 2560", "read -P 3 3584 1k", "read -P 1 4608 512", "read -P 0 5120 512",
	        "read -P 4 6656 2k", "read -P 1 8704 3584", NULL);
	must_do(disk_seal(s.disk, epoch_of(1), error));
	must_do(disk_commit(s.disk, epoch_of(1), error));
	qemu_io(&s, "write -P 5 1k 512", "read -P 2 512 512", "read -P 5 1k 512", "read -P 1 1536 2k", "read -P 3 3584 1k", NULL);
	qemu_io(&s, "read -P 0 16777116 100", NULL);   /* beyond the end of the base: the rest of its last block */
	setup_close(&s);
}

static void junk_is_refused_with_nbdkits_words(void)
{
	struct setup s;
	setup_open(&s);
	disk_stop(g_steal_pointer(&s.disk));
	g_autofree char *none = g_build_filename(s.dir, "none", NULL), *deep = g_build_filename(s.dir, "no", "such", "sock", NULL);
	g_autofree char *fifo = g_build_filename(s.dir, "fifo", NULL), *small = scratch_file(s.dir, "small", 4096, 1);
	g_autofree char *inside = g_build_filename(s.base, "inside", NULL);
	g_assert_cmpint(mkfifo(fifo, 0600), ==, 0);
	const struct { struct disk_spec spec; uint64_t next; const char *expect; } cases[] = {
		{ { s.spec.plugin, none, s.disk_dir, s.socket }, 1, "No such file" },
		{ { none, s.base, s.disk_dir, s.socket }, 1, "cannot open plugin" },
		{ { s.spec.plugin, s.base, s.disk_dir, deep }, 1, "No such file" },
		{ { s.spec.plugin, s.base, s.disk_dir, s.socket }, 0, "epoch= is missing or 0" },
		{ { s.spec.plugin, small, s.disk_dir, s.socket }, 1, "belongs to another disk" },
		{ { s.spec.plugin, s.disk_dir, s.disk_dir, s.socket }, 1, "neither a file nor a block device" },
		{ { s.spec.plugin, s.base, inside, s.socket }, 1, "Not a directory" },
	};
	for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
		g_autoptr(GError) error = NULL;
		g_assert_null(disk_start(&cases[i].spec, epoch_of(cases[i].next), &error));
		assert_error_has(error, cases[i].expect);
	}
	setup_close(&s);
}

/* nbdkit itself, with parameters that disk_start never gives. */
static void wrong_parameters_are_refused(void)
{
	struct setup s;
	setup_open(&s);
	const char *base = "base=0"; /* /dev/null */
	g_autofree char *dir = g_strconcat("dir=", s.dir, NULL);
	const struct { const char *argument[5]; const char *expect; } cases[] = {
		{ { base, dir, "control=0", "epoch=1" }, "control=0 is not an inherited SOCK_SEQPACKET socket" },
		{ { base, dir, "control=x", "epoch=1" }, "control" },
		{ { base, dir, "epoch=1" }, "control= is missing" },
		{ { base, "epoch=1" }, "dir= is missing" },
		{ { dir, "epoch=1" }, "base= is missing" },
		{ { base, dir, "epoch=-1" }, "epoch" },
		{ { base, base, dir }, "base= is given twice" },
		{ { "base=1", dir }, "base=1 is not an inherited descriptor, open for reading only" },
		{ { "colour=red" }, "unknown parameter colour=" },
	};
	for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
		const char *argv[12] = { "nbdkit", "-f", "-U", s.spec.socket, s.spec.plugin };
		g_autofree char *said = NULL;
		int status;
		for (unsigned k = 0; cases[i].argument[k]; k++)
			argv[5 + k] = cases[i].argument[k];
		g_assert_true(g_spawn_sync(NULL, (char **)argv, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, NULL, &said, &status, NULL));
		g_assert_false(g_spawn_check_wait_status(status, NULL));
		if (!strstr(said, cases[i].expect))
			g_error("'%s' is not in: %s", cases[i].expect, said);
	}
	setup_close(&s);
}

/* ---- life and death ---- */

static int pidfd_of(pid_t pid) { return (int)syscall(SYS_pidfd_open, pid, 0); }

static bool ends_within(int pidfd, int milliseconds)
{
	struct pollfd p = { .fd = pidfd, .events = POLLIN };
	return poll(&p, 1, milliseconds) == 1;
}

/* A process in between starts the disk and is killed; this one adopts nbdkit, to see how it ends. */
struct report { pid_t agent, disk, holder; };

static struct report start_agent(struct setup *s, bool hold)
{
	struct report r;
	int report[2];
	setup_open(s);
	disk_stop(g_steal_pointer(&s->disk));
	g_assert_cmpint(pipe(report), ==, 0);
	g_assert_cmpint(prctl(PR_SET_CHILD_SUBREAPER, 1), ==, 0);
	g_autofree char *self = g_file_read_link("/proc/self/exe", NULL), *fd = g_strdup_printf("%d", report[1]);
	pid_t agent = fork();
	if (agent == 0) {
		execl(self, self, hold ? "--agent-and-holder" : "--agent", s->base, s->disk_dir, s->socket, fd, NULL);
		_exit(127);
	}
	close(report[1]);
	g_assert_cmpint(read(report[0], &r, sizeof r), ==, sizeof r);
	close(report[0]);
	return r;
}

/* What the process in between does. With hold, a child of its own keeps its descriptors open after its end. */
static int be_agent(char **argv, bool hold)
{
	struct disk_spec spec = { g_getenv("VIRTCFT_DISK_PLUGIN"), argv[0], argv[1], argv[2] };
	struct disk *disk = disk_start(&spec, epoch_of(1), NULL);
	struct report r = { getpid(), disk ? disk_pid(disk) : 0, hold ? fork() : 0 };
	if (hold && r.holder == 0)
		return pause();
	if (write(atoi(argv[3]), &r, sizeof r) == sizeof r)
		pause();
	return 1;
}

static int status_after_kill(struct report r)
{
	int status, pidfd = pidfd_of(r.disk);
	g_assert_cmpint(pidfd, >=, 0);
	g_assert_false(ends_within(pidfd, 0));
	kill(r.agent, SIGKILL);
	g_assert_true(ends_within(pidfd, 5000));
	close(pidfd);
	g_assert_cmpint(waitpid(r.agent, NULL, 0), ==, r.agent);
	g_assert_cmpint(waitpid(r.disk, &status, 0), ==, r.disk);
	prctl(PR_SET_CHILD_SUBREAPER, 0);
	return status;
}

static void dies_with_its_parent(void)
{
	struct setup s;
	status_after_kill(start_agent(&s, false));
	setup_start(&s, 1);   /* over what was left behind: socket, logs */
	setup_close(&s);
}

/* D18 alone: the control socket does not end, for somebody still has it. SIGKILL, for with anything less nbdkit waits for its clients. */
static void is_killed_even_if_the_control_socket_lives(void)
{
	struct setup s;
	struct report r = start_agent(&s, true);
	int status = status_after_kill(r);
	g_assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	kill(r.holder, SIGKILL);
	g_assert_cmpint(waitpid(r.holder, NULL, 0), ==, r.holder);
	setup_close(&s);
}

/* D17 alone: the control socket ends, the agent lives. */
static void ends_with_the_control_socket(void)
{
	struct setup s;
	setup_open(&s);
	int pidfd = pidfd_of(disk_pid(s.disk));
	for (int fd = 3; fd < 256; fd++) {
		int type = 0;
		socklen_t n = sizeof type;
		if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &n) == 0 && type == SOCK_SEQPACKET)
			shutdown(fd, SHUT_RDWR);
	}
	g_assert_true(ends_within(pidfd, 5000));
	close(pidfd);
	setup_close(&s);
}

static gpointer start_in_thread(gpointer data)
{
	setup_start(data, 1);
	return NULL;
}

static void outlives_the_thread_that_started_it(void)
{
	struct setup s;
	setup_open(&s);
	disk_stop(g_steal_pointer(&s.disk));
	g_thread_join(g_thread_new("starter", start_in_thread, &s));
	int pidfd = pidfd_of(disk_pid(s.disk));
	g_assert_false(ends_within(pidfd, 100));
	must_do(disk_seal(s.disk, epoch_of(1), error));
	close(pidfd);
	setup_close(&s);
}

static void a_dead_nbdkit_is_an_error(void)
{
	struct setup s;
	g_autoptr(GError) error = NULL, again = NULL;
	setup_open(&s);
	int pidfd = pidfd_of(disk_pid(s.disk));
	kill(disk_pid(s.disk), SIGKILL);
	g_assert_true(ends_within(pidfd, 5000));
	close(pidfd);
	g_assert_false(disk_seal(s.disk, epoch_of(1), &error));
	assert_error_has(error, "nbdkit has ended");
	g_assert_false(disk_commit(s.disk, epoch_of(1), &again));
	assert_error_has(again, "failed before");   /* D19 */
	setup_close(&s);
}

/* Returns when all its threads stand: one that runs on another processor goes on for a moment. */
static void stand_still(pid_t pid)
{
	siginfo_t info;
	kill(pid, SIGSTOP);
	g_assert_cmpint(waitid(P_PID, (id_t)pid, &info, WSTOPPED | WNOWAIT), ==, 0);
}

static void a_hung_nbdkit_is_an_error_once_and_for_all(void)
{
	struct setup s;
	g_autoptr(GError) error = NULL;
	setup_open(&s);
	g_assert_false(disk_failed(s.disk));
	stand_still(disk_pid(s.disk));
	g_assert_false(disk_seal(s.disk, epoch_of(1), &error));
	g_assert_nonnull(strstr(error->message, "does not answer"));
	g_assert_true(disk_failed(s.disk));
	g_clear_error(&error);
	kill(disk_pid(s.disk), SIGCONT);
	g_assert_false(disk_seal(s.disk, epoch_of(1), &error));   /* its late answer is not taken for that of another request */
	g_assert_nonnull(error);
	setup_close(&s);
}

static void a_refusal_leaves_the_disk_usable(void)
{
	struct setup s;
	g_autoptr(GError) refused = NULL, ordered = NULL;
	setup_open(&s);
	g_assert_false(disk_commit(s.disk, epoch_of(5), &refused));
	assert_error_has(refused, "cannot commit epoch 5: not sealed here (committed 0, open 1)");
	fault_set(FAULT_DISK_SEAL, 1);
	g_assert_false(disk_seal(s.disk, epoch_of(1), &ordered));
	must_do(disk_merge(s.disk, epoch_of(1), error));   /* what the agent does with an epoch that is given up */
	must_do(disk_seal(s.disk, epoch_of(2), error));
	check_log(&s, 2, 0, 0, 0);
	setup_close(&s);
}

/* D16: an open client stops a rollback, one that goes lets it pass. */
static void rollback_waits_for_clients(void)
{
	struct setup s;
	g_autoptr(GError) refused = NULL;
	setup_open(&s);
	g_autofree char *where = uri(&s);
	const char *const argv[] = { "qemu-io", "-f", "raw", where, NULL };
	int in, out;
	char byte = 0;
	pid_t pid;
	g_assert_true(g_spawn_async_with_pipes(NULL, (char **)argv, NULL, G_SPAWN_SEARCH_PATH | G_SPAWN_DO_NOT_REAP_CHILD, NULL, NULL, &pid, &in,
	                                       &out, NULL, NULL));
	g_assert_cmpint(write(in, "write -P 7 0 4k\n", 16), ==, 16);
	while (byte != ')')   /* "... ops; 00.00 sec (…" */
		g_assert_cmpint(read(out, &byte, 1), ==, 1);
	g_assert_false(disk_rollback(s.disk, epoch_of(0), &refused));
	assert_error_has(refused, "1 clients are still connected");
	kill(pid, SIGKILL);
	must_do(disk_rollback(s.disk, epoch_of(0), error));
	g_assert_cmpint(waitpid(pid, NULL, 0), ==, pid);
	close(in);
	close(out);
	qemu_io(&s, "read 0 4k", NULL);
	setup_close(&s);
}

/* ---- disk_prepare_base ---- */

static void qemu_img(const char *const *arguments)
{
	g_autofree char *said = NULL;
	int status;
	g_assert_true(g_spawn_sync(NULL, (char **)arguments, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, NULL, &said, &status, NULL));
	if (!g_spawn_check_wait_status(status, NULL))
		g_error("%s", said);
}

static void raw_is_used_in_place(void)
{
	g_autoptr(scratch) dir = scratch_new();
	g_autoptr(GError) error = NULL;
	g_autofree char *raw = scratch_file(dir, "image.img", 8192, 1), *cache = g_build_filename(dir, "cache", NULL), *base = NULL;
	g_assert_true(disk_prepare_base(raw, cache, &base, &error));
	g_assert_cmpstr(base, ==, raw);
	g_assert_false(g_file_test(cache, G_FILE_TEST_EXISTS));
}

struct preparer { const char *image, *cache; char *base; };

static gpointer prepare_in_thread(gpointer data)
{
	struct preparer *p = data;
	g_autoptr(GError) error = NULL;
	disk_prepare_base(p->image, p->cache, &p->base, &error);
	g_assert_no_error(error);
	return NULL;
}

static unsigned files_in(const char *dir, const char *suffix)
{
	g_autoptr(GDir) names = g_dir_open(dir, 0, NULL);
	unsigned n = 0;
	for (const char *name; names && (name = g_dir_read_name(names));)
		n += g_str_has_suffix(name, suffix);
	return n;
}

static void qcow2_is_converted_once(void)
{
	g_autoptr(scratch) dir = scratch_new();
	g_autofree char *raw = scratch_file(dir, "raw", 4 << 20, 1), *qcow2 = g_build_filename(dir, "image.qcow2", NULL);
	g_autofree char *top = g_build_filename(dir, "top.qcow2", NULL), *cache = g_build_filename(dir, "cache", NULL);
	qemu_img((const char *[]){ "qemu-img", "convert", "-O", "qcow2", raw, qcow2, NULL });
	qemu_img((const char *[]){ "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", qcow2, top, NULL });
	struct preparer p[3] = { { qcow2, cache }, { qcow2, cache }, { top, cache } };
	GThread *thread[3];
	for (unsigned i = 0; i < 3; i++)
		thread[i] = g_thread_new("prepare", prepare_in_thread, &p[i]);
	for (unsigned i = 0; i < 3; i++)
		g_thread_join(thread[i]);
	g_assert_cmpstr(p[0].base, ==, p[1].base);
	g_assert_cmpstr(p[0].base, !=, p[2].base);
	g_autofree char *expect = scratch_sum(raw), *got = scratch_sum(p[0].base), *flat = scratch_sum(p[2].base);
	g_assert_cmpstr(got, ==, expect);
	g_assert_cmpstr(flat, ==, expect);
	g_assert_cmpuint(files_in(cache, ".raw"), ==, 2);
	g_assert_cmpuint(files_in(cache, ".tmp"), ==, 0);
	const struct timespec times[2] = { { 1, 0 }, { 1, 0 } };   /* what top is based on has changed: both are stale */
	g_assert_cmpint(utimensat(AT_FDCWD, qcow2, times, 0), ==, 0);
	struct preparer later = { top, cache };
	prepare_in_thread(&later);
	g_assert_cmpstr(later.base, !=, p[2].base);
	for (unsigned i = 0; i < 3; i++)
		g_free(p[i].base);
	g_free(later.base);
}

static void unreadable_images_are_refused(void)
{
	g_autoptr(scratch) dir = scratch_new();
	g_autoptr(GError) error = NULL, broken = NULL;
	g_autofree char *none = g_build_filename(dir, "none.qcow2", NULL), *bad = g_build_filename(dir, "bad.qcow2", NULL), *base = NULL;
	g_assert_false(disk_prepare_base(none, dir, &base, &error));
	assert_error_has(error, "No such file or directory");
	qemu_img((const char *[]){ "qemu-img", "create", "-q", "-f", "qcow2", bad, "1M", NULL });
	scratch_poke(bad, 40, "\xff\xff\xff\xff\xff\xff\xff\xff", 8);   /* offset of the L1 table */
	g_assert_false(disk_prepare_base(bad, dir, &base, &broken));
	assert_error_has(broken, "bad.qcow2");
	g_assert_null(base);
}

static bool found(const char *program)
{
	g_autofree char *path = g_find_program_in_path(program);
	return path != NULL;
}

int main(int argc, char **argv)
{
	if (argc == 6 && g_str_has_prefix(argv[1], "--agent"))
		return be_agent(argv + 2, strcmp(argv[1], "--agent-and-holder") == 0);
	g_test_init(&argc, &argv, NULL);
	if (!g_getenv("VIRTCFT_DISK_PLUGIN") || !found("nbdkit") || !found("qemu-io") || !found("qemu-img")) {
		g_test_message("needs VIRTCFT_DISK_PLUGIN, nbdkit, qemu-io and qemu-img");
		return 77;
	}
	g_test_add_func("/disk/life", one_disk_through_its_life);
	g_test_add_func("/disk/parts-of-blocks", parts_of_blocks);
	g_test_add_func("/disk/junk", junk_is_refused_with_nbdkits_words);
	g_test_add_func("/disk/wrong-parameters", wrong_parameters_are_refused);
	g_test_add_func("/disk/D18-dies-with-parent", dies_with_its_parent);
	g_test_add_func("/disk/D18-killed", is_killed_even_if_the_control_socket_lives);
	g_test_add_func("/disk/D17-control-ends", ends_with_the_control_socket);
	g_test_add_func("/disk/D18-outlives-thread", outlives_the_thread_that_started_it);
	g_test_add_func("/disk/D19-dead-nbdkit", a_dead_nbdkit_is_an_error);
	g_test_add_func("/disk/D19-hung-nbdkit", a_hung_nbdkit_is_an_error_once_and_for_all);
	g_test_add_func("/disk/refusal", a_refusal_leaves_the_disk_usable);
	g_test_add_func("/disk/D16-rollback-waits", rollback_waits_for_clients);
	g_test_add_func("/disk/base/raw-in-place", raw_is_used_in_place);
	g_test_add_func("/disk/base/D21-converted-once", qcow2_is_converted_once);
	g_test_add_func("/disk/base/refused", unreadable_images_are_refused);
	return g_test_run();
}
