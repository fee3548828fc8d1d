/* track-uffd.c - the kernel notes which pages QEMU writes: userfaultfd with asynchronous write protection, read by PAGEMAP_SCAN.
 *
 *   QEMU, preloaded: register + protect ─── guest writes: the kernel takes the protection off that page, nobody waits
 *   agent, VM paused: PAGEMAP_SCAN of /proc/PID/pagemap: pages without protection are listed and protected again, in one pass
 *
 * It sees every writer in QEMU's address space: vCPUs, KVM's too, and device DMA. It does not see writes by other mappings (the agent's
 * own), nor holes made by QEMU (balloon): VMs with such devices get the other tracker. Linux 6.7. A pass takes 0.5 ms per GiB. */
#include "vm/preload/preload.h"
#include "vm/preload/uffd.h"
#include "vm/track.h"
#include "vm/vmm.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#define REGIONS 4096u   /* listed by one call; a scan that finds more takes several */

struct uffd {
	struct tracker tracker;
	int pagemap;
	uint64_t address, bytes;
	struct uffd_region region[REGIONS];
};

/* One call from `start` on; returns the number of regions, -1: errno. ret_end: how far it came. */
static int scan_some(int pagemap, uint64_t start, uint64_t end, struct uffd_region *region, size_t room, uint64_t *ret_end)
{
	struct uffd_scan scan = {
		.size = sizeof scan, .flags = UFFD_SCAN_WP_MATCHING | UFFD_SCAN_CHECK_WPASYNC, .start = start, .end = end,
		.vec = (uintptr_t)region, .vec_len = room,
		.category_mask = UFFD_PAGE_IS_WRITTEN, .return_mask = UFFD_PAGE_IS_WRITTEN,
	};
	int n = ioctl(pagemap, UFFD_PAGEMAP_SCAN, &scan);
	*ret_end = scan.walk_end;
	return n;
}

/* The address space is there. A scan of a process that has ended must not pass for "nothing was written", whatever the kernel says of it. */
static bool is_alive(const struct uffd *u)
{
	uint64_t entry;
	return pread(u->pagemap, &entry, sizeof entry, (off_t)(u->address / VCFT_PAGE_SIZE * sizeof entry)) == sizeof entry;
}

static gboolean uffd_scan(struct tracker *tracker, struct page_bits *out, GError **error)
{
	struct uffd *u = (struct uffd *)tracker;
	for (uint64_t at = u->address, end = u->address + u->bytes, next; at < end; at = next) {
		int n = scan_some(u->pagemap, at, end, u->region, REGIONS, &next);
		if (n < 0 || next <= at) {
			g_set_error(error, VMM_ERROR, VMM_ERROR_TRACK, "scanning for written pages: %s", n < 0 ? g_strerror(errno) : "no progress");
			return FALSE;
		}
		for (int i = 0; i < n; i++)
			bits_add(out, (u->region[i].start - u->address) / VCFT_PAGE_SIZE,
			         (u->region[i].end - u->region[i].start) / VCFT_PAGE_SIZE);
	}
	if (is_alive(u))
		return TRUE;
	g_set_error(error, VMM_ERROR, VMM_ERROR_TRACK, "scanning for written pages: QEMU has ended");
	return FALSE;
}

static void uffd_free(struct tracker *tracker)
{
	struct uffd *u = (struct uffd *)tracker;
	close(u->pagemap);
	g_free(u);
}

static const struct tracker_ops uffd_ops = { "uffd", true, uffd_scan, uffd_free };

static const char *step_name(uint32_t step)
{
	static const char *const name[] = { "done", "opening userfaultfd", "its features", "registering RAM", "protecting RAM" };
	return step < G_N_ELEMENTS(name) ? name[step] : "unknown step";
}

static gboolean read_answer(int tell_fd, const struct memory *memory, struct preload_answer *ret_answer, GError **error)
{
	struct preload_answer a = { 0 };
	if (read(tell_fd, &a, sizeof a) != sizeof a)
		g_set_error(error, VMM_ERROR, VMM_ERROR_TRACK, "the preloaded library did not see QEMU map the RAM file");
	else if (a.step != PRELOAD_DONE)
		g_set_error(error, VMM_ERROR, VMM_ERROR_TRACK, "in QEMU, %s: %s", step_name(a.step), g_strerror(a.error));
	else if (a.bytes < memory->bytes)
		g_set_error(error, VMM_ERROR, VMM_ERROR_TRACK, "QEMU mapped only a part of the RAM file");
	else {
		*ret_answer = a;
		return TRUE;
	}
	return FALSE;
}

struct tracker *track_uffd_new(const struct memory *memory, pid_t pid, int tell_fd, GError **error)
{
	struct preload_answer answer;
	if (!read_answer(tell_fd, memory, &answer, error))
		return NULL;
	g_autofree char *path = g_strdup_printf("/proc/%d/pagemap", (int)pid);
	int pagemap = open(path, O_RDONLY | O_CLOEXEC);
	if (pagemap < 0) {
		g_set_error(error, VMM_ERROR, VMM_ERROR_TRACK, "%s: %s", path, g_strerror(errno));
		return NULL;
	}
	struct uffd *u = g_new0(struct uffd, 1);
	u->tracker.ops = &uffd_ops;
	u->pagemap = pagemap;
	u->address = answer.address;
	u->bytes = memory->bytes;
	return &u->tracker;
}

/* ---- probes: the same calls on two pages of our own ---- */

static void *probe_map(int *ret_uffd, const char **ret_failed)
{
	int file = memfd_create("virtcft-probe", MFD_CLOEXEC);
	void *map = file >= 0 && ftruncate(file, 2 * VCFT_PAGE_SIZE) == 0
	            ? mmap(NULL, 2 * VCFT_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0) : MAP_FAILED;
	if (file >= 0)
		close(file);
	*ret_failed = "a test mapping";
	if (map == MAP_FAILED)
		return NULL;
	*ret_uffd = uffd_open();
	*ret_failed = *ret_uffd < 0 ? step_name(PRELOAD_OPEN) : uffd_api(*ret_uffd) != 0 ? step_name(PRELOAD_API)
	              : uffd_register(*ret_uffd, (uintptr_t)map, 2 * VCFT_PAGE_SIZE) != 0 ? step_name(PRELOAD_REGISTER)
	              : uffd_protect(*ret_uffd, (uintptr_t)map, 2 * VCFT_PAGE_SIZE) != 0 ? step_name(PRELOAD_PROTECT) : NULL;
	return map;
}

static void probe_unmap(void *map, int uffd)
{
	if (map)
		munmap(map, 2 * VCFT_PAGE_SIZE);
	if (uffd >= 0)
		close(uffd);
}

bool track_uffd_probe(char *ret_detail, size_t detail_bytes)
{
	int uffd = -1;
	const char *failed;
	void *map = probe_map(&uffd, &failed);
	if (failed)
		snprintf(ret_detail, detail_bytes, "%s: %s", failed, g_strerror(errno));
	else
		snprintf(ret_detail, detail_bytes, "asynchronous write protection of shared memory");
	probe_unmap(map, uffd);
	return !failed;
}

/* A write to the second of two pages must be all that a scan finds. */
static const char *probe_scan(int pagemap, volatile uint8_t *map)
{
	struct uffd_region region[2];
	uint64_t start = (uintptr_t)map, end;
	map[VCFT_PAGE_SIZE] = 1;
	int n = scan_some(pagemap, start, start + 2 * VCFT_PAGE_SIZE, region, 2, &end);
	if (n < 0)
		return g_strerror(errno);
	bool right = n == 1 && region[0].start == start + VCFT_PAGE_SIZE && region[0].end == start + 2 * VCFT_PAGE_SIZE;
	return right ? NULL : "it does not find what was written";
}

bool track_pagemap_probe(char *ret_detail, size_t detail_bytes)
{
	int uffd = -1, pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	const char *failed;
	void *map = probe_map(&uffd, &failed);
	if (!failed)
		failed = pagemap < 0 ? "no /proc/self/pagemap" : probe_scan(pagemap, map);
	snprintf(ret_detail, detail_bytes, "%s", failed ? failed : "finds and protects written pages in one pass");
	probe_unmap(map, uffd);
	if (pagemap >= 0)
		close(pagemap);
	return !failed;
}
