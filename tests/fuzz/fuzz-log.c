/* fuzz-log.c - D9: whatever an epoch's log and index hold, the reader refuses it or gives ascending blocks of the disk, each with 4096 bytes to read.
 *
 * Input: u8 slots that log.N has, u8 bytes of its header, that header (a sound one is underneath), the rest is the index. */
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

static void check(const struct disk_log *view)
{
	uint8_t sum = 0;
	demand(view->count <= BLOCKS);
	for (size_t i = 0; i < view->count; i++) {
		demand(view->block[i] < BLOCKS && (!i || view->block[i] > view->block[i - 1]));
		for (size_t k = 0; k < DISK_BLOCK_BYTES; k += 64)
			sum ^= view->data[i][k];
	}
	__asm__ volatile("" : : "r"(sum));   /* it was read */
}

static void write_header(struct input *in, uint64_t count)
{
	struct epoch_log_header h = { EPOCH_LOG_MAGIC, EPOCH_LOG_VERSION, DISK_BLOCK_BYTES, 7, BLOCKS, count, 1 };
	uint8_t bytes[sizeof h];
	memcpy(bytes, &h, sizeof h);
	size_t n = take(in, 1) % (sizeof h + 1);
	const uint8_t *given = take_bytes(in, &n);
	memcpy(bytes + sizeof h - n, given, n);
	demand(pwrite(log_fd, bytes, sizeof bytes, 0) == sizeof bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	GError *error = NULL;
	struct input in = { data, n };
	uint64_t slots = take(&in, 1), odd = take(&in, 2) % DISK_BLOCK_BYTES;
	demand(ftruncate(log_fd, (off_t)(slots * DISK_BLOCK_BYTES + odd)) == 0 && ftruncate(index_fd, 0) == 0);
	if (slots)
		write_header(&in, in.left / 8);
	demand(pwrite(index_fd, in.at, in.left, 0) == (ssize_t)in.left);
	struct disk_log *view = epoch_log_view(dir, epoch_of(7), BLOCKS, &error);
	demand((view == NULL) == (error != NULL));
	if (view)
		check(view);
	disk_log_free(view);
	g_clear_error(&error);
	return 0;
}
