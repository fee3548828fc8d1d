/* preload.c - virtcft-preload.so, loaded into QEMU by LD_PRELOAD: lets the kernel note which pages of guest RAM are written.
 *
 *   QEMU: mmap(RAM file) ──► here: the real mmap, then userfaultfd on the mapping: register ──► address to the agent
 *
 * L1 It acts on the first shared, writable mapping of the RAM file (same device and inode) and on nothing else; every other call goes
 *    straight to the kernel.
 * L2 Whatever fails here, the mapping is as QEMU asked for it: the agent is told and takes another tracker.
 * L3 No library call that QEMU could notice: no allocation, errno kept, the variables are taken out of the environment.
 * L4 If it is given the device for it (PRELOAD_FAULTS), QEMU also waits for pages that the file does not have, until the agent puts them there: the agent
 *    takes a copy of the userfaultfd for that. Where that cannot be had, nobody waits, and the agent is told.
 * The userfaultfd is kept open until QEMU ends: closing it would end the protection. Nothing is protected here (track-uffd.c). */
#undef _FILE_OFFSET_BITS /* else the C library's headers make mmap another name for mmap64; both are defined here */

#include "vm/preload/preload.h"
#include "vm/preload/uffd.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define EXPORT __attribute__((visibility("default")))

static struct { dev_t device; ino_t inode; int tell, uffd, faults; } ram = { .tell = -1, .uffd = -1, .faults = -1 };

__attribute__((constructor)) static void prepare(void)
{
	const char *path = getenv(PRELOAD_RAM), *tell = getenv(PRELOAD_TELL), *faults = getenv(PRELOAD_FAULTS);
	struct stat st;
	if (path && tell && stat(path, &st) == 0) {
		ram.device = st.st_dev;
		ram.inode = st.st_ino;
		ram.tell = atoi(tell);
		fcntl(ram.tell, F_SETFD, FD_CLOEXEC);
		ram.faults = faults ? atoi(faults) : -1;
		if (ram.faults >= 0)
			fcntl(ram.faults, F_SETFD, FD_CLOEXEC);
	}
	unsetenv(PRELOAD_RAM);
	unsetenv(PRELOAD_FAULTS);
	unsetenv(PRELOAD_TELL);
	unsetenv("LD_PRELOAD");
}

static int is_ram(int prot, int flags, int fd, off_t offset)
{
	struct stat st;
	return ram.tell >= 0 && fd >= 0 && (prot & PROT_WRITE) && (flags & MAP_SHARED) && offset == 0 && fstat(fd, &st) == 0 &&
	       st.st_dev == ram.device && st.st_ino == ram.inode;
}

static uint32_t track(int uffd, uint64_t address, uint64_t bytes, uint64_t missing)
{
	if (uffd < 0)
		return PRELOAD_OPEN;
	if (uffd_api(uffd) != 0)
		return PRELOAD_API;
	if (uffd_register(uffd, address, bytes, missing) != 0)
		return PRELOAD_REGISTER;
	return PRELOAD_DONE;
}

/* L4. False: as if it had not been asked for. */
static int track_missing(uint64_t address, uint64_t bytes)
{
	if (ram.faults < 0)
		return 0;
	ram.uffd = uffd_open_by(ram.faults);
	close(ram.faults);
	if (track(ram.uffd, address, bytes, UFFDIO_REGISTER_MODE_MISSING) == PRELOAD_DONE)
		return 1;
	if (ram.uffd >= 0)
		close(ram.uffd);
	return 0;
}

static void track_and_tell(void *address, size_t bytes)
{
	int saved = errno;
	bytes = (bytes + 4095) & ~(size_t)4095;
	int missing = track_missing((uintptr_t)address, bytes);
	if (!missing)
		ram.uffd = uffd_open();
	uint32_t step = missing ? PRELOAD_DONE : track(ram.uffd, (uintptr_t)address, bytes, 0);
	struct preload_answer answer = { (uintptr_t)address, bytes, step, step == PRELOAD_DONE ? 0 : errno, missing ? ram.uffd : -1 };
	if (step != PRELOAD_DONE && ram.uffd >= 0)
		close(ram.uffd);
	if (write(ram.tell, &answer, sizeof answer) != sizeof answer && ram.uffd >= 0)
		close(ram.uffd);
	close(ram.tell);
	ram.tell = -1;
	errno = saved;
}

EXPORT void *mmap(void *address, size_t bytes, int prot, int flags, int fd, off_t offset)
{
	void *map = (void *)syscall(SYS_mmap, address, bytes, prot, flags, fd, offset);
	if (map != MAP_FAILED && is_ram(prot, flags, fd, offset))
		track_and_tell(map, bytes);
	return map;
}

EXPORT void *mmap64(void *address, size_t bytes, int prot, int flags, int fd, off_t offset)
{
	return mmap(address, bytes, prot, flags, fd, offset);
}
