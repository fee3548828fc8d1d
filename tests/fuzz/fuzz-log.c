/* fuzz-log.c - D9, D24: whatever an epoch's log and index hold, the reader refuses it or gives ascending blocks of the disk, each with 4096 bytes to read
 * and all with the checksums that the files say.
 *
 * Input: u8 slots that log.N has, u16 bytes behind them, u8 what is put right here (bit 0: the header's checksum, bit 1: those of the entries), u8 bytes of
 * the header, these (a sound one is underneath), the rest is the index. Slots are zero. */
#include "disk/log.h"
#include "disk/disk-private.h"
#include "fuzz.h"

#include <fcntl.h>
#include <unistd.h>

#define BLOCKS 64u

static char dir[] = "/dev/shm/vcft-fuzz-log-XXXXXX";
static int log_fd, index_fd;

static void clean(void)
{
	epoch_log_remove_all(dir, NULL);
	rmdir(dir);
}

static int make(const char *suffix)
{
	g_autofree char *path = epoch_log_path(dir, epoch_of(7), suffix);
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	demand(fd >= 0);
	return fd;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc, (void)argv;
	demand(mkdtemp(dir) != NULL);
	atexit(clean);
	log_fd = make("");
	index_fd = make(".idx");
	return 0;
}

static void check(const struct disk_log *view, const struct epoch_log_header *h, const struct epoch_log_entry *entry)
{
	static const uint8_t zeros[DISK_BLOCK_BYTES];
	uint8_t sum = 0;
	demand(view->count <= BLOCKS && h->count == view->count && h->sum == epoch_log_header_sum(h));
	for (size_t i = 0; i < view->count; i++)
		demand(entry[i].sum == epoch_log_sum(entry[i].word, zeros));
	for (size_t i = 0; i < view->count; i++) {
		demand(view->block[i] < BLOCKS && (!i || view->block[i] > view->block[i - 1]));
		for (size_t k = 0; k < DISK_BLOCK_BYTES; k += 64)
			sum ^= view->data[i][k];
	}
	__asm__ volatile("" : : "r"(sum));   /* it was read */
}

static struct epoch_log_header make_header(struct input *in, bool sound)
{
	struct epoch_log_header h = { EPOCH_LOG_MAGIC, EPOCH_LOG_VERSION, DISK_BLOCK_BYTES, 7, BLOCKS, 0, 1, 0 };
	size_t n = take(in, 1) % (sizeof h + 1);
	const uint8_t *given = take_bytes(in, &n);
	h.count = in->left / sizeof(struct epoch_log_entry);
	memcpy((uint8_t *)&h + sizeof h - n, given, n);
	if (sound)
		h.sum = epoch_log_header_sum(&h);
	return h;
}

static void put_right(struct epoch_log_entry *entry, size_t n)
{
	static const uint8_t zeros[DISK_BLOCK_BYTES];
	for (size_t i = 0; i < n; i++)
		entry[i].sum = epoch_log_sum(entry[i].word, zeros);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	GError *error = NULL;
	struct input in = { data, n };
	uint64_t slots = take(&in, 1), odd = take(&in, 2) % DISK_BLOCK_BYTES;
	uint8_t right = (uint8_t)take(&in, 1);
	struct epoch_log_header header = make_header(&in, right & 1);
	size_t bytes = in.left;
	g_autofree struct epoch_log_entry *entry = g_malloc(bytes + sizeof *entry);
	memcpy(entry, in.at, bytes);
	if (right & 2)
		put_right(entry, bytes / sizeof *entry);
	demand(ftruncate(log_fd, (off_t)(slots * DISK_BLOCK_BYTES + odd)) == 0 && ftruncate(index_fd, 0) == 0);
	demand(!slots || pwrite(log_fd, &header, sizeof header, 0) == sizeof header);
	demand(pwrite(index_fd, entry, bytes, 0) == (ssize_t)bytes);
	struct disk_log *view = epoch_log_view(dir, epoch_of(7), BLOCKS, &error);
	demand((view == NULL) == (error != NULL));
	if (view)
		check(view, &header, entry);
	disk_log_free(view);
	g_clear_error(&error);
	return 0;
}
