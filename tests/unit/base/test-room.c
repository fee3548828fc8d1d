/* test-room.c - the space that sparse files lack, on a tmpfs of one MiB. */
#include "base/room.h"

#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <glib/gstdio.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#define KIB 1024u

/* A file of so many KiB, all hole, in a new file system of 1 MiB; it has no name any more. */
static int file_in_a_mib(unsigned kib)
{
	g_autofree char *dir = g_dir_make_tmp("vcft-room-XXXXXX", NULL), *path = g_build_filename(dir, "file", NULL);
	g_assert_cmpint(mount("tmpfs", dir, "tmpfs", 0, "size=1m"), ==, 0);
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	g_assert_cmpint(ftruncate(fd, (off_t)kib * KIB), ==, 0);
	g_assert_cmpint(umount2(dir, MNT_DETACH), ==, 0);
	g_rmdir(dir);
	return fd;
}

static bool has_root(void)
{
	if (geteuid() != 0)
		g_test_skip("must run as root");
	return geteuid() == 0;
}

static void test_is_there(void)
{
	if (!has_root())
		return;
	int fd = file_in_a_mib(800);
	g_assert_true(room_is_there(fd, 800 * KIB, 0));
	g_assert_true(room_is_there(fd, 800 * KIB, 200 * KIB));
	g_assert_false(room_is_there(fd, 800 * KIB, 400 * KIB));
	g_assert_cmpint(errno, ==, ENOSPC);
	g_assert_true(room_take(fd, 800 * KIB, NULL));
	g_assert_true(room_is_there(fd, 800 * KIB, 200 * KIB));     /* it lacks nothing any more */
	g_assert_false(room_is_there(fd, 800 * KIB, 400 * KIB));
	close(fd);
	g_assert_false(room_is_there(fd, 1, 0));
}

static void test_take(void)
{
	if (!has_root())
		return;
	struct stat st;
	int fd = file_in_a_mib(800);
	g_assert_true(room_take(fd, 800 * KIB, NULL));
	g_assert_cmpint(fstat(fd, &st), ==, 0);
	g_assert_cmpint(st.st_blocks, ==, 800 * 2);
	g_assert_cmpint(lseek(fd, 0, SEEK_DATA), ==, -1);           /* taken, and a hole still (RM1) */
	close(fd);
	fd = file_in_a_mib(2000);
	g_assert_false(room_take(fd, 2000 * KIB, NULL));
	g_assert_cmpint(errno, ==, ENOSPC);
	close(fd);
}

static void test_stop(void)
{
	if (!has_root())
		return;
	bool stop = true;
	int fd = file_in_a_mib(800);
	g_assert_false(room_take(fd, 800 * KIB, &stop));
	g_assert_cmpint(errno, ==, ECANCELED);
	stop = false;
	g_assert_true(room_take(fd, 800 * KIB, &stop));
	close(fd);
}

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	g_test_add_func("/room/is-there", test_is_there);
	g_test_add_func("/room/RM1-take", test_take);
	g_test_add_func("/room/stop", test_stop);
	return g_test_run();
}
