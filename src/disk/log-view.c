/* log-view.c - a sealed log as the agent sees it (rules D9, D24 in log.h), and the names of logs.
 *
 * The header and the index are read, not mapped, and checked before anything is believed; the slots are mapped, read-only, and each is read once for its
 * checksum: it is in the cache then when it is sent. A log whose file
 * is cut short by somebody after the checks would be a SIGBUS: files are 0600 and the plugin shortens one only when it may be used again (D22). */
#include "disk/log.h"

#include "disk/disk-private.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

GQuark disk_error_quark(void) { return g_quark_from_static_string("vcft-disk-error"); }

char *epoch_log_path(const char *dir, struct epoch_id epoch, const char *suffix)
{
	return g_strdup_printf("%s/log.%" PRIu64 "%s", dir, epoch.n, suffix);
}

gboolean epoch_log_remove_all(const char *dir, GError **error)
{
	g_autoptr(GDir) names = g_dir_open(dir, 0, error);
	if (!names)
		return FALSE;
	for (const char *name; (name = g_dir_read_name(names));) {
		g_autofree char *path = g_build_filename(dir, name, NULL);
		if (g_str_has_prefix(name, "log.") && unlink(path) < 0)
			return disk_fail_errno(error, errno, "cannot remove %s", path);
	}
	return TRUE;
}

struct view {
	struct disk_log log;    /* first: what the caller has */
	uint64_t *block;
	const uint8_t **data;
	uint8_t *map;
	size_t map_bytes;
};

struct pair { uint64_t block, slot, word, sum; };   /* slot: UINT64_MAX if zero */

static const uint8_t zero_block[DISK_BLOCK_BYTES] __attribute__((aligned(DISK_BLOCK_BYTES)));

void disk_log_free(struct disk_log *log)
{
	if (!log)
		return;
	struct view *view = (struct view *)log;
	if (view->map)
		munmap(view->map, view->map_bytes);
	g_free(view->block);
	g_free(view->data);
	g_free(view);
}

static bool all_zero(const uint8_t *p, const uint8_t *end)
{
	while (p < end && !*p)
		p++;
	return p == end;
}

static gboolean check_header(const struct epoch_log_header *h, struct epoch_id epoch, uint64_t blocks, GError **error)
{
	if (GUINT64_FROM_LE(h->magic) != EPOCH_LOG_MAGIC)
		return disk_fail_damaged(error, "not an epoch log");
	if (GUINT32_FROM_LE(h->version) != EPOCH_LOG_VERSION || GUINT32_FROM_LE(h->block_bytes) != DISK_BLOCK_BYTES)
		return disk_fail_damaged(error, "version %u with blocks of %u bytes; expected %u and %u", GUINT32_FROM_LE(h->version),
		                         GUINT32_FROM_LE(h->block_bytes), EPOCH_LOG_VERSION, DISK_BLOCK_BYTES);
	if (GUINT64_FROM_LE(h->epoch) != epoch.n || GUINT64_FROM_LE(h->blocks) != blocks)
		return disk_fail_damaged(error, "epoch %" PRIu64 " of a disk of %" PRIu64 " blocks; expected %" PRIu64 " and %" PRIu64,
		                         GUINT64_FROM_LE(h->epoch), GUINT64_FROM_LE(h->blocks), epoch.n, blocks);
	if (GUINT64_FROM_LE(h->sealed) != 1)
		return disk_fail_damaged(error, "not sealed");
	if (GUINT64_FROM_LE(h->count) > blocks)
		return disk_fail_damaged(error, "%" PRIu64 " blocks in it, more than the disk has", GUINT64_FROM_LE(h->count));
	if (GUINT64_FROM_LE(h->sum) != epoch_log_header_sum(h))
		return disk_fail_damaged(error, "its header has another checksum");
	return TRUE;
}

static gboolean read_header(int fd, struct epoch_id epoch, uint64_t blocks, uint64_t *ret_count, GError **error)
{
	union { struct epoch_log_header h; uint8_t page[DISK_BLOCK_BYTES]; } in;
	size_t got = 0;
	int err = disk_pread_most(fd, &in, sizeof in, 0, &got);
	if (err)
		return disk_fail_errno(error, err, "cannot read the header");
	if (got != sizeof in)
		return disk_fail_damaged(error, "not an epoch log: it ends after %zu bytes", got);
	if (!check_header(&in.h, epoch, blocks, error))
		return FALSE;
	if (!all_zero(in.page + sizeof in.h, in.page + sizeof in.page))
		return disk_fail_damaged(error, "something is behind its header");
	*ret_count = GUINT64_FROM_LE(in.h.count);
	return TRUE;
}

/* An entry, checked against the disk's size and the slots that the file has. */
static gboolean read_entry(const struct epoch_log_entry *e, uint64_t i, uint64_t blocks, uint64_t slots, struct pair *ret_pair, GError **error)
{
	uint64_t word = GUINT64_FROM_LE(e->word), block = word & ~EPOCH_LOG_ZERO;
	if (block >= blocks)
		return disk_fail_damaged(error, "slot %" PRIu64 " is block %" PRIu64 ", beyond the disk", i, block);
	if (!(word & EPOCH_LOG_ZERO) && i >= slots)
		return disk_fail_damaged(error, "slot %" PRIu64 " lies beyond the file", i);
	*ret_pair = (struct pair){ block, word & EPOCH_LOG_ZERO ? UINT64_MAX : i, word, GUINT64_FROM_LE(e->sum) };
	return TRUE;
}

static struct pair *read_index(int fd, uint64_t count, uint64_t blocks, uint64_t slots, GError **error)
{
	g_autofree struct epoch_log_entry *entry = g_try_new(struct epoch_log_entry, MAX(count, 1));
	g_autofree struct pair *pair = g_try_new(struct pair, MAX(count, 1));
	if (!entry || !pair)
		return disk_fail(error, "no memory for %" PRIu64 " entries", count), NULL;
	size_t got = 0;
	int err = disk_pread_most(fd, entry, count * sizeof *entry, 0, &got);
	if (err)
		return disk_fail_errno(error, err, "cannot read the index"), NULL;
	if (got != count * sizeof *entry)
		return disk_fail_damaged(error, "index ends after %zu of %" PRIu64 " entries", got / sizeof *entry, count), NULL;
	for (uint64_t i = 0; i < count; i++)
		if (!read_entry(&entry[i], i, blocks, slots, &pair[i], error))
			return NULL;
	return g_steal_pointer(&pair);
}

/* D24 */
static gboolean check_slots(const struct view *view, const struct pair *pair, uint64_t count, GError **error)
{
	for (uint64_t i = 0; i < count; i++) {
		const uint8_t *data = pair[i].slot == UINT64_MAX ? NULL : view->map + (pair[i].slot + 1) * DISK_BLOCK_BYTES;
		if (epoch_log_sum(pair[i].word, data) != pair[i].sum)
			return disk_fail_damaged(error, "block %" PRIu64 " (slot %" PRIu64 ") has another checksum", pair[i].block, i);
	}
	return TRUE;
}

static int pair_cmp(const void *a, const void *b)
{
	const struct pair *x = a, *y = b;
	return (x->block > y->block) - (x->block < y->block);
}

static gboolean fill_view(struct view *view, struct pair *pair, uint64_t count, GError **error)
{
	view->block = g_try_new(uint64_t, MAX(count, 1));
	view->data = g_try_new(const uint8_t *, MAX(count, 1));
	if (!view->block || !view->data)
		return disk_fail(error, "no memory for %" PRIu64 " blocks", count);
	qsort(pair, count, sizeof *pair, pair_cmp);
	for (uint64_t i = 0; i < count; i++) {
		if (i > 0 && pair[i].block == pair[i - 1].block)
			return disk_fail_damaged(error, "block %" PRIu64 " is in it twice", pair[i].block);
		view->block[i] = pair[i].block;
		view->data[i] = pair[i].slot == UINT64_MAX ? zero_block : view->map + (pair[i].slot + 1) * DISK_BLOCK_BYTES;
	}
	view->log = (struct disk_log){ count, view->block, view->data };
	return TRUE;
}

static gboolean view_open(struct view *view, int fd, int index_fd, struct epoch_id epoch, uint64_t blocks, GError **error)
{
	uint64_t count = 0;
	struct stat st;
	if (!read_header(fd, epoch, blocks, &count, error))
		return FALSE;
	if (fstat(fd, &st) < 0)
		return disk_fail_errno(error, errno, "cannot stat");
	uint64_t slots = (uint64_t)st.st_size / DISK_BLOCK_BYTES;
	slots -= slots > 0;
	g_autofree struct pair *pair = read_index(index_fd, count, blocks, slots, error);
	if (!pair)
		return FALSE;
	view->map_bytes = (size_t)st.st_size;
	void *map = mmap(NULL, view->map_bytes, PROT_READ, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		return disk_fail_errno(error, errno, "cannot map");
	view->map = map;
	return check_slots(view, pair, count, error) && fill_view(view, pair, count, error);
}

struct disk_log *epoch_log_view(const char *dir, struct epoch_id epoch, uint64_t blocks, GError **error)
{
	g_autofree char *path = epoch_log_path(dir, epoch, "");
	g_autofree char *index_path = epoch_log_path(dir, epoch, ".idx");
	struct view *view = g_new0(struct view, 1);
	int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	int index_fd = fd < 0 ? -1 : open(index_path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	gboolean ok = index_fd >= 0 ? view_open(view, fd, index_fd, epoch, blocks, error) : disk_fail_errno(error, errno, "cannot open");
	disk_close(&fd);
	disk_close(&index_fd);
	if (ok)
		return &view->log;
	g_prefix_error(error, "%s: ", path);
	disk_log_free(&view->log);
	return NULL;
}
