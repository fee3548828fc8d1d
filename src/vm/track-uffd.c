/* track-uffd.c - the kernel notes which pages QEMU writes: userfaultfd with asynchronous write protection, read by PAGEMAP_SCAN.
 *
 *   QEMU, preloaded: register ───────────── guest writes: the kernel takes the protection off that page, nobody waits
 *   agent, VM paused: PAGEMAP_SCAN of /proc/PID/pagemap: pages without protection are listed and protected, in one pass
 *
 * It sees every writer in QEMU's address space: vCPUs, KVM's too, and device DMA. It does not see writes by other mappings (the agent's
 * own), nor holes made by QEMU (balloon): VMs with such devices get the other tracker. Linux 6.7.
 *
 * A pass walks page tables, 1 ms per GiB, and to protect a page makes its table. So only tables that are there are walked: memory that no guest has touched
 * costs nothing. A pass that lists what is present, and protects nothing, goes over the rest, finds the tables that are new, and is quick as there are none.
 * It does not find what has been touched and swapped out since the last one: on a host that can swap all tables are made and walked.
 *
 *     tables  ████████░░░░░░░░░░░░░░███░░░░░░░█████████░░░░░    █ one pass, protecting; ░ one pass that lists
 *
 * In a table that is there what QEMU has not mapped counts as written, for it may have been, and been swapped out since. So a page that is listed for the first
 * time is looked up in the file: a hole was not written.
 *
 * Hot pages (track-hot.h) are in every scan and are left as they are; around them, by areas in which no two of them are far apart:
 *
 *     ─────────────────── h ── hh ─w── h ──ww─w─ h ────────────────────── hhhh ───────────────
 *     one pass, protecting │ one pass that lists;  │ one pass, protecting      │ one pass, protecting
 *                          │ w: pass, ww─w: pass   │
 *
 * A call for each gap between two hot pages is the dearest of all ways where they are scattered; to protect all and to take it off the hot ones
 * again takes a call for each row of them, and the guest's TLB (5,000 of 30,000 pages hot, scattered: 5.2 ms and 3.7 ms, this 0.8 ms (m)). */
#include "base/fault.h"
#include "vm/preload/preload.h"
#include "vm/preload/uffd.h"
#include "vm/track.h"
#include "vm/vmm.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>

#define REGIONS 4096u   /* listed by one call; a scan that finds more takes several */
#define FAR 1024u       /* pages: to walk over so many costs as much as one call more */
#define NEAR 2048u      /* pages: to make their four tables and walk them costs less than two calls more */

struct uffd {
	struct tracker tracker;
	int pagemap;
	uint64_t address;
	int missing;                            /* number in QEMU; -1: it does not wait for missing pages */
	const struct memory *memory;
	struct page_bits data;                  /* pages known not to be holes */
	struct page_bits tables;                /* pages that are known to have a page table */
	struct hot *hot;                        /* NULL: no page is hot */
	struct uffd_region region[REGIONS];     /* of a pass that protects */
	struct uffd_region listed[REGIONS];     /* of a pass that lists */
};

/* What a pass looks for; it protects that too if `protect` is UFFD_SCAN_WP_MATCHING. */
static const struct uffd_scan written = { .category_mask = UFFD_PAGE_IS_WRITTEN, .return_mask = UFFD_PAGE_IS_WRITTEN };
static const struct uffd_scan there = { .category_anyof_mask = UFFD_PAGE_IS_PRESENT | UFFD_PAGE_IS_SWAPPED, .return_mask = UFFD_PAGE_IS_PRESENT };
static const struct uffd_scan unmapped = { .category_mask = UFFD_PAGE_IS_PRESENT, .category_inverted = UFFD_PAGE_IS_PRESENT, .return_mask = UFFD_PAGE_IS_PRESENT };

/* One call from `start` on; returns the number of regions, -1: errno. ret_end: how far it came. */
static int scan_some(int pagemap, const struct uffd_scan *what, uint64_t protect, uint64_t start, uint64_t end, struct uffd_region *region, size_t room,
                     uint64_t *ret_end)
{
	struct uffd_scan scan = *what;
	scan.size = sizeof scan;
	scan.flags = protect | UFFD_SCAN_CHECK_WPASYNC;
	scan.start = start;
	scan.end = end;
	scan.vec = (uintptr_t)region;
	scan.vec_len = room;
	int n = ioctl(pagemap, UFFD_PAGEMAP_SCAN, &scan);
	*ret_end = scan.walk_end;
	return n;
}

/* A pass over as much of [*inout_first, end) as fits into `region`; how far it came goes to *inout_first. -1 with error. */
static int pass(struct uffd *u, const struct uffd_scan *what, uint64_t protect, uint64_t *inout_first, uint64_t end, struct uffd_region *region, GError **error)
{
	uint64_t start = u->address + *inout_first * VCFT_PAGE_SIZE, stop = start;
	int n = scan_some(u->pagemap, what, protect, start, u->address + end * VCFT_PAGE_SIZE, region, REGIONS, &stop);
	if (n < 0 || stop <= start) {
		g_set_error(error, VMM_ERROR, VMM_ERROR_TRACK, "scanning for written pages: %s", n < 0 ? g_strerror(errno) : "no progress");
		return -1;
	}
	for (int i = 0; i < n; i++) {
		region[i].start = (region[i].start - u->address) / VCFT_PAGE_SIZE;
		region[i].end = (region[i].end - u->address) / VCFT_PAGE_SIZE;
	}
	*inout_first = (stop - u->address) / VCFT_PAGE_SIZE;
	return n;
}

/* Pages that were listed. */
static void add(struct uffd *u, uint64_t first, uint64_t end, struct page_bits *out)
{
	if (!bits_have(&u->data, first, end))
		memory_add_data(u->memory, first, end, &u->data);
	bits_merge_range(out, &u->data, first, end);
}

/* Pages [first, end), which have tables: what is written is added and protected. */
static gboolean protect_tables(struct uffd *u, uint64_t first, uint64_t end, struct page_bits *out, GError **error)
{
	while (first < end) {
		int n = pass(u, &written, UFFD_SCAN_WP_MATCHING, &first, end, u->region, error);
		if (n < 0)
			return FALSE;
		for (int i = 0; i < n; i++)
			add(u, u->region[i].start, u->region[i].end, out);
	}
	return TRUE;
}

/* Pages [first, end): as above, where there are tables. */
static gboolean protect(struct uffd *u, uint64_t first, uint64_t end, struct page_bits *out, GError **error)
{
	for (uint64_t n; (n = bits_run_before(&u->tables, &first, end)); first += n)
		if (!protect_tables(u, first, first + n, out, error))
			return FALSE;
	return TRUE;
}

static bool can_swap(void)
{
	struct sysinfo host;
	return fault(FAULT_TRACK_SWAP) || sysinfo(&host) != 0 || host.totalswap > 0;
}

/* Pages [first, end), none of which is known to have a table. */
static gboolean find_tables_in(struct uffd *u, uint64_t first, uint64_t end, GError **error)
{
	while (first < end) {
		int n = pass(u, &there, 0, &first, end, u->listed, error);
		if (n < 0)
			return FALSE;
		for (int i = 0; i < n; i++)
			bits_add(&u->tables, u->listed[i].start, u->listed[i].end - u->listed[i].start);
	}
	return TRUE;
}

/* A small gap between them is taken in. */
static gboolean find_tables(struct uffd *u, GError **error)
{
	uint64_t pages = u->tables.pages;
	if (can_swap())
		bits_add(&u->tables, 0, pages);
	for (uint64_t gap = 0, first = 0, n; gap < pages; gap = first) {
		n = bits_run(&u->tables, &first);
		if (first - gap <= NEAR)
			bits_add(&u->tables, gap, first - gap);
		else if (!find_tables_in(u, gap, first, error))
			return FALSE;
		first += n;
	}
	return TRUE;
}

/* The first hot page at or after `first`; ret_after: behind the row of hot pages that it starts. Both are the number of pages if there is none. */
static uint64_t next_hot(const struct uffd *u, uint64_t first, uint64_t *ret_after)
{
	uint64_t n = bits_run(hot_pages(u->hot), &first);
	*ret_after = first + n;
	return first;
}

/* Pages that are written and not hot, no hot one among them: they grow until the next such page is beyond a hot one. */
struct gap { uint64_t first, end; };

static gboolean gap_grow(struct uffd *u, struct gap *gap, uint64_t first, uint64_t end, struct page_bits *out, GError **error)
{
	uint64_t after;
	if (gap->first < gap->end && next_hot(u, gap->end, &after) < first) {
		if (!protect(u, gap->first, gap->end, out, error))
			return FALSE;
		gap->first = gap->end;
	}
	*gap = (struct gap){ gap->first < gap->end ? gap->first : first, end };
	return TRUE;
}

/* What was listed as written, without its hot pages. */
static gboolean gap_add(struct uffd *u, struct gap *gap, const struct uffd_region *region, struct page_bits *out, GError **error)
{
	for (uint64_t page = region->start, after; page < region->end; page = after) {
		uint64_t hot = next_hot(u, page, &after);
		if (hot > page && !gap_grow(u, gap, page, MIN(hot, region->end), out, error))
			return FALSE;
	}
	return TRUE;
}

/* An area that starts and ends with hot pages. */
static gboolean look_between(struct uffd *u, uint64_t first, uint64_t end, struct page_bits *out, GError **error)
{
	struct gap gap = { 0 };
	while (first < end) {
		int n = pass(u, &written, 0, &first, end, u->listed, error);
		if (n < 0)
			return FALSE;
		for (int i = 0; i < n; i++)
			if (!gap_add(u, &gap, &u->listed[i], out, error))
				return FALSE;
	}
	return protect(u, gap.first, gap.end, out, error);
}

/* The next area at or after `from`: its start is returned. */
static uint64_t next_area(const struct uffd *u, uint64_t from, uint64_t *ret_end, bool *ret_one_row)
{
	uint64_t end, next, after, first = next_hot(u, from, &end);
	for (*ret_one_row = true; (next = next_hot(u, end, &after)) < after && next - end <= FAR; end = after)
		*ret_one_row = false;
	*ret_end = end;
	return first;
}

static gboolean scan_around_hot(struct uffd *u, struct page_bits *out, GError **error)
{
	bits_merge(out, hot_pages(u->hot)); /* H2 */
	for (uint64_t from = 0, end; from < out->pages; from = end) {
		bool one_row;
		uint64_t area = next_area(u, from, &end, &one_row);
		if (!protect(u, from, area, out, error) || (!one_row && !look_between(u, area, end, out, error)))
			return FALSE;
	}
	return TRUE;
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
	if (!find_tables(u, error))
		return FALSE;
	if (!(u->hot ? scan_around_hot(u, out, error) : protect(u, 0, out->pages, out, error)))
		return FALSE;
	if (is_alive(u))
		return TRUE;
	g_set_error(error, VMM_ERROR, VMM_ERROR_TRACK, "scanning for written pages: QEMU has ended");
	return FALSE;
}

static void uffd_captured(struct tracker *tracker, struct page_set *set)
{
	struct uffd *u = (struct uffd *)tracker;
	if (u->hot)
		hot_captured(u->hot, set);
}

static void uffd_free(struct tracker *tracker)
{
	struct uffd *u = (struct uffd *)tracker;
	if (u->pagemap >= 0)
		close(u->pagemap);
	bits_free(&u->data);
	bits_free(&u->tables);
	hot_free(u->hot);
	g_free(u);
}

static const struct tracker_ops uffd_ops = { "uffd", true, uffd_scan, uffd_captured, uffd_free };

/* What QEMU has looked at already counts as written. (The list is of no use; without one the kernel would protect all.) */
static bool protect_unmapped(struct uffd *u, uint64_t first, uint64_t end)
{
	while (first < end)
		if (pass(u, &unmapped, UFFD_SCAN_WP_MATCHING, &first, end, u->region, NULL) < 0)
			return false;
	return true;
}

void track_uffd_begin(struct tracker *tracker)
{
	struct uffd *u = (struct uffd *)tracker;
	if (tracker->ops != &uffd_ops)
		return;
	memory_populated(u->memory, &u->data);
	for (uint64_t n, first = 0; (n = bits_run(&u->data, &first)); first += n) {
		bits_add(&u->tables, first, n);
		if (!protect_unmapped(u, first, first + n))
			return;
	}
}

static const char *step_name(uint32_t step)
{
	static const char *const name[] = { "done", "opening userfaultfd", "its features", "registering RAM" };
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

static int open_pagemap(pid_t pid, GError **error)
{
	g_autofree char *path = g_strdup_printf("/proc/%d/pagemap", (int)pid);
	int pagemap = fault(FAULT_TRACK_OPEN) ? (errno = EACCES, -1) : open(path, O_RDONLY | O_CLOEXEC);
	if (pagemap < 0)
		g_set_error(error, VMM_ERROR, VMM_ERROR_TRACK, "%s: %s", path, g_strerror(errno));
	return pagemap;
}

struct tracker *track_uffd_new(const struct memory *memory, pid_t pid, int tell_fd, struct hot *hot, GError **error)
{
	struct preload_answer answer;
	struct uffd *u = g_new0(struct uffd, 1);
	*u = (struct uffd){ .tracker.ops = &uffd_ops, .pagemap = -1, .memory = memory, .hot = hot };
	if (read_answer(tell_fd, memory, &answer, error) && (u->pagemap = open_pagemap(pid, error)) >= 0) {
		u->address = answer.address;
		u->missing = answer.missing;
		if (bits_init(&u->data, memory_pages(memory)) && bits_init(&u->tables, memory_pages(memory)))
			return &u->tracker;
		g_set_error(error, VMM_ERROR, VMM_ERROR_TRACK, "no memory");
	}
	uffd_free(&u->tracker);
	return NULL;
}

int track_uffd_missing(const struct tracker *tracker, int pidfd, uint64_t *ret_address)
{
	const struct uffd *u = (const struct uffd *)tracker;
	if (tracker->ops != &uffd_ops || u->missing < 0)
		return -1;
	*ret_address = u->address;
	return (int)syscall(SYS_pidfd_getfd, pidfd, u->missing, 0);
}

/* ---- probes: the same calls on two pages of our own ---- */

static int probe_device(void)
{
	int device = open(PRELOAD_FAULTS_DEVICE, O_RDWR | O_CLOEXEC), uffd = device >= 0 ? uffd_open_by(device) : -1, e = errno;
	if (device >= 0)
		close(device);
	errno = e;
	return uffd;
}

static void *probe_map(int *ret_uffd, uint64_t missing, const char **ret_failed)
{
	int file = memfd_create("virtcft-probe", MFD_CLOEXEC);
	void *map = file >= 0 && ftruncate(file, 2 * VCFT_PAGE_SIZE) == 0
	            ? mmap(NULL, 2 * VCFT_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0) : MAP_FAILED;
	if (file >= 0)
		close(file);
	*ret_failed = "a test mapping";
	if (map == MAP_FAILED)
		return NULL;
	*ret_uffd = missing ? probe_device() : uffd_open();
	*ret_failed = *ret_uffd < 0 ? step_name(PRELOAD_OPEN) : uffd_api(*ret_uffd) != 0 ? step_name(PRELOAD_API)
	              : uffd_register(*ret_uffd, (uintptr_t)map, 2 * VCFT_PAGE_SIZE, missing) != 0 ? step_name(PRELOAD_REGISTER)
	              : uffd_protect(*ret_uffd, (uintptr_t)map, 2 * VCFT_PAGE_SIZE) != 0 ? "protecting a page" : NULL;
	return map;
}

static void probe_unmap(void *map, int uffd)
{
	if (map)
		munmap(map, 2 * VCFT_PAGE_SIZE);
	if (uffd >= 0)
		close(uffd);
}

static bool probe_uffd(uint64_t missing, const char *what, char *ret_detail, size_t detail_bytes)
{
	int uffd = -1;
	const char *failed;
	void *map = probe_map(&uffd, missing, &failed);
	if (failed)
		snprintf(ret_detail, detail_bytes, "%s%s: %s", missing ? PRELOAD_FAULTS_DEVICE ": " : "", failed, g_strerror(errno));
	else
		snprintf(ret_detail, detail_bytes, "%s", what);
	probe_unmap(map, uffd);
	return !failed;
}

bool track_uffd_probe(char *ret_detail, size_t detail_bytes)
{
	return probe_uffd(0, "asynchronous write protection of shared memory", ret_detail, detail_bytes);
}

bool track_missing_probe(char *ret_detail, size_t detail_bytes)
{
	return probe_uffd(UFFDIO_REGISTER_MODE_MISSING, "a VM may run before all of its memory is there", ret_detail, detail_bytes);
}

/* A write to the second of two pages must be all that a scan finds. */
static const char *probe_scan(int pagemap, volatile uint8_t *map)
{
	struct uffd_region region[2];
	uint64_t start = (uintptr_t)map, end;
	map[VCFT_PAGE_SIZE] = 1;
	int n = scan_some(pagemap, &written, UFFD_SCAN_WP_MATCHING, start, start + 2 * VCFT_PAGE_SIZE, region, 2, &end);
	if (n < 0)
		return g_strerror(errno);
	bool right = n == 1 && region[0].start == start + VCFT_PAGE_SIZE && region[0].end == start + 2 * VCFT_PAGE_SIZE;
	return right ? NULL : "it does not find what was written";
}

bool track_pagemap_probe(char *ret_detail, size_t detail_bytes)
{
	int uffd = -1, pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	const char *failed;
	void *map = probe_map(&uffd, 0, &failed);
	if (!failed)
		failed = pagemap < 0 ? "no /proc/self/pagemap" : probe_scan(pagemap, map);
	snprintf(ret_detail, detail_bytes, "%s", failed ? failed : "finds and protects written pages in one pass");
	probe_unmap(map, uffd);
	if (pagemap >= 0)
		close(pagemap);
	return !failed;
}
