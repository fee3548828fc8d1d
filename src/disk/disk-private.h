/* disk-private.h - what the files of this folder share: errors with errno, damage, and reads and writes that are whole or fail. */
#ifndef VCFT_DISK_PRIVATE_H
#define VCFT_DISK_PRIVATE_H

#include "base/types.h"
#include "disk/disk.h"

#include <glib.h>

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <sys/types.h>
#include <unistd.h>

#define DISK_BLOCK_BYTES VCFT_PAGE_SIZE

/* Set *error to "text: strerror(err)"; returns FALSE, so that callers can return it. */
G_GNUC_PRINTF(3, 4) static inline gboolean disk_fail_errno(GError **error, int err, const char *format, ...)
{
	va_list list;
	va_start(list, format);
	g_autofree char *text = g_strdup_vprintf(format, list);
	va_end(list);
	g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(err), "%s: %s", text, g_strerror(err));
	return FALSE;
}

G_GNUC_PRINTF(4, 0) static inline gboolean disk_fail_as(GError **error, GQuark domain, int code, const char *format, va_list list)
{
	g_autofree char *text = g_strdup_vprintf(format, list);
	g_set_error_literal(error, domain, code, text);
	return FALSE;
}

/* Set *error to the text; returns FALSE. */
G_GNUC_PRINTF(2, 3) static inline gboolean disk_fail(GError **error, const char *format, ...)
{
	va_list list;
	va_start(list, format);
	disk_fail_as(error, G_FILE_ERROR, G_FILE_ERROR_FAILED, format, list);
	va_end(list);
	return FALSE;
}

/* The same as DISK_ERROR_DAMAGED. */
G_GNUC_PRINTF(2, 3) static inline gboolean disk_fail_damaged(GError **error, const char *format, ...)
{
	va_list list;
	va_start(list, format);
	disk_fail_as(error, DISK_ERROR, DISK_ERROR_DAMAGED, format, list);
	va_end(list);
	return FALSE;
}

/* All n bytes: 0 or an errno. */
static inline int disk_pwrite_all(int fd, const void *data, size_t n, uint64_t at)
{
	const uint8_t *from = data;
	while (n > 0) {
		ssize_t done = pwrite(fd, from, n, (off_t)at);
		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return done < 0 ? errno : ENOSPC;
		from += done, at += (uint64_t)done, n -= (size_t)done;
	}
	return 0;
}

/* As many of n bytes as there are before the end of the file, *ret_done: 0 or an errno. */
static inline int disk_pread_most(int fd, void *data, size_t n, uint64_t at, size_t *ret_done)
{
	uint8_t *to = data;
	size_t sum = 0;
	while (sum < n) {
		ssize_t done = pread(fd, to + sum, n - sum, (off_t)(at + sum));
		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0)
			return errno;
		if (done == 0)
			break;
		sum += (size_t)done;
	}
	*ret_done = sum;
	return 0;
}

static inline void disk_close(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

#endif
