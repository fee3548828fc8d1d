/* guest.c - see guest.h. */
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define PATIENCE (120 * NSEC_PER_SEC)   /* a busy machine without KVM */

static char *guest_file(const char *name)
{
	const char *folder = g_getenv("VIRTCFT_GUESTS");
	return g_build_filename(folder ? folder : "build/guests", name, NULL);
}

bool guest_requires(void)
{
	g_autofree char *kernel = guest_file("vmlinuz"), *initrd = guest_file("tiny.cpio.gz"), *qemu = vm_qemu_path();
	const char *preload = g_getenv("VIRTCFT_PRELOAD");
	const char *missing = !qemu ? "no qemu-system-x86_64" : access(kernel, R_OK) || access(initrd, R_OK) ? "no tiny guest: run guests/build-tiny"
	                      : !preload || access(preload, R_OK) ? "no virtcft-preload.so in $VIRTCFT_PRELOAD" : NULL;
	if (missing)
		g_test_skip(missing);
	return !missing;
}

struct guest guest_new(const char *run)
{
	struct guest g = { 0 };
	g.dir = g_strdup("/dev/shm/virtcft-test-XXXXXX");
	g_assert_nonnull(g_mkdtemp(g.dir));
	g.ram = g_build_filename(g.dir, "ram", NULL);
	g.console = g_build_filename(g.dir, "console", NULL);
	g.log = g_build_filename(g.dir, "console.log", NULL);
	g.append = g_strdup_printf("console=ttyS0 quiet ipv6.disable=1 vcft.name=t%s%s", run ? " vcft.run=" : "", run ? run : "");
	g.spec = (struct vm_spec){
		.name = "t", .memory_bytes = 96u << 20, .cpus = 1, .kernel = guest_file("vmlinuz"), .initrd = guest_file("tiny.cpio.gz"),
		.append = g.append, .ram_path = g.ram, .run_dir = g.dir, .console_socket = g.console, .console_log = g.log,
		.preload = g_getenv("VIRTCFT_PRELOAD"), .verify = true, .hot_pages = true,
	};
	/* As the agent does it, where this test is root's and the user is there. */
	g_autoptr(GError) error = NULL;
	if (!identity_of_user("virtcft", &g.spec.run_as, NULL))
		g_test_message("no user virtcft: QEMU runs as root");
	identity_folder_own(&g.spec.run_as, g.dir, &error);
	g_assert_no_error(error);
	return g;
}

void guest_start(struct guest *g, const uint8_t *state, size_t bytes)
{
	g_autoptr(GError) error = NULL;
	g->vm = vmm_qemu.start(&g->spec, state, bytes, &error);
	g_assert_no_error(error);
	g_assert_nonnull(g->vm);
}

void guest_run(struct guest *g)
{
	g_autoptr(GError) error = NULL;
	vmm_qemu.run(g->vm, &error);
	g_assert_no_error(error);
}

void guest_boot(struct guest *g)
{
	guest_start(g, NULL, 0);
	guest_run(g);
	g_free(guest_expect(g, "VCFT-GUEST-READY"));
}

char *guest_expect(struct guest *g, const char *text)
{
	for (nsec_t end = clock_now() + PATIENCE; clock_now() < end; g_usleep(5000)) {
		g_autofree char *all = NULL;
		size_t n = 0;
		if (!g_file_get_contents(g->log, &all, &n, NULL) || n <= g->seen)
			continue;
		char *at = strstr(all + g->seen, text), *stop = at ? strchr(at, '\n') : NULL;
		if (!stop)
			continue;
		g->seen = (size_t)(stop - all);
		return g_strstrip(g_strndup(at + strlen(text), (size_t)(stop - at) - strlen(text)));
	}
	g_autofree char *all = NULL;
	g_file_get_contents(g->log, &all, NULL, NULL);
	g_error("the guest did not say '%s'; console:\n%s", text, all ? all : "");
}

void guest_forget(struct guest *g)
{
	g_autofree char *all = NULL;
	g_file_get_contents(g->log, &all, &g->seen, NULL);
}

void guest_type(struct guest *g, const char *line)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	g_strlcpy(a.sun_path, g->console, sizeof a.sun_path);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	g_assert_cmpint(connect(fd, (struct sockaddr *)&a, sizeof a), ==, 0);
	g_autofree char *text = g_strdup_printf("%s\n", line);
	g_assert_cmpint(write(fd, text, strlen(text)), ==, strlen(text));
	g_free(guest_expect(g, "VCFT-EXIT"));
	close(fd);
}

void guest_capture(struct guest *g, struct capture *c, gboolean (*stopped)(void *, GError **), void *user)
{
	g_autoptr(GError) error = NULL;
	struct capture_hooks hooks = { .stopped = stopped, .user = user };
	vmm_qemu.capture(g->vm, c, &hooks, &error);
	g_assert_no_error(error);
}

void guest_kill(struct guest *g)
{
	if (g->vm)
		vmm_qemu.free(g->vm);
	g->vm = NULL;
}

void guest_stop(struct guest *g)
{
	guest_kill(g);
	GDir *dir = g_dir_open(g->dir, 0, NULL);
	for (const char *name; (name = g_dir_read_name(dir));) {
		g_autofree char *path = g_build_filename(g->dir, name, NULL);
		g_unlink(path);
	}
	g_dir_close(dir);
	g_rmdir(g->dir);
	g_free(g->dir);
	g_free(g->ram);
	g_free(g->console);
	g_free(g->log);
	g_free(g->append);
	g_free((char *)g->spec.kernel);
	g_free((char *)g->spec.initrd);
}

uint8_t *image_new(const struct guest *g)
{
	uint8_t *image = mmap(NULL, g->spec.memory_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	g_assert_true(image != MAP_FAILED);
	return image;
}

void image_apply(uint8_t *image, const struct capture *c)
{
	for (size_t i = 0; i < c->ram.count; i++) {
		g_assert_true(i == 0 || c->ram.index[i] > c->ram.index[i - 1]);
		memcpy(image + c->ram.index[i] * VCFT_PAGE_SIZE, c->ram.data + i * VCFT_PAGE_SIZE, VCFT_PAGE_SIZE);
	}
}

void image_of_ram(const struct guest *g, uint8_t *image)
{
	struct memory m;
	g_assert_true(memory_open(&m, g->ram, g->spec.memory_bytes, NULL));
	uint64_t done = 0, n;
	for (uint64_t first = 0; (n = memory_data(&m, &first)); first += n) {
		memset(image + done * VCFT_PAGE_SIZE, 0, (first - done) * VCFT_PAGE_SIZE);
		memcpy(image + first * VCFT_PAGE_SIZE, m.map + first * VCFT_PAGE_SIZE, n * VCFT_PAGE_SIZE);
		done = first + n;
	}
	memset(image + done * VCFT_PAGE_SIZE, 0, m.bytes - done * VCFT_PAGE_SIZE);
	memory_close(&m);
}

void image_free(const struct guest *g, uint8_t *image)
{
	munmap(image, g->spec.memory_bytes);
}
