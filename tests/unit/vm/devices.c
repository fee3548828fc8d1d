/* devices.c - see devices.h. */
#include "devices.h"

#include <endian.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define ETHERTYPE_AT 12
#define RARP 0x8035

static bool read_all(int fd, void *to, size_t n)
{
	return recv(fd, to, n, MSG_WAITALL) == (ssize_t)n;
}

static bool read_frame(struct port *p, int fd)
{
	static uint8_t frame[65536];
	uint32_t length;
	if (!read_all(fd, &length, sizeof length))
		return false;
	length = be32toh(length);
	g_assert_cmpuint(length, <=, sizeof frame);
	if (!read_all(fd, frame, length))
		return false;
	atomic_fetch_add(&p->frames, 1);
	if (frame[ETHERTYPE_AT] == RARP >> 8 && frame[ETHERTYPE_AT + 1] == (RARP & 0xff))
		atomic_fetch_add(&p->announcements, 1);
	return true;
}

static gpointer serve(gpointer user)
{
	struct port *p = user;
	for (int fd; (fd = accept(p->listener, NULL, NULL)) >= 0; close(fd)) {
		atomic_fetch_add(&p->connections, 1);
		while (read_frame(p, fd))
			;
	}
	return NULL;
}

void port_open(struct port *p, const char *dir)
{
	*p = (struct port){ .path = g_build_filename(dir, "port", NULL) };
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	g_strlcpy(a.sun_path, p->path, sizeof a.sun_path);
	p->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	g_assert_cmpint(bind(p->listener, (struct sockaddr *)&a, sizeof a), ==, 0);
	g_assert_cmpint(chmod(p->path, 0666), ==, 0); /* QEMU may be another user */
	g_assert_cmpint(listen(p->listener, 4), ==, 0);
	p->thread = g_thread_new("port", serve, p);
}

/* QEMU has ended before. */
void port_close(struct port *p)
{
	shutdown(p->listener, SHUT_RDWR);
	g_thread_join(p->thread);
	close(p->listener);
	g_free(p->path);
}

bool disk_requires(void)
{
	g_autofree char *nbdkit = g_find_program_in_path("nbdkit");
	if (!nbdkit)
		g_test_skip("no nbdkit");
	return nbdkit != NULL;
}

static void die_with_test(gpointer user)
{
	(void)user;
	alarm(600); /* a test that was killed leaves nothing behind for long */
}

void disk_open(struct disk_server *d, const char *dir)
{
	d->path = g_build_filename(dir, "disk", NULL);
	g_autofree char *pidfile = g_build_filename(dir, "disk.pid", NULL);
	char *argv[] = { "nbdkit", "-f", "--exit-with-parent", "-U", d->path, "-P", pidfile, "memory", "16M", NULL };
	g_autoptr(GError) error = NULL;
	g_spawn_async(NULL, argv, NULL, G_SPAWN_SEARCH_PATH | G_SPAWN_DO_NOT_REAP_CHILD, die_with_test, NULL, &d->pid, &error);
	g_assert_no_error(error);
	for (int i = 0; i < 2000 && access(pidfile, F_OK); i++) /* it appears when nbdkit listens */
		g_usleep(5000);
	g_assert_cmpint(access(pidfile, F_OK), ==, 0);
	g_assert_cmpint(chmod(d->path, 0666), ==, 0); /* QEMU may be another user */
}

void disk_close(struct disk_server *d)
{
	kill(d->pid, SIGKILL);
	waitpid(d->pid, NULL, 0);
	g_spawn_close_pid(d->pid);
	g_free(d->path);
}
