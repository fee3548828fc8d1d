/* group.h - ordered, membership-aware messages between agents.
 *
 * G1 All members deliver the same messages in the same order, each its own too. G2 Membership changes are part of that order: members
 * that go on together have delivered the same messages before it (virtual synchrony). G3 A message is delivered by all that
 * stay, or by none but those that fail. Backends: corosync (CPG, votequorum), local (one host, in process).
 * Thread: the loop's. Callbacks come from the loop, never from inside group_mcast(). */
#ifndef VCFT_GROUP_GROUP_H
#define VCFT_GROUP_GROUP_H

#include "base/types.h"

#include <glib.h>

struct group;

struct group_callbacks {
	/* data is borrowed for the call. */
	void (*deliver)(struct host_id from, const uint8_t *data, size_t n, void *user);
	/* members: the agents that are in the group now, self among them. */
	void (*membership)(host_mask members, bool quorate, void *user);
	/* The group cannot be used any more (corosync ended): fail-stop. */
	void (*lost)(const char *why, void *user);
};

struct group_backend {
	const char *name;
	/* Join; callbacks start from the loop. NULL with error set: not possible here. */
	struct group *(*join)(const struct group_callbacks *callbacks, void *user, GError **error);
	struct host_id (*self)(const struct group *group);
	/* Queue a message (copied); never blocks, never fails: flow control is inside. n <= 600 KiB. */
	void (*mcast)(struct group *group, const void *data, size_t n);
	void (*leave)(struct group *group);
};

extern const struct group_backend group_corosync, group_local;

/* Does corosync run here, set up so that group_corosync can be joined? detail gets one line: what it is, or what is wrong. Joins nothing. */
bool group_corosync_probe(char *detail, size_t room);

#endif
