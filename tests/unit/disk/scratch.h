/* scratch.h - a folder of its own for each test, removed at its end; files made and changed in one call. */
#ifndef VCFT_TEST_DISK_SCRATCH_H
#define VCFT_TEST_DISK_SCRATCH_H

#include <glib.h>

#include <fcntl.h>
#include <ftw.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static inline char *scratch_new(void)
{
	char *dir = g_dir_make_tmp("virtcft-disk-XXXXXX", NULL);
	g_assert_nonnull(dir);
	return dir;
}

static inline int scratch_remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st, (void)type, (void)ftw;
	return remove(path);
}

static inline void scratch_free(char *dir)
{
	nftw(dir, scratch_remove_one, 16, FTW_DEPTH | FTW_PHYS);
	g_free(dir);
}

typedef char scratch;
G_DEFINE_AUTOPTR_CLEANUP_FUNC(scratch, scratch_free)

/* A file of n bytes of a pattern that depends on seed. */
static inline char *scratch_file(const char *dir, const char *name, size_t n, uint32_t seed)
{
	g_autofree uint8_t *data = g_malloc(n + 1);
	char *path = g_build_filename(dir, name, NULL);
	for (size_t i = 0; i < n; i++)
		data[i] = (uint8_t)((i * 31 + i / 4096 * 7 + seed) % 251 + 1);
	g_assert_true(g_file_set_contents(path, (char *)data, (gssize)n, NULL));
	return path;
}

/* Bit `bit` of the file is the other one now. */
static inline void scratch_flip(const char *path, uint64_t bit)
{
	uint8_t byte;
	int fd = open(path, O_RDWR | O_CLOEXEC);
	g_assert_cmpint(pread(fd, &byte, 1, (off_t)(bit / 8)), ==, 1);
	byte ^= (uint8_t)(1u << (bit % 8));
	g_assert_cmpint(pwrite(fd, &byte, 1, (off_t)(bit / 8)), ==, 1);
	close(fd);
}

/* n bytes of the file at `at` become data. */
static inline void scratch_poke(const char *path, uint64_t at, const void *data, size_t n)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	g_assert_cmpint(pwrite(fd, data, n, (off_t)at), ==, (ssize_t)n);
	close(fd);
}

static inline char *scratch_sum(const char *path)
{
	g_autofree char *data = NULL;
	gsize n;
	g_assert_true(g_file_get_contents(path, &data, &n, NULL));
	return g_compute_checksum_for_data(G_CHECKSUM_SHA256, (guchar *)data, n);
}

/* The error is there and its text has `part`. */
#define assert_error_has(error, part)                                                   \
	do {                                                                            \
		g_assert_nonnull(error);                                                \
		if (!strstr((error)->message, part))                                    \
			g_error("'%s' is not in: %s", part, (error)->message);          \
	} while (0)

#endif
