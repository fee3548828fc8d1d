/* control.h - the agent's control socket: one JSON object a line each way; the other end is src/cli.
 *
 *  CS1 Who speaks is known by the kernel (SO_PEERCRED, SO_PEERGROUPS). Root and the agent's own user may give every verb, members of `control_group:`
 *      those that only read: status and events. `up` names files that the agent reads as root, `console` is the guest's keyboard, `down`,
 *      `checkpoint` and `bare` stop VMs. Others are told so, and heard no more.
 *
 * A line is at most CONTROL_LINE_MAX bytes; a client that does not read is
 * closed when CONTROL_BACKLOG_MAX bytes wait for it. Loop's thread. */
#ifndef VCFT_AGENT_CONTROL_H
#define VCFT_AGENT_CONTROL_H

#include "agent/agent.h"

#define CONTROL_LINE_MAX (1u << 20)
#define CONTROL_BACKLOG_MAX (4u << 20)

struct control;

struct control *control_new(struct agent *agent, const char *path, GError **error);
void control_free(struct control *control);

#endif
