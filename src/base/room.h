/* room.h - the space that a sparse file lacks, in its file system: is it there, and take it.
 *
 * RM1 On a tmpfs that is full, writing to a hole of a mapping raises SIGBUS. What was taken is there, and is a hole still for SEEK_DATA. */
#ifndef VCFT_BASE_ROOM_H
#define VCFT_BASE_ROOM_H

#include <stdbool.h>
#include <stdint.h>

/* Would the rest of a file of so many bytes fit now, and `more` bytes of others? False: no, or it cannot be told (errno). Somebody else may take it a
 * moment later. */
bool room_is_there(int fd, uint64_t bytes, uint64_t more);
/* Take it, piece by piece; a file system that cannot is no error. False: errno; ECANCELED: *stop has become true (NULL: never). The pieces that were taken
 * stay taken. Any thread, also while others write to the file. Some 0.15 ms per MiB that was a hole, for the kernel clears it. */
bool room_take(int fd, uint64_t bytes, const bool *stop);

#endif
