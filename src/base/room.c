/* room.c - see room.h. A piece is small: the file is locked meanwhile, and whoever says stop waits for its end. */
#include "base/room.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#define PIECE_BYTES (UINT64_C(16) << 20)
#define BLOCK_BYTES 512u                     /* of st_blocks */

bool room_is_there(int fd, uint64_t bytes, uint64_t more)
{
	struct stat file;
	struct statvfs all;
	if (fstat(fd, &file) < 0 || fstatvfs(fd, &all) < 0)
		return false;
	uint64_t has = (uint64_t)file.st_blocks * BLOCK_BYTES, lacks = has < bytes ? bytes - has : 0;
	if (all.f_blocks == 0 || lacks + more <= (uint64_t)all.f_bavail * all.f_frsize)   /* no blocks at all: a tmpfs without a limit */
		return true;
	errno = ENOSPC;
	return false;
}

bool room_take(int fd, uint64_t bytes, const bool *stop)
{
	for (uint64_t at = 0, n; at < bytes; at += n) {
		n = bytes - at < PIECE_BYTES ? bytes - at : PIECE_BYTES;
		if (stop && __atomic_load_n(stop, __ATOMIC_ACQUIRE)) {
			errno = ECANCELED;
			return false;
		}
		int e;
		do
			e = fallocate(fd, 0, (off_t)at, (off_t)n) < 0 ? errno : 0;
		while (e == EINTR);
		if (e == EOPNOTSUPP)
			return true;
		errno = e;
		if (e)
			return false;
	}
	return true;
}
