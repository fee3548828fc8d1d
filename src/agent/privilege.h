/* privilege.h - the agent starts as root and keeps of root's rights what it needs; see privilege.c for what and why. */
#ifndef VCFT_AGENT_PRIVILEGE_H
#define VCFT_AGENT_PRIVILEGE_H

#include <glib.h>

/* Give up all other capabilities for good, bounding set included. Before there is a second thread, for the sets are a thread's. No effect on an agent
 * that is not root. */
gboolean privilege_reduce(GError **error);

#endif
