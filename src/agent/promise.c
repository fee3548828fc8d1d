/* promise.c - see promise.h. */
#include "agent/promise.h"

#include "base/sum.h"

#include <errno.h>
#include <fcntl.h>
#include <gio/gio.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

void promise_format(struct promise p, char out[static PROMISE_BYTES])
{
	char text[PROMISE_BYTES + 1];
	int n = g_snprintf(text, sizeof text, "%" PRIu64 " %" PRIu64 " ", p.lived.n, p.seen.n);
	g_snprintf(text + n, sizeof text - (gsize)n, "%016" PRIx64, sum_bytes(text, (size_t)n));
	memset(out, ' ', PROMISE_BYTES);
	memcpy(out, text, strlen(text));
	out[PROMISE_BYTES - 1] = '\n';
}

/* PM1. There is one way to write it: what is read is written once more and compared. */
bool promise_parse(const char *text, size_t n, struct promise *ret_promise)
{
	char copy[PROMISE_BYTES + 1] = { 0 }, again[PROMISE_BYTES];
	struct promise p;
	if (n != PROMISE_BYTES)
		return false;
	memcpy(copy, text, n);
	if (sscanf(copy, "%" SCNu64 " %" SCNu64, &p.lived.n, &p.seen.n) != 2)
		return false;
	promise_format(p, again);
	if (memcmp(copy, again, PROMISE_BYTES))
		return false;
	*ret_promise = p;
	return true;
}

bool promise_write(int fd, struct promise p)
{
	char line[PROMISE_BYTES];
	promise_format(p, line);
	return pwrite(fd, line, PROMISE_BYTES, 0) == PROMISE_BYTES && fdatasync(fd) == 0;
}

static bool sync_folder(const char *folder)
{
	int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	bool ok = fd >= 0 && (fsync(fd) == 0 || errno == EINVAL);   /* a file system that cannot, has nothing to sync */
	if (fd >= 0)
		close(fd);
	return ok;
}

/* PM2: it has its name when it has its content, and both survive the machine's power; so does the folder, which may be as new. */
static bool make(const char *folder, const char *path)
{
	g_autofree char *fresh = g_strconcat(path, ".new", NULL), *parent = g_path_get_dirname(folder);
	int fd = open(fresh, O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
	bool ok = fd >= 0 && promise_write(fd, (struct promise){ { 0 }, { 0 } }) && fsync(fd) == 0 && rename(fresh, path) == 0;
	if (fd >= 0)
		close(fd);
	return ok && sync_folder(folder) && sync_folder(parent);
}

static void damaged(const char *path, GError **error)
{
	g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
	            "%s is damaged: what this host has promised to its group is not known any more; remove the file only while the other hosts run the cluster, "
	            "or if none of this group is to be recovered", path);
}

/* It is written as it is read, so that one that cannot be written is noticed here, not at the first promise. */
int promise_open(const char *folder, struct promise *ret_promise, GError **error)
{
	g_autofree char *path = g_build_filename(folder, "generation", NULL);
	char text[PROMISE_BYTES + 1];
	bool there = access(path, F_OK) == 0 || errno != ENOENT || make(folder, path);
	int fd = there ? open(path, O_RDWR | O_NOFOLLOW | O_CLOEXEC) : -1;
	bool taken = fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0;
	ssize_t n = fd < 0 || taken ? -1 : pread(fd, text, sizeof text, 0);
	bool right = n >= 0 && promise_parse(text, (size_t)n, ret_promise);
	if (right && promise_write(fd, *ret_promise))
		return fd;
	if (taken)
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_BUSY, "%s is in use: an agent runs here already", path);
	else if (n >= 0 && !right)
		damaged(path, error);
	else
		g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno), "%s: %s", path, g_strerror(errno));
	if (fd >= 0)
		close(fd);
	return -1;
}
