/* test-parts.c - the parts of vm/ that need no QEMU: page sets, RAM files, trackers, QMP against a peer that misbehaves, the command line. */
#include "vm/copy.h"
#include "vm/vm-private.h"

#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <unistd.h>

/* ---- bits: against an array of bool ---- */

static void check_against(const struct page_bits *bits, const bool *oracle, uint64_t pages)
{
	uint64_t count = 0, page = 0, n, covered = 0;
	for (uint64_t i = 0; i < pages; i++) {
		g_assert_cmpint(bits_has(bits, i), ==, oracle[i]);
		count += oracle[i];
	}
	g_assert_cmpuint(bits_count(bits), ==, count);
	for (; (n = bits_run(bits, &page)); page += n) {
		g_assert_true(page == 0 || !oracle[page - 1]);
		g_assert_true(page + n == pages || !oracle[page + n]);
		for (uint64_t i = page; i < page + n; i++)
			g_assert_true(oracle[i]);
		covered += n;
	}
	g_assert_cmpuint(covered, ==, count);
}

static void test_bits(void)
{
	static const uint64_t sizes[] = { 1, 63, 64, 65, 128, 1000 };
	for (size_t s = 0; s < G_N_ELEMENTS(sizes); s++) {
		uint64_t pages = sizes[s];
		struct page_bits bits;
		bool oracle[1000] = { false };
		g_assert_true(bits_init(&bits, pages));
		check_against(&bits, oracle, pages);
		for (int i = 0; i < 40; i++) {
			uint64_t first = (uint64_t)g_test_rand_int_range(0, (int)pages + 3), n = (uint64_t)g_test_rand_int_range(0, 140);
			bits_add(&bits, first, n);
			for (uint64_t j = first; j < first + n && j < pages; j++)
				oracle[j] = true;
			check_against(&bits, oracle, pages);
			if (i % 10 == 9) {
				bits_clear(&bits);
				memset(oracle, 0, sizeof oracle);
			}
		}
		bits_add(&bits, 0, UINT64_MAX);
		g_assert_cmpuint(bits_count(&bits), ==, pages);
		bits_free(&bits);
	}
}

/* ---- RAM file and comparison ---- */

static char *temporary(void)
{
	char *path = g_strdup("/dev/shm/virtcft-test-XXXXXX");
	int fd = g_mkstemp(path);
	g_assert_cmpint(fd, >=, 0);
	close(fd);
	return path;
}

/* R3: a tmpfs that is too small is an error before anything is touched. */
static void test_memory_space(void)
{
	if (geteuid() != 0) {
		g_test_skip("must run as root");
		return;
	}
	struct memory m;
	g_autoptr(GError) error = NULL;
	g_autofree char *dir = g_dir_make_tmp("vcft-space-XXXXXX", NULL), *path = g_build_filename(dir, "ram", NULL);
	g_assert_cmpint(mount("tmpfs", dir, "tmpfs", 0, "size=1m"), ==, 0);
	bool small = memory_open(&m, path, 512 << 10, &error) && memory_reserve(&m, NULL, &error);
	uint64_t first = 0, data = small ? memory_data(&m, &first) : 1;
	memory_close(&m);
	g_unlink(path);
	bool large = memory_open(&m, path, 2 << 20, &error);
	memory_close(&m);
	g_assert_cmpint(umount2(dir, MNT_DETACH), ==, 0);
	g_rmdir(dir);
	g_assert_true(small);
	g_assert_cmpuint(data, ==, 0);      /* taken, and a hole still */
	g_assert_false(large);
	g_assert_error(error, VMM_ERROR, VMM_ERROR_SPACE);
}

static void test_memory_size(void)
{
	g_autofree char *path = temporary();
	struct memory m;
	g_autoptr(GError) error = NULL;
	g_assert_true(memory_open(&m, path, 8 * VCFT_PAGE_SIZE, NULL));
	memory_close(&m);
	g_assert_false(memory_open(&m, path, 9 * VCFT_PAGE_SIZE, &error)); /* R2 */
	g_assert_error(error, VMM_ERROR, VMM_ERROR_RAM);
	g_clear_error(&error);
	g_assert_false(memory_open(&m, path, VCFT_PAGE_SIZE + 1, &error));
	g_assert_error(error, VMM_ERROR, VMM_ERROR_RAM);
	memory_close(&m);
	g_unlink(path);
}

/* R1: neither hash nor comparison fill holes; a hole and a page of zeros hash alike. */
static void test_r1_holes(void)
{
	g_autofree char *path = temporary();
	struct memory m;
	uint64_t sparse[2], full[2], first = 0;
	g_assert_true(memory_open(&m, path, 512 * VCFT_PAGE_SIZE, NULL));
	g_assert_cmpuint(memory_data(&m, &first), ==, 0);
	m.map[100 * VCFT_PAGE_SIZE + 7] = 1;
	m.map[101 * VCFT_PAGE_SIZE] = 2;
	g_assert_cmpuint(memory_data(&m, &first), ==, 2);
	g_assert_cmpuint(first, ==, 100);
	struct tracker *t = track_compare_new(&m, NULL);
	memory_hash(&m, sparse);
	memory_prefault(&m);
	g_assert_cmpuint(memory_populated_count(&m), ==, 2);
	memset(m.map + 200 * VCFT_PAGE_SIZE, 0, 100 * VCFT_PAGE_SIZE);
	memory_hash(&m, full);
	g_assert_cmpmem(sparse, sizeof sparse, full, sizeof full);
	m.map[100 * VCFT_PAGE_SIZE + 7] = 0;
	memory_hash(&m, full);
	g_assert_true(memcmp(sparse, full, sizeof full) != 0);
	t->ops->free(t);
	memory_close(&m);
	g_unlink(path);
}

static void expect_changed(struct tracker *t, struct page_bits *bits, const uint64_t *pages, size_t count)
{
	bits_clear(bits);
	g_assert_true(t->ops->scan(t, bits, NULL));
	g_assert_cmpuint(bits_count(bits), ==, count);
	for (size_t i = 0; i < count; i++)
		g_assert_true(bits_has(bits, pages[i]));
}

static void test_t1_compare(void)
{
	g_autofree char *path = temporary();
	struct memory m;
	struct page_bits bits;
	g_assert_true(memory_open(&m, path, 64 * VCFT_PAGE_SIZE, NULL));
	g_assert_true(bits_init(&bits, 64));
	m.map[3 * VCFT_PAGE_SIZE] = 1;
	struct tracker *t = track_compare_new(&m, NULL);
	expect_changed(t, &bits, NULL, 0);
	m.map[3 * VCFT_PAGE_SIZE] = 2;
	m.map[64 * VCFT_PAGE_SIZE - 1] = 9;
	expect_changed(t, &bits, (uint64_t[]){ 3, 63 }, 2);
	expect_changed(t, &bits, NULL, 0);
	m.map[3 * VCFT_PAGE_SIZE] = 2; /* what it held: not found, nothing lost */
	expect_changed(t, &bits, NULL, 0);
	g_assert_cmpint(fallocate(m.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 3 * VCFT_PAGE_SIZE, VCFT_PAGE_SIZE), ==, 0);
	expect_changed(t, &bits, (uint64_t[]){ 3 }, 1); /* a page given back is zero */
	expect_changed(t, &bits, NULL, 0);
	t->ops->free(t);
	bits_free(&bits);
	memory_close(&m);
	g_unlink(path);
}

/* ---- K6: merging, against an array ---- */

#define MERGE_PAGES 60

static void random_set(struct page_set *set, uint8_t *oracle, uint8_t value)
{
	struct page_bits bits;
	g_assert_true(bits_init(&bits, MERGE_PAGES));
	for (int n = g_test_rand_int_range(0, MERGE_PAGES); n > 0; n--)
		bits_add(&bits, (uint64_t)g_test_rand_int_range(0, MERGE_PAGES), 1);
	g_assert_true(pages_list(&bits, set));
	for (size_t i = 0; i < set->count; i++) {
		oracle[set->index[i]] = value;
		memset(set->data + i * VCFT_PAGE_SIZE, value, VCFT_PAGE_SIZE);
	}
	bits_free(&bits);
}

static void test_k6_merge(void)
{
	struct page_set set = { 0 }, late = { 0 };
	for (int round = 0; round < 300; round++) {
		uint8_t oracle[MERGE_PAGES] = { 0 };
		random_set(&set, oracle, 1);
		random_set(&late, oracle, 2);
		g_assert_true(pages_merge(&set, &late));
		size_t at = 0;
		for (uint64_t page = 0; page < MERGE_PAGES; page++) {
			if (!oracle[page])
				continue;
			g_assert_cmpuint(at, <, set.count);
			g_assert_cmpuint(set.index[at], ==, page);
			g_assert_cmpuint(set.data[at * VCFT_PAGE_SIZE], ==, oracle[page]);
			g_assert_cmpuint(set.data[at * VCFT_PAGE_SIZE + VCFT_PAGE_SIZE - 1], ==, oracle[page]);
			at++;
		}
		g_assert_cmpuint(at, ==, set.count);
	}
	page_set_free(&set);
	page_set_free(&late);
}

/* ---- what this host can do ---- */

static const struct vm_folders here = { "/dev/shm/vcft-not-there-yet", "/nonexistent/plugins" };

static struct vm_feature feature(const char *name)
{
	struct vm_feature f[VM_FEATURES_MAX];
	size_t n = vm_features(&here, f, G_N_ELEMENTS(f));
	for (size_t i = 0; i < n; i++)
		if (!strcmp(f[i].name, name))
			return f[i];
	g_error("no such feature: %s", name);
}

static void expect_missing(const char *name, const char *why, const char *instead)
{
	struct vm_feature f = feature(name);
	g_assert_false(f.found);
	g_assert_nonnull(strstr(f.detail, why));
	g_assert_true(instead ? f.instead && strstr(f.instead, instead) : !f.instead);
}

static void script(const char *path, const char *text)
{
	g_assert_true(g_file_set_contents(path, text, -1, NULL));
	g_assert_cmpint(g_chmod(path, 0755), ==, 0);
}

static void test_probes_find_what_there_is(void)
{
	g_autofree char *dir = g_dir_make_tmp("vcft-probe-XXXXXX", NULL), *qemu = g_build_filename(dir, "qemu", NULL), *path = g_strdup(g_getenv("PATH"));
	g_autofree char *nbdkit = g_build_filename(dir, "nbdkit", NULL);
	script(qemu, "#!/bin/sh\necho QEMU emulator version 99.9; echo more\n");
	script(nbdkit, "#!/bin/sh\necho nbdkit 98.7; test \"$1\" = --version\n");   /* it loads no plugin */
	g_setenv("VIRTCFT_QEMU", qemu, TRUE);
	g_setenv("PATH", dir, TRUE);
	struct vm_feature f = feature("qemu"), n = feature("nbdkit");
	g_assert_true(f.found && n.found);
	g_assert_cmpstr(f.detail, ==, "QEMU emulator version 99.9");
	g_assert_cmpstr(n.detail, ==, "nbdkit 98.7");
	expect_missing("qemu-img", "not installed", "without disks");
	expect_missing("disk-plugin", "/nonexistent/plugins/virtcft-disk.so: cannot be read", "without disks");
	expect_missing("preload", "/nonexistent/plugins/virtcft-preload.so", "compare");
	script(qemu, "#!/bin/sh\necho QEMU emulator version 99.9; exit 1\n");
	g_assert_false(feature("qemu").found);
	g_setenv("VIRTCFT_QEMU", "/nonexistent/qemu", TRUE);
	expect_missing("qemu", "not installed", NULL);
	g_unlink(nbdkit);
	expect_missing("nbdkit", "not installed", "without disks");
	g_setenv("PATH", path, TRUE);
	g_unsetenv("VIRTCFT_QEMU");
	g_unlink(qemu);
	g_rmdir(dir);
}

static void test_probes_of_this_machine(void)
{
	struct vm_feature f[2];
	g_assert_cmpuint(vm_features(&here, f, 2), ==, 2);
	g_assert_cmpint(feature("kvm").found, ==, !vm_kvm_failed());
	g_assert_true(feature("tun").found == (geteuid() == 0 && access("/dev/net/tun", R_OK | W_OK) == 0));
	g_assert_nonnull(strstr(feature("ram-tmpfs").detail, "/dev/shm/vcft-not-there-yet has "));
	g_assert_true(vm_ram_dir_fits("/dev/shm/vcft-not-there-yet", NULL));
	g_assert_false(vm_ram_dir_fits("/proc/vcft-not-there-yet", NULL));
	g_assert_false(vm_ram_dir_fits("/dev/shm", NULL));
}

/* ---- QMP: a peer that does what a script says ---- */

#define GREETING "{\"QMP\": {}}\r\n"
#define REPLY(value, id) "{\"return\": " value ", \"id\": " #id "}\r\n"
#define EVENT(name, s, us, more) "{\"timestamp\": {\"seconds\": " #s ", \"microseconds\": " #us "}, \"event\": \"" name "\"" more "}\r\n"

/* Answers the n-th command (0: qmp_capabilities) with script[n]: "" nothing, NULL: hangs up. '|' in an answer: a pause between two pieces. */
struct peer { int fd; const char *const *script; GThread *thread; struct qmp *qmp; };

static void say_pieces(int fd, const char *answer)
{
	g_auto(GStrv) piece = g_strsplit(answer, "|", -1);
	for (char **p = piece; *p; p++) {
		g_assert_cmpint(write(fd, *p, strlen(*p)), ==, strlen(*p));
		g_usleep(1000); /* the pieces are to arrive apart */
	}
}

static gpointer play(gpointer user)
{
	struct peer *p = user;
	char c;
	for (const char *const *line = p->script; read(p->fd, &c, 1) == 1;) {
		if (c != '}' || recv(p->fd, &c, 1, MSG_PEEK | MSG_DONTWAIT) == 1)
			continue; /* a command ends with the last brace there is */
		if (!*line)
			break;
		say_pieces(p->fd, *line++);
	}
	shutdown(p->fd, SHUT_RDWR);
	return NULL;
}

static void peer_open(struct peer *p, const char *const *script)
{
	int s[2];
	g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, s), ==, 0);
	*p = (struct peer){ .fd = s[1], .script = script, .qmp = qmp_new(s[0]) };
	g_assert_cmpint(write(p->fd, GREETING, strlen(GREETING)), ==, strlen(GREETING));
	p->thread = g_thread_new("peer", play, p);
	g_autoptr(GError) error = NULL;
	qmp_greet(p->qmp, clock_now() + 10 * NSEC_PER_SEC, &error);
	g_assert_no_error(error);
}

static void peer_close(struct peer *p)
{
	shutdown(p->fd, SHUT_RDWR);
	g_thread_join(p->thread);
	qmp_free(p->qmp);
	close(p->fd);
}

static void expect_failure(struct peer *p, nsec_t patience, enum vmm_error code)
{
	g_autoptr(GError) error = NULL;
	g_assert_false(qmp_command(p->qmp, "test", NULL, clock_now() + patience, NULL, &error));
	g_assert_error(error, VMM_ERROR, (int)code);
}

static void expect_value(struct peer *p, const char *expected)
{
	json_t *value = NULL;
	g_autoptr(GError) error = NULL;
	qmp_command(p->qmp, "test", json_pack("{s:i}", "a", 1), clock_now() + 10 * NSEC_PER_SEC, &value, &error);
	g_assert_no_error(error);
	g_assert_cmpstr(json_string_value(value), ==, expected);
	json_decref(value);
}

static void test_q2_refused(void)
{
	static const char *const script[] = { REPLY("{}", 1), "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}, \"id\": 2}\r\n",
	                                      REPLY("\"yes\"", 3), NULL };
	struct peer p;
	peer_open(&p, script);
	expect_failure(&p, 10 * NSEC_PER_SEC, VMM_ERROR_REFUSED);
	expect_value(&p, "yes");
	peer_close(&p);
}

/* Q1: a late reply belongs to the command that was given up, not to the next one. */
static void test_q1_late_reply(void)
{
	static const char *const script[] = { REPLY("{}", 1), "", REPLY("\"new\"", 3), NULL };
	struct peer p;
	json_t *value = NULL;
	peer_open(&p, script);
	expect_failure(&p, 20 * NSEC_PER_MSEC, VMM_ERROR_HUNG);
	expect_failure(&p, 20 * NSEC_PER_MSEC, VMM_ERROR_HUNG); /* still open: nothing is sent */
	say_pieces(p.fd, REPLY("\"late\"", 2) REPLY("\"not asked\"", 3));
	g_assert_true(qmp_wait(p.qmp, clock_now() + 10 * NSEC_PER_SEC, &value, NULL));
	g_assert_cmpstr(json_string_value(value), ==, "late");
	json_decref(value);
	expect_value(&p, "new");
	peer_close(&p);
}

/* Q9 at the peer: what has come must be this, whole. */
static void expect_text(int fd, const char *expected)
{
	char text[256] = "";
	size_t n = 0;
	while (n < strlen(expected)) {
		ssize_t k = recv(fd, text + n, strlen(expected) - n, 0);
		g_assert_cmpint(k, >, 0);
		n += (size_t)k;
	}
	g_assert_cmpstr(text, ==, expected);
	g_assert_cmpint(recv(fd, text, 1, MSG_DONTWAIT), ==, -1);
}

/* Q9: a prepared command lacks its last byte until it is to be carried out; another one takes it back first. */
static void test_q9_prepared(void)
{
	int s[2];
	g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, s), ==, 0);
	struct qmp *q = qmp_new(s[0]);
	g_assert_false(qmp_go(q, NULL)); /* nothing is prepared */
	g_assert_true(qmp_prepare(q, "save", json_pack("{s:i}", "a", 1), NULL));
	g_assert_true(qmp_prepare(q, "save", json_pack("{s:i}", "a", 1), NULL));
	expect_text(s[1], "{\"execute\":\"save\",\"id\":1,\"arguments\":{\"a\":1}");
	g_assert_false(qmp_open(q));
	g_assert_true(qmp_go(q, NULL));
	expect_text(s[1], "}");
	g_assert_true(qmp_open(q));
	say_pieces(s[1], REPLY("{}", 1));
	g_assert_true(qmp_wait(q, clock_now() + 10 * NSEC_PER_SEC, NULL, NULL));
	g_assert_true(qmp_prepare(q, "save", NULL, NULL));
	expect_text(s[1], "{\"execute\":\"save\",\"id\":2");
	g_assert_true(qmp_send(q, "cont", NULL, -1, NULL));
	expect_text(s[1], "\xff{\"execute\":\"cont\",\"id\":3}");
	say_pieces(s[1], "{\"error\": {\"class\": \"GenericError\", \"desc\": \"stray\"}}\r\n" REPLY("{}", 3));
	g_assert_true(qmp_wait(q, clock_now() + 10 * NSEC_PER_SEC, NULL, NULL));
	g_assert_false(qmp_go(q, NULL)); /* it was taken back */
	qmp_free(q);
	close(s[1]);
}

static void test_q2_gone(void)
{
	static const char *const answers[] = { NULL, "no json\n", "17\n", "{\"a\": \n", "[1]\r\n" };
	for (size_t i = 0; i < G_N_ELEMENTS(answers); i++) {
		const char *const script[] = { REPLY("{}", 1), answers[i], NULL };
		struct peer p;
		peer_open(&p, script);
		expect_failure(&p, 10 * NSEC_PER_SEC, VMM_ERROR_GONE);
		peer_close(&p);
	}
}

/* Q3: events in pieces, before the reply. */
static void test_q3_events(void)
{
	static const char *const script[] = { REPLY("{}", 1), "{\"timestamp\": {\"seconds\": 5, \"microseconds\": 10}, \"ev|ent\": \"STOP\"}\r\n\r\n"
		EVENT("RESUME", 5, 2010, "") EVENT("MIGRATION", 6, 0, ", \"data\": {\"status\": \"completed\"}") EVENT("UNKNOWN", 6, 0, "")
		"|" REPLY("\"yes\"", 2), NULL };
	struct peer p;
	peer_open(&p, script);
	expect_value(&p, "yes");
	const struct qmp_events *e = qmp_events(p.qmp);
	g_assert_cmpuint(e->stops, ==, 1);
	g_assert_cmpint(e->resume_us - e->stop_us, ==, 2000);
	g_assert_true(e->running);
	g_assert_cmpstr(e->migration, ==, "completed");
	peer_close(&p);
}

/* ---- command line ---- */

static const char *value_of(char **argv, const char *option, unsigned which)
{
	for (; *argv; argv++)
		if (!strcmp(*argv, option) && which-- == 0)
			return argv[1];
	return NULL;
}

static void test_c1_command_line(void)
{
	struct vm_nic nic = { "/run/a,b", { 0x52, 0x54, 0, 0, 0, 1 } };
	struct vm_disk disk = { "/run/disk" };
	const char *const extra[] = { "-device", "virtio-balloon-pci", NULL };
	struct vm_spec spec = { .name = "n", .memory_bytes = 1 << 20, .nics = &nic, .nic_count = 1, .disks = &disk, .disk_count = 1,
	                        .extra = extra, .ram_path = "/ram", .preload = "/lib/p.so", .kernel = "k", .append = "a b" };
	const struct vm_inherit fds = { .qmp = 7, .nic = { 8 } };
	g_auto(GStrv) cold = vm_command_line(&spec, "/qemu", "tcg", &fds, false);
	g_auto(GStrv) warm = vm_command_line(&spec, "/qemu", "tcg", &fds, true);
	g_assert_cmpstr(value_of(cold, "-netdev", 0), ==, "stream,id=n0,server=off,addr.type=fd,addr.str=8");
	g_assert_cmpstr(value_of(cold, "-chardev", 0), ==, "socket,id=qmp0,fd=7");
	g_assert_cmpstr(value_of(cold, "-append", 0), ==, "a b");
	g_assert_null(value_of(cold, "-incoming", 0));
	g_assert_cmpstr(value_of(warm, "-incoming", 0), ==, "defer");
	for (size_t i = 0; cold[i]; i++)
		g_assert_cmpstr(cold[i], ==, warm[i]);
	g_assert_true(vm_gives_memory_back(&spec));
	spec.extra = NULL;
	g_assert_false(vm_gives_memory_back(&spec));
	const struct vm_inherit tells = { .tell = 9, .faults = -1 };
	g_auto(GStrv) env = vm_environment(&spec, &tells);
	g_assert_cmpstr(g_environ_getenv(env, "LD_PRELOAD"), ==, "/lib/p.so");
	g_assert_cmpstr(g_environ_getenv(env, "VIRTCFT_TELL_FD"), ==, "9");
	g_assert_cmpstr(g_environ_getenv(env, "VIRTCFT_FAULTS_FD"), ==, "-1");
}

static void test_whole_state(void)
{
	uint8_t state[20000] = { 'Q', 'E', 'V', 'M', 0, 0, 0, 3 };
	g_assert_false(vm_state_is_whole(state, sizeof state));
	state[sizeof state - 6] = 0x7e;
	g_assert_true(vm_state_is_whole(state, sizeof state));
	g_assert_false(vm_state_is_whole(state, sizeof state - 1));
	g_assert_false(vm_state_is_whole(state, 4));
	state[0] = 'q';
	g_assert_false(vm_state_is_whole(state, sizeof state));
}

/* ---- processes ---- */

static const struct identity ourselves;

static void test_process(void)
{
	g_autofree char *log = temporary();
	char *argv[] = { "/bin/sh", "-c", "echo first; echo last >&2; exec sleep 1000", NULL }, *env[] = { "PATH=/bin:/usr/bin", NULL };
	struct process p = { .pidfd = -1, .log = -1 };
	g_assert_true(process_start(&p, argv, env, NULL, 0, log, &ourselves, NULL));
	g_autofree char *text = NULL;
	for (int i = 0; i < 1000 && (!text || !strstr(text, "last")); i++) {
		g_usleep(2000);
		g_free(text);
		text = process_log(&p);
	}
	g_assert_cmpstr(text, ==, "first last");
	pid_t pid = p.pid;
	process_end(&p);
	g_assert_cmpint(kill(pid, 0), ==, -1);
	process_end(&p); /* twice does no harm */
	argv[0] = "/no/such/program";
	g_autoptr(GError) error = NULL;
	g_assert_false(process_start(&p, argv, env, NULL, 0, log, &ourselves, &error));
	g_assert_error(error, VMM_ERROR, VMM_ERROR_START);
	g_unlink(log);
}

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	g_test_add_func("/vm/parts/bits", test_bits);
	g_test_add_func("/vm/parts/R2-memory-size", test_memory_size);
	g_test_add_func("/vm/memory/R3-space", test_memory_space);
	g_test_add_func("/vm/parts/R1-holes", test_r1_holes);
	g_test_add_func("/vm/parts/T1-compare", test_t1_compare);
	g_test_add_func("/vm/parts/K6-merge", test_k6_merge);
	g_test_add_func("/vm/parts/features/find-what-there-is", test_probes_find_what_there_is);
	g_test_add_func("/vm/parts/features/this-machine", test_probes_of_this_machine);
	g_test_add_func("/vm/parts/Q2-refused", test_q2_refused);
	g_test_add_func("/vm/parts/Q1-late-reply", test_q1_late_reply);
	g_test_add_func("/vm/parts/Q2-gone", test_q2_gone);
	g_test_add_func("/vm/parts/Q9-prepared", test_q9_prepared);
	g_test_add_func("/vm/parts/Q3-events", test_q3_events);
	g_test_add_func("/vm/parts/C1-command-line", test_c1_command_line);
	g_test_add_func("/vm/parts/whole-state", test_whole_state);
	g_test_add_func("/vm/parts/process", test_process);
	return g_test_run();
}
