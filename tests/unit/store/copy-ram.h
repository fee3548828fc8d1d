/* copy-ram.h - the RAM of an image as a file, holes kept: what a VM would be started from. */
#ifndef COPY_RAM_H
#define COPY_RAM_H

#include "store/store-private.h"

#include <fcntl.h>
#include <glib/gstdio.h>
#include <unistd.h>

/* False: the image is damaged; then there is no file. */
static inline bool copy_ram(struct image *image, const char *path, GError **error)
{
	GError *why = NULL;
	const uint8_t *content;
	struct store_shape shape;
	image_shape(image, &shape);
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	g_assert_true(fd >= 0 && ftruncate(fd, (off_t)(shape.pages[0] * VCFT_PAGE_SIZE)) == 0);
	if (image_state_sound(image, &why))
		for (uint64_t at = 0, end; (content = image_content(image, epoch_of(0), &at, &end, &why)); at = end)
			g_assert_cmpint(pwrite(fd, content, (end - at) * VCFT_PAGE_SIZE, (off_t)(at * VCFT_PAGE_SIZE)), ==, (end - at) * VCFT_PAGE_SIZE);
	close(fd);
	if (!why)
		return true;
	g_unlink(path);
	g_propagate_error(error, why);
	return false;
}

#endif
