/* process.h - a child process that dies with us.
 *
 * The child gets SIGKILL when the *thread* that started it ends (PR_SET_PDEATHSIG): start it from a thread that lives as long as the child
 * should. It inherits the descriptors named and 0-2 only, an empty signal mask, and a session of its own, and runs as the identity given (ID1). The
 * log stays ours: the child has it open, and cannot name it. */
#ifndef VCFT_VM_PROCESS_H
#define VCFT_VM_PROCESS_H

#include "base/identity.h"

#include <glib.h>
#include <stdbool.h>
#include <sys/types.h>

struct process { pid_t pid; int pidfd; int log; };   /* log: file with what it wrote to 1 and 2 */

/* argv[0] is an absolute path. keep: descriptors to inherit under their numbers (-1: none). log_path: made anew. */
gboolean process_start(struct process *process, char **argv, char **env, const int *keep, unsigned keep_count, const char *log_path,
                       const struct identity *who, GError **error);
/* SIGKILL. Any thread, as long as nobody calls process_end(). */
void process_kill(const struct process *process);
/* SIGKILL, wait, close. May be called on one that never started (pid 0). */
void process_end(struct process *process);
/* The last lines of the log, one line, "" if there are none. */
char *process_log(const struct process *process);

#endif
