/* fuzz-image.h - an image of one disk in a folder of its own on tmpfs, for the fuzzers that need one; its files go when the fuzzer ends. */
#ifndef FUZZ_IMAGE_H
#define FUZZ_IMAGE_H

#include "store/store-private.h"
#include "fuzz.h"

#include <glib/gstdio.h>
#include <unistd.h>

static struct image_spec fuzz_spec = { .disk_count = 1 };
static char fuzz_dir[] = "/dev/shm/vcft-fuzz-image-XXXXXX";

static void fuzz_image_clean(void)
{
	g_autofree char *copy = g_build_filename(fuzz_dir, "copy", NULL);
	image_remove_files(&fuzz_spec);
	unlink(copy);
	rmdir(fuzz_spec.disk_dir[0]);
	rmdir(fuzz_dir);
}

static void fuzz_image_folder(uint64_t ram_pages, uint64_t blocks, bool disks_writable)
{
	demand(mkdtemp(fuzz_dir) != NULL);
	fuzz_spec.ram_pages = ram_pages;
	fuzz_spec.disk_blocks[0] = blocks;
	fuzz_spec.disks_writable = disks_writable;
	fuzz_spec.ram_path = g_build_filename(fuzz_dir, "ram", NULL);
	fuzz_spec.disk_dir[0] = g_build_filename(fuzz_dir, "disk", NULL);
	demand(g_mkdir_with_parents(fuzz_spec.disk_dir[0], 0700) == 0);
	atexit(fuzz_image_clean);
}

#endif
