/* spawn.h - start a child that the kernel kills when this process ends.
 *
 * PR_SET_PDEATHSIG is sent when the *thread* that forked ends, not the process. So all forks are made by one thread of this module that is
 * started with the first and never ends: callers may be threads of any life. */
#ifndef VCFT_DISK_SPAWN_H
#define VCFT_DISK_SPAWN_H

#define DISK_SPAWN_FDS_MAX 4

#include "base/identity.h"

#include <glib.h>
#include <sys/types.h>

/* Run argv (found in PATH) as `who` (ID1); stdin and stdout are /dev/null, stderr is err_fd, fds[i] is its descriptor 3 + i, all others are closed.
 * The caller reaps *ret_pid. Any thread. */
gboolean disk_spawn(const char *const *argv, const int *fds, unsigned count, int err_fd, const struct identity *who, pid_t *ret_pid, GError **error);

#endif
