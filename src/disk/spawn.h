/* spawn.h - start a child that the kernel kills when this process ends.
 *
 * PR_SET_PDEATHSIG is sent when the *thread* that forked ends, not the process. So all forks are made by one thread of this module that is
 * started with the first and never ends: callers may be threads of any life. */
#ifndef VCFT_DISK_SPAWN_H
#define VCFT_DISK_SPAWN_H

#include <glib.h>
#include <sys/types.h>

/* Run argv (found in PATH); stdin and stdout are /dev/null, stderr is err_fd, fd is its descriptor target_fd, all others are closed. The
 * caller reaps *ret_pid. Any thread. */
gboolean disk_spawn(const char *const *argv, int fd, int target_fd, int err_fd, pid_t *ret_pid, GError **error);

#endif
