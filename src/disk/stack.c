/* stack.c - see stack.h.
 *
 * Why a fold needs no lock: it writes to the overlay only blocks that the oldest log has, and as long as that log is in the list a read finds
 * them there, never in the overlay. The log leaves the list, under the lock, when the fold is complete (D11). Why a merge can be done in
 * pieces: a block is in both logs, or still in the older one, at every moment in between. */
#include "disk/stack.h"

#include "base/must.h"
#include "disk/disk-private.h"
#include "disk/log.h"
#include "disk/overlay.h"

#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/stat.h>

struct disk_stack {
	char *dir;
	int base_fd;
	uint64_t base_bytes, blocks;
	struct overlay *overlay;       /* written by the control thread only */
	uint64_t damaged;              /* atomic: 1 + a block of the overlay that was found bad (D26); 0: none */
	struct epoch_id committed;     /* control thread */
	struct epoch_log *spare;       /* control thread: the log of the epoch after the open one, or NULL */
	GPtrArray *trash;              /* control thread: logs to be dropped by tidy */

	/* Guards the list `logs` and the contents of the newest log. Requests that read take it shared, those that write exclusively. The control
	 * thread is the only one that changes the list, so it may look at it without. No other lock is taken inside. */
	pthread_rwlock_t lock;
	GPtrArray *logs;               /* oldest first; the last is open, the others sealed */
};

static struct epoch_log *log_at(const struct disk_stack *stack, guint i) { return g_ptr_array_index(stack->logs, i); }
static struct epoch_log *open_log(const struct disk_stack *stack) { return log_at(stack, stack->logs->len - 1); }

uint64_t disk_stack_blocks(const struct disk_stack *stack) { return stack->blocks; }
struct epoch_id disk_stack_epoch(const struct disk_stack *stack) { return epoch_log_epoch(open_log(stack)); }

/* ---- life ---- */

static gboolean measure_base(struct disk_stack *stack, GError **error)
{
	off_t end = lseek(stack->base_fd, 0, SEEK_END);
	if (end < 0)
		return disk_fail_errno(error, errno, "base");
	struct stat st;
	if (fstat(stack->base_fd, &st) == 0 && !S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return disk_fail(error, "base: neither a file nor a block device");
	stack->base_bytes = (uint64_t)end;
	stack->blocks = (stack->base_bytes + DISK_BLOCK_BYTES - 1) / DISK_BLOCK_BYTES;
	if (stack->blocks == 0 || stack->blocks > EPOCH_LOG_BLOCKS_MAX)
		return disk_fail(error, "base: has %" PRIu64 " bytes; expected 1 byte to 8 TiB", stack->base_bytes);
	return TRUE;
}

/* D27. Folding it again after a half gives the same (D11). */
static gboolean fold_found(struct disk_stack *stack, struct epoch_id fold, GError **error)
{
	if (fold.n == 0)
		return TRUE;
	struct disk_log *log = epoch_log_view(stack->dir, fold, stack->blocks, error);
	gboolean ok = log && overlay_fold_view(stack->overlay, log, error);
	disk_log_free(log);
	return ok;
}

static gboolean open_all(struct disk_stack *stack, struct epoch_id next, struct epoch_id fold, GError **error)
{
	if (next.n == 0)
		return disk_fail(error, "epoch 0 cannot be open; expected 1 or more");
	if (!measure_base(stack, error) || !(stack->overlay = overlay_open(stack->dir, stack->blocks, error)) ||
	    !fold_found(stack, fold, error) || !epoch_log_remove_all(stack->dir, error))
		return FALSE;
	struct epoch_log *log = epoch_log_create(stack->dir, next, stack->blocks, error);
	if (!log)
		return FALSE;
	stack->committed = epoch_of(next.n - 1);
	g_ptr_array_add(stack->logs, log);
	return TRUE;
}

static void init_lock(pthread_rwlock_t *lock)
{
	pthread_rwlockattr_t attr;
	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);   /* a seal must not wait for a stream of reads */
	pthread_rwlock_init(lock, &attr);
	pthread_rwlockattr_destroy(&attr);
}

struct disk_stack *disk_stack_open(int base_fd, const char *dir, struct epoch_id next, struct epoch_id fold, GError **error)
{
	struct disk_stack *stack = g_new0(struct disk_stack, 1);
	stack->dir = g_strdup(dir);
	stack->base_fd = base_fd;
	stack->logs = g_ptr_array_new();
	stack->trash = g_ptr_array_new_with_free_func((GDestroyNotify)epoch_log_drop);
	init_lock(&stack->lock);
	if (open_all(stack, next, fold, error)) {
		disk_stack_tidy(stack);
		return stack;
	}
	disk_stack_close(stack);
	return NULL;
}

void disk_stack_close(struct disk_stack *stack)
{
	if (!stack)
		return;
	for (guint i = 0; i < stack->logs->len; i++)
		epoch_log_drop(log_at(stack, i));
	epoch_log_drop(stack->spare);
	g_ptr_array_unref(stack->logs);
	g_ptr_array_unref(stack->trash);
	overlay_close(stack->overlay);
	disk_close(&stack->base_fd);
	pthread_rwlock_destroy(&stack->lock);
	g_free(stack->dir);
	g_free(stack);
}

/* ---- requests ---- */

/* log: slots from `at` on; else blocks from `at` on. */
struct place { enum { PLACE_ZERO, PLACE_LOG, PLACE_OVERLAY, PLACE_BASE } in; const struct epoch_log *log; uint64_t at; };

/* D1: where the newest contents of a block are. */
static struct place locate(const struct disk_stack *stack, uint64_t block)
{
	struct epoch_log_slot slot;
	for (guint i = stack->logs->len; i-- > 0;)
		if (epoch_log_find(log_at(stack, i), block, &slot))
			return slot.zero ? (struct place){ PLACE_ZERO, NULL, block } : (struct place){ PLACE_LOG, log_at(stack, i), slot.slot };
	return (struct place){ overlay_has(stack->overlay, block) ? PLACE_OVERLAY : PLACE_BASE, NULL, block };
}

/* The number of blocks from `block` on, at most n, that lie one after the other in one place. */
static uint64_t locate_run(const struct disk_stack *stack, uint64_t block, uint64_t n, struct place *ret_place)
{
	struct place first = locate(stack, block);
	uint64_t run = 1;
	for (; run < n; run++) {
		struct place next = locate(stack, block + run);
		if (next.in != first.in || next.log != first.log || next.at != first.at + run)
			break;
	}
	*ret_place = first;
	return run;
}

/* D25: a block that the overlay does not have was never in it. */
static int read_base(const struct disk_stack *stack, uint64_t block, uint64_t n, uint8_t *data)
{
	size_t got = 0, bytes = (size_t)n * DISK_BLOCK_BYTES;
	uint64_t at = block * DISK_BLOCK_BYTES;
	if (!overlay_lacks(stack->overlay, block, n))
		return EBADMSG;
	int err = disk_pread_most(stack->base_fd, data, bytes, at, &got);
	if (!err && got < bytes && at + got < stack->base_bytes)
		return EIO;   /* it was cut short behind our back */
	if (!err)
		memset(data + got, 0, bytes - got);
	return err;
}

/* D26 */
static int read_place(struct disk_stack *stack, struct place place, uint64_t n, uint8_t *data)
{
	int err = 0;
	switch (place.in) {
	case PLACE_ZERO: memset(data, 0, (size_t)n * DISK_BLOCK_BYTES); break;
	case PLACE_LOG: err = epoch_log_read(place.log, place.at, n, data); break;
	case PLACE_OVERLAY: err = overlay_read(stack->overlay, place.at, n, data); break;
	case PLACE_BASE: err = read_base(stack, place.at, n, data); break;
	}
	if (err != EBADMSG)
		return err;
	if (place.in != PLACE_LOG)
		__atomic_store_n(&stack->damaged, place.at + 1, __ATOMIC_RELAXED);
	return EIO;
}

static int read_blocks(struct disk_stack *stack, uint8_t *data, uint64_t block, uint64_t n)
{
	int err = 0;
	for (uint64_t run; n > 0 && !err; block += run, n -= run, data += run * DISK_BLOCK_BYTES) {
		struct place place;
		run = locate_run(stack, block, n, &place);
		err = read_place(stack, place, run, data);
	}
	return err;
}

/* Whole blocks are read where they go, of the others all is read: a checksum is of a whole block. */
static int read_locked(struct disk_stack *stack, uint8_t *data, size_t n, uint64_t at)
{
	uint8_t block[DISK_BLOCK_BYTES];
	int err = 0;
	while (n > 0 && !err) {
		uint64_t skip = at % DISK_BLOCK_BYTES, whole = n / DISK_BLOCK_BYTES;
		size_t done = (size_t)whole * DISK_BLOCK_BYTES;
		if (skip || !whole) {
			done = (size_t)MIN(DISK_BLOCK_BYTES - skip, n);
			err = read_blocks(stack, block, at / DISK_BLOCK_BYTES, 1);
			if (!err)
				memcpy(data, block + skip, done);
		} else {
			err = read_blocks(stack, data, at / DISK_BLOCK_BYTES, whole);
		}
		data += done, at += done, n -= done;
	}
	return err;
}

static bool within(const struct disk_stack *stack, uint64_t n, uint64_t at)
{
	uint64_t bytes = stack->blocks * DISK_BLOCK_BYTES;
	return at <= bytes && n <= bytes - at;
}

int disk_stack_read(struct disk_stack *stack, void *data, size_t n, uint64_t at)
{
	if (!within(stack, n, at))
		return EINVAL;
	pthread_rwlock_rdlock(&stack->lock);
	int err = read_locked(stack, data, n, at);
	pthread_rwlock_unlock(&stack->lock);
	return err;
}

/* D23 */
static int write_blocks(struct disk_stack *stack, uint64_t block, uint64_t n, const void *data)
{
	int err = overlay_reserve(stack->overlay, block, n);
	return err ? err : epoch_log_write(open_log(stack), block, n, data);
}

static int zero_blocks(struct disk_stack *stack, uint64_t block, uint64_t n)
{
	int err = overlay_reserve_zero(stack->overlay, block, n);
	return err ? err : epoch_log_zero(open_log(stack), block, n);
}

/* Part of one block; data NULL: zeros. */
static int write_part(struct disk_stack *stack, const uint8_t *data, size_t n, uint64_t at)
{
	uint8_t block[DISK_BLOCK_BYTES];
	uint64_t number = at / DISK_BLOCK_BYTES;
	int err = read_blocks(stack, block, number, 1);
	if (err)
		return err;
	if (data)
		memcpy(block + at % DISK_BLOCK_BYTES, data, n);
	else
		memset(block + at % DISK_BLOCK_BYTES, 0, n);
	return write_blocks(stack, number, 1, block);
}

/* Whole blocks go to the log as they are, the parts at both ends by reading their block. */
static int write_locked(struct disk_stack *stack, const uint8_t *data, uint64_t n, uint64_t at)
{
	int err = 0;
	while (n > 0 && !err) {
		uint64_t skip = at % DISK_BLOCK_BYTES, whole = n / DISK_BLOCK_BYTES, done = whole * DISK_BLOCK_BYTES;
		if (skip || !whole) {
			done = MIN(DISK_BLOCK_BYTES - skip, n);
			err = write_part(stack, data, (size_t)done, at);
		} else if (data) {
			err = write_blocks(stack, at / DISK_BLOCK_BYTES, whole, data);
		} else {
			err = zero_blocks(stack, at / DISK_BLOCK_BYTES, whole);
		}
		data = data ? data + done : NULL;
		at += done, n -= done;
	}
	return err;
}

static int change(struct disk_stack *stack, const void *data, uint64_t n, uint64_t at)
{
	if (!within(stack, n, at))
		return EINVAL;
	pthread_rwlock_wrlock(&stack->lock);
	int err = write_locked(stack, data, n, at);
	pthread_rwlock_unlock(&stack->lock);
	return err;
}

int disk_stack_write(struct disk_stack *stack, const void *data, size_t n, uint64_t at) { return change(stack, data, n, at); }
int disk_stack_zero(struct disk_stack *stack, uint64_t n, uint64_t at) { return change(stack, NULL, n, at); }

/* ---- epochs ---- */

/* Position in the list of the sealed log of r, -1: there is none. */
static int sealed_at(const struct disk_stack *stack, struct epoch_id r)
{
	for (guint i = 0; i + 1 < stack->logs->len; i++)
		if (epoch_cmp(epoch_log_epoch(log_at(stack, i)), r) == 0)
			return (int)i;
	return -1;
}

/* The log of e: the spare if it is that, else a new one. */
static struct epoch_log *take_log(struct disk_stack *stack, struct epoch_id e, GError **error)
{
	struct epoch_log *spare = g_steal_pointer(&stack->spare);
	if (spare && (epoch_cmp(epoch_log_epoch(spare), e) == 0 || epoch_log_recycle(spare, stack->dir, e, NULL)))
		return spare;
	epoch_log_drop(spare);
	return epoch_log_create(stack->dir, e, stack->blocks, error);
}

/* D12: epochs from the open one on were given up before they were sealed: their blocks belong to r. */
static gboolean skip_to(struct disk_stack *stack, struct epoch_id r, GError **error)
{
	if (stack->spare && !epoch_log_recycle(stack->spare, stack->dir, epoch_next(r), NULL))   /* it may have the name */
		g_clear_pointer(&stack->spare, epoch_log_drop);
	return epoch_log_relabel(open_log(stack), stack->dir, r, error);
}

gboolean disk_stack_seal(struct disk_stack *stack, struct epoch_id r, uint64_t *ret_count, GError **error)
{
	struct epoch_id open = disk_stack_epoch(stack);
	uint64_t damaged = __atomic_load_n(&stack->damaged, __ATOMIC_RELAXED);
	if (damaged)
		return disk_fail_damaged(error, "block %" PRIu64 " of the overlay, or one that was read with it, has another checksum", damaged - 1);
	if (epoch_cmp(open, r) > 0)
		return disk_fail(error, "cannot seal epoch %" PRIu64 ": %" PRIu64 " is open", r.n, open.n);
	if (epoch_cmp(open, r) < 0 && !skip_to(stack, r, error))
		return FALSE;
	struct epoch_log *next = take_log(stack, epoch_next(r), error);
	if (!next)
		return FALSE;
	pthread_rwlock_wrlock(&stack->lock);
	struct epoch_log *log = open_log(stack);
	epoch_log_set_sealed(log, true);
	g_ptr_array_add(stack->logs, next);
	pthread_rwlock_unlock(&stack->lock);
	*ret_count = epoch_log_count(log);
	return TRUE;
}

/* Take a log out of the list; tidy removes it. */
static void retire(struct disk_stack *stack, guint i)
{
	pthread_rwlock_wrlock(&stack->lock);
	struct epoch_log *log = g_ptr_array_remove_index(stack->logs, i);
	pthread_rwlock_unlock(&stack->lock);
	g_ptr_array_add(stack->trash, log);
}

gboolean disk_stack_commit(struct disk_stack *stack, struct epoch_id r, GError **error)
{
	if (epoch_cmp(r, stack->committed) == 0)
		return TRUE;
	int last = sealed_at(stack, r);
	if (last < 0)
		return disk_fail(error, "cannot commit epoch %" PRIu64 ": not sealed here (committed %" PRIu64 ", open %" PRIu64 ")", r.n,
		                 stack->committed.n, disk_stack_epoch(stack).n);
	for (; last >= 0; last--) {
		struct epoch_log *oldest = log_at(stack, 0);
		MUST("D3", epoch_log_sealed(oldest) && epoch_cmp(epoch_log_epoch(oldest), r) <= 0);
		if (!overlay_fold(stack->overlay, oldest, error))
			return FALSE;
		stack->committed = epoch_log_epoch(oldest);
		retire(stack, 0);
	}
	return TRUE;
}

#define MERGE_BLOCKS 64u   /* copied in one hold of the lock */

/* Slots [i, end) of `from`, unless `to` has their blocks. */
static int merge_piece(const struct epoch_log *from, struct epoch_log *to, uint64_t i, uint64_t end)
{
	uint8_t data[DISK_BLOCK_BYTES];
	struct epoch_log_slot newer;
	int err = 0;
	for (; i < end && !err; i++) {
		struct epoch_log_slot slot = epoch_log_slot(from, i);
		if (epoch_log_find(to, slot.block, &newer))
			continue;
		if (slot.zero) {
			err = epoch_log_zero(to, slot.block, 1);
			continue;
		}
		err = epoch_log_read(from, slot.slot, 1, data);
		if (!err)
			err = epoch_log_write(to, slot.block, 1, data);
	}
	return err;
}

gboolean disk_stack_merge(struct disk_stack *stack, struct epoch_id r, GError **error)
{
	int at = sealed_at(stack, r);
	if (at < 0 && epoch_cmp(r, disk_stack_epoch(stack)) >= 0)
		return TRUE;   /* D12 */
	if (at < 0)
		return disk_fail(error, "cannot merge epoch %" PRIu64 ": not sealed here (committed %" PRIu64 ", open %" PRIu64 ")", r.n,
		                 stack->committed.n, disk_stack_epoch(stack).n);
	struct epoch_log *from = log_at(stack, (guint)at), *to = log_at(stack, (guint)at + 1);
	for (uint64_t i = 0; i < epoch_log_count(from); i += MERGE_BLOCKS) {
		pthread_rwlock_wrlock(&stack->lock);
		int err = merge_piece(from, to, i, MIN(i + MERGE_BLOCKS, epoch_log_count(from)));
		pthread_rwlock_unlock(&stack->lock);
		if (err)
			return disk_fail_errno(error, err, "cannot merge epoch %" PRIu64 " into %" PRIu64, r.n, epoch_log_epoch(to).n);
	}
	retire(stack, (guint)at);
	return TRUE;
}

/* Everything after the committed epoch goes; `next` is open and empty. */
static void restart_from(struct disk_stack *stack, struct epoch_log *next)
{
	pthread_rwlock_wrlock(&stack->lock);
	while (stack->logs->len > 0)
		g_ptr_array_add(stack->trash, g_ptr_array_remove_index(stack->logs, 0));
	g_ptr_array_add(stack->logs, next);
	pthread_rwlock_unlock(&stack->lock);
}

gboolean disk_stack_rollback(struct disk_stack *stack, struct epoch_id c, GError **error)
{
	if (!disk_stack_commit(stack, c, error)) {
		g_prefix_error(error, "rollback: ");
		return FALSE;
	}
	/* The names go before the new log is made: epoch c+1 is mostly there already, open, sealed, spare, or merged and not yet removed. */
	g_ptr_array_set_size(stack->trash, 0);
	for (guint i = 0; i < stack->logs->len; i++)
		epoch_log_unlink(log_at(stack, i));
	struct epoch_log *next = take_log(stack, epoch_next(c), error);
	if (!next)
		return FALSE;
	restart_from(stack, next);
	return TRUE;
}

void disk_stack_tidy(struct disk_stack *stack)
{
	struct epoch_id wanted = epoch_next(disk_stack_epoch(stack));
	while (!stack->spare && stack->trash->len) {   /* D22 */
		stack->spare = g_ptr_array_steal_index(stack->trash, 0);
		if (!epoch_log_recycle(stack->spare, stack->dir, wanted, NULL))
			g_clear_pointer(&stack->spare, epoch_log_drop);
	}
	g_ptr_array_set_size(stack->trash, 0);
	if (!stack->spare)
		stack->spare = epoch_log_create(stack->dir, wanted, stack->blocks, NULL);
}
